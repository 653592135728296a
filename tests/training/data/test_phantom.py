import numpy as np
import pytest
import torch
from scipy import ndimage

from training.data.phantom import Phantoms, phantom_pair

CASES = [(size, seed) for size in (32, 64, 77, 128) for seed in range(25)] + [(512, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    return {(size, seed): phantom_pair(seed, size) for size, seed in CASES}


def breast_of(image: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(image > -1)


@pytest.mark.parametrize(("size", "seed"), CASES)
class TestEveryPhantom:
    def test_shapes_types_and_ranges(self, drawn, size, seed):
        image, mask = drawn[size, seed]
        assert image.shape == mask.shape == (1, size, size)
        assert image.dtype == np.float32
        assert mask.dtype == np.uint8
        assert np.isfinite(image).all()
        assert image.min() == -1
        assert image.max() <= 1
        assert set(np.unique(mask)) == {0, 1}

    def test_one_connected_breast_on_the_left_and_black_elsewhere(self, drawn, size, seed):
        image = drawn[size, seed][0][0]
        breast = breast_of(image)
        assert ndimage.label(breast)[1] == 1
        assert 0.3 < breast.mean() < 0.75
        assert breast[size // 2, 0]
        assert not breast[:, -1].any()
        assert (image[~breast] == -1).all()

    def test_one_connected_mass_inside_the_breast(self, drawn, size, seed):
        image, mask = drawn[size, seed]
        mass = mask[0] == 1
        assert ndimage.label(mass)[1] == 1
        assert not (mass & ~ndimage.binary_erosion(breast_of(image[0]), border_value=0)).any()

    def test_mass_is_as_large_as_promised(self, drawn, size, seed):
        radius = np.sqrt(drawn[size, seed][1].sum() / np.pi) / size * 64
        assert 4 <= radius <= 9

    def test_mass_is_brighter_than_its_surround(self, drawn, size, seed):
        image, mask = drawn[size, seed][0][0], drawn[size, seed][1][0] == 1
        pixel = max(1, size // 64)
        near, far = (ndimage.binary_dilation(mask, iterations=k * pixel) for k in (2, 4))
        surround = far & ~near & breast_of(image)
        assert image[mask].mean() > image[surround].mean() + 0.2


def test_the_same_seed_draws_the_same_bits():
    for first, second in zip(phantom_pair(5, 64), phantom_pair(5, 64), strict=True):
        assert first.tobytes() == second.tobytes()


def test_different_seeds_draw_different_breasts_and_masses():
    images, masses = zip(*(phantom_pair(seed, 64) for seed in range(40)), strict=True)
    assert len({image.tobytes() for image in images}) == 40
    assert len({mass.tobytes() for mass in masses}) == 40
    areas = [breast_of(image[0]).mean() for image in images]
    assert max(areas) > 1.3 * min(areas)
    centres = np.array([ndimage.center_of_mass(mass[0]) for mass in masses])
    assert (centres.std(axis=0) > 5).all()


@pytest.mark.parametrize("seed", range(10))
def test_more_pixels_show_the_same_anatomy(seed):
    image, mask = phantom_pair(seed, 64)
    large_image, large_mask = phantom_pair(seed, 256)
    averaged, averaged_mask = (
        pixels.reshape(64, 4, 64, 4).mean(axis=(1, 3)) for pixels in (large_image, large_mask.astype(np.float32))
    )
    assert np.corrcoef(image.ravel(), averaged.ravel())[0, 1] > 0.99
    assert np.abs(image[0] - averaged).mean() < 0.03
    disagree = (mask[0] == 1) != (averaged_mask > 0.5)
    assert disagree.sum() <= 0.1 * mask.sum()


def test_margins_are_irregular():
    def compactness(mask: np.ndarray) -> float:
        perimeter = (mask & ~ndimage.binary_erosion(mask)).sum()
        return float(4 * np.pi * mask.sum() / perimeter**2)

    rows, columns = np.mgrid[:256, :256]
    disc = (rows - 128) ** 2 + (columns - 128) ** 2 < 26**2
    masses = [compactness(phantom_pair(seed, 256)[1][0] == 1) for seed in range(20)]
    assert np.median(masses) < 0.95 * compactness(disc)


def test_glandular_tissue_is_brighter_in_the_middle_than_under_the_skin():
    for seed in range(10):
        image, mask = (pixels[0] for pixels in phantom_pair(seed, 128))
        depth = ndimage.distance_transform_edt(np.pad(breast_of(image), ((0, 0), (128, 0)), mode="edge"))[:, 128:]
        tissue = mask == 0
        assert image[tissue & (depth > 25)].mean() > image[tissue & (depth > 3) & (depth < 8)].mean() + 0.1


class TestPhantoms:
    def test_items_are_training_pairs(self):
        item = Phantoms(3, 64)[0]
        assert set(item) == {"image", "mask"}
        assert item["image"].shape == item["mask"].shape == (1, 64, 64)
        assert item["image"].dtype == torch.float32
        assert item["mask"].dtype == torch.uint8

    def test_an_item_depends_on_neither_count_nor_order(self):
        short, long = Phantoms(3, 64, seed=9), Phantoms(1000, 64, seed=9)
        backwards = [short[index] for index in (2, 1, 0)][::-1]
        for index, item in enumerate(backwards):
            assert torch.equal(item["image"], long[index]["image"])
            assert torch.equal(item["mask"], long[index]["mask"])

    def test_items_and_seeds_differ(self):
        images = [Phantoms(20, 64, seed)[index]["image"] for seed in (0, 1) for index in range(20)]
        assert len({image.numpy().tobytes() for image in images}) == 40

    def test_an_epoch_ends(self):
        assert len(list(Phantoms(4, 32))) == len(Phantoms(4, 32)) == 4

    def test_worker_processes_draw_the_same_items(self):
        phantoms = Phantoms(6, 32, seed=2)
        loader = torch.utils.data.DataLoader(phantoms, batch_size=3, num_workers=1)
        images = torch.cat([batch["image"] for batch in loader])
        assert torch.equal(images, torch.stack([phantoms[index]["image"] for index in range(6)]))


@pytest.mark.parametrize("index", [-1, 3])
def test_an_item_that_does_not_exist_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"item {index} of 3 phantoms does not exist"):
        Phantoms(3, 64)[index]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: phantom_pair(-1, 64), "seed is -1, but must be 0 or more"),
        (lambda: phantom_pair(0, 31), "size is 31, but must be 32 or more"),
        (lambda: Phantoms(0, 64), "count is 0, but must be 1 or more"),
        (lambda: Phantoms(1, 31), "size is 31, but must be 32 or more"),
        (lambda: Phantoms(1, 64, seed=-2), "seed is -2, but must be 0 or more"),
    ],
)
def test_a_bad_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
