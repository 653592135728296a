import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks.quality.anatomy import faults
from training.data.classes import HEART
from training.data.phantom_heart import LV, MYO, RV, HeartPhantoms, heart_pair

CASES = {32: 100, 64: 300, 77: 60, 128: 120, 256: 10}


@pytest.fixture(scope="module")
def drawn() -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    return {size: [heart_pair(seed, size) for seed in range(count)] for size, count in CASES.items()}


@pytest.mark.parametrize("size", CASES)
class TestEveryPhantom:
    def test_shapes_types_and_ranges(self, drawn, size):
        for image, mask in drawn[size]:
            assert image.shape == mask.shape == (1, size, size)
            assert image.dtype == np.float32
            assert mask.dtype == np.uint8
            assert (image.min(), image.max()) == (-1, 1)
            assert set(np.unique(mask)) | {RV} == {0, LV, MYO, RV}

    def test_it_is_a_heart(self, drawn, size):
        assert {seed: found for seed, (_, mask) in enumerate(drawn[size]) if (found := faults(mask[0]))} == {}

    def test_it_is_in_the_middle_and_whole(self, drawn, size):
        for _, mask in drawn[size]:
            for axis in (0, 1):
                inside = mask[0].any(axis=axis).nonzero()[0]
                assert inside[0] > 0
                assert inside[-1] < size - 1
                assert inside[0] + inside[-1] == pytest.approx(size - 1, abs=2 + size / 64)

    def test_blood_is_brighter_than_myocardium(self, drawn, size):
        for image, mask in drawn[size]:
            left, muscle = (np.percentile(image[mask == index], 75) for index in (LV, MYO))
            assert left > muscle + 0.05


def radius(mask: np.ndarray) -> np.ndarray:
    """Millimetres of a disc of the same area."""
    return np.sqrt(mask.sum(axis=(1, 2)) / np.pi) * 160 / mask.shape[-1]


def test_slices_are_as_various_as_real_ones(drawn):
    """5th, 50th and 95th percentile, beside those of 385 slices of ACDC."""
    masks = np.stack([mask[0] for _, mask in drawn[64]])
    epicardium = np.percentile(radius((masks == LV) | (masks == MYO)), (5, 50, 95))
    assert epicardium == pytest.approx((19.0, 40.7, 49.3), rel=0.2)
    assert np.percentile(radius(masks == LV), (5, 50, 95)) == pytest.approx((11.4, 31.4, 39.9), rel=0.2)
    without = ~(masks == RV).any(axis=(1, 2))
    assert without.mean() == pytest.approx(0.14, abs=0.06)
    assert np.median(radius((masks == LV) | (masks == MYO))[without]) < 0.8 * epicardium[1]
    assert np.percentile(radius(masks == RV)[~without], (50, 95)) == pytest.approx((22.0, 37.9), rel=0.2)


def test_the_rv_is_on_the_left(drawn):
    for _, mask in drawn[64]:
        if (mask == RV).any():
            _, right = ndimage.center_of_mass(mask[0] == RV)
            _, left = ndimage.center_of_mass(mask[0] == LV)
            assert right < left


def test_grey_levels_are_those_of_real_slices(drawn):
    """Medians beside those of 385 slices of ACDC, from 0 to 1."""
    for index, real in ((LV, 0.78), (MYO, 0.22), (RV, 0.59)):
        there = [image[mask == index] / 2 + 0.5 for image, mask in drawn[128] if (mask == index).any()]
        assert np.median([np.median(values) for values in there]) == pytest.approx(real, abs=0.1)


def test_the_same_seed_draws_the_same_bits():
    for first, second in zip(heart_pair(5, 64), heart_pair(5, 64), strict=True):
        assert first.tobytes() == second.tobytes()


def test_different_seeds_draw_different_hearts(drawn):
    for part in (0, 1):
        assert len({pair[part].tobytes() for pair in drawn[64]}) == len(drawn[64])


def test_more_pixels_show_the_same_anatomy(drawn):
    for seed in range(10):
        (image, mask), (large_image, large_mask) = drawn[64][seed], drawn[256][seed]
        averaged = large_image.reshape(64, 4, 64, 4).mean(axis=(1, 3))
        assert np.corrcoef(image.ravel(), averaged.ravel())[0, 1] > 0.97
        for index in (LV, MYO, RV):
            share = (large_mask == index).reshape(64, 4, 64, 4).mean(axis=(1, 3))
            assert ((mask[0] == index) != (share > 0.5)).sum() <= 3 + 0.1 * (mask == index).sum()


class TestHeartPhantoms:
    def test_items_are_training_pairs(self):
        phantoms = HeartPhantoms(3, 64)
        assert phantoms.labels == HEART
        item = phantoms[0]
        assert item["image"].shape == item["mask"].shape == (1, 64, 64)
        assert item["image"].dtype == torch.float32
        assert item["mask"].dtype == torch.uint8
        assert item["mask"].max() > 1

    def test_an_item_depends_on_its_seed_and_number_alone(self):
        short, long = HeartPhantoms(3, 64, seed=9), HeartPhantoms(1000, 64, seed=9)
        assert torch.equal(short[2]["image"], long[2]["image"])
        assert not torch.equal(short[2]["image"], HeartPhantoms(3, 64, seed=8)[2]["image"])


@pytest.mark.parametrize(
    ("seed", "size", "message"),
    [(-1, 64, "seed is -1, but must be 0 or more"), (0, 31, "size is 31, but must be 32 or more")],
)
def test_a_bad_argument_is_named(seed, size, message):
    with pytest.raises(ValueError, match=message):
        heart_pair(seed, size)
