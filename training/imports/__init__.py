"""Checkpoints of other people's code: one module a layout, which renames weights and guesses nothing."""

from pathlib import Path
from typing import Any

import torch

from serving.bundle import file_digest
from training import CheckpointError
from training.state_dict import read_published


def read_pickle(file: Path) -> tuple[Any, str]:
    """What ``torch.save`` wrote, if it is tensors, numbers, strings and containers alone, and the file's sha256.

    Raises:
        CheckpointError: it cannot be read, or holds other objects, which would run code.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is not there")
    try:
        return read_published(file), file_digest(file)
    except ValueError as error:
        held = ", ".join(objects(file)[:3])
        raise CheckpointError(
            f"{error}{f'; it holds {held}' if held else ''}. Where it was trained, save it again with "
            "torch.save(model.state_dict(), FILE)"
        ) from error


def objects(file: Path) -> list[str]:
    """The classes and functions that reading a file would call, as far as its format tells; none is called."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # of a broken file, or of torch's older format
        return []
