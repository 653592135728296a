"""Prepared slices on disk, in the user's cache folder, so that a recording is prepared once."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.user import cache_folder
from training.data.layouts.recording import Recording
from training.data.layouts.stacks import read_stacks
from training.data.preparation.resize import Floats
from training.data.preparation.short_axis import SETTINGS, prepare
from training.data.problems import DataError, Problems


class Slices(NamedTuple):
    """``names`` [N] of a recording's slices, ``images`` float32 [N, 128, 128] and ``masks`` uint8 [N, 128, 128].

    Of the files they came from: ``spacing`` [3] in mm, and ``axes`` [] and ``turned`` [] as ``Stacks`` has them;
    ``below_zero`` [] says that they hold values below 0.
    """

    names: NDArray[np.str_]
    images: Floats
    masks: NDArray[np.uint8]
    spacing: NDArray[np.float64]
    axes: NDArray[np.str_]
    turned: NDArray[np.str_]
    below_zero: NDArray[np.bool_]


def prepared_slices(recording: Recording, problems: Problems) -> Slices | None:
    """The slices of a recording, or None and what is wrong with its files added to ``problems``.

    The files are known again by their path, size and time of change. What is kept is written aside and renamed, and
    made anew if it cannot be read.
    """
    kept = cache_folder() / "hearts" / f"{recording.patient}-{_key(recording)}.npz"
    if slices := _read(kept):
        return slices
    stacks = read_stacks(recording, problems)
    if stacks is None:
        return None
    with problems.of(recording.mask):
        hearts = {name: prepare(stack) for name, stack in stacks.by_frame.items()}
        any_stack = next(iter(stacks.by_frame.values()))
        slices = Slices(
            np.array([f"{name}_slice{level:02d}" for name, heart in hearts.items() for level in heart.levels]),
            np.concatenate([heart.images for heart in hearts.values()]),
            np.concatenate([heart.masks for heart in hearts.values()]),
            np.array(any_stack.spacing),
            np.array(stacks.axes),
            np.array(stacks.turned),
            np.array(any(stack.image.min() < 0 for stack in stacks.by_frame.values())),
        )
        _write(kept, slices)
    return slices


def _key(recording: Recording) -> str:
    files = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in (recording.image, recording.mask)
        if path.is_file()
    ]
    identity = json.dumps([SETTINGS, files, dict(recording.frames), recording.labels])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _read(path: Path) -> Slices | None:
    try:
        with np.load(path) as arrays:
            return Slices(**arrays)
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile):  # there is none, or not all of it
        return None


def _write(path: Path, slices: Slices) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            np.savez(file, **slices._asdict())
        aside.replace(path)
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path.parent} cannot be written: {why}; XDG_CACHE_HOME names another place") from error
    finally:
        aside.unlink(missing_ok=True)
