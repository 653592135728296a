"""Pairs that are no phantom of a breast are told by what is wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.__main__ import main
from benchmarks.quality.lesions import faults
from training.data.classes import HEART, LESION
from training.data.phantom import phantom_pair

Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]


def pair(seed: int, size: int = 64) -> Pair:
    """An image [size, size] in [0, 1] and its mask."""
    image, mask = phantom_pair(seed, size)
    return image[0] / 2 + 0.5, mask[0]


def mass_moved(source: Pair, target: Pair) -> NDArray[np.float32]:
    """The target's image with the source's mass, and what is around it, in the source's place."""
    rows, columns = np.nonzero(source[1])
    window = np.s_[max(0, rows.min() - 3) : rows.max() + 4, max(0, columns.min() - 3) : columns.max() + 4]
    image = target[0].copy()
    image[window] = source[0][window]
    return image


@pytest.mark.parametrize("size", [32, 64, 128])
def test_phantoms_have_none(size):
    assert [faults(*pair(seed, size)) for seed in range(40)] == [[]] * 40


class TestFaults:
    def test_without_a_lesion(self):
        image, mask = pair(0)
        assert "no lesion" in faults(image, mask * 0)

    def test_two_lesions(self):
        image, mask = pair(0)
        mask[1:4, 1:4] = 1
        assert "2 lesions" in faults(image, mask)

    def test_one_that_touches_itself_at_a_corner_is_one(self):
        image, mask = pair(0)
        row, column = np.argwhere(mask)[0]
        mask[row - 1, column - 1] = 1
        assert faults(image, mask) == []

    def test_outside_the_breast(self):
        image, mask = pair(0)
        moved = np.zeros_like(mask)
        moved[2:12, 50:60] = 1
        assert "lesion outside the breast" in faults(image, moved)

    def test_a_mask_where_nothing_is(self):
        image, mask = pair(1)
        assert "lesion not in the image" in faults(image * 0 + 0.4, mask)

    def test_a_mass_that_no_mask_tells_of(self):
        """Another phantom's mass, pasted where this one's is not."""
        told = []
        for seed in range(40):
            target, source = pair(seed), pair(seed + 100)
            near = np.hypot(*(np.argwhere(target[1]).mean(0) - np.argwhere(source[1]).mean(0)))
            if near > 20:
                told.append("mass without a mask" in faults(mass_moved(source, target), target[1]))
        assert len(told) >= 4
        assert np.mean(told) > 0.5

    def test_a_mask_beside_its_mass(self):
        """As of a mask upside down."""
        told = []
        for image, mask in map(pair, range(40)):
            if abs(np.argwhere(mask).mean(0)[0] - 31.5) > 11:
                told.append("mass without a mask" in faults(image, mask[::-1]))
        assert len(told) >= 4
        assert np.mean(told) > 0.5


def written(folder: Path, pairs: list[Pair], labels: tuple[str, ...]) -> Path:
    folder.mkdir()
    images, masks = (np.stack(arrays)[:, None] for arrays in zip(*pairs, strict=True))
    np.savez(folder / "pairs.npz", image=images, mask=masks, mask_labels=np.array(labels))
    return folder


def test_samples_of_breasts_are_counted(tmp_path):
    pairs = [pair(seed) for seed in range(6)]
    pairs[4][1][...] = 0
    folder = written(tmp_path / "breasts", pairs, LESION)
    options = ["--data", "phantom:8", "--epochs", "1", "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(main, ["anatomy", str(folder), *options])
    assert result.exit_code == 0, result.output
    assert "5 of 6" in result.output
    *known, row = json.loads((tmp_path / "figures.json").read_text())
    assert [each["valid"] for each in known] == [8, 8]
    assert row["faults"][4][0] == "no lesion"
    assert list(row["dice"]) == ["lesion"]


def test_real_breasts_are_not_judged(tmp_path):
    folder = written(tmp_path / "breasts", [pair(0)], LESION)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    result = CliRunner().invoke(main, ["anatomy", str(folder), "--data", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert "of breasts only those of 'phantom' can be judged" in result.stderr


def test_samples_of_two_kinds_are_refused(tmp_path):
    folders = [written(tmp_path / labels[1], [pair(0)], labels) for labels in (LESION, HEART)]
    result = CliRunner().invoke(main, ["anatomy", *map(str, folders), "--data", "phantom"])
    assert result.exit_code == 1
    assert "SAMPLES are of two kinds" in result.stderr
