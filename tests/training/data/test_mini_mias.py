import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from training.data.dataset import LoadedPairs
from training.data.layouts.mini_mias import find_breast, load_mias, patient_of, read_info, validation_patients
from training.data.problems import DataError, Problems

PROSE = """\
              MAMMOGRAPHIC IMAGE ANALYSIS SOCIETY
1st column: MIAS database reference number, as in mdb001.
mdb files are PGM.
      *NOTE 3* says why some have no circle.
================================================
"""
TISSUE, LESION, LABEL, FILM = 80, 200, 255, 6
ROWS, COLUMNS = np.indices((1024, 1024))


def draw_film(number: int, *lesions: tuple[int, int, int]) -> np.ndarray:
    """Half an ellipse of tissue at its wall, a label, a thin bright strip, and lesions at (x, y, radius) on tissue."""
    wall_on_the_right = number % 2 == 1
    wall, away = (880, -1) if wall_on_the_right else (140, 1)
    tissue = ((COLUMNS - wall) / 500) ** 2 + ((ROWS - 540) / 430) ** 2 <= 1
    tissue &= (COLUMNS - wall) * away >= 0
    film = np.full((1024, 1024), FILM, np.uint8)
    film[((COLUMNS - wall) * away >= 0) & ((COLUMNS - wall) * away < 8)] = TISSUE
    film[tissue] = TISSUE
    label = wall + away * 620
    film[30:120, label - 40 : label + 40] = LABEL
    for x, y, radius in lesions:
        film[((COLUMNS - x) ** 2 + (1023 - y - ROWS) ** 2 <= radius**2) & tissue] = LESION
    return film


def save(folder: Path, name: str, film: np.ndarray) -> None:
    Image.fromarray(film).save(folder / f"{name}.pgm")


