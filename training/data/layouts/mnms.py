"""Where M&Ms (Campello et al. 2021) keeps its images, masks and labels on disk."""

import csv
import re
from pathlib import Path

from training.data.layouts.recording import Recording
from training.data.problems import Problems

LABELS = (0, 1, 2, 3)  # what a value in a mask file becomes
COLUMNS = {"externalcode", "ed", "es"}


def find_table(folder: Path) -> Path | None:
    """The CSV that names every subject's frames; its file name has a date and differs between releases."""
    return next((path for path in sorted(folder.glob("*.csv")) if COLUMNS.issubset(_columns(path))), None)


def _columns(table: Path) -> list[str]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [name.replace(" ", "").lower() for name in next(csv.reader(file), [])]


def find_recordings(folder: Path, problems: Problems) -> list[Recording]:
    """The subjects in the folders of the data set, but those in ``Unlabeled``, whose masks are blank."""
    table = find_table(folder)
    if table is None:
        return []
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
        recordings.append(Recording(code, image, home / f"{code}_sa_gt.nii.gz", numbers, LABELS))
    return recordings
