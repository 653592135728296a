"""Where M&Ms (Campello et al. 2021) keeps its images, masks and labels on disk."""

import csv
import io
import re
from collections import defaultdict
from pathlib import Path

from training.data.layouts.recording import Recording
from training.data.problems import Problems

NAME = "M&Ms"
LABELS = (0, 1, 2, 3)  # what a value in a mask file becomes
COLUMNS = {"externalcode", "ed", "es"}
DELIMITERS = ",;\t"  # the last two are what spreadsheets write in many countries
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def find_table(folder: Path) -> Path | None:
    """The CSV that names every subject's frames; its file name has a date and differs between releases."""
    return next(iter(_tables(folder)), None)


def holds_images(folder: Path) -> bool:
    """Whether files have the names of M&Ms' images, table or no table."""
    return any(folder.rglob("*_sa.nii.gz"))


def find_recordings(folder: Path, problems: Problems) -> list[Recording]:
    """The subjects in the folders of the data set, but those in ``Unlabeled``, whose masks are blank."""
    table, *others = _tables(folder)
    for other in others:
        problems.add(other, f"is a table of subjects, and so is {table.name}; there must be one")
    rows = _rows_by_code(table, problems)
    recordings = []
    for home, code in sorted({(path.parent, path.name.split("_sa")[0]) for path in folder.rglob("*_sa*.nii.gz")}):
        image = home / f"{code}_sa.nii.gz"
        if "Unlabeled" in image.relative_to(folder).parts:
            continue
        if code not in rows:
            problems.add(image, f"has no row in {table.name}")
            continue
        if len(rows[code]) > 1:
            problems.add(table, f"has {len(rows[code])} rows for {code}; there must be one")
            continue
        frames = {f"{code}_{moment}": rows[code][0][moment.lower()] for moment in ("ED", "ES")}
        if not all(re.fullmatch(r"\d+", number or "") for number in frames.values()):
            problems.add(table, f"has the frames {list(frames.values())} for {code}; these are no numbers")
            continue
        numbers = {name: int(number) for name, number in frames.items()}
        recordings.append(Recording(code, image, home / f"{code}_sa_gt.nii.gz", numbers, LABELS))
    return recordings


def _tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.csv")) if COLUMNS.issubset(_lines(path)[0])]


def _rows_by_code(table: Path, problems: Problems) -> dict[str, list[dict[str, str]]]:
    columns, *lines = _lines(table)
    for column in sorted(COLUMNS):
        if columns.count(column) > 1:
            problems.add(table, f"has {columns.count(column)} columns {column!r}; there must be one")
    rows = defaultdict(list)
    for line in lines:
        row = dict(zip(columns, [*line, *[""] * len(columns)], strict=False))
        rows[row["externalcode"].strip()].append(row)
    return rows


def _lines(table: Path) -> list[list[str]]:
    """The cells of a CSV in UTF-8 or UTF-16, whatever the delimiter; the first line's are names without spaces."""
    content = table.read_bytes()
    text = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig", errors="replace")
    text = io.StringIO(text.replace("\0", ""), newline=None).read()  # NULs of UTF-16 that does not say so
    first = text.partition("\n")[0]
    try:
        lines = list(csv.reader(io.StringIO(text), delimiter=max(DELIMITERS, key=first.count)))
    except csv.Error:  # some other file of that name
        return [[]]
    names = [name.replace(" ", "").lower() for name in lines[0]] if lines else []
    return [names, *filter(None, lines[1:])]
