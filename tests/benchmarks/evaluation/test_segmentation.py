"""Segmentation whose figures are known, and samples whose masks were dealt to other pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet
from scipy import ndimage

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.distances import coverage, kernel_distance
from benchmarks.evaluation.features import noise_like, standardised
from benchmarks.evaluation.measure_utility import _tables
from benchmarks.evaluation.pairs import Pairs
from benchmarks.evaluation.reading import read_pairs
from benchmarks.evaluation.segmentation import RECIPES, Recipe, network_of, scores, seen_by, segmented, trained
from benchmarks.evaluation.utility import ALONE, REAL, SHUFFLED, gained, predictions, scored, shuffled, trainings
from training.data.classes import HEART, LESION

SIZE = 32
TINY = Recipe(filters=(8, 16, 16), epochs=1, batch=8, learning_rate=1e-2)


def square(row: int, column: int, side: int = 8) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[row : row + side, column : column + side] = 1
    return mask


@pytest.mark.parametrize("shift", [1, 3, 6])
def test_a_shifted_square(shift):
    (found,) = scores(square(8, 8 + shift)[None], square(8, 8)[None], 2)
    figures = {name: float(values[0]) for name, values in found.figures.items()}
    overlap = (8 - shift) / 8
    assert figures["HD95"] == shift
    assert figures["Dice"] == pytest.approx(overlap)
    assert figures["IoU"] == pytest.approx(overlap / (2 - overlap))
    assert figures["precision"] == figures["recall"] == pytest.approx(overlap)
    assert 0 < figures["ASD"] < shift


def test_distances_are_in_mm_where_the_pixels_are_known():
    true = np.stack([square(8, 8)] * 4)
    predicted = np.stack([square(8, 11), square(11, 8), np.zeros((SIZE, SIZE), np.uint8), square(8, 11)])
    spacing = np.array([[2.0, 0.5]] * 3 + [[1.0, 1.0]])
    (found,) = scores(predicted, true, 2, spacing)
    assert found.figures["HD95"] == pytest.approx([1.5, 6, np.hypot(SIZE * 2, SIZE * 0.5), 3])
    (in_pixels,), (doubled,) = scores(predicted, true, 2), scores(predicted, true, 2, np.full((4, 2), 2.0))
    assert doubled.figures["ASD"] == pytest.approx(2 * in_pixels.figures["ASD"])
    patients = ("a", "b", "c", "d")
    pairs = Pairs("some", true.astype(np.float32), true, LESION, patients, patients, True, spacing=spacing)
    (of_class,) = scored([predicted], pairs, 2)
    assert of_class.figures["HD95"].value == pytest.approx(found.figures["HD95"].mean())
    row = next(trainings(pairs, pairs, (), 0))
    for known, unit in ((spacing, "mm"), (None, "pixels"), (np.full((4, 2), np.nan), "pixels")):
        (table,) = _tables(replace(pairs, spacing=known), "lesion", [row], [of_class], 1, 0)
        assert table.columns[5:7] == [f"HD95 ({unit})", f"ASD ({unit})"]
        assert f"HD95 and ASD are in {unit}" in table.note


def test_what_is_missed_or_invented_counts_and_what_is_rightly_absent_has_no_figure():
    nothing = np.zeros((SIZE, SIZE), np.uint8)
    true = np.stack([square(4, 4), nothing, nothing, square(4, 4)])
    (found,) = scores(np.stack([nothing, square(4, 4), nothing, square(4, 4)]), true, 2)
    assert found.missed.tolist() == [True, False, False, False]
    assert found.invented.tolist() == [False, True, False, False]
    for name, bad, good in (("Dice", 0, 1), ("HD95", np.hypot(SIZE, SIZE), 0), ("precision", 0, 1), ("recall", 0, 1)):
        assert found.figures[name] == pytest.approx([bad, bad, np.nan, good], nan_ok=True), name
    patients = Pairs("two", true.astype(np.float32), true, LESION, ("a", "b", "c", "d"), ("p", "p", "p", "q"), True)
    (of_class,) = scored([np.stack([nothing, square(4, 4), nothing, square(4, 4)])], patients, 2)
    assert of_class.figures["Dice"].value == 0.5  # of two patients, one with 0 and 0
    assert of_class.counts == {"pictures": 4, "with it": 2, "missed": 1, "invented": 1, "rightly absent": 1}
    assert np.isnan(of_class.spread["Dice"])


@pytest.mark.parametrize(("seeds", "invent"), [(1, 1), (2, 1), (3, 2)])
def test_what_one_seed_invents_and_another_does_not_drops_out_of_no_figure(seeds, invent):
    nothing = np.zeros((SIZE, SIZE), np.uint8)
    true = np.stack([square(4, 4), nothing])
    pairs = Pairs("two", true.astype(np.float32), true, LESION, ("a", "b"), ("p", "q"), True)
    inventing = np.stack([square(4, 4), square(4, 4)])
    (row,) = scored([inventing] * invent + [true] * (seeds - invent), pairs, 2)
    (baseline,) = scored([true] * seeds, pairs, 2)
    assert row.figures["Dice"].value == 0.5
    assert baseline.figures["Dice"].value == 1
    assert gained(row, baseline).value == pytest.approx(-invent / seeds / 2)  # of two patients, one
    assert gained(baseline, row).value == pytest.approx(invent / seeds / 2)
    assert gained(row, row).value == 0


def discs(count: int, seed: int, name: str) -> Pairs:
    random = np.random.default_rng(seed)
    masks = np.stack([square(*random.integers(2, SIZE - 10, 2)) for _ in range(count)])
    images = (0.3 + 0.4 * masks + random.normal(0, 0.05, masks.shape)).clip(0, 1).astype(np.float32)
    names = tuple(f"{name} {k}" for k in range(count))
    return Pairs(name, images, masks, LESION, names, names, True)


def test_the_papers_segmenter_has_five_levels_and_as_many_weights_as_its_code():
    network = network_of(RECIPES["paper"], 4)
    assert sum(weight.numel() for weight in network.parameters()) == 7_762_084
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 4, 64, 64)


def test_pictures_of_any_size_are_segmented_and_those_that_the_levels_can_halve_are_not_padded():
    for size in (2 * SIZE, 6, 8, 21):  # three levels halve by 4; of 4 pixels the lowest level would be a single one
        images = np.random.default_rng(0).random((3, size, size), np.float32)
        masks, names = (images > 0.5).astype(np.uint8), ("a", "b", "c")
        network = trained(Pairs("some", images, masks, LESION, names, names, True), 2, TINY, 1, 0, "a segmenter")
        assert segmented(network, images).shape == images.shape
        assert seen_by(network, images).shape == (3, 16)
    halved = torch.from_numpy(images[:, None, :20, :20])
    assert torch.equal(network(halved), DynUNet.forward(network, halved))


def test_masks_that_are_dealt_to_other_pictures_destroy_utility(tmp_path):
    real, synthetic, test = discs(16, 0, "real"), discs(24, 1, "synthetic"), discs(12, 2, "test")
    rows = {row.name: row for row in trainings(real, synthetic, (0.5, 1, 2), seed=0)}
    assert list(rows) == [REAL, ALONE, "real + 0.5x", "real + 1x", SHUFFLED]  # 24 are too few for 2x
    assert [(row.real, row.synthetic, len(row.pairs)) for row in rows.values()][:3] == [
        (16, 0, 16),
        (0, 16, 16),
        (16, 8, 24),
    ]
    found = {}
    for name in (REAL, ALONE, SHUFFLED):
        (masks,) = predictions(rows[name], [test], 2, TINY, 60, 0, Cache(tmp_path))
        (found[name],) = scored([masks], test, 2)
    assert found[REAL].figures["Dice"].value > 0.9
    assert found[ALONE].figures["Dice"].value > 0.9
    assert found[SHUFFLED].figures["Dice"].value < 0.5
    assert gained(found[SHUFFLED], found[REAL]).value < -0.4
    assert abs(gained(found[ALONE], found[REAL]).value) < 0.1


def test_a_segmenter_sees_noise_and_blur_farther_off_than_other_hearts():
    real, other = (read_pairs("phantom:40", 64, split, labels=HEART) for split in ("train", "validation"))
    network = trained(real, 4, Recipe(filters=(8, 16, 32), epochs=1, batch=8), 20, 2, "a segmenter")
    blurred = replace(other, images=ndimage.gaussian_filter(other.images, (0, 1, 1)))
    beside = (other, blurred, noise_like(real, 0))
    seen = [seen_by(network, each.images) for each in (real, *beside)]
    sides = standardised(np.concatenate(seen[:2]), *seen)
    distances = [kernel_distance(sides[0], side, real.groups, real.groups, count=2).value for side in sides[1:]]
    assert abs(distances[0]) < 0.3
    assert distances[1] > 1
    assert distances[2] > 100
    assert coverage(sides[0], sides[3], real.groups, real.groups).precision.value == 0


def test_what_was_trained_is_kept(tmp_path, monkeypatch):
    real, test = discs(8, 0, "real"), discs(4, 1, "test")
    row = next(trainings(real, real, (), seed=0))
    first = predictions(row, [test], 2, TINY, 2, 0, Cache(tmp_path))
    monkeypatch.setattr("benchmarks.evaluation.utility.trained", None)
    again = predictions(row, [test], 2, TINY, 2, 0, Cache(tmp_path))
    assert (first[0] == again[0]).all()
    with pytest.raises(TypeError):  # another seed was not
        predictions(row, [test], 2, TINY, 2, 1, Cache(tmp_path))
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(TypeError):  # nor is half a file
        predictions(row, [test], 2, TINY, 2, 0, Cache(tmp_path))


def test_shuffled_masks_are_those_of_other_patients():
    pairs = discs(9, 0, "some")
    dealt = shuffled(pairs)
    assert (dealt.images == pairs.images).all()
    assert not any((one == other).all() for one, other in zip(dealt.masks, pairs.masks, strict=True))
    assert sorted(mask.tobytes() for mask in dealt.masks) == sorted(mask.tobytes() for mask in pairs.masks)
