"""The cardiac paper's Tables III to VI on a data set of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.evaluation.features import noise_like
from benchmarks.evaluation.measure_privacy import FEW_PATIENTS
from benchmarks.evaluation.membership import Seen, by_features, by_loss, seen
from benchmarks.evaluation.neighbours import closeness, median_of, nearest
from benchmarks.evaluation.pairs import Pairs, drawn_by_patient, halves_by_patient, together
from benchmarks.evaluation.shapes import TABLE_III, absent, compared_features, features_of, gaps
from benchmarks.evaluation.similarity import likeness, of_other_patients
from benchmarks.evaluation.statistics import mean_of
from benchmarks.evaluation.utility import Training, shuffled
from benchmarks.papers.comparing import CEILING, FLOOR, SHUFFLED, Figure, Judge
from benchmarks.papers.drawing import drawn
from benchmarks.papers.models import Model, Workshop
from benchmarks.papers.paper import CHAINS
from benchmarks.papers.sources import told
from training.checkpoint import shipped_checkpoint
from training.data.classes import HEART

CLASSES = len(HEART)
MODELS = ("cmr_mask", *(f"{chain}_image" for chain in CHAINS))
Sets = Mapping[str, tuple[Pairs, Pairs]]  # train and held out, by the name of the data set


def measure(sets: Sets, workshop: Workshop, judge: Judge) -> dict[str, Any]:
    """Everything that the four tables print, as JSON holds it; the generators learn the first data set's train."""
    (name, *_) = sets
    train, held_out = sets[name]
    amounts = workshop.amounts

    def made(model: str) -> Model:
        return workshop.model(model, model, train, name, init=shipped_checkpoint(model) if amounts.warm else None)

    of_masks = made("cmr_mask")
    models = {chain: made(f"{chain}_image") for chain in CHAINS}
    real = {each: _some(side, amounts.real, judge.seed) for each, (side, _) in sets.items()}
    count = len(real[name])
    masks = drawn(of_masks, count, judge.cache, name="cmr_mask")
    under_held_out = {
        chain: drawn(model, len(held_out), judge.cache, held_out, name=chain) for chain, model in models.items()
    }
    full = {chain: drawn(model, count, judge.cache, masks, name=f"{chain} Full-Syn") for chain, model in models.items()}
    under_real = {
        f"{chain} {each}-Syn": drawn(model, len(some), judge.cache, some, name=f"{chain} {each}-Syn")
        for chain, model in models.items()
        for each, some in real.items()
    }
    rows = [Training(name, real[name], count, 0)]
    rows += [Training(each, some, len(some), 0) for each, some in real.items() if each != name]
    rows.append(Training(f"{name}, {SHUFFLED}", shuffled(real[name]), count, 0))
    rows += [Training(f"{chain} Full-Syn", pairs, 0, len(pairs)) for chain, pairs in full.items()]
    rows += [Training(row, pairs, 0, len(pairs)) for row, pairs in under_real.items()]
    tests = [other for _, other in sets.values()]
    table_5 = judge.utility(rows, tests, CLASSES)
    return {
        "name": name,
        "train": told(train),
        "held_out": told(held_out),
        "sets": {each: [told(one), told(other)] for each, (one, other) in sets.items()},
        "size": train.size,
        "models": {"cmr_mask": dict(of_masks.facts), **{each: dict(model.facts) for each, model in models.items()}},
        "samplers": {
            each: [model.family.preset.default_solver, model.family.preset.default_steps]
            for each, model in {"cmr_mask": of_masks, **models}.items()
        },
        "Table III": shapes(together(train, held_out), masks, judge.seed),
        "Table IV": fidelity(train, held_out, under_held_out, judge),
        "Table V": {
            row.name: {"real": row.real, "synthetic": row.synthetic, "tested": table_5[row.name]} for row in rows
        },
        "Table VI": _privacy(train, real[name], held_out, under_held_out, models, judge),
    }


def _some(pairs: Pairs, count: int | None, seed: int) -> Pairs:
    return pairs if count is None else drawn_by_patient(pairs, count, seed)


def shapes(real: Pairs, masks: Pairs, seed: int) -> dict[str, Any]:
    """Fifteen comparisons, Holm's correction for these, and how many masks lack a structure.

    Both sides have as many masks: of all patients for p and delta, and for D, which goes with the number, of one half
    of the patients, beside whom the other half, the floor, and noise are as many.
    """
    count = min(len(real), len(masks))
    some, samples = drawn_by_patient(real, count, seed), drawn_by_patient(masks, count, seed)
    half, floor = halves_by_patient(real, seed)
    of_half = min(len(half), len(floor), len(masks))
    half, floor, as_many = (drawn_by_patient(each, of_half, seed) for each in (half, floor, masks))
    beside = {"D": as_many, "D of real halves": floor, "D of noise": _speckled(half, seed)}
    one = _features(half)
    d = {what: dict(gaps(one, _features(side), half.groups, side.groups)) for what, side in beside.items()}
    d["D of noise"] = {name: each for name, each in d["D of noise"].items() if not name.endswith("pixels %")}
    means = [
        {name: mean_of(values, side.groups, seed).as_json() for name, values in _features(side).items()}
        for side in (real, masks)
    ]
    compared = compared_features(_features(some), _features(samples), some.groups, seed, samples.groups)
    rows = {
        name: {
            "real": means[0][name],
            "generated": means[1][name],
            **{what: each[name].as_json() for what, each in d.items() if name in each},
            "p": found.p,
            "p (Holm)": adjusted,
            "delta": found.delta.as_json(),
        }
        for name, found, adjusted in compared
    }
    lacking = {
        what: {name: int(np.sum(each)) for name, each in absent(side).items()}
        for what, side in {"real": real, "generated": masks}.items()
    }
    counts = {"real": len(real), "generated": len(masks), "compared": count, "of half": of_half}
    return {"rows": rows, **counts, "absent": lacking}


