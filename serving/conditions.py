"""What a model is to draw under, read from files as the model wants it."""

from collections.abc import Sequence
from pathlib import Path

from serving.client import Client
from serving.client_checks import Given
from serving.condition_files import MaskFileError, Masks, read_masks
from serving.picture_files import SUFFIXES, read_pictures


def read_condition(client: Client, model: str, files: Sequence[Path]) -> tuple[Given | None, list[str]]:
    """The masks or pictures of files, None without one, and what is to be said of them.

    Raises MaskFileError, PictureFileError and SamplingError.
    """
    if not files:
        return None, []
    if picture := client.picture(model):
        return read_pictures(files, picture)
    if len(files) > 1:
        raise MaskFileError(f"{files[1]} is one file too many: {model} takes masks of one file, or no condition at all")
    if files[0].is_dir() or files[0].suffix.lower() in SUFFIXES:
        raise MaskFileError(
            f"{files[0]} is of pictures, and {model} draws under none: it takes masks, or no condition at all"
        )
    masks = read_masks(files[0])
    unsaid = [] if masks.labels else [f"{files[0].name} does not name its classes: only their range was checked"]
    return masks, unsaid


def check_count(given: Given, files: Sequence[Path], wanted: int | None) -> int:
    """How many samples there are to draw: one for each; raises MaskFileError if another number is wanted."""
    if wanted not in (None, held := len(given.values)):
        kind = "masks" if isinstance(given, Masks) else "pictures"
        raise MaskFileError(
            f"{', '.join(map(str, files))} holds {held} {kind}, and --count is {wanted}: give one for each"
        )
    return held
