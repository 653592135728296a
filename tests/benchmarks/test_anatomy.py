"""Hearts that are none are told by what is wrong with them, and pictures that ignore their masks by their Dice."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.quality import command, figures
from benchmarks.quality.anatomy import LV, MYO, RV, faults
from training.data import open_dataset
from training.data.classes import HEART, LESION
from training.data.dataset import LoadedPairs

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


AROUND = np.hypot(ROWS - 16, COLUMNS - 18).round()


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
            (changed((np.s_[16, 18], 0)), "LV with a hole"),
            (changed((np.s_[16, 23], 0)), "MYO with a hole beside the LV"),
            (changed((np.s_[16, 23], RV)), "MYO with a hole beside the LV"),
            (changed((np.s_[16, 9], 0)), "RV around something"),
            (changed((heart() == RV, 0), (AROUND == 11, RV)), "RV around something"),
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
    pairs = LoadedPairs([str(k) for k in range(60)], [image * 2 - 1 for image in images], masks, HEART)
    monkeypatch.setattr(figures, "open_dataset", lambda *_, **__: pairs)
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
    assert list(rows) == ["real, trained on", "real, held out", *map(str, folders.values())]
    following, ignoring = (rows[str(folder)] for folder in folders.values())
    for name in ("LV", "MYO", "RV"):
        assert following["dice"][name] > 0.9
        assert ignoring["dice"][name] < following["dice"][name] - 0.15
    assert following["brightness"]["LV"] == pytest.approx(0.9, abs=0.02)
    assert ignoring["brightness"]["LV"] < 0.85
    assert following["valid"] == 8
    assert "8 of 8" in output


def test_a_structure_that_is_nowhere_has_no_figures(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.progress.SECONDS", 0)
    with np.load(folders["following"] / "pairs.npz") as arrays:
        np.savez(
            folders["ignoring"] / "pairs.npz",
            image=arrays["image"],
            mask=np.where(arrays["mask"] == RV, 0, arrays["mask"]),
        )
    output = run(folders["ignoring"], "--data", "acdc", "--epochs", 1, "--json", tmp_path / "figures.json")
    *_, row = json.loads((tmp_path / "figures.json").read_text())
    assert (row["dice"]["RV"], row["brightness"]["RV"]) == (None, None)
    assert row["brightness"]["LV"] is not None
    assert output.rstrip().endswith("-")
    assert "training a segmenter: step 1 of " in output


def test_of_masks_alone_faults_are_counted_by_kind_and_no_segmenter_is_trained(folders, tmp_path, monkeypatch):
    """As `cmr_mask` draws them."""
    monkeypatch.setattr(figures, "open_dataset", open_dataset)
    monkeypatch.setattr(figures, "train_segmenter", None)
    opened, two = changed((np.s_[16, 18:], 0)), changed((np.s_[28:30, 28:30], RV))
    masks = np.stack([heart(), two, opened, two, changed((np.s_[16, 18:], 0), (np.s_[28:30, 28:30], RV))])[:, None]
    for folder in folders.values():
        np.savez(folder / "pairs.npz", mask=masks, mask_labels=np.array(HEART))
    folder = folders["following"]
    output = run(folder, "--data", "phantom:12", "--json", tmp_path / "figures.json")
    known, _, row = json.loads((tmp_path / "figures.json").read_text())
    assert (row["valid"], row["count"]) == (1, 5)
    assert row["kinds"] == {"RV in 2 pieces": 3, "LV not within MYO": 2}
    assert set(row["dice"].values()) == set(row["brightness"].values()) == set(known["dice"].values()) == {None}
    assert known["brightness"]["LV"] > 0
    assert f"{folder}: 4 of 5 faulty: 3 with RV in 2 pieces, 2 with LV not within MYO" in output
    assert output.count("faulty") == 1


def test_masks_alone_stand_beside_pairs(folders, tmp_path):
    np.savez(folders["ignoring"] / "pairs.npz", mask=np.stack([heart()] * 2)[:, None])
    run(*folders.values(), "--data", "acdc", "--epochs", 1, "--json", tmp_path / "figures.json")
    *_, pairs, masks = json.loads((tmp_path / "figures.json").read_text())
    assert pairs["dice"]["LV"] is not None
    assert (masks["valid"], masks["dice"]["LV"]) == (2, None)


MASK, IMAGE = np.zeros((2, 1, 8, 8), np.uint8), np.zeros((2, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no masks"),
        (b"PK damaged", "holds no masks"),
        ({"image": IMAGE}, "holds no masks"),
        ({"mask": MASK[0]}, "masks of [1, 8, 8]; they must be [N, 1, S, S]"),
        (
            {"mask": MASK, "mask_labels": np.array(LESION)},
            "masks of background, lesion without pictures; without them they must be of background, LV, MYO, RV",
        ),
        ({"image": IMAGE, "mask": MASK + 4}, "masks of class 4; there are 0 to 3"),
        ({"image": IMAGE, "mask": MASK[..., :4]}, r"images of shape [2, 1, 8, 8] and masks of [2, 1, 8, 4]"),
        ({"image": IMAGE, "mask": MASK.astype(np.int64)}, "int64 masks"),
        (
            {"image": IMAGE, "mask": MASK, "mask_labels": np.array(["background", "cyst"])},
            "masks of background, cyst; they must be of",
        ),
    ],
)
def test_a_folder_without_such_masks_is_named(folders, tmp_path, content, message):
    folder = tmp_path / "other"
    folder.mkdir()
    if isinstance(content, bytes):
        (folder / "pairs.npz").write_bytes(content)
    elif content:
        np.savez(folder / "pairs.npz", **content)
    result = CliRunner().invoke(main, ["anatomy", str(folder), "--data", "acdc"])
    assert result.exit_code == 1
    assert str(folder) in result.stderr
    assert message in result.stderr


def test_samples_of_two_sizes_are_refused(folders, tmp_path):
    np.savez(folders["ignoring"] / "pairs.npz", image=IMAGE, mask=MASK)
    result = CliRunner().invoke(main, ["anatomy", *map(str, folders.values()), "--data", "acdc"])
    assert result.exit_code == 1
    assert "8 and 32 pixels" in result.stderr
    assert f"{folders['ignoring']} does not name the classes of its masks" in result.stderr


def test_phantom_hearts_stand_in_for_real_ones(folders, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "open_dataset", open_dataset)
    run(folders["following"], "--data", "phantom:24", "--epochs", 1, "--json", tmp_path / "figures.json")
    learnt, held_out, _ = json.loads((tmp_path / "figures.json").read_text())
    assert (learnt["name"], held_out["name"]) == ("phantoms, trained on", "phantoms, held out")
    assert learnt["valid"] == held_out["valid"] == learnt["count"] == 24
    assert learnt["brightness"] != held_out["brightness"]


def test_data_without_hearts_are_refused(folders, monkeypatch):
    lesions = LoadedPairs(["a"], [np.zeros((SIZE, SIZE), np.float32)], [heart() * 0], LESION)
    monkeypatch.setattr(figures, "open_dataset", lambda *_, **__: lesions)
    result = CliRunner().invoke(main, ["anatomy", str(folders["following"]), "--data", "mias"])
    assert result.exit_code == 1
    assert "--data is mias, which shows no hearts; ACDC, M&Ms or 'phantom' is needed" in result.stderr


def test_the_table_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(command, "wide_console", lambda: Console(width=80))
    values = {"LV": 0.7, "MYO": 0.3, "RV": None}
    row = {"name": "samples/hearts/of/a/long/name", "valid": 512, "count": 512, "brightness": values, "dice": values}
    row["kinds"] = {}
    command.print_table([row])
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count("512 of 512  0.700, 0.300,     -  0.700, 0.300,     -") == 1
