"""Paths, users and working directories that are not as one is used to."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from live import CHECKOUT, add_model, running

from serving.triton.errors import ServerError
from serving.triton.log import why_ended
from serving.triton.served_models import find_models


def test_spaces_accents_and_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts the processes of models by a line for a shell, in which it quotes nothing."""
    repository = tmp_path / "ma dépôt; $(exit 1)" / "mod 'els"
    repository.mkdir(parents=True)
    add_model(repository, "tiny")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "die Küche & Co"))
    monkeypatch.setenv("LC_ALL", "C")
    with running(repository, host="::1") as live:
        for protocol in ("grpc", "http"):
            with live.client(protocol) as client:
                assert client.sample("tiny", 2).seeds == [0, 1]
        assert f"gRPC [::1]:{live.ports['grpc']}" in live.said()
        assert "Triton 2." in live.said()


@pytest.mark.parametrize("name", ["a b", "a;b", "$(id)", "é", "-x"])
def test_a_model_whose_name_would_break_the_line_is_refused(tmp_path: Path, name: str) -> None:
    add_model(tmp_path, name)
    add_model(tmp_path, "tiny")
    served, passed_over = find_models(tmp_path)
    assert served == ["tiny"]
    assert "its name may have letters, digits and _ - . alone" in passed_over[name]
    with pytest.raises(ServerError, match="cannot be served: its name may have"):
        find_models(tmp_path, [name])


def test_a_folder_of_the_same_name_does_not_hide_ours(tmp_path: Path) -> None:
    """An editable install puts the checkout on the path; a finder of setuptools' would come after such a folder."""
    pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "README.md", "LICENSE", *(p.parent.name for p in CHECKOUT.glob("*/__init__.py"))):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    build = "from setuptools import build_meta; print(build_meta.build_editable('wheel'), end='')"
    built = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / "wheel" / built.stdout.splitlines()[-1]) as wheel:
        paths = {name: wheel.read(name).decode() for name in wheel.namelist() if name.endswith((".pth", ".py"))}
    (path,) = paths.values()
    assert path == f"{tmp_path}\n"
    (tmp_path / "here" / "export").mkdir(parents=True)
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.append({path.strip()!r}); import export; print(export)"],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{tmp_path}/export/__init__.py" in found.stdout + found.stderr


def test_a_crash_is_told_in_words() -> None:
    log = [
        'W1126 04:15:36.894991 30005 pinned_memory_manager.cc:170] "no pinned memory pool"',
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "  what():  std::bad_alloc",
        "Signal (6) received.",
        " 0# 0x000055DFD737788E in tritonserver",
        "23# 0x00007FB977F278EC in /lib/x86_64-linux-gnu/libc.so.6",
        "",
        'I1126 04:05:06.391219 16758 pb_stub.cc:2145]  "Non-graceful termination detected."',
    ]
    assert why_ended(log, -6) == (
        "tritonserver ended with code -6 (SIGABRT): "
        "terminate called after throwing an instance of 'std::bad_alloc' what():  std::bad_alloc"
    )
    assert why_ended([], -9) == "tritonserver ended with code -9 (SIGKILL): it said nothing"
    assert why_ended(["out of luck", "| table |", "+---+"], 1) == "tritonserver ended with code 1: out of luck"
