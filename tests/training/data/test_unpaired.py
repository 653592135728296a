"""Two kinds of images without pairs, and images without masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import DataError, open_dataset
from training.data.classes import LESION
from training.data.dataset import LoadedPairs, Unpaired
from training.data.layouts.mini_mias import validation_patients
from training.data.summary import lines, summarise
from training.data.unpaired import PhantomTissue, open_unpaired

SIZE = 16


def write_pictures(folder: Path, levels: range, white: int = 255) -> Path:
    """Each of one grey level, the last of them white."""
    folder.mkdir(parents=True)
    dtype = np.uint8 if white == 255 else np.uint16
    for number, level in enumerate([*levels, white]):
        Image.fromarray(np.full((20, 20), level, dtype)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def two(tmp_path) -> Path:
    write_pictures(tmp_path / "two" / "trainA", range(3))
    write_pictures(tmp_path / "two" / "trainB", range(500, 504), white=4095)
    return tmp_path / "two"


class TestTwoFolders:
    def test_every_image_meets_several_of_the_other_kind(self, two):
        dataset = open_unpaired(str(two), SIZE)
        assert dataset.names == ("trainA", "trainB")
        items = [dataset[index] for index in range(len(dataset))]
        assert all(item["a"].shape == item["b"].shape == (1, SIZE, SIZE) for item in items)
        met = {(item["a"].mean().item(), item["b"].mean().item()) for item in items}
        assert len(met) == len(items) == 5 * 4
        assert len({a for a, _ in met}) == 4
        assert len({b for _, b in met}) == 5
        with pytest.raises(IndexError, match="item 20 of 20"):
            dataset[20]

    def test_those_that_a_preview_takes_are_others(self, two):
        dataset = open_unpaired(str(two), SIZE)
        for kind, count in {"a": 4, "b": 5}.items():
            assert len({dataset[k * len(dataset) // 5][kind].mean().item() for k in range(5)}) == count

    def test_each_kind_has_a_white_of_its_own(self, two):
        dataset = open_unpaired(str(two), SIZE)
        a, b = (max(item["image"].max().item() for item in kind.items) for kind in (dataset.a, dataset.b))
        assert (a, b) == (1.0, 1.0)
        assert dataset.b[0]["image"].mean().item() == pytest.approx(500 / 4095 * 2 - 1)

    def test_its_files_are_listed_by_kind(self, two):
        assert {*open_unpaired(str(two), SIZE).files} == {
            *(f"trainA/{number:02d}.png" for number in range(4)),
            *(f"trainB/{number:02d}.png" for number in range(5)),
        }

    def test_it_is_said_in_a_few_lines(self, two):
        summary = summarise(open_unpaired(str(two), SIZE))
        assert summary == json.loads(json.dumps(summary))
        said = lines(summary)
        assert said[:2] == ["data: 20 pairs", "  trainA: 4 images"]
        assert "white more bits 4095" in said[said.index("  trainB: 5 images") + 1]

    def test_warnings_name_the_kind(self, two):
        for file in (two / "trainB").iterdir():
            Image.fromarray(np.zeros((20, 20), np.uint8)).save(file)
        said = lines(summarise(open_unpaired(str(two), SIZE)))
        assert any(line.startswith("  Warning: trainB: 5 of 5 images have one grey level alone") for line in said)

    def test_what_is_no_such_folder_is_refused(self, two):
        with pytest.raises(DataError, match=r"trainA' holds no data set of two kinds; accepted are a folder with"):
            open_unpaired(str(two / "trainA"), SIZE)
        with pytest.raises(DataError, match="two folders are not split"):
            open_unpaired(str(two), SIZE, "validation")
        (two / "trainB" / "notes.txt").touch()
        with pytest.raises(DataError, match=r"notes.txt is none of"):
            open_unpaired(str(two), SIZE)
        assert len(open_unpaired(str(two), SIZE, skip_bad=True)) == 20


class TestTissues:
    @pytest.fixture
    def mias(self, tmp_path) -> Path:
        film = np.zeros((1024, 1024), np.uint8)
        film[200:800, 100:500] = 90
        held_back = min(validation_patients())
        others = [patient for patient in range(8) if patient not in validation_patients()]
        rows = []
        for patient, tissue in [(others[0], "F"), (others[1], "D"), (others[2], "G"), (held_back, "F")]:
            for name in (f"mdb{2 * patient + 1:03d}", f"mdb{2 * patient + 2:03d}"):
                rows.append(f"{name} {tissue} NORM")
                Image.fromarray(film + np.uint8(60 * (tissue == "D"))).save(tmp_path / f"{name}.pgm")
        rows.append("mdb322 D NORM")  # which is not there
        (tmp_path / "Info.txt").write_text("\n".join(rows) + "\n")
        return tmp_path

    def test_fatty_and_dense_breasts_are_the_two_kinds(self, mias):
        dataset = open_unpaired(str(mias), SIZE)
        assert dataset.names == ("fatty", "dense-glandular")
        assert dataset.counts == (2, 2)
        assert dataset.a[0]["image"].max() < dataset.b[0]["image"].max()
        assert open_unpaired(str(mias), SIZE, "all").counts == (4, 2)

    def test_films_that_are_not_there_are_counted(self, mias):
        summary = summarise(open_unpaired(str(mias), SIZE, "all"))
        assert summary["kinds"]["dense-glandular"]["missing"] == 1
        assert "dense-glandular: 1 of the 3 films that Info.txt lists are not there" in summary["warnings"]

    def test_a_kind_without_films_is_named(self, mias):
        with pytest.raises(DataError, match="no film of dense-glandular tissue of the validation split"):
            open_unpaired(str(mias), SIZE, "validation")


class TestPhantoms:
    def test_one_kind_is_brighter(self):
        fatty, dense = (PhantomTissue(6, 32, 0, dense) for dense in (False, True))
        levels = [
            [item["image"][item["image"] > -0.95].mean().item() for item in map(kind.__getitem__, range(6))]
            for kind in (fatty, dense)
        ]
        assert max(levels[0]) < min(levels[1])

    def test_they_depend_on_their_number_alone(self):
        one, other = open_unpaired("phantom:3", 32), open_unpaired("phantom:5", 32)
        assert torch.equal(one.a[2]["image"], other.a[2]["image"])
        assert not torch.equal(one.a[2]["image"], one.a[1]["image"])
        assert not torch.equal(one.a[2]["image"], open_unpaired("phantom:3", 32, "validation").a[2]["image"])

    def test_none_are_refused(self):
        with pytest.raises(DataError, match="asks for no phantoms"):
            open_unpaired("phantom:0", 32)


class TestWithoutMasks:
    def test_images_alone_are_enough_for_who_draws_no_masks(self, tmp_path):
        write_pictures(tmp_path / "images", range(2))
        dataset = open_dataset(str(tmp_path), SIZE, masks=False)
        assert isinstance(dataset, LoadedPairs)
        assert dataset.names == ("00", "01", "02")
        assert {*dataset[0]} == {"image"}
        assert "masks" not in "\n".join(lines(summarise(dataset)))

    def test_for_others_they_are_not(self, tmp_path):
        write_pictures(tmp_path / "images", range(2))
        with pytest.raises(DataError, match="holds no data set; accepted are"):
            open_dataset(str(tmp_path), SIZE)

    def test_masks_that_are_there_are_read(self, tmp_path):
        for name in ("images", "masks"):
            write_pictures(tmp_path / name, range(0))
        dataset = open_dataset(str(tmp_path), SIZE, masks=False)
        assert dataset.labels == LESION
        assert {*dataset[0]} == {"image", "mask"}


def test_kinds_of_any_number_take_part():
    one = LoadedPairs(["a"], [np.zeros((4, 4), np.float32)], None, ())
    many = LoadedPairs([*"abc"], [np.full((4, 4), k, np.float32) for k in range(3)], None, ())
    assert len(Unpaired(one, many, ("x", "y"))) == len(Unpaired(many, one, ("x", "y"))) == 3
