"""Which data sets there are, and how their patients are split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.pairs import EvaluationError, Pairs, check_apart
from benchmarks.evaluation.reading import has_split, read_pairs
from training.data import DataError
from training.data.layouts import acdc, mnms
from training.data.layouts.picture_folder import load_pictures
from training.data.listing import digest
from training.federated.shards import patient, shards

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
    if name == DDSM:
        return _pictures(Path(source), size, skip_bad)
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


def _pictures(folder: Path, size: int, skip_bad: bool) -> tuple[Pairs, Pairs]:
    """DDSM's, without masks, for those that there are are of tissue; every fifth patient is held out."""
    try:
        read = load_pictures(folder / TISSUE, size, skip_bad)
        held_out, (learnt,) = shards(read.names, None, 1)
    except (DataError, ValueError) as error:
        raise EvaluationError(f"{folder}: {error}") from error
    images = np.stack([read[row]["image"].numpy()[0] for row in range(len(read))]) / 2 + 0.5
    facts = {**read.reading, "files_sha256": digest(read.files)}
    whose = tuple(map(patient, read.names))
    nothing = np.zeros(images.shape, np.uint8)
    pairs = Pairs(DDSM, images, nothing, (), read.names, whose, True, facts, read.warnings, has_masks=False)
    return pairs.at(learnt, f"{DDSM}, learnt"), pairs.at(held_out)


def mammograms(found: dict[str, Path], phantoms: int, with_films: bool) -> dict[str, str]:
    """Sources by name: phantoms, and what there is of mini-MIAS and DDSM."""
    films = (name for name in (MIAS, DDSM) if with_films and name in found)
    return {PHANTOMS: f"phantom:{phantoms}", **{name: str(found[name]) for name in films}}


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
