"""Hearts that are none are told by what is wrong with them, and pictures that ignore their masks by their Dice."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.__main__ import main
from benchmarks.quality import command
from benchmarks.quality.anatomy import LV, MYO, RV, faults
from training.data.loaded import LoadedPairs

SIZE = 32
ROWS, COLUMNS = np.indices((SIZE, SIZE))


def heart(row: float = 16, column: float = 18, radius: float = 4) -> NDArray[np.uint8]:
    """An LV in a ring of MYO three pixels wide, and an RV at its left."""
    distance = np.hypot(ROWS - row, COLUMNS - column)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[np.hypot(ROWS - row, COLUMNS - column + radius + 5) < radius + 1] = RV
    mask[distance < radius + 3] = MYO
    mask[distance < radius] = LV
    return mask


def picture(mask: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """Structures in their own grey, in [0, 1], and some noise."""
    noise = np.random.default_rng(seed).normal(0, 0.02, mask.shape)
    return (np.array([0.1, 0.9, 0.4, 0.65])[mask] + noise).clip(0, 1).astype(np.float32)


def changed(*changes: tuple[object, int]) -> NDArray[np.uint8]:
    mask = heart()
    for place, index in changes:
        mask[place] = index
    return mask


class TestFaults:
    @pytest.mark.parametrize(
        "mask", [heart(), heart(14, 20, 3), changed((heart() == RV, 0))], ids=["", "other", "apex"]
    )
    def test_a_heart_has_none(self, mask):
        assert faults(mask) == []

    @pytest.mark.parametrize(
        ("mask", "fault"),
        [
            (changed((np.s_[2:4, 2:4], LV)), "LV in 2 pieces"),
            (changed((heart() == LV, MYO)), "LV in 0 pieces"),
            (changed((np.s_[:2, :2], MYO)), "MYO in 2 pieces"),
            (changed((np.s_[28:30, 28:30], RV)), "RV in 2 pieces"),
            (changed((np.s_[16, 18:], 0)), "LV not within MYO"),
            (changed((np.s_[16, 18:], LV)), "LV not within MYO"),
            (changed((np.s_[16, 5:18], RV)), "LV not within MYO"),
            (changed((heart() == RV, 0), (np.s_[2:5, 2:5], RV)), "RV apart from MYO"),
        ],
    )
    def test_one_that_is_none_is_told(self, mask, fault):
        assert fault in faults(mask)

    def test_nothing_is_no_heart(self):
        assert faults(np.zeros((8, 8), np.uint8)) == ["LV in 0 pieces", "MYO in 0 pieces"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Samples whose pictures follow their masks, and samples whose pictures are of other masks."""
    random = np.random.default_rng(0)
    masks = [heart(*random.uniform((12, 14, 3), (20, 22, 5))) for _ in range(60)]
    images = [picture(mask, seed) for seed, mask in enumerate(masks)]
    pairs = LoadedPairs([str(k) for k in range(60)], [image * 2 - 1 for image in images], masks)
    monkeypatch.setattr(command, "open_dataset", lambda *_: pairs)
    written = {}
    for name, order in {"following": range(8), "ignoring": [*range(1, 8), 0]}.items():
        written[name] = tmp_path / name
        written[name].mkdir()
        drawn = {"mask": np.stack(masks[:8])[:, None], "image": np.stack([images[k] for k in order])[:, None]}
        np.savez(written[name] / "pairs.npz", **drawn)
    return written


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["anatomy", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_pictures_that_ignore_their_masks_are_told(folders, tmp_path):
    output = run(*folders.values(), "--data", "acdc", "--epochs", 40, "--json", tmp_path / "figures.json")
    rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())}
    assert list(rows) == ["real, trained on", "real, held out", "following", "ignoring"]
    for name in ("LV", "MYO", "RV"):
        assert rows["following"]["dice"][name] > 0.9
        assert rows["ignoring"]["dice"][name] < rows["following"]["dice"][name] - 0.15
    assert rows["following"]["brightness"]["LV"] == pytest.approx(0.9, abs=0.02)
    assert rows["ignoring"]["brightness"]["LV"] < 0.85
    assert rows["following"]["valid"] == 8
    assert "8 of 8" in output


@pytest.mark.parametrize("content", [None, {"image": np.zeros((1, 1, 8, 8), np.float32)}])
def test_a_folder_without_pairs_is_named(folders, tmp_path, content):
    folder = tmp_path / "other"
    folder.mkdir()
    if content:
        np.savez(folder / "pairs.npz", **content)
    result = CliRunner().invoke(main, ["anatomy", str(folder), "--data", "acdc"])
    assert result.exit_code == 1
    assert f"{folder} holds no pairs of mask and image" in result.stderr
