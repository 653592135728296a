"""Which data sets there are, and how their patients are split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.evaluation.pairs import EvaluationError, Pairs, check_apart
from benchmarks.evaluation.reading import has_split, read_pairs
from training.data.layouts import acdc, mnms

PHANTOMS = "phantoms"
TISSUE = "fgt_seg"  # DDSM with masks of tissue, as Tiryaki and Kaplanoglu have it
MIAS, ACDC, MNMS, DDSM = "mini-MIAS", "ACDC", "M&Ms", "DDSM"


def found_in(folder: Path) -> dict[str, Path]:
    """Data sets in a folder, or in those below it, by their names; in several below it they are one, as ACDC's parts.

    Raises EvaluationError if there is none.
    """
    below: dict[str, list[Path]] = {}
    for place in sorted(each for each in folder.iterdir() if each.is_dir()):
        for name in _layouts(place):
            below.setdefault(name, []).append(place)
    found = dict.fromkeys(_layouts(folder), folder) | {
        name: places[0] if len(places) == 1 else folder for name, places in below.items()
    }
    if not found:
        raise EvaluationError(f"{folder} holds neither mini-MIAS, DDSM, ACDC nor M&Ms, nor does a folder in it")
    return found


def _layouts(folder: Path) -> Iterator[str]:
    if (folder / "Info.txt").is_file() and any(folder.glob("mdb*.pgm")):
        yield MIAS
    if acdc.find_patients(folder):
        yield ACDC
    if mnms.find_table(folder) is not None:
        yield MNMS
    if (folder / TISSUE).is_dir():
        yield DDSM


def read_sides(source: str, name: str, size: int, labels: tuple[str, ...], skip_bad: bool) -> tuple[Pairs, Pairs]:
    """What is learnt, and what is held out: other patients, as `fit` splits them.

    Raises EvaluationError if the source cannot be split by patient, or shows other classes.
    """
    if not has_split(source):
        raise EvaluationError(f"{source} is not split by patient; wanted is mini-MIAS, ACDC, M&Ms or phantom:COUNT")
    sides = []
    for split, what in (("train", f"{name}, learnt"), ("validation", name)):
        pairs = read_pairs(source, size, split, labels, name=what, skip_bad=skip_bad)
        if pairs.labels != labels:
            raise EvaluationError(f"{source} has masks of {', '.join(pairs.labels)}; wanted is {', '.join(labels)}")
        sides.append(pairs)
    check_apart(*sides)
    return sides[0], sides[1]


def mammograms(found: dict[str, Path], phantoms: int, with_films: bool) -> dict[str, str]:
    """Sources by name: phantoms, and what there is of mini-MIAS."""
    chosen = {PHANTOMS: f"phantom:{phantoms}"}
    return chosen | ({MIAS: str(found[MIAS])} if with_films and MIAS in found else {})


def hearts(found: dict[str, Path], phantoms: int) -> dict[str, str]:
    """Sources by name, the one that generators learn first: phantoms where there are neither ACDC nor M&Ms."""
    chosen = {name: str(found[name]) for name in (ACDC, MNMS) if name in found}
    return chosen or {PHANTOMS: f"phantom:{phantoms}"}


def told(pairs: Pairs) -> dict[str, Any]:
    """What the JSON has of them: no path."""
    return {
        "pairs": len(pairs),
        "patients": pairs.patient_count if pairs.knows_patients else None,
        "size": pairs.size,
        "sha256": pairs.digest,
    }
