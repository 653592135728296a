"""Copies and memories are found, and what is neither is not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_families import SIZE, tiny_family
from torch import Tensor

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.measure_privacy import DOUBTED, _membership, _models
from benchmarks.evaluation.membership import OTHER_DATA, by_features, by_loss, can_be_attacked, doubt_of, seen
from benchmarks.evaluation.neighbours import closeness, nearest
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.reading import read_pairs
from benchmarks.evaluation.report import Section
from benchmarks.evaluation.sides import Sides
from serving.sampling.solvers import Schedule
from training.checkpoint import read_config, save_checkpoint, shipped_checkpoint
from training.data.classes import LESION


def smooth(count: int, seed: int, name: str = "some", size: int = 16) -> Pairs:
    random = np.random.default_rng(seed)
    coarse = random.random((count, size // 4, size // 4), np.float32)
    images = coarse.repeat(4, 1).repeat(4, 2)
    names = tuple(f"{name} {k}" for k in range(count))
    return Pairs(name, images, (images > 0.5).astype(np.uint8), LESION, names, names, True)


def flat(pairs: Pairs) -> np.ndarray:
    return pairs.images.reshape(len(pairs), -1)


def judged(samples: np.ndarray, training: Pairs, held_out: Pairs):
    near, others = nearest(samples, flat(training)), nearest(flat(held_out), flat(training))
    return closeness(near, others, np.arange(len(samples)), held_out.groups)


def test_a_generator_that_copies_is_found_and_one_that_does_not_is_not():
    training, held_out, fresh = smooth(80, 0), smooth(60, 1), smooth(60, 2)
    noise = np.random.default_rng(3).normal(0, 0.02, flat(fresh).shape)
    copies = judged(flat(training)[:60] + noise, training, held_out)
    assert copies.auc.value > 0.99
    assert copies.ratio.value < 0.2
    assert copies.nearer.value == 1
    honest = judged(flat(fresh), training, held_out)
    assert honest.auc.low < 0.5 < honest.auc.high
    assert honest.ratio.value > 0.7
    assert honest.nearer.low < 0.05 < honest.nearer.high
    exact = nearest(flat(training)[:5], flat(training))
    assert exact.row.tolist() == [0, 1, 2, 3, 4]
    assert exact.first.max() == exact.ratio.max() == 0


def test_samples_under_few_patients_masks_have_wide_intervals():
    training, held_out, fresh = smooth(80, 0), smooth(60, 1), smooth(60, 2)
    near, others = nearest(flat(fresh), flat(training)), nearest(flat(held_out), flat(training))
    few = np.argsort(near.first).argsort() // 15  # what is alike is of one patient
    of_few, own = (closeness(near, others, whose, held_out.groups) for whose in (few, np.arange(60)))
    for figure in ("distance", "auc"):
        one, other = getattr(of_few, figure), getattr(own, figure)
        assert one.value == other.value
        assert one.high - one.low > 1.5 * (other.high - other.low)


class Memory:
    """A family whose network knows the training set, and of other pictures only what is nearest in it."""

    name, condition, outputs = "memory", None, ()

    def __init__(self, training: Pairs | None, schedule: Schedule) -> None:
        self.preset = SimpleNamespace(schedule=schedule, size=16)
        self.known = (
            None if training is None else self.data({"image": torch.from_numpy(training.images)[:, None] * 2 - 1})
        )

    def data(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"]

    def network(self, sample: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.known is None:
            return sample / 2
        p, q = coeffs[:, 1].view(-1, 1, 1, 1), coeffs[:, 2].view(-1, 1, 1, 1)
        scaled = p * sample if self.preset.schedule.process == "diffusion" else sample / (1 - q)
        near = torch.cdist(scaled.flatten(1), self.known.flatten(1)).argmin(1)
        return (self.known[near] - p * sample) / q


LINEAR = Schedule("linear", 1000, 1e-4, 0.02, "epsilon")
FLOW = Schedule("flow", 1000, 0.0, 0.0, "velocity")


@pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=["diffusion", "flow"])
def test_a_model_that_remembers_is_told_and_one_that_does_not_is_not(schedule):
    training, held_out = smooth(60, 0, "trained on"), smooth(50, 1, "held out")
    members, others = (seen(Memory(training, schedule), pairs, draws=4) for pairs in (training, held_out))
    for attack in (by_loss, by_features):
        found = attack(members, others, training.groups, held_out.groups)
        assert found.auc.low > 0.95, attack
        assert found.tpr.value > 0.9
    members, others = (seen(Memory(None, schedule), pairs, draws=4) for pairs in (training, held_out))
    for attack in (by_loss, by_features):
        found = attack(members, others, training.groups, held_out.groups)
        assert found.auc.low < 0.5 < found.auc.high, attack


def test_the_regression_scores_no_patient_by_their_own_pictures():
    """Features that tell patients apart, but not members from others."""
    random = np.random.default_rng(0)
    of_patients = random.normal(size=(12, 3))
    whose = np.repeat(np.arange(6), 20)
    sides = [SimpleNamespace(loss=of_patients[k + whose, 0], features=of_patients[k + whose, 1:]) for k in (0, 6)]
    found = by_features(*sides, whose, whose)
    assert found.auc.low < 0.5


def test_where_nothing_tells_members_the_regression_finds_half_of_them():
    random = np.random.default_rng(1)
    found = []
    for seed in range(12):
        sides = [SimpleNamespace(loss=np.zeros(60), features=random.normal(size=(60, 2))) for _ in range(2)]
        found.append(by_features(*sides, np.arange(60), np.arange(60), seed).auc)
    assert np.mean([each.low < 0.5 < each.high for each in found]) > 0.7
    assert np.mean([each.value for each in found]) == pytest.approx(0.5, abs=0.05)


def test_members_that_every_fit_tells_are_all_found_however_patients_fall_into_folds():
    random = np.random.default_rng(2)
    groups, others = np.arange(3).repeat(20), np.repeat([0, 1], [5, 40])
    for seed in range(5):
        sides = [
            SimpleNamespace(loss=np.zeros(len(whose)), features=random.normal(place, 1, (len(whose), 2)))
            for whose, place in ((groups, 0), (others, 100))
        ]
        found = by_features(*sides, groups, others, seed)
        assert (found.auc.value, found.tpr.value) == (1, 1)


def test_members_of_a_fold_without_others_count_on_neither_side():
    random = np.random.default_rng(4)
    found = []
    for seed in range(12):
        groups, others = np.repeat(np.arange(16), random.integers(1, 30, 16)), np.repeat(np.arange(4), [1, 1, 1, 60])
        sides = [
            SimpleNamespace(loss=np.zeros(len(whose)), features=random.normal(place, 1, (len(whose), 2)))
            for whose, place in ((groups, 0), (others, 100))
        ]
        found.append(by_features(*sides, groups, others, seed).tpr.value)
    assert found == [1] * 12


def test_where_nothing_tells_members_few_are_caught_of_folds_with_few_others():
    random = np.random.default_rng(3)
    groups, others = np.arange(20).repeat(20), np.repeat(np.arange(5), [5, 40, 10, 20, 40])
    found = [
        by_features(
            *(SimpleNamespace(loss=np.zeros(len(side)), features=random.normal(size=(len(side), 2)))
              for side in (groups, others)),
            groups, others, seed,
        ).tpr.value
        for seed in range(6)
    ]  # fmt: skip
    assert np.mean(found) < 0.06


@pytest.mark.parametrize("name", ["pig", "cmr_mask", "cmr_ddpm_image", "cmr_ldm_image", "cmr_flow_image", "imported"])
def test_every_family_can_be_attacked(name):
    family = tiny_family(name)
    assert can_be_attacked(family)
    found = seen(family, smooth(3, 0, size=SIZE), draws=2)
    assert np.isfinite([found.loss, found.band, found.unlike]).all()
    assert (found.loss > 0).all()


@pytest.mark.parametrize("name", ["pig", "cmr_mask", "cmr_ddpm_image", "cmr_ldm_image", "imported"])
def test_a_perfect_estimate_is_like_its_data_even_of_latents(name, monkeypatch):
    family, pairs = tiny_family(name), smooth(3, 0, size=SIZE)
    if name == "cmr_ldm_image":
        family.latent_std /= 20  # as training makes it: latents then go beyond what pictures are bounded by
    batch = {"image": torch.from_numpy(pairs.images)[:, None] * 2 - 1, "mask": torch.from_numpy(pairs.masks)[:, None]}
    data = family.data(batch)
    assert (data.abs().max() > 1) == (name == "cmr_ldm_image")

    def perfect(state: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        p, q = coeffs[:, 1].view(-1, 1, 1, 1), coeffs[:, 2].view(-1, 1, 1, 1)
        return (data - p * state) / q

    monkeypatch.setattr(family, "network", perfect)
    assert seen(family, pairs, draws=2).unlike == pytest.approx(0, abs=1e-4)
    monkeypatch.setattr(family, "network", lambda *given: perfect(*given) / 2)
    assert (seen(family, pairs, draws=2).unlike > 0.01).all()


def test_models_have_names_of_their_own_and_say_if_they_learnt_from_other_files(tmp_path):
    family = tiny_family("pig")
    for place in "ab":
        folder = tmp_path / place / "run"
        save_checkpoint(folder, family, family.state_dict(), {"preset_name": "small", "step": 7, "data_digest": place})
    train, held_out = (smooth(6, seed, name, SIZE) for seed, name in enumerate(("train", "other")))
    train = replace(train, facts={"files_sha256": "a"})
    sides = Sides(train, held_out, held_out, True)
    models = _models([tmp_path / "a/run", tmp_path / "b/run"], sides)
    assert list(models) == ["pig (run)", f"pig ({tmp_path / 'b/run'})"]
    section = Section("Privacy")
    for name, model in models.items():
        _membership(section, sides, name, *model, 0, Cache(tmp_path / "cache"))
    assert [line for line in section.warnings if DOUBTED in line] == [
        f"pig ({tmp_path / 'b/run'}): {OTHER_DATA}. {DOUBTED}"
    ]
    family, config = models["pig (run)"]
    section, student = Section("Privacy"), {**config, "student": {"teacher": "7" * 64, "steps": 4}}
    _membership(section, sides, "pig", family, student, 0, Cache(tmp_path / "cache"))
    said = "membership inference is not measured. Attack its teacher, --checkpoint with weights of sha256 "
    assert said + "7" * 64 in section.warnings[-1]
    assert section.tables == []
    with pytest.raises(EvaluationError, match="was given twice"):
        _models([tmp_path / "a/run"] * 3, sides)
    with pytest.raises(EvaluationError, match="pig was trained on 32 pixels"):
        _models([tmp_path / "a/run"], replace(sides, train=smooth(6, 0)))


def test_phantoms_are_told_by_how_many_a_model_learnt():
    """`fit` keeps no files of them, so that all have the digest of none, and a checkpoint that ships learnt 50,000."""
    six, seven = (read_pairs(f"phantom:{count}", SIZE) for count in (6, 7))
    strangers = read_pairs("phantom:6", SIZE, "validation")
    assert len({each.facts["files_sha256"] for each in (six, seven, strangers)}) == 3
    shipped = read_config(shipped_checkpoint("cmr_flow_image"))
    assert doubt_of(shipped, six) == "its config says that it learnt other data: 50000 pairs, and 6 are read here"
    assert doubt_of({**shipped, "data_summary": {"pairs": 6}}, six) is None
    assert doubt_of({**shipped, "data_summary": {}}, six) == "its config does not say how many phantoms it learnt"
    assert doubt_of({**shipped, "data_digest": "of files"}, six) == OTHER_DATA
    fine = {**shipped, "data_summary": {"pairs": 6}}
    before = {"digest": "d" * 64, "data_digest": "of files"}
    assert (
        doubt_of({**fine, "ancestors": [before]}, six)
        == f"it comes from weights of sha256 {'d' * 64}, of which: {OTHER_DATA}"
    )
    assert doubt_of({**fine, "ancestors": [{**fine, "digest": "d" * 64}]}, six) is None
    patients, warm = replace(six, facts={"files_sha256": "of files"}), {"data": "phantom", "digest": "d" * 64}
    assert doubt_of({"data_digest": "of files", "ancestors": [warm]}, patients) is None, "phantoms are nobody"
    assert doubt_of({"data_digest": "of files", "ancestors": [{**warm, "data": "acdc"}]}, patients)
    assert doubt_of(read_config(shipped_checkpoint("pig")), six) == "its config does not say what it learnt"
    arrays = replace(six, name="some", facts={"layout": "samples"})
    assert doubt_of(shipped, arrays) == "whether it learnt some is not known, as `fit` does not read such"


def test_other_sizes_and_models_without_a_loss_are_refused():
    with pytest.raises(EvaluationError, match="pig was trained on 32 pixels; some has 16"):
        seen(tiny_family("pig"), smooth(3, 0))
    gan = SimpleNamespace(name="dcgan", preset=SimpleNamespace(schedule=None, size=16), condition=None)
    with pytest.raises(EvaluationError, match="dcgan has no denoising loss"):
        seen(gan, smooth(3, 0))
