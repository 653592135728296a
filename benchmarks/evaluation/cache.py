"""What takes long, kept beside the report: a run that was cut short goes on where it was."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
MADE_WITH = ("medgen", "torch", "monai", *ENGINES)  # whose other versions may make other arrays
FORMATS = {"features": 2, "membership": 2}  # of figures: one more where the code that makes them changes
FIGURES_WITH = (*MADE_WITH, "diffusers", "SimpleITK", "torchmetrics")


class Cache:
    """A folder of .npz files, each named by what its arrays were made of, and with which versions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arrays(self, what: str, made_of: Any, make: Callable[[], Arrays]) -> Arrays:
        """What ``make`` gives or, of the same ``made_of`` (as JSON holds it), gave before.

        It is written aside and renamed, and made anew if it cannot be read.
        """
        versions = {"format": FORMATS[what], **versions_of(FIGURES_WITH)} if what in FORMATS else versions_of(MADE_WITH)
        key = hashlib.sha256(json.dumps([what, made_of, versions], sort_keys=True).encode()).hexdigest()[:32]
        file = self.folder / f"{what}-{key}.npz"
        try:
            with np.load(file) as kept:
                return dict(kept)
        except (EOFError, OSError, ValueError, zipfile.BadZipFile):  # there is none, or not all of it
            pass
        arrays = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with aside.open("wb") as stream:
                np.savez(stream, **arrays)
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)
        return arrays


@cache
def versions_of(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Of installed packages by name; None of one that is not."""

    def found(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: found(package) for package in packages}
