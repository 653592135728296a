"""Whether a denoiser tells which images it was trained on.

Two attacks with the weights at hand: the plain threshold on the loss, and the cardiac paper's two features, the error's
energy between 0.15 and 0.85 of the highest frequency and 1 - SSIM of the estimate (of latents, of the pictures they
stand for), in a logistic regression. Noise and its levels are the same for every image, several of them are averaged,
and no patient is on both sides of the fit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.progress import followed
from benchmarks.evaluation.statistics import Array, Groups, Interval, auc_by_weights, auc_of, caught, two_sided
from serving.sampling.solvers import COLUMNS, Schedule, data_weights
from training.data.listing import digest
from training.family import Family
from training.lineage import ancestors, phantoms_alone
from training.noising import levels, noised

DRAWS = 8
NOISE_RANGE = (0.3, 0.6)  # of the schedule, counted from the data; the paper's
LEVELS = [NOISE_RANGE[0] + draw / DRAWS * (NOISE_RANGE[1] - NOISE_RANGE[0]) for draw in range(DRAWS)]
BAND = (0.15, 0.85)  # of the highest frequency
BATCH = 32
FOLDS = 5
FALSE_ALARMS = 0.01
OTHER_DATA = "its config says that it learnt other data, or these before they changed"


@dataclass(frozen=True)
class Seen:
    """Of each image: the mean loss, and the paper's two features."""

    loss: Array
    band: Array
    unlike: Array

    @property
    def features(self) -> NDArray[np.float64]:
        return np.stack([self.band, self.unlike], axis=1)


def can_be_attacked(family: Family) -> bool:
    """Whether it learnt to denoise: others have no such loss. Nobody says of which class pairs are."""
    schedule = getattr(family.preset, "schedule", None)
    if family.condition is not None and family.condition.is_label:
        return False
    return isinstance(schedule, Schedule) and schedule.process != "descent" and hasattr(family, "data")


def check_size(family: Family, pairs: Pairs) -> None:
    """Raises EvaluationError if the pairs are not of the size that the model was trained on."""
    if pairs.size != family.preset.size:
        raise EvaluationError(
            f"{family.name} was trained on {family.preset.size} pixels; {pairs.name} has {pairs.size}"
        )


def doubt_of(config: Mapping[str, Any], train: Pairs) -> str | None:
    """What speaks against a model, by its checkpoint's config, having learnt these pairs; None if nothing does.

    Nor may the weights that it comes from have learnt others, who may be those that are held out here; phantoms are
    nobody.
    """
    of_patients = train.facts.get("layout") != "phantoms"
    for before in ancestors(config):
        if (doubt := _doubt_of(before, train)) and not (of_patients and phantoms_alone(before)):
            return _doubt_of(config, train) or f"it comes from weights of sha256 {before['digest']}, of which: {doubt}"
    return _doubt_of(config, train)


def _doubt_of(config: Mapping[str, Any], train: Pairs) -> str | None:
    learnt, files = config.get("learnt_sha256"), config.get("data_digest")
    if learnt is not None:
        return None if learnt == train.digest else OTHER_DATA
    if files is None:
        return "its config does not say what it learnt"
    # `fit` reads no files of phantoms: how many there were is all that it keeps.
    are_phantoms = train.facts.get("layout") == "phantoms"
    read = digest({}) if are_phantoms else train.facts.get("files_sha256")
    if read is None:
        return f"whether it learnt {train.name} is not known, as `fit` does not read such"
    count = (config.get("data_summary") or {}).get("pairs")
    if are_phantoms and files == read and count is None:
        return "its config does not say how many phantoms it learnt"
    if files == read and count not in (None, len(train)):
        return f"its config says that it learnt other data: {count} pairs, and {len(train)} are read here"
    return None if files == read else OTHER_DATA


@torch.no_grad()
def seen(family: Family, pairs: Pairs, seed: int = 0, draws: int = DRAWS, what: str = "membership") -> Seen:
    """What the model makes of the pairs, which are of its size.

    Raises EvaluationError if it has no denoising loss, or another size.
    """
    if not can_be_attacked(family):
        raise EvaluationError(f"{family.name} has no denoising loss to attack")
    check_size(family, pairs)
    as_data: Any = family.data
    totals = np.zeros((3, len(pairs)))
    parts = [np.arange(start, min(start + BATCH, len(pairs))) for start in range(0, len(pairs), BATCH)]
    for part in followed(parts, what):
        images = torch.from_numpy(pairs.images[part])[:, None] * 2 - 1
        masks = torch.from_numpy(pairs.masks[part])[:, None]
        data: Tensor = as_data({"image": images, "mask": masks})
        shown = _shown(family, data)
        for draw in range(draws):
            totals[:, part] += _of_draw(family, data, shown, masks, seed * 1000 + draw, draw / draws)
    return Seen(*(totals / draws))


