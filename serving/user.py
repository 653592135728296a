"""Who runs us, on machines that have no name or home for the user, as many containers."""

import getpass
import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where the user keeps what can be made again: ``medgen`` in XDG_CACHE_HOME or ~/.cache.

    For a user without a home it is /tmp/medgen-UID. Raises OSError if that is not the user's alone: programs are
    started from there, and anyone may have made it.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "medgen"
    try:
        return Path.home() / ".cache" / "medgen"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        pass
    folder = Path(tempfile.gettempdir()) / f"medgen-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder that you alone can write to; set XDG_CACHE_HOME to one that is")
    return folder


def have_a_name() -> None:
    """Libraries ask for the user's name when they are imported, and fail if there is none: then it is the number."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