def write_info(folder: Path, *rows: str, newline: str = "\n") -> None:
    text = PROSE + "\n".join(rows) + "\n\n====\n"
    (folder / "Info.txt").write_bytes(text.replace("\n", newline).encode("latin-1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mias")
    write_info(
        folder,
        "mdb001 G CIRC B 700 320 60",
        "mdb002 D SPIC M 330 700 45",
        "mdb003 D NORM ",
        "mdb004 D NORM ",
        "mdb005 F CIRC B 600 380 40",
        "mdb005 F CIRC B 650 600 30",
        "mdb006 F NORM",
        "mdb007 G CALC M *NOTE 3* ",
        "mdb008 F CIRC B",
        "mdb009 F ASYM M 860 480 50",
        "mdb010 F CALC B 400 480 3",
        newline="\r\n",
    )
    save(folder, "mdb001", draw_film(1, (700, 320, 60)))
    save(folder, "mdb002", draw_film(2, (330, 700, 45)))
    save(folder, "mdb003", draw_film(3))
    save(folder, "mdb005", draw_film(5, (600, 380, 40), (650, 600, 30)))
    save(folder, "mdb009", draw_film(9, (860, 480, 50)))
    save(folder, "mdb010", draw_film(10, (400, 480, 3)))
    return folder


@pytest.fixture(scope="module")
def pairs(folder) -> LoadedPairs:
    return load_mias(folder, 256, "all")


def of(pairs: LoadedPairs, name: str) -> tuple[np.ndarray, np.ndarray]:
    item = pairs[pairs.names.index(name)]
    return item["image"][0].numpy(), item["mask"][0].numpy() == 1


def value(stored: int) -> float:
    return stored / 255 * 2 - 1


class TestFilms:
    def test_only_films_with_every_lesion_circled_are_pairs(self, pairs):
        assert pairs.names == ("mdb001", "mdb002", "mdb005", "mdb009", "mdb010")

    @pytest.mark.parametrize(("name", "lesions"), [("mdb001", 1), ("mdb002", 1), ("mdb005", 2), ("mdb009", 1)])
    def test_bright_lesions_lie_under_their_circles(self, pairs, name, lesions):
        image, mask = of(pairs, name)
        bright = image > value((LESION + TISSUE) // 2)
        assert ndimage.label(mask)[1] == lesions
        assert (mask ^ bright).sum() <= 0.02 * mask.sum()

    def test_the_chest_wall_is_on_the_left_and_the_crop_is_tight(self, pairs):
        for name in pairs.names:
            image, _ = of(pairs, name)
            breast = image > -1
            assert breast[:, 0].mean() > 0.95
            assert breast[0].any()
            assert breast[-1].any()
            assert breast.any(axis=0).nonzero()[0].max() == pytest.approx(256 * 500 / 861, abs=1.5)

    def test_all_but_the_breast_is_black(self, pairs):
        for name in pairs.names:
            image, mask = of(pairs, name)
            assert image.max() < value(LABEL) - 0.1
            tissue = ndimage.binary_erosion(image > -1, iterations=2)
            assert image[tissue & ~mask].min() > value(TISSUE) - 0.05
            assert ndimage.label(image > -1)[1] == 1

    def test_a_circle_beyond_the_breast_is_cut_at_its_edge(self, pairs):
        image, mask = of(pairs, "mdb009")
        assert mask[:, 0].any()
        assert (image[mask] > -1).all()
        assert 0.5 * np.pi * 50**2 < mask.sum() * (861 / 256) ** 2 < 0.85 * np.pi * 50**2

    def test_a_circle_may_reach_beyond_the_film(self, tmp_path):
        film = np.full((1024, 1024), TISSUE, np.uint8)
        save(tmp_path, "mdb002", film)
        write_info(tmp_path, "mdb002 F CIRC B 1000 1010 60")
        _, mask = of(load_mias(tmp_path, 64, "all"), "mdb002")
        rows, columns = mask.nonzero()
        assert (rows.min(), rows.max()) == (0, 4)
        assert (columns.min(), columns.max()) == (59, 63)

    def test_a_wide_breast_is_padded_above_and_below(self, tmp_path):
        film = np.zeros((1024, 1024), np.uint8)
        film[300:700, 100:900] = TISSUE
        save(tmp_path, "mdb002", film)
        write_info(tmp_path, "mdb002 F CIRC B 500 500 60")
        image, mask = of(load_mias(tmp_path, 80, "all"), "mdb002")
        assert (image[20:60] > -1).all()
        assert (image[:20] == -1).all()
        assert (image[60:] == -1).all()
        assert ndimage.center_of_mass(mask) == pytest.approx(((523 - 300) / 10 + 20 - 0.5, 40 - 0.5), abs=0.2)

    def test_a_tiny_lesion_is_kept_and_said(self, folder):
        pairs = load_mias(folder, 32, "all")
        assert of(pairs, "mdb010")[1].sum() == 1
        assert pairs.warnings == ("a lesion too small for 32 x 32 pixels is kept as one pixel in 1 masks: mdb010",)

    def test_the_counts_are_kept(self, pairs):
        counts = {"films_in_info_txt": 10, "normal": 3, "without_a_true_circle": 2, "patients": 3, "left_out": 0}
        assert pairs.reading.items() >= counts.items()

    def test_circles_published_on_bare_film_are_not_used(self, tmp_path):
        problems = Problems(tmp_path)
        write_info(tmp_path, "mdb212 G CALC B 687 882 3", "mdb213 G CALC M 547 520 45", "mdb214 G CALC B 582 916 11")
        films = read_info(tmp_path / "Info.txt", problems)
        assert [name for name, film in films.items() if film.usable] == ["mdb213"]
        assert not problems.found


class TestSplit:
    def test_both_films_of_a_patient_are_on_one_side(self):
        assert [patient_of(name) for name in ("mdb001", "mdb002", "mdb003", "mdb322")] == [0, 0, 1, 160]

    def test_the_fraction_of_patients_is_held_back_for_every_seed(self):
        held_back = [validation_patients(0.2, seed) for seed in range(5)]
        assert {len(patients) for patients in held_back} == {32}
        assert len(set(held_back)) == 5
        assert validation_patients(0.2, 0) == held_back[0]

    def test_validation_is_what_train_leaves(self, folder):
        seed = next(seed for seed in range(99) if validation_patients(0.2, seed) & {0, 2, 4} == {0})
        assert load_mias(folder, 32, "validation", seed=seed).names == ("mdb001", "mdb002")
        assert load_mias(folder, 32, "train", seed=seed).names == ("mdb005", "mdb009", "mdb010")

    def test_a_split_without_films_is_an_error(self, folder):
        with pytest.raises(DataError, match="no film of the validation split can be used"):
            load_mias(folder, 32, "validation", validation_fraction=0)


def make_bad(folder: Path) -> dict[str, str]:
    write_info(
        folder,
        "mdb001 G CIRC B 700 320 60",
        "mdb002 G CIRC B 330 700 45",
        "mdb003 G CIRC B 700 320 60",
        "mdb004 G CIRC B 330 700 45",
        "mdb005 G CIRC B 700 320 60",
        "mdb006 G CIRC B 330 x 45",
        "mdb007 G CIRC B 300 320 20",
        "mdb009 G NORM",
        "mdb011 G CIRC B 700 320 60",
    )
    good = draw_film(1, (700, 320, 60))
    save(folder, "mdb001", good)
    save(folder, "mdb003", good[:512])
    save(folder, "mdb004", np.full((1024, 1024), FILM, np.uint8))
    save(folder, "mdb005", good)
    (folder / "mdb005.pgm").write_bytes((folder / "mdb005.pgm").read_bytes()[:-5000])
    save(folder, "mdb006", good)
    save(folder, "mdb007", good)
    save(folder, "mdb008", good)
    Image.fromarray(good).convert("RGB").save(folder / "mdb011.ppm")
    (folder / "mdb011.ppm").rename(folder / "mdb011.pgm")
    return {
        "Info.txt": "line 11 cannot be understood: 'mdb006 G CIRC B 330 x 45'",
        "mdb002.pgm": "is missing, but Info.txt lists a lesion on it",
        "mdb003.pgm": "is 512 x 1024 uint8; mini-MIAS is 1024 x 1024 uint8",
        "mdb004.pgm": "shows no breast: nothing large is brighter than 18",
        "mdb005.pgm": "cannot be read (image file is truncated",
        "mdb007.pgm": "has a lesion at row 703, column 300, which is not on its breast",
        "mdb008.pgm": "has no row in Info.txt",
        "mdb011.pgm": "is RGB, not grey",
    }


class TestBadFiles:
    def test_another_white_is_refused(self, tmp_path):
        save(tmp_path, "mdb002", np.full((1024, 1024), TISSUE, np.uint8))
        file = tmp_path / "mdb002.pgm"
        file.write_bytes(file.read_bytes().replace(b"\n255\n", b"\n254\n", 1))
        write_info(tmp_path, "mdb002 F CIRC B 500 500 60")
        with pytest.raises(DataError, match=r"mdb002\.pgm has the maxval 254; mini-MIAS has 255"):
            load_mias(tmp_path, 32, "all")

    def test_one_error_names_every_film_and_its_reason(self, tmp_path):
        expected = make_bad(tmp_path)
        with pytest.raises(DataError) as caught:
            load_mias(tmp_path, 32, "all")
        first, *lines = str(caught.value).split("\n")
        assert f"mend these ({len(expected)})" in first
        found = dict(line.strip().split(" ", 1) for line in lines)
        assert found.keys() == expected.keys()
        for path, reason in expected.items():
            assert found[path].startswith(reason), path

    def test_skip_bad_keeps_the_good_and_reports_the_rest(self, tmp_path, caplog):
        expected = make_bad(tmp_path)
        assert load_mias(tmp_path, 32, "all", skip_bad=True).names == ("mdb001",)
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert all(f"  {path} {reason}" in warning for path, reason in expected.items())

    def test_a_folder_of_nothing_but_bad_films_is_an_error(self, tmp_path):
        write_info(tmp_path, "mdb001 G CIRC B 700 320 60")
        with pytest.raises(DataError, match="no film of the all split can be used"):
            load_mias(tmp_path, 32, "all", skip_bad=True)


def test_the_breast_is_found_whole(folder):
    film = draw_film(1)
    dark = (COLUMNS - 700) ** 2 + (ROWS - 500) ** 2 < 30**2
    film[dark] = 0
    breast = find_breast(film)
    tissue = (film == TISSUE) | dark
    assert breast[dark].all()
    assert (breast ^ tissue).mean() < 0.01


@pytest.fixture(scope="module")
def real() -> LoadedPairs:
    return load_mias(Path(os.environ["MEDGEN_DATA"]) / "mias", 128, "all", skip_bad=True)


@pytest.mark.skipif("MEDGEN_DATA" not in os.environ, reason="MEDGEN_DATA names no folder with the real mias/")
class TestPublishedFilms:
    def test_most_films_are_pairs(self, real):
        assert len(real) >= 90

    def test_lesions_are_brighter_than_what_surrounds_them(self, real):
        contrasts = []
        for item in real:
            image, mask = item["image"][0].numpy(), item["mask"][0].numpy() == 1
            surround = ndimage.binary_dilation(mask, iterations=4) & ~mask & (image > -1)
            contrasts.append(image[mask].mean() - image[surround].mean())
        assert np.mean(np.array(contrasts) > 0) > 0.9

    def test_masks_lie_on_the_breast(self, real):
        for item in real:
            mask = item["mask"] == 1
            assert mask.any()
            assert (item["image"][mask] > -1).float().mean() > 0.95

    def test_chest_walls_are_on_the_left(self, real):
        walls = [(item["image"][0] > -1).float().mean(dim=0) for item in real]
        assert np.mean([bool(wall[:8].mean() > wall[-8:].mean()) for wall in walls]) > 0.97
