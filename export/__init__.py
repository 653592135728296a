"""Checkpoints become bundles: ONNX graphs or TensorRT plans that are checked against PyTorch."""

from typing import Protocol

# First: importing `serving` keeps ONNX Runtime from telling others of our models.
from serving.namesakes import check_names

check_names()


class BuildError(Exception):
    """The bundle was not built; the message says why."""


class ToleranceError(BuildError):
    """What was built is further from PyTorch than it may be."""


class Progress(Protocol):
    """Is told what is being done and, of work that can be counted, how much of it is done."""

    def __call__(self, line: str, done: int = 0, total: int | None = None) -> object: ...


def silent(line: str, done: int = 0, total: int | None = None) -> None:
    """Progress that nobody sees."""
