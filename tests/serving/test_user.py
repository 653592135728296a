"""Users that have no home, or no name."""

import getpass
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serving.user import cache_folder, have_a_name


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("serving.user.Path.home", no_home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = cache_folder()
    assert folder == tmp_path / f"medgen-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder() == folder


@pytest.mark.parametrize("trap", ["link", "writable"])
def test_a_cache_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("serving.user.Path.home", no_home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"medgen-{os.getuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(OSError, match="not a folder that you alone can write to; set XDG_CACHE_HOME"):
        cache_folder()


def test_a_user_without_a_name_is_called_by_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the list of users of this machine there is none."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    have_a_name()
    assert getpass.getuser() == str(2**31 - 7)
    monkeypatch.setenv("LOGNAME", "radiologist")
    have_a_name()
    assert getpass.getuser() == "radiologist"


def test_models_are_loaded_for_a_user_without_a_name() -> None:
    """MONAI asks when it is imported, which is here in another process."""
    load = "import os; os.getuid = lambda: 2**31 - 7; from training.models import load_family; load_family('cmr_mask')"
    bare = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    subprocess.run([sys.executable, "-c", load], cwd=Path(__file__).parents[2], env=bare, check=True)