def _features(side: Pairs) -> dict[str, np.ndarray]:
    """Of Table III."""
    return {name: values for name, values in features_of(side).items() if name.partition(": ")[2] in TABLE_III}


def _speckled(pairs: Pairs, seed: int) -> Pairs:
    """Their masks' pixels in random order."""
    masks = np.random.default_rng(seed).permuted(pairs.masks.reshape(len(pairs), -1), axis=1)
    return replace(pairs, masks=masks.reshape(pairs.masks.shape))


def fidelity(train: Pairs, held_out: Pairs, samples: Mapping[str, Pairs], judge: Judge) -> dict[str, Any]:
    """Under masks of held-out slices, beside these; other patients and noise stand beside."""
    found: dict[str, Any] = judge.distances(held_out, train, samples, CLASSES)
    for chain, pairs in samples.items():
        found[chain] |= _alike(likeness(held_out, pairs, judge.lpips), held_out, judge.seed)
    one, other = of_other_patients(held_out)
    if len(one):
        strangers = likeness(held_out.at(one), held_out.at(other), judge.lpips)
        found[FLOOR] |= _alike(strangers, held_out.at(one), judge.seed)
    noise = likeness(held_out, noise_like(held_out, judge.seed), judge.lpips)
    found[CEILING] |= _alike(noise, held_out, judge.seed)
    return found


def _alike(values: Mapping[str, np.ndarray], whose: Pairs, seed: int) -> dict[str, Figure]:
    return {metric: mean_of(each, whose.groups, seed).as_json() for metric, each in values.items()}


def _privacy(
    train: Pairs,
    members: Pairs,
    held_out: Pairs,
    samples: Mapping[str, Pairs],
    models: Mapping[str, Model],
    judge: Judge,
) -> dict[str, Any]:
    """Nearness to all that was trained on, and whether the loss tells who was, of ``members`` of it."""
    rows = nearness(train, held_out, samples, judge)
    for chain, model in models.items():
        rows[chain] |= attacks(model, members, held_out, judge)
    teachers = {chain: model.config["student"]["teacher"] for chain, model in models.items() if is_student(model)}
    patients = members.patient_count, held_out.patient_count
    return {
        "rows": rows,
        "searched": len(train),
        "members": len(members),
        "patients": patients,
        "teachers": teachers,
        "few": min(patients) < FEW_PATIENTS,
    }


def nearness(train: Pairs, held_out: Pairs, samples: Mapping[str, Pairs], judge: Judge) -> dict[str, dict[str, Any]]:
    """Of each model's samples and of held-out pictures, to the nearest of all that the models learnt."""
    training = _flat(train)
    others = nearest(_flat(held_out), training)
    rows: dict[str, dict[str, Any]] = {}
    for chain, drawn_by in samples.items():
        near = nearest(_flat(drawn_by), training)
        found = closeness(near, others, drawn_by.groups, held_out.groups, judge.seed)
        rows[chain] = {
            "L2": found.distance.as_json(),
            "L2 of held out": found.held_out_distance.as_json(),
            "NNDR": found.ratio.as_json(),
            "NNDR of held out": found.held_out_ratio.as_json(),
            "nearer than 5 % of held out": found.nearer.as_json(),
        }
        if judge.lpips is not None:
            rows[chain]["LPIPS"] = _perceived(drawn_by, train, near.row, judge).as_json()
    return rows


def attacks(model: Model, members: Pairs, held_out: Pairs, judge: Judge) -> dict[str, Any]:
    """By the loss and, where each side has two patients or more to fit a regression on, by the paper's features.

    Not of a student, whose loss at noise levels that it did not learn would say little of its members.
    """
    if is_student(model):
        return {}

    def of(pairs: Pairs) -> Seen:
        made_of = [model.config["digest"], pairs.digest, judge.seed]
        kept = judge.cache.arrays("membership", made_of, lambda: vars(seen(model.family, pairs, judge.seed)))
        return Seen(kept["loss"], kept["band"], kept["unlike"])

    both, whose = (of(members), of(held_out)), (members.groups, held_out.groups)
    loss = by_loss(*both, *whose, judge.seed)
    found = {"AUC by the loss": loss.auc.as_json(), "TPR at 1 % FPR, by the loss": loss.tpr.as_json()}
    if min(members.patient_count, held_out.patient_count) > 1:
        features = by_features(*both, *whose, judge.seed)
        found |= {"AUC": features.auc.as_json(), "TPR at 1 % FPR": features.tpr.as_json()}
    return found


def is_student(model: Model) -> bool:
    return bool(model.config.get("student"))


def _perceived(samples: Pairs, train: Pairs, rows: Sequence[int] | np.ndarray, judge: Judge) -> Any:
    import torch

    assert judge.lpips is not None
    one, other = (torch.from_numpy(each)[:, None] for each in (samples.images, train.images[rows]))
    return median_of(judge.lpips(one, other).double().numpy(), samples.groups, judge.seed)


def _flat(pairs: Pairs) -> np.ndarray:
    return pairs.images.reshape(len(pairs), -1)
