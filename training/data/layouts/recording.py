"""What a layout of cardiac MRI finds on disk: an image file and its mask file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recording:
    """An image file, its mask file, and which moments of the heart they show."""

    patient: str
    image: Path
    mask: Path
    frames: Mapping[str, int | None]  # a moment's name -> its index along the time axis; None: the files have none
    labels: tuple[int, ...]  # what a value in the mask file becomes
