"""What a model repository has of a model beside its bundle: the files that medgen ships."""

import os
import shutil
import time
from pathlib import Path

from serving.bundle import TEMPLATES, BundleError
from serving.folders import PATIENCE, Busy, replacing

OWN_FILES = ("config.pbtxt", "1/model.py", "1/.gitkeep")


def prepare_repository(repository: Path, model: str) -> None:
    """Give the repository the folder of a model or chain as medgen has it, if it has none yet.

    Of one that is there, what is missing or cut short, as a full disk leaves it, is written again; all else is kept.
    Raises BundleError if medgen has none, Busy if somebody else is at it for long.
    """
    ours, theirs = TEMPLATES / model, repository / model
    deadline = time.monotonic() + PATIENCE
    while not theirs.is_dir():
        if not ours.is_dir():
            raise BundleError(f"{ours} is missing: a model family needs its folder in model_repository")
        try:
            _make(theirs, ours)
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    for file in OWN_FILES:
        if (ours / file).is_file() and is_cut_short(theirs / file, ours / file):
            (theirs / file).parent.mkdir(exist_ok=True)
            aside = (theirs / file).with_name(f".{Path(file).name}.{os.getpid()}.new")  # two may be at it
            shutil.copyfile(ours / file, aside)
            aside.replace(theirs / file)


def _make(theirs: Path, ours: Path) -> None:
    """Raises Busy if somebody else does, or has: what may be in it by now is not to be replaced."""
    with replacing(theirs) as (new,):
        if theirs.is_dir():
            raise Busy(f"another process has made {theirs}")
        for file in OWN_FILES:
            if (ours / file).is_file():
                (new / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(ours / file, new / file)


def is_cut_short(file: Path, whole: Path) -> bool:
    """It is not there, or ends before the end."""
    if not file.exists():
        return True
    content, all_of_it = file.read_bytes(), whole.read_bytes()
    return len(content) < len(all_of_it) and all_of_it.startswith(content)
