"""Privacy: whether samples are copies, and whether the model tells whom it learnt from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import features as of
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.features import Extractor, noise_like
from benchmarks.evaluation.measure_quality import NO_SEGMENTER, segmenter_features
from benchmarks.evaluation.membership import (
    DRAWS,
    LEVELS,
    Attack,
    Seen,
    by_features,
    by_loss,
    can_be_attacked,
    check_size,
    doubt_of,
    seen,
)
from benchmarks.evaluation.neighbours import PAPER_LPIPS, PAPER_NNDR, SUSPECT, Nearest, closeness, median_of, nearest
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.report import Cell, Picture, Section, Table, histogram, picture, sheet
from benchmarks.evaluation.segmentation import Recipe, Segmenter
from benchmarks.evaluation.sides import FEW_PATIENTS, Sides
from benchmarks.evaluation.similarity import Lpips
from benchmarks.evaluation.statistics import Interval, auc_of, share_of
from training.checkpoint import load_checkpoint
from training.family import Family

SYNTHETIC, HELD_OUT, COPIES, NOISE = "synthetic", "held out", "training pictures (ceiling)", "noise"
SHOWN, LOWEST = 9, 5  # of the nearest: by both measures, and by NNDR
SURE_OF_LIMIT = 100  # held-out pictures for a limit that 5 % of them are within
UNKNOWN = (
    "privacy is measured against what the generator was trained on, and real images that it was not: name the first "
    "with --train and the second as REAL"
)
DOUBTED = (
    "Copies of what else it may have learnt are not found, and who is no member scores as the others do, whatever the "
    "model remembers"
)


def privacy(
    sides: Sides,
    checkpoints: Sequence[Path],
    files: Sequence[tuple[str, Path]],
    lpips: Path | None,
    recipe: Recipe,
    seed: int,
    cache: Cache,
) -> Section:
    """What the page has of it; checkpoints: of the models whose members are looked for.

    Raises EvaluationError if the training set is not known.
    """
    if not sides.as_fit:
        raise EvaluationError(UNKNOWN)
    if len(sides.train) < 2:
        raise EvaluationError(f"{sides.train.name} has one picture, and so no second nearest: two are needed at least")
    section = Section("Privacy", warnings=sides.warnings())
    section.text.append(
        f"Every sample is compared with the {len(sides.train)} real pictures of the training set, and so are the "
        f"{len(sides.held_out)} of patients that were not trained on: what they score is what a picture scores that is "
        "no copy. An AUC of 0.5 means that samples come no nearer than they do, 1 that all are nearer."
    )
    if sides.notices:
        section.text.append(
            "What the model says of its samples, above, holds whatever the figures below are: they are of nearness to "
            "the training set alone, not to pictures that samples were made from."
        )
    if len(sides.held_out) < SURE_OF_LIMIT:
        section.warnings.append(
            f"{sides.held_out.name}: of {len(sides.held_out)} pictures the nearest 5 % are less than "
            f"{SUSPECT * SURE_OF_LIMIT:.0f}, so the limits that they set are of single pictures: read the AUC first"
        )
    models = _models(checkpoints, sides)
    _neighbours(section, sides, files, lpips, recipe, seed, cache)
    for name, (family, config) in models.items():
        _membership(section, sides, name, family, config, seed, cache)
    if not checkpoints:
        section.text.append("Membership inference needs the weights: --checkpoint.")
    section.facts |= {"seed": seed, **sides.facts()}
    return section


def _models(checkpoints: Sequence[Path], sides: Sides) -> dict[str, tuple[Family, dict[str, Any]]]:
    """By the names that tables give them; what cannot be attacked with these data is refused before anything runs."""
    found: dict[str, tuple[Family, dict[str, Any]]] = {}
    for checkpoint in checkpoints:
        family, config = load_checkpoint(checkpoint)
        name = f"{config['model']} ({checkpoint.name})"
        if name in found:
            name = f"{config['model']} ({checkpoint})"
        if name in found:
            raise EvaluationError(f"--checkpoint {checkpoint} was given twice")
        if can_be_attacked(family):
            check_size(family, sides.train)
            if family.labels and sides.labels and family.labels != sides.labels:
                known, shown = ", ".join(family.labels), ", ".join(sides.labels)
                raise EvaluationError(f"{name} knows {known}; the data show {shown}")
        found[name] = family, config
    return found


def _neighbours(
    section: Section,
    sides: Sides,
    files: Sequence[tuple[str, Path]],
    lpips: Path | None,
    recipe: Recipe,
    seed: int,
    cache: Cache,
) -> None:
    compared = {
        SYNTHETIC: sides.synthetic,
        COPIES: sides.train,
        NOISE: noise_like(sides.held_out, seed),
        HELD_OUT: sides.held_out,
    }
    spaces = {"L2 of pixels in [0, 1]": {side: _flat(pairs) for side, pairs in compared.items()}}
    extractors: list[Extractor] = []
    if sides.train.has_masks:
        extractors.append(segmenter_features(Segmenter(sides.train, recipe, sides.classes, seed, cache)))
    else:
        section.warnings.append(NO_SEGMENTER)
        extractors += [of.radiomics()] if of.has_radiomics() else []
    extractors += [of.of_network(name, file, sides.train.size) for name, file in files]
    for extractor in extractors:
        of_train = extractor.of(sides.train, cache)
        deviation = np.where(of_train.std(0) > 0, of_train.std(0), 1)
        spaces[f"features: {extractor.name}"] = {
            side: extractor.of(pairs, cache) / deviation for side, pairs in compared.items()
        }
    columns = ["", "distance", "distance, held out", "NNDR", "NNDR, held out"]
    columns += ["nearer than 5 % of held out", "lower NNDR than 5 % of held out"]
    columns += ["AUC, distance", "AUC, NNDR", f"NNDR < {PAPER_NNDR} (paper)"]
    rows: list[list[Cell]] = []
    for name, of_sides in spaces.items():
        near = {side: nearest(values, of_sides[COPIES]) for side, values in of_sides.items()}
        samples, held_out = near[SYNTHETIC], near[HELD_OUT]
        groups = sides.held_out.groups
        by_side = {
            side: closeness(near[side], held_out, compared[side].groups, groups, seed)
            for side in (SYNTHETIC, COPIES, NOISE)
        }
        found = by_side[SYNTHETIC]
        rows += [
            [
                name if side == SYNTHETIC else f"{name}: {side}",
                each.distance,
                each.held_out_distance,
                each.ratio,
                each.held_out_ratio,
                each.nearer,
                each.lower_ratio,
                each.auc,
                each.ratio_auc,
                share_of(near[side].ratio < PAPER_NNDR, compared[side].groups),
            ]
            for side, each in by_side.items()
        ]
        section.pictures.append(
            histogram(f"nearest: {name}", {"synthetic": samples.first, "real, held out": held_out.first})
        )
        section.pictures.append(
            histogram(f"NNDR: {name}", {"synthetic": samples.ratio, "real, held out": held_out.ratio})
        )
        section.pictures.append(_side_by_side(name, sides, samples, held_out))
        if _is_above(SUSPECT, found.nearer) and _is_above(0.5, found.auc):
            section.warnings.append(
                f"{name}: {found.nearer.value:.0%} of the samples are nearer to a training picture than 5 % of "
                "held-out pictures are: look at the nearest below whether they are copies"
            )
        if lpips is not None and name.startswith("L2"):
            _perceived(section, sides, samples, held_out, Lpips(lpips))
    note = (
        "Medians, with intervals over patients; samples under masks or pictures are of the patients of these. Those of "
        "shares take the limit that 5 % of held-out pictures are within as it is. NNDR is the distance to the nearest "
        "over that to the second nearest: near 0 for a copy. A share above 5 % says that samples are nearer than "
        "real pictures of strangers; blurred or plain pictures are near everything in L2, so look at NNDR and at "
        "the pictures too. Training pictures in the samples' place show what copies score, and the pixels of held-out "
        "pictures in random order what is no picture; held out is the floor. "
        f"L2 is of {sides.train.size} x {sides.train.size} pixels, so it is at most {sides.train.size}."
    )
    section.tables.append(Table("Nearest neighbours in the training set", columns, rows, note))
    same = {image.tobytes() for image in sides.train.images}
    copies = sum(image.tobytes() in same for image in sides.synthetic.images)
    section.text.append(f"{copies} of {len(sides.synthetic)} samples are training pictures, bit for bit.")


def _is_above(limit: float, found: Interval) -> bool:
    """By its interval or, of too few patients for one, by itself: not to warn would be worse."""
    return found.value > limit and not found.low <= limit


def _flat(pairs: Pairs) -> np.ndarray:
    return pairs.images.reshape(len(pairs), -1)


def _perceived(section: Section, sides: Sides, samples: Nearest, held_out: Nearest, lpips: Lpips) -> None:
    """LPIPS to the nearest in L2, as the paper has it."""
    import torch

    def distances(pairs: Pairs, found: Nearest) -> np.ndarray:
        one, other = (torch.from_numpy(each)[:, None] for each in (pairs.images, sides.train.images[found.row]))
        return np.asarray(lpips(one, other).numpy(), np.float64)

    drawn, real = distances(sides.synthetic, samples), distances(sides.held_out, held_out)
    limit = float(np.quantile(real, 0.05))
    whose, others = sides.synthetic.groups, sides.held_out.groups
    columns = ["", "median", "median, held out", "nearer than 5 % of held out", "AUC", f"below {PAPER_LPIPS} (paper)"]
    row: list[Cell] = ["LPIPS to the nearest in L2", median_of(drawn, whose), median_of(real, others)]
    nearer = auc_of(-drawn, -real, whose, others)
    row += [share_of(drawn < limit, whose), nearer, share_of(drawn < PAPER_LPIPS, whose)]
    section.tables.append(Table("As a network perceives them", columns, [row]))
    section.facts["lpips"] = f"torchvision vgg16, sha256 {lpips.digest}; heads of torchmetrics"


def _side_by_side(name: str, sides: Sides, samples: Nearest, held_out: Nearest) -> Picture:
    """The samples with the lowest NNDR and the nearest others, below each the training picture next to it; then real
    ones likewise."""

    def tiles(pairs: Pairs, found: Nearest) -> list[Any]:
        lowest = np.argsort(found.ratio)[:LOWEST]
        near = np.argsort(found.first)
        order = np.concatenate([lowest, near[~np.isin(near, lowest)]])[:SHOWN]
        order = np.concatenate([order, order[-1:].repeat(SHOWN - len(order))])
        beside = [picture(sides.train.images[row], sides.train.masks[row]) for row in found.row[order]]
        return [picture(pairs.images[row], pairs.masks[row]) for row in order] + beside

    both = tiles(sides.synthetic, samples) + tiles(sides.held_out, held_out)
    title = (
        f"{name}: on the left the {LOWEST} of lowest NNDR, then the nearest others (of a picture that the training set "
        "has twice NNDR says nothing). Rows: samples; their nearest training pictures; held-out pictures; theirs"
    )
    return Picture(title, sheet(both, SHOWN))


def _membership(
    section: Section, sides: Sides, name: str, family: Family, config: Mapping[str, Any], seed: int, cache: Cache
) -> None:
    if (doubt := doubt_of(config, sides.train)) is not None:
        section.warnings.append(f"{name}: {doubt}. {DOUBTED}")
    if student := config.get("student"):
        section.warnings.append(
            f"{name} is a student, and learnt at the noise levels of its own {student['steps']} steps alone: its loss "
            "at others would say little of its members, so membership inference is not measured. Attack its teacher, "
            f"--checkpoint with weights of sha256 {student['teacher']}, from whom it has what it knows"
        )
        return
    if not can_be_attacked(family):
        section.text.append(f"{name} does not learn by denoising, so it has no loss for membership inference.")
        return
    if family.labels and not sides.real_masks:
        section.warnings.append(
            f"{name}: it learnt pairs, or under masks, and the real images have no masks: its loss, and so membership "
            "inference, is not measured"
        )
        return

    def seen_in(pairs: Pairs) -> Seen:
        made_of = [config["digest"], pairs.digest, seed]
        kept = cache.arrays(
            "membership", made_of, lambda: vars(seen(family, pairs, seed, what=f"{name}: {pairs.name}"))
        )
        return Seen(kept["loss"], kept["band"], kept["unlike"])

    members, others = seen_in(sides.train), seen_in(sides.held_out)
    whose = sides.train.groups, sides.held_out.groups
    attacks: dict[str, Attack] = {"threshold on the loss": by_loss(members, others, *whose, seed)}
    if min(sides.train.patient_count, sides.held_out.patient_count) > 1:
        way = "the paper's two features, logistic regression"
        attacks[way] = by_features(members, others, *whose, seed)
    else:
        section.text.append(f"{name}: the regression on the paper's two features needs two patients on each side.")
    rows: list[list[Cell]] = [[way, attack.auc, attack.tpr] for way, attack in attacks.items()]
    counts = f"{len(sides.train)} pictures of {sides.train.patient_count} patients that it was trained on"
    note = (
        f"{counts}, {len(sides.held_out)} of {sides.held_out.patient_count} others. Noise levels at {DRAWS} places "
        f"from {LEVELS[0]:g} to {LEVELS[-1]:g} of the schedule, with noise that is the same for all pictures. "
        "Intervals are over patients; the regression scores each patient by a fit without any of theirs, and its AUC "
        "is of members and others whom one fit scored. The claim that these are its members is the "
        f"user's. Its config names the data as {config.get('data', 'unknown')!r}."
    )
    section.tables.append(Table(f"Membership inference: {name}", ["", "AUC", "TPR at 1 % FPR"], rows, note))
    section.pictures.append(histogram(f"loss: {name}", {"trained on": members.loss, "held out": others.loss}))
    told = {"sha256": config["digest"], "data": config.get("data"), "data_digest": config.get("data_digest")}
    section.facts.setdefault("checkpoints", {})[name] = told
    if min(sides.train.patient_count, sides.held_out.patient_count) < FEW_PATIENTS:
        section.warnings.append(
            f"{name}: with {sides.held_out.patient_count} patients who are no members, membership inference shows that "
            "it runs, not that the model keeps its secrets"
        )
    if len(sides.held_out) < 100:
        section.warnings.append(
            f"{name}: 1 % of {len(sides.held_out)} held-out pictures is less than one, so its TPR is that at no "
            "false alarm"
        )
