"""Distances whose values are known, and those of libraries."""

import numpy as np
import pytest
import torch

from benchmarks.evaluation import measure_quality
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.distances import coverage, frechet, frechet_between, kernel_difference, kernel_distance
from benchmarks.evaluation.features import Extractor
from benchmarks.evaluation.pairs import Pairs
from benchmarks.evaluation.report import Section
from benchmarks.evaluation.statistics import Interval
from benchmarks.papers.amounts import Amounts
from benchmarks.papers.comparing import Judge


def with_moments(count: int, width: int, mean: float, deviation: float, seed: int = 0) -> np.ndarray:
    """Features whose sample moments are these, exactly."""
    x = np.random.default_rng(seed).normal(size=(count, width))
    x -= x.mean(0)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v * np.sqrt(count - 1) * deviation + mean


def own(count: int) -> np.ndarray:
    return np.arange(count)


@pytest.mark.parametrize("count", [6, 40])
def test_frechet_of_two_gaussians(count):
    width = 5
    one, other = with_moments(count, width, 0, 1), with_moments(count, width, 2, 3, seed=1)
    assert frechet(one, other) == pytest.approx(width * 2**2 + width * (3 - 1) ** 2)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [8, 60])
def test_frechet_is_torchmetrics(count):
    from torchmetrics.image.fid import FrechetInceptionDistance

    random = np.random.default_rng(2)
    one, other = random.normal(size=(count, 12)), random.normal(0.3, 1.5, (count, 12)) @ random.normal(size=(12, 12))
    theirs = FrechetInceptionDistance(feature=Features(12), input_img_size=(12,)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(one), real=True)
    theirs.update(torch.from_numpy(other), real=False)
    assert frechet(one, other) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_the_kernel_distance_is_torchmetrics_kid():
    from torchmetrics.image.kid import KernelInceptionDistance

    random = np.random.default_rng(3)
    one, other = random.normal(size=(30, 8)), random.normal(0.5, 1, (30, 8))
    theirs = KernelInceptionDistance(feature=Features(8), subsets=1, subset_size=30).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(one), real=True)
    theirs.update(torch.from_numpy(other), real=False)
    ours = kernel_distance(one, other, own(30), own(30), count=2)
    assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


