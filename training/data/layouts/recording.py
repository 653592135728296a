"""What a layout of cardiac MRI finds on disk: an image file and its mask file."""

from collections import Counter
from collections.abc import Mapping, Sequence
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


def prefixes(recordings: Sequence[Recording], folder: Path) -> list[str]:
    """What makes names unique: nothing or, where several folders have a patient of the same name, the folder's."""
    homes = {(recording.patient, recording.image.parent) for recording in recordings}
    count = Counter(patient for patient, _ in homes)
    return [_place(each, folder) if count[each.patient] > 1 else "" for each in recordings]


def _place(recording: Recording, folder: Path) -> str:
    home = recording.image.parent
    place = (home.parent if home.name == recording.patient else home).relative_to(folder).as_posix()
    return f"{place}/" if place != "." else ""
