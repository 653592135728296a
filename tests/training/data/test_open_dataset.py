from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import PHANTOM_COUNT, DataError, open_dataset
from training.data.classes import HEART, LESION


@pytest.fixture
def pair_folder(tmp_path) -> Path:
    folder = tmp_path / "pairs"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / name / "a.png")
    return folder


@pytest.fixture
def mias_folder(tmp_path) -> Path:
    film = np.zeros((1024, 1024), np.uint8)
    film[200:800, 100:500] = 90
    for name in ("mdb001", "mdb002"):
        Image.fromarray(film).save(tmp_path / f"{name}.pgm")
    (tmp_path / "Info.txt").write_text("mdb001 F CIRC B 200 500 30\nmdb002 F CIRC B 300 500 30\n")
    return tmp_path


def test_a_folder_of_pairs_is_recognised(pair_folder):
    dataset = open_dataset(str(pair_folder), 16)
    assert dataset.names == ("a",)
    assert dataset[0]["image"].shape == (1, 16, 16)


def test_mini_mias_is_recognised_and_split_by_patient(mias_folder):
    assert open_dataset(str(mias_folder), 16, "all").names == ("mdb001", "mdb002")
    lengths = []
    for split in ("train", "validation"):
        try:
            lengths.append(len(open_dataset(str(mias_folder), 16, split)))
        except DataError:
            lengths.append(0)
    assert sorted(lengths) == [0, 2]


def test_skip_bad_reaches_both_kinds_of_folder(pair_folder, mias_folder):
    (pair_folder / "images" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="images/b"):
        open_dataset(str(pair_folder), 16)
    assert len(open_dataset(str(pair_folder), 16, skip_bad=True)) == 1


def test_phantoms_are_drawn():
    assert len(open_dataset("phantom", 32)) == PHANTOM_COUNT
    few = open_dataset("phantom:3", 32)
    assert len(few) == 3
    assert few[0]["image"].shape == (1, 32, 32)


def test_phantom_splits_are_different_phantoms():
    train, validation, everything = (open_dataset("phantom:1", 32, split) for split in ("train", "validation", "all"))
    assert torch.equal(train[0]["image"], everything[0]["image"])
    assert not torch.equal(train[0]["image"], validation[0]["image"])


def test_a_folder_of_pairs_has_no_validation_split(pair_folder):
    assert len(open_dataset(str(pair_folder), 16, "all")) == 1
    with pytest.raises(DataError, match="keep validation pairs in a folder of their own"):
        open_dataset(str(pair_folder), 16, "validation")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere", "'nowhere' is no folder"),
        ("phantom:0", "'phantom:0' asks for no phantoms; COUNT must be 1 or more"),
        ("phantom:-3", "'phantom:-3' is no folder"),
        ("phantoms", "'phantoms' is no folder"),
    ],
)
def test_an_unknown_source_is_named(source, reason):
    with pytest.raises(DataError, match=reason):
        open_dataset(source, 32)


@pytest.mark.parametrize("names", [[], ["images/"], ["Info.txt"], ["mdb001.pgm"]])
def test_a_folder_of_something_else_is_told_what_is_accepted(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"holds no data set; accepted are .*images/ and masks/.*mini-MIAS.*phantom"):
        open_dataset(str(tmp_path), 32)


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match="the split is 'test'; it must be one of train, validation, all"):
        open_dataset("phantom", 32, "test")


def test_phantoms_are_of_what_the_model_learns():
    assert open_dataset("phantom:2", 32).labels == LESION
    hearts = open_dataset("phantom:2", 32, labels=HEART)
    assert hearts.labels == HEART
    assert hearts[0]["mask"].max() > 1
    with pytest.raises(DataError, match="there are no phantoms with the classes background, liver; there are some"):
        open_dataset("phantom:2", 32, labels=("background", "liver"))
