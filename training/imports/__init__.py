"""Checkpoints of other people's code: one module a layout, which renames weights and guesses nothing."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from training import CheckpointError


def read_pickle(file: Path) -> tuple[Any, str]:
    """What ``torch.save`` wrote, if it is tensors, numbers, strings and containers alone, and the file's sha256.

    Raises:
        CheckpointError: it cannot be read, or holds other objects, which would run code; the message names them.
    """
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return torch.load(file, map_location="cpu", weights_only=True), digest
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file} holds more than weights, or is broken: {str(error).splitlines()[0]}. Where it was trained, save "
            "it again with torch.save(model.state_dict(), FILE)"
        ) from error
