"""mini-MIAS as it is published: 322 films ``mdbNNN.pgm`` and ``Info.txt`` (Suckling et al. 1994)."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.data.classes import LESION
from training.data.dataset import LoadedPairs
from training.data.formats.grey_image import read_grey
from training.data.listing import list_files
from training.data.preparation.resize import Bools, Floats, fit_image, fit_mask
from training.data.problems import BadFileError, DataError, Problems, progress, tiny_lesions
from training.data.spooled import Spooled

SIDE = 1024
WHITE = 255
PATIENTS = 161
HELD_BACK = 0.2  # of them
DARKEST_TISSUE = 18  # of WHITE; bare film is darker
MISPLACED = ("mdb212", "mdb214")  # their circles, as published, lie on bare film
TISSUES = {"F": "fatty", "G": "fatty-glandular", "D": "dense-glandular"}
STRIP = 12  # what joins the breast over less than twice as many pixels is a label or the film's edge

ROW = re.compile(
    r"mdb\d{3}\s+(?P<tissue>[FGD])\s+(?:(?P<normal>NORM)|[A-Z]{4}\s+[BM]"
    r"(?:\s+(?P<x>\d+)\s+(?P<y>\d+)\s+(?P<radius>\d+)|\s*\*NOTE 3\*)?)"
)


class Circle(NamedTuple):
    """A lesion, in pixels; ``row`` counts from the top."""

    row: int
    column: int
    radius: int


@dataclass
class Film:
    """What ``Info.txt`` says of one film."""

    circles: list[Circle] = field(default_factory=list)
    uncircled: int = 0  # abnormalities without a circle to go by
    tissue: str = ""  # one of TISSUES

    @property
    def normal(self) -> bool:
        return not self.circles and not self.uncircled

    @property
    def usable(self) -> bool:
        return bool(self.circles) and not self.uncircled


SPLITS: dict[str, Callable[[str, frozenset[int]], bool]] = {
    "train": lambda name, held_back: patient_of(name) not in held_back,
    "validation": lambda name, held_back: patient_of(name) in held_back,
    "all": lambda name, held_back: True,
}


def load_tissue(folder: Path, size: int, tissue: str, split: str = "train", skip_bad: bool = False) -> LoadedPairs:
    """The films of one kind of tissue, of TISSUES' keys, normal ones too, as ``load_mias`` has them but without masks.

    Films that are not in the folder are left out, and ``reading`` and a warning say how many: the data set is often
    kept in part.

    Raises:
        DataError: a film cannot be used, a row of ``Info.txt`` cannot be read (all are listed), or no film is left.
    """
    problems = Problems(folder)
    films = read_info(folder / "Info.txt", problems)
    held_back = validation_patients()
    listed = [name for name in films if films[name].tissue == tissue and SPLITS[split](name, held_back)]
    there = [name for name in listed if (folder / f"{name}.pgm").exists()]
    names, images = [], Spooled[np.float32]()
    for name in progress(there, folder):
        with problems.of(folder / f"{name}.pgm"):
            breast, _ = read_film(folder / f"{name}.pgm", [])
            images.append((fit_image(breast, size) * np.float32(2 / WHITE) - 1).clip(-1, 1))
            names.append(name)
    problems.settle(skip_bad)
    if not names:
        raise DataError(f"{folder}: no film of {TISSUES[tissue]} tissue of the {split} split can be used")
    missing = len(listed) - len(there)
    reading = {
        "layout": "mini-MIAS",
        "split": split,
        "tissue": TISSUES[tissue],
        "patients": len({patient_of(name) for name in names}),
        "missing": missing,
        "left_out": problems.left_out,
    }
    warnings = [f"{missing} of the {len(listed)} films that Info.txt lists are not there"] if missing else []
    files = [folder / "Info.txt", *(folder / f"{name}.pgm" for name in names)]
    return LoadedPairs(names, images, None, (), reading, warnings, list_files(folder, files))


def load_mias(
    folder: Path,
    size: int,
    split: str = "train",
    skip_bad: bool = False,
    validation_fraction: float = HELD_BACK,
    seed: int = 0,
) -> LoadedPairs:
    """The films whose abnormalities, of whatever class, are all circled, as pairs of ``size`` x ``size`` pixels.

    What is not breast (bare film, labels, strips at the film's edge) is set to black and cropped away; the pectoral
    muscle stays. Every chest wall is on the left. 0..255 becomes [-1, 1]. The mask is the union of the circles as far
    as they lie on the breast. Two films whose published circles lie on bare film count as having none.

    Args:
        folder: holds the films and ``Info.txt``.
        size: rows and columns of an item.
        split: "train", "validation" or "all".
        skip_bad: leave out, and log, films that are missing or cannot be used.
        validation_fraction: share of the 161 patients held back for validation, each with both films.
        seed: which patients those are, whatever films are there.

    Raises:
        DataError: a film of the split is missing or cannot be used, a row of ``Info.txt`` cannot be read (all are
            listed), or no film is left.
    """
    problems = Problems(folder)
    films = read_info(folder / "Info.txt", problems)
    for path in sorted(folder.glob("mdb*.pgm")):
        if path.stem not in films:
            problems.add(path, "has no row in Info.txt")
    held_back = validation_patients(validation_fraction, seed)
    names, tiny, sizes = [], [], []
    images, masks = Spooled[np.float32](), Spooled[np.uint8]()
    for name in progress([name for name in films if films[name].usable and SPLITS[split](name, held_back)], folder):
        path = folder / f"{name}.pgm"
        with problems.of(path):
            breast, lesion = read_film(path, films[name].circles)
            mask, enlarged = fit_mask(lesion, size)
            names.append(name)
            images.append((fit_image(breast, size) * np.float32(2 / WHITE) - 1).clip(-1, 1))
            masks.append(mask)
            sizes.append(float(np.count_nonzero(breast)))
            tiny += [name] * (enlarged > 0)
    problems.settle(skip_bad)
    if not names:
        raise DataError(f"{folder}: no film of the {split} split can be used")
    reading = {
        "layout": "mini-MIAS",
        "split": split,
        "white": {"8 bits": WHITE},
        "patients": len({patient_of(name) for name in names}),
        "films_in_info_txt": len(films),
        "normal": sum(film.normal for film in films.values()),
        "without_a_true_circle": sum(film.uncircled > 0 for film in films.values()),
        "left_out": problems.left_out,
    }
    files = [folder / "Info.txt", *(folder / f"{name}.pgm" for name in names)]
    return LoadedPairs(
        names, images, masks, LESION, reading, tiny_lesions(tiny, size), list_files(folder, files), sizes
    )


def patient_of(name: str) -> int:
    """An odd film and the next even one are the two breasts of one patient, numbered from 0."""
    return (int(name.removeprefix("mdb")) - 1) // 2


def validation_patients(fraction: float = HELD_BACK, seed: int = 0) -> frozenset[int]:
    """The patients held back: the first of all 161 in an order that depends on the seed alone."""
    shuffled = sorted(range(PATIENTS), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    return frozenset(shuffled[: round(fraction * PATIENTS)])


def read_info(path: Path, problems: Problems) -> dict[str, Film]:
    """The table in ``Info.txt``, without the prose around it; its y axis, which starts at the bottom, is turned."""
    films: dict[str, Film] = {}
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        line = line.strip()
        if not re.match(r"mdb\d{3}\b", line):
            continue
        film = films.setdefault(line[:6], Film())
        row = ROW.fullmatch(line)
        if row is None:
            problems.add(path, f"line {number} cannot be understood: {line!r}")
        if row:
            films[line[:6]].tissue = row["tissue"]
        if row and row["normal"]:
            continue
        if row and row["x"] and line[:6] not in MISPLACED:
            film.circles.append(Circle(SIDE - 1 - int(row["y"]), int(row["x"]), int(row["radius"])))
        else:
            film.uncircled += 1
    return films


def read_film(path: Path, circles: list[Circle]) -> tuple[Floats, Bools]:
    """The breast and its lesions, both [H, W] with the chest wall on the left; the breast is 0..255, 0 around it.

    Raises:
        BadFileError: the film is missing or unlike the published ones, or a circle misses the breast.
    """
    if not path.exists():
        raise BadFileError("is missing, but Info.txt lists a lesion on it")
    film, white, *_ = read_grey(path)
    if film.shape != (SIDE, SIDE) or film.dtype != np.uint8:
        raise BadFileError(f"is {film.shape[0]} x {film.shape[1]} {film.dtype}; mini-MIAS is {SIDE} x {SIDE} uint8")
    if white not in (None, WHITE):
        raise BadFileError(f"has the maxval {white}; mini-MIAS has {WHITE}")
    breast = find_breast(film)
    lesions = np.zeros_like(breast)
    for circle in circles:
        lesion = _disc(circle) & breast
        if not lesion.any():
            raise BadFileError(f"has a lesion at row {circle.row}, column {circle.column}, which is not on its breast")
        lesions |= lesion
    (box,) = ndimage.find_objects(breast.astype(np.uint8))
    wall_on_the_right = int(path.stem[-1]) % 2 == 1  # odd films are right breasts, as Info.txt says
    tissue = (film * breast).astype(np.float32)
    return _beside_the_wall(tissue[box], wall_on_the_right), _beside_the_wall(lesions[box], wall_on_the_right)


def find_breast(film: NDArray[np.uint8]) -> Bools:
    """The largest bright region [H, W] without holes, labels and strips of scanning noise cut off."""
    compact = ndimage.binary_opening(film >= DARKEST_TISSUE, iterations=STRIP)
    regions, count = ndimage.label(compact)
    if not count:
        raise BadFileError(f"shows no breast: nothing large is brighter than {DARKEST_TISSUE}")
    return ndimage.binary_fill_holes(regions == np.bincount(regions[compact]).argmax())


def _disc(circle: Circle) -> Bools:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (rows - circle.row) ** 2 + (columns - circle.column) ** 2 <= circle.radius**2


def _beside_the_wall(pixels: NDArray[Any], wall_on_the_right: bool) -> NDArray[Any]:
    """Chest wall to the left, and widened on the right to a square, so that the wall keeps to the edge."""
    height, width = pixels.shape
    return np.pad(pixels[:, :: -1 if wall_on_the_right else 1], ((0, 0), (0, max(0, height - width))))