class Features(torch.nn.Module):
    """Of pictures that are their own features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures


def test_kernel_distances_of_the_same_law_are_around_0_and_their_intervals_hold_it():
    random = np.random.default_rng(4)
    found = [kernel_distance(*random.normal(size=(2, 50, 6)), own(50), own(50), seed, 100) for seed in range(60)]
    values = np.array([each.value for each in found])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert np.mean([each.low < 0 < each.high for each in found]) > 0.85
    shifted = kernel_distance(random.normal(size=(50, 6)), random.normal(1, 1, (50, 6)), own(50), own(50))
    assert shifted.low > 0


def slices(random: np.random.Generator, patients: int, each: int = 10, width: int = 6) -> np.ndarray:
    """Features [N, width] of which those of a patient correlate by 0.8; N(0, 1) each."""
    own_part = random.normal(size=(patients, width)).repeat(each, 0)
    return 0.8**0.5 * own_part + 0.2**0.5 * random.normal(size=(patients * each, width))


@pytest.mark.parametrize("patients", [4, 16])
def test_that_slices_of_a_patient_are_alike_does_not_make_sides_of_the_same_law_differ(patients):
    random, groups = np.random.default_rng(10), np.arange(patients).repeat(10)
    found = [
        kernel_distance(slices(random, patients), slices(random, patients), groups, groups, seed, 100)
        for seed in range(40)
    ]
    values = np.array([each.value for each in found])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert np.mean([each.low < 0 < each.high for each in found]) > 0.85


@pytest.mark.parametrize("by", ["quality", "papers"])
def test_the_scale_of_features_is_no_distance_between_halves_of_few_patients(by, tmp_path, monkeypatch):
    flat = Extractor("flat", "pixels", lambda images: images.reshape(len(images), -1).astype(np.float64))
    monkeypatch.setattr(Judge, "extractors", lambda *_: [flat])
    random, held, values = np.random.default_rng(17), [], []

    def side(name: str) -> Pairs:
        pictures = slices(random, 4, 16, width=64).reshape(-1, 8, 8).astype(np.float32)
        names = tuple(f"{name} {row}" for row in range(64))
        patients = tuple(f"{name} {row // 16}" for row in range(64))
        return Pairs(name, pictures, np.zeros(pictures.shape, np.uint8), (), names, patients, True)

    for trial in range(10):
        one, other, more = (side(name) for name in ("one", "other", "more"))
        cache = Cache(tmp_path / str(trial))
        if by == "papers":
            row = Judge(Amounts(), cache).distances(one, other, {"more": more}, 2)["real, other patients"]
            found = Interval(**row["kernel distance (flat)"])
        else:
            section = Section("Quality")
            measure_quality._distances(section, [flat], one, other, more, 0, cache)
            (found,) = [row[2] for row in section.tables[0].rows if row[0] == measure_quality.OTHERS]
        held.append(found.low < 0 < found.high)
        values.append(found.value)
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5
    assert all(held)


def test_independent_samples_are_no_nearer_than_slices_of_other_patients():
    random, groups = np.random.default_rng(11), np.arange(10).repeat(10)
    nearer = []
    for _ in range(60):
        real, other, samples = slices(random, 10), slices(random, 10), random.normal(size=(100, 6))
        of_others = kernel_distance(real, other, groups, groups, count=2).value
        nearer.append(kernel_distance(real, samples, groups, own(100), count=2).value < of_others)
    assert 0.3 < np.mean(nearer) < 0.7


def test_a_difference_of_kernel_distances_has_no_pairs_of_one_patient():
    random, groups = np.random.default_rng(12), np.arange(10).repeat(10)
    real, one, other = slices(random, 10), slices(random, 10), random.normal(size=(100, 6))
    whose = groups, groups
    difference = kernel_difference(real, one, other, *whose, count=2).value
    apart = [kernel_distance(real, side, *whose, count=2).value for side in (one, other)]
    assert difference == pytest.approx(apart[1] - apart[0])
    found = [
        kernel_difference(slices(random, 10), slices(random, 10), random.normal(size=(100, 6)), *whose, count=2).value
        for _ in range(60)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


def test_samples_near_the_slices_of_their_masks_are_not_nearer_than_others():
    random, groups = np.random.default_rng(15), np.arange(4).repeat(10)
    same, found = groups[:, None] == groups, []
    for _ in range(60):
        real = slices(random, 4)
        of_the_same = real.reshape(4, 10, 6).mean(1).repeat(10, 0) + 0.2**0.5 * random.normal(size=(40, 6))
        found.append(kernel_distance(real, of_the_same, groups, groups, count=2, same=same).value)
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


def test_copies_of_slices_have_no_distance_below_0():
    real, groups = slices(np.random.default_rng(13), 6), np.arange(6).repeat(10)
    assert kernel_distance(real, real, groups, groups, count=2).value == pytest.approx(0, abs=1e-9)
    assert kernel_distance(real, real, groups, own(60), count=2).value > 0  # of whom they are copies is not said


@pytest.mark.filterwarnings("error")
def test_a_kernel_distance_of_a_patient_alone_is_not_defined():
    one, other = np.random.default_rng(14).normal(size=(2, 6, 3))
    assert np.isnan(kernel_distance(one, other, np.zeros(6, np.int64), own(6))).all()


def test_equal_sets_have_a_kernel_distance_whose_interval_holds_0():
    same = np.random.default_rng(5).normal(size=(60, 6))
    found = kernel_distance(same, same, own(60), own(60))
    assert found.low < 0 < found.high


@pytest.mark.filterwarnings("error")
def test_a_bootstrap_that_draws_one_picture_alone_does_not_count():
    few = np.random.default_rng(9).normal(size=(8, 3))
    found = kernel_distance(few[:4], few[4:], own(4), own(4), count=100)
    assert np.isfinite(found).all()


def test_the_interval_of_a_frechet_distance_is_wider_where_slices_are_of_few_patients():
    random = np.random.default_rng(6)
    patients = np.repeat(np.arange(8), 25)
    one = random.normal(size=(8, 3))[patients] + 0.1 * random.normal(size=(200, 3))
    other = random.normal(size=(200, 3))
    by_patient = frechet_between(one, other, patients, own(200))
    by_slice = frechet_between(one, other, own(200), own(200))
    assert by_patient.high - by_patient.low > 2 * (by_slice.high - by_slice.low)


def test_a_frechet_distance_of_a_patient_or_a_picture_alone_has_no_interval():
    random = np.random.default_rng(8)
    one, other = random.normal(size=(2, 6, 3))
    assert np.isnan(frechet(one[:1], other))
    for groups in (np.zeros(6, np.int64), np.array([0, 1, 1, 1, 1, 1]), np.array([0, 1, 2, 2, 2, 2])):
        found = frechet_between(one, other, groups, own(6))
        assert found.value > 0
        assert np.isnan(found.low)


def test_coverage_tells_lost_modes_from_strange_ones():
    random = np.random.default_rng(7)
    modes = random.normal(size=(60, 4)), random.normal(20, 1, (60, 4))
    both, other = np.concatenate(modes), np.concatenate([each + 0.01 for each in modes])
    alike = coverage(both, other, own(120), own(120))
    assert min(alike.precision.value, alike.recall.value, alike.coverage.value) > 0.95
    one_mode = coverage(both, modes[0] + 0.01, own(120), own(60))
    assert one_mode.precision.value > 0.95
    assert one_mode.recall.value == one_mode.coverage.value == 0.5
    strange = coverage(modes[0], both, own(60), own(120))
    assert (strange.precision.value, strange.recall.value) == (0.5, 1)