def _of_draw(
    family: Family, data: Tensor, shown: Tensor, masks: Tensor, seed: int, place: float
) -> NDArray[np.float64]:
    schedule = family.preset.schedule
    assert schedule is not None
    t = _timestep(schedule, place).expand(len(data))
    noise = torch.randn(data.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(data.shape)
    state, target = noised(schedule, data, noise, t)
    p, q = data_weights(schedule.prediction, *levels(schedule, t))
    coeffs = torch.zeros(len(data), len(COLUMNS))
    coeffs[:, 0], coeffs[:, 1], coeffs[:, 2] = t.float(), p.flatten(), q.flatten()
    out = family.network(state, coeffs, masks if family.condition is not None else None).float()
    error = out - target
    return np.stack(
        [
            error.square().mean((1, 2, 3)).double().numpy(),
            _energy_in_band(error),
            1 - _ssim(_shown(family, p * state + q * out), shown),
        ]
    )


def _timestep(schedule: Schedule, place: float) -> Tensor:
    """place: 0 .. 1 through the range of noise; a flow counts from the noise, diffusion from the data."""
    share = NOISE_RANGE[0] + place * (NOISE_RANGE[1] - NOISE_RANGE[0])
    last = schedule.num_train_timesteps - 1
    if schedule.process == "flow":
        return torch.tensor((1 - share) * last)
    return torch.tensor(round(share * last))


def _energy_in_band(error: Tensor) -> NDArray[np.float64]:
    rows, columns = (torch.fft.fftfreq(side).abs() * 2 for side in error.shape[-2:])
    radius = torch.hypot(rows[:, None], columns[None, :])
    inside = (radius >= BAND[0]) & (radius <= BAND[1])
    spectrum = torch.fft.fft2(error, norm="ortho").abs().square()
    return spectrum[..., inside].mean((1, 2)).double().numpy()


def _shown(family: Family, state: Tensor) -> Tensor:
    """What SSIM compares, in [-1, 1]: the picture that a state becomes, for latents have other bounds; of a family that
    draws masks, whose states hold them as pictures, the state."""
    if [output.dtype for output in family.outputs] != ["float32"]:
        return state.clamp(-1, 1)
    (picture,) = family.finish(state)
    return picture * 2 - 1


def _ssim(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    from torchmetrics.functional.image import structural_similarity_index_measure

    found: Any = structural_similarity_index_measure(one, other, data_range=2.0, reduction="none")
    values: NDArray[np.float64] = found.reshape(-1).double().numpy()
    return values


@dataclass(frozen=True)
class Attack:
    """AUC: 0.5 tells nothing. TPR: the share of members that is caught where 1 % of the others is."""

    auc: Interval
    tpr: Interval


def by_loss(members: Seen, others: Seen, groups: Groups, other_groups: Groups, seed: int = 0) -> Attack:
    """Members are those whose loss is low."""
    sides = -members.loss, -others.loss, groups, other_groups, seed
    return Attack(auc_of(*sides), _tpr(*sides))


def by_features(members: Seen, others: Seen, groups: Groups, other_groups: Groups, seed: int = 0) -> Attack:
    """Each patient is scored by a regression that was fitted without any of theirs. Scores of several fits have scales
    of their own: the AUC is of pairs that one fit scored, the TPR of scores beside the others that the same fit scored.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([members.features, others.features])
    is_member = np.repeat([True, False], [len(members.loss), len(others.loss)])
    whose = np.concatenate([groups, other_groups + groups.max() + 1])
    folds = min(FOLDS, len(np.unique(groups)), len(np.unique(other_groups)))
    if folds < 2:
        raise EvaluationError("the regression of the membership attack needs two patients on each side")
    scores, scored_by = np.zeros(len(features)), np.zeros(len(features), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (fitted, left_out) in enumerate(splitter.split(features, is_member, whose)):
        model = make_pipeline(StandardScaler(), LogisticRegression(solver="liblinear", class_weight="balanced"))
        given = model.fit(features[fitted], is_member[fitted]).decision_function(features[left_out])
        scores[left_out], scored_by[left_out] = _beside(given, given[~is_member[left_out]]), fold
    sides = [(scores[side], scored_by[side]) for side in (is_member, ~is_member)]
    area = two_sided(_auc_within(*sides), groups, other_groups, seed)
    return Attack(area, _tpr(sides[0][0], sides[1][0], groups, other_groups, seed))


def _beside(scores: Array, others: Array) -> Array:
    """Scores in median absolute deviations from the median of the others': ranks among few would have no 1 %."""
    middle = np.median(others)
    return (scores - middle) / (np.median(np.abs(others - middle)) or 1.0)


def _auc_within(members: tuple[Array, Groups], others: tuple[Array, Groups]) -> Callable[[Array, Array], float]:
    """The AUC of pairs of the same fold, by how often each is there; sides: scores and the fold of each."""

    rows = [(members[1] == fold, others[1] == fold) for fold in np.unique(members[1])]
    of_folds = [auc_by_weights(members[0][mine], others[0][theirs]) for mine, theirs in rows]

    def area(first: Array, second: Array) -> float:
        weights = [(first[mine], second[theirs]) for mine, theirs in rows]
        pairs = np.array([one.sum() * other.sum() for one, other in weights])
        if not pairs.any():
            return float("nan")
        areas = [each(*both) if count else 0.0 for each, both, count in zip(of_folds, weights, pairs, strict=True)]
        return float(pairs @ np.array(areas) / pairs.sum())

    return area


def _tpr(members: Array, others: Array, groups: Groups, other_groups: Groups, seed: int) -> Interval:
    scored = np.isfinite(members)  # beside nobody, where a fold has no others
    members, groups = members[scored], np.unique(groups[scored], return_inverse=True)[1].astype(np.int64)

    def tpr(weights: Array, more: Array) -> float:
        return caught(np.repeat(members, weights.astype(int)), np.repeat(others, more.astype(int)), FALSE_ALARMS)

    return two_sided(tpr, groups, other_groups, seed, 500)
