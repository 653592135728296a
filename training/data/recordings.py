"""Where ACDC (Bernard et al. 2018) and M&Ms (Campello et al. 2021) keep their images, masks and labels on disk."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.data.loaded import Problems

LABELS = ("background", "LV", "MYO", "RV")  # of every mask that we read, by its value
FIELD_OF_VIEW = 160.0  # mm of every slice that is prepared, along rows and columns
ACDC_LABELS = (0, 3, 2, 1)  # what a value in ACDC's files becomes
MNMS_LABELS = (0, 1, 2, 3)
MNMS_COLUMNS = {"externalcode", "ed", "es"}


@dataclass(frozen=True)
class Recording:
    """An image file, its mask file, and which moments of the heart they show."""

    patient: str
    image: Path
    mask: Path
    frames: Mapping[str, int | None]  # a moment's name -> its index along the time axis; None: the files have none
    labels: tuple[int, ...]  # what a value in the mask file becomes


def holds_recordings(folder: Path) -> bool:
    """Whether a folder is ACDC, or a part of it, or M&Ms."""
    return bool(_acdc_patients(folder)) or _mnms_table(folder) is not None


def find_recordings(folder: Path, problems: Problems) -> list[Recording]:
    """Every image or mask at end-diastole or end-systole that is there or should be; nothing of it is read yet."""
    if patients := _acdc_patients(folder):
        return [recording for patient in patients for recording in _acdc_recordings(patient, problems)]
    table = _mnms_table(folder)
    return [] if table is None else _mnms_recordings(folder, table, problems)


def _acdc_patients(folder: Path) -> list[Path]:
    paths = sorted([*folder.glob("patient*"), *folder.glob("*/patient*")])
    return [path for path in paths if re.fullmatch(r"patient\d{3}", path.name) and path.is_dir()]


def _acdc_recordings(patient: Path, problems: Problems) -> list[Recording]:
    """The frames in a patient's folder, with or without ``_gt``, and those that its ``Info.cfg`` names."""
    names = [re.fullmatch(r"patient\d{3}_frame(\d+)(?:_gt)?\.nii\.gz", path.name) for path in patient.iterdir()]
    numbers = {int(name[1]) for name in names if name}
    info = patient / "Info.cfg"
    if info.is_file():
        named = re.findall(r"^E[DS]\s*:\s*(\d+)\s*$", info.read_text(errors="replace"), re.MULTILINE)
        if len(named) != 2:
            problems.add(info, "does not name the frames ED and ES")
        numbers |= {int(number) for number in named}
    elif not numbers:
        problems.add(patient, "holds no frame")
    return [
        Recording(patient.name, patient / f"{stem}.nii.gz", patient / f"{stem}_gt.nii.gz", {stem: None}, ACDC_LABELS)
        for stem in (f"{patient.name}_frame{number:02d}" for number in sorted(numbers))
    ]


def _mnms_table(folder: Path) -> Path | None:
    """The CSV that names every subject's frames; its file name has a date and differs between releases."""
    return next((path for path in sorted(folder.glob("*.csv")) if MNMS_COLUMNS.issubset(_columns(path))), None)


def _columns(table: Path) -> list[str]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [name.replace(" ", "").lower() for name in next(csv.reader(file), [])]


def _mnms_recordings(folder: Path, table: Path, problems: Problems) -> list[Recording]:
    """The subjects in the folders of the data set, but those in ``Unlabeled``, whose masks are blank."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = {row["externalcode"]: row for row in list(csv.DictReader(file, _columns(table)))[1:]}
    recordings = []
    for home, code in sorted({(path.parent, path.name.split("_sa")[0]) for path in folder.rglob("*_sa*.nii.gz")}):
        image = home / f"{code}_sa.nii.gz"
        if "Unlabeled" in image.relative_to(folder).parts:
            continue
        if code not in rows:
            problems.add(image, f"has no row in {table.name}")
            continue
        frames = {f"{code}_{moment}": rows[code][moment.lower()] for moment in ("ED", "ES")}
        if not all(re.fullmatch(r"\d+", number or "") for number in frames.values()):
            problems.add(table, f"has the frames {list(frames.values())} for {code}; these are no numbers")
            continue
        numbers = {name: int(number) for name, number in frames.items()}
        recordings.append(Recording(code, image, home / f"{code}_sa_gt.nii.gz", numbers, MNMS_LABELS))
    return recordings
