"""Intervals and tests do what they say at the rate they say it."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.evaluation.neighbours import median_of
from benchmarks.evaluation.statistics import (
    around,
    auc,
    auc_of,
    caught,
    compare,
    holm,
    jackknife,
    ks_interval,
    mean_of,
    share_of,
)


def own(count: int) -> np.ndarray:
    return np.arange(count)


def test_kolmogorov_smirnov_rejects_the_same_law_at_its_rate():
    random = np.random.default_rng(0)
    p = [compare(random.normal(size=80), random.normal(size=80), own(80), count=2).p for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.075  # 5 % or, as D has steps, a little less


def test_that_slices_of_a_patient_are_alike_is_no_difference_and_what_is_one_is_found():
    random, patients = np.random.default_rng(6), np.repeat(own(20), 20)
    p = {0: [], 2: []}
    for seed in range(25):
        real = 0.8**0.5 * random.normal(size=20)[patients] + 0.2**0.5 * random.normal(size=400)
        for shift, found in p.items():
            independent = random.normal(shift, 1, 256)
            found.append(compare(real, independent, patients, seed, 2).p)
            found.append(compare(independent, real, own(256), seed, 2, patients).p)
    assert np.mean(np.array(p[0]) < 0.05) < 0.075
    assert np.mean(np.array(p[2]) < 0.05) > 0.9


def test_p_of_patients_with_a_slice_each_is_scipys():
    random = np.random.default_rng(7)
    one, other = random.normal(size=40), random.normal(0.5, 1, 50)
    assert compare(one, other, own(40)[::-1], others=own(50)).p == stats.ks_2samp(one, other).pvalue


def test_cliffs_delta_has_its_sign_and_an_interval_that_holds_it():
    random = np.random.default_rng(1)
    found = [compare(random.normal(size=60), random.normal(1, 1, 90), own(60), seed) for seed in range(100)]
    assert np.mean([each.delta.low < 0.5205 < each.delta.high for each in found]) > 0.88  # 2 * Phi(1 / sqrt 2) - 1
    assert compare(np.array([np.nan, 1.0]), random.normal(size=9), own(2)) is None


def test_the_interval_of_cliffs_delta_is_of_the_patients_of_both_sides():
    random = np.random.default_rng(4)
    first, second = np.repeat(own(60), 5), np.repeat(own(20), 20)
    held = []
    for seed in range(60):
        real, synthetic = (
            0.8**0.5 * random.normal(size=groups.max() + 1)[groups] + 0.2**0.5 * random.normal(size=len(groups))
            for groups in (first, second)
        )
        delta = compare(real, synthetic, first, seed, others=second).delta
        held.append(delta.low < 0 < delta.high)
    assert np.mean(held) > 0.8  # 0.7 if each of the second side's values were its own patient's


def test_the_interval_of_d_holds_it_however_alike_slices_are():
    random = np.random.default_rng(3)
    patients = np.repeat(own(12), 10)
    held = []
    for _ in range(100):
        real = random.normal(size=12)[patients] + 0.01 * random.normal(size=120)
        found = compare(real, random.normal(1, 1, 60), patients, count=2)
        interval = ks_interval(found.d, patients, own(60))
        held.append(interval.low <= 0.3829 <= interval.high)  # 2 Phi(1 / 2) - 1
    assert np.mean(held) > 0.95
    by_slice = ks_interval(found.d, own(120), own(60))
    assert interval.high - interval.low > by_slice.high - by_slice.low


def test_holm_adjusts_the_papers_table_to_six():
    lv = [0.0156, 0.9084, 1.35e-40, 0.1112, 1.35e-40]
    rv = [0.0061, 0.1548, 1.75e-6, 0.3682, 0.0022]
    myocardium = [0.0022, 0.1113, 8e-7, 0.0782, 0.0539]
    p = [*lv, *rv, *myocardium]
    assert sum(value < 0.05 for value in p) == 8
    adjusted = holm(p)
    assert sum(value < 0.05 for value in adjusted) == 6
    assert adjusted[7] == pytest.approx(1.75e-6 * 12)
    assert adjusted[5] == pytest.approx(0.0061 * 9)
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])


def test_slices_of_few_patients_have_a_wide_interval():
    patients = np.repeat(np.arange(5), 40)
    values = np.random.default_rng(2).normal(size=5)[patients]
    by_patient, by_slice = mean_of(values, patients), mean_of(values, own(200))
    assert by_patient.high - by_patient.low > 3 * (by_slice.high - by_slice.low)


@pytest.mark.parametrize("patients", [1, 2, 3])
def test_few_patients_give_no_interval(patients):
    one, values = np.arange(6) % patients, np.arange(6.0)
    found = [
        mean_of(values, one),
        auc_of(values, values, one, own(6)),
        jackknife(lambda a, b: values[a].mean() - values[b].mean(), own(6), one),
        median_of(values, one),
        compare(values, values, one).delta,
    ]
    assert [each.value for each in found] == pytest.approx([2.5, 0.5, 0, 2.5, 0])
    assert np.isnan([[each.low, each.high] for each in found]).all()


def test_a_median_is_numpys():
    random = np.random.default_rng(8)
    for count in range(1, 9):
        values = random.normal(size=count)
        assert median_of(values, own(count)).value == pytest.approx(np.median(values))


def test_equal_values_give_no_interval_and_neither_do_resamplings_that_are_mostly_undefined():
    assert np.isnan([mean_of(np.full(40, value), own(40)).high for value in (0.0, 0.1)]).all()
    assert around(0.5, [0.4, 0.6] * 19 + [np.nan] * 2).high == pytest.approx(0.6)
    assert np.isnan(around(0.5, [0.4, 0.6] * 19 + [np.nan] * 3).high)


def test_what_is_not_a_number_does_not_count():
    assert mean_of(np.array([1.0, np.nan, 3.0]), own(3)).value == 2
    assert np.isnan(mean_of(np.full(3, np.nan), own(3)).value)


def test_intervals_of_a_mean_cover_it_at_their_rate():
    random = np.random.default_rng(3)
    found = [mean_of(random.normal(size=40), own(40), seed, 200) for seed in range(150)]
    assert 0.88 < np.mean([each.low < 0 < each.high for each in found]) <= 0.99
    found = []
    for seed in range(150):
        one, other = random.normal(size=(2, 40))
        found.append(jackknife(lambda a, b, x=one, y=other: x[a].mean() - y[b].mean(), own(40), own(40), seed))
    assert 0.88 < np.mean([each.low < 0 < each.high for each in found]) <= 0.99


def test_auc_is_scikit_learns_with_ties_and_weights():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(4)
    positives, negatives = random.integers(0, 6, 40) + 1.0, random.integers(0, 6, 30) * 1.0
    weights = random.integers(0, 3, 40) * 1.0, random.integers(0, 3, 30) * 1.0
    both, truth = np.concatenate([positives, negatives]), np.repeat([1, 0], [40, 30])
    assert auc(positives, negatives) == pytest.approx(roc_auc_score(truth, both))
    assert auc(positives, negatives, weights) == pytest.approx(
        roc_auc_score(truth, both, sample_weight=np.concatenate(weights))
    )


def test_an_auc_of_nothing_holds_a_half():
    random = np.random.default_rng(5)
    found = [auc_of(random.normal(size=50), random.normal(size=60), own(50), own(60), seed) for seed in range(40)]
    assert np.mean([each.low < 0.5 < each.high for each in found]) > 0.85


def test_members_are_caught_above_what_one_in_a_hundred_others_reach():
    others = np.arange(200.0)
    assert caught(np.array([197.0, 197.5, 198.5]), others) == pytest.approx(2 / 3)
    assert caught(others, others) == pytest.approx(0.01)


def test_a_share_of_none_has_an_upper_limit():
    found = share_of(np.zeros(59, bool), own(59))
    assert (found.value, found.low) == (0, 0)
    assert 0.05 < found.high < 0.08
    of_patients = share_of(np.ones(60, bool), np.repeat(np.arange(6), 10))
    assert of_patients.value == of_patients.high == 1
    assert 0.5 < of_patients.low < 0.7
