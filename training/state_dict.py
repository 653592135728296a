"""A file of weights that others have published, as torch.save writes it."""

import pickle
from pathlib import Path
from typing import Any

import torch


def read_published(file: Path) -> Any:
    """What is in it, on the CPU: tensors and what they are kept in. Code in it is not run.

    Raises:
        ValueError: it is no such file, is broken, or holds other objects.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:  # whose words advise to run what is in it
        raise ValueError(f"{file} cannot be read: it holds more than tensors, or is no file of torch.save's") from error
    except Exception as error:  # a broken file raises anything
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from error
