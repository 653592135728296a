import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from training.data.dataset import LoadedPairs
from training.data.formats.grey_image import read_grey
from training.data.layouts.pair_folder import load_pairs
from training.data.preparation.resize import fit_image, fit_mask
from training.data.problems import BadFileError, DataError

RAMP = np.linspace(0, 1, 16 * 16).reshape(16, 16)
SQUARE = np.zeros((16, 16), np.uint8)
SQUARE[4:9, 6:12] = 255


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels)
    elif path.suffix == ".pgm" and pixels.dtype == np.uint16:
        path.write_bytes(b"P5 %d %d 65535\n" % pixels.shape[::-1] + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(path)


def pair(folder: Path, image: np.ndarray, mask: np.ndarray = SQUARE, name: str = "a.png", mask_name: str = "") -> None:
    write(folder / "images" / name, image)
    write(folder / "masks" / (mask_name or Path(name).stem + ".png"), mask)


def grey(value: int, dtype: type = np.uint8) -> np.ndarray:
    return np.full((16, 16), value, dtype)


def only_image(pairs: LoadedPairs) -> np.ndarray:
    (item,) = pairs.items
    return item["image"][0].numpy()


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "dtype", "white"),
        [
            ("a.png", np.uint8, 255),
            ("a.png", np.uint16, 65535),
            ("a.PNG", np.uint8, 255),
            ("a.pgm", np.uint8, 255),
            ("a.pgm", np.uint16, 65535),
            ("a.tif", np.uint8, 255),
            ("a.tiff", np.uint16, 65535),
            ("a.tiff", np.float32, 1),
            ("a.npy", np.uint8, 255),
            ("a.npy", np.uint16, 65535),
            ("a.npy", np.int16, 16383),
            ("a.npy", np.float64, 1),
        ],
    )
    def test_every_format_and_depth_reads_to_the_same_range(self, tmp_path, name, dtype, white):
        stored = (RAMP * white).astype(dtype)
        pair(tmp_path, stored, name=name)
        image = only_image(load_pairs(tmp_path, 16))
        np.testing.assert_allclose(image, stored / white * 2 - 1, atol=1e-6)
        assert (image[0, 0], image[-1, -1]) == (-1, 1)

    @pytest.mark.parametrize(
        ("name", "mask"),
        [
            ("a.png", SQUARE),
            ("a.png", SQUARE > 0),
            ("a.png", SQUARE // 255),
            ("a.pgm", SQUARE // 51),
            ("a.tiff", SQUARE.astype(np.uint16) * 100),
            ("a.npy", SQUARE > 0),
            ("a.npy", SQUARE.astype(np.int64)),
            ("a.npy", SQUARE / 255.0),
        ],
    )
    def test_a_mask_is_zero_and_one_other_value_whichever(self, tmp_path, name, mask):
        pair(tmp_path, grey(9), mask, mask_name=name)
        (item,) = load_pairs(tmp_path, 16).items
        np.testing.assert_array_equal(item["mask"][0].numpy(), SQUARE // 255)

    def test_items_collate_into_a_training_batch(self, tmp_path):
        for name in ("b.png", "a.png", "c.d.png"):
            pair(tmp_path, grey(9), name=name)
        pairs = load_pairs(tmp_path, 32)
        assert pairs.names == ("a", "b", "c.d")
        (batch,) = torch.utils.data.DataLoader(pairs, batch_size=3)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in batch.items()} == {
            "image": ((3, 1, 32, 32), torch.float32),
            "mask": ((3, 1, 32, 32), torch.uint8),
        }

    def test_an_empty_mask_is_a_mask(self, tmp_path):
        pair(tmp_path, grey(9), SQUARE * 0)
        assert not load_pairs(tmp_path, 16)[0]["mask"].any()

    def test_hidden_files_are_no_data(self, tmp_path):
        pair(tmp_path, grey(9))
        (tmp_path / "images" / ".DS_Store").write_bytes(b"x")
        assert len(load_pairs(tmp_path, 16)) == 1


class TestOnePicture:
    """Of what a container says besides its pixels, nothing is passed over."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["png", "tif", "lzw.tif"])
    def test_it_is_turned_as_its_tags_say(self, tmp_path, kind, orientation):
        stored = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
        path = tmp_path / f"a.{kind}"
        exif = Image.Exif()
        exif[274] = orientation
        options = {"tiffinfo": {274: orientation}} if kind != "png" else {"exif": exif}
        if kind == "lzw.tif":
            options["compression"] = "tiff_lzw"
        Image.fromarray(stored).save(path, **options)
        flips = {1: "", 2: "lr", 3: "ud lr", 4: "ud", 5: "T", 6: "T lr", 7: "T ud lr", 8: "T ud"}[orientation]
        shown = stored.T if "T" in flips else stored
        shown = shown[:: -1 if "ud" in flips else 1, :: -1 if "lr" in flips else 1]
        image = read_grey(path)
        np.testing.assert_array_equal(image.pixels, shown)
        assert image.turned == (orientation > 1)

    def test_image_and_mask_are_turned_each_by_its_own(self, tmp_path):
        stored = grey(0)
        stored[4:9, 6:12] = 255
        pair(tmp_path, stored)
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(np.rot90(stored)).save(tmp_path / "images" / "a.png", exif=exif)
        Image.fromarray(np.rot90(SQUARE)).save(tmp_path / "masks" / "a.png", exif=exif)
        pairs = load_pairs(tmp_path, 16)
        np.testing.assert_array_equal(pairs[0]["mask"][0].numpy(), SQUARE // 255)
        np.testing.assert_array_equal(pairs[0]["image"][0].numpy() == 1, SQUARE == 255)
        assert pairs.reading["turned_by_their_tags"] == 1
        assert not pairs.warnings
        Image.fromarray(SQUARE).save(tmp_path / "masks" / "a.png")
        (warning,) = load_pairs(tmp_path, 16).warnings
        assert warning.startswith("the tags of image and mask turn one of the two alone in 1 pairs")

    def test_a_second_one_is_named(self, tmp_path):
        Image.fromarray(grey(1)).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(grey(2))])
        (tmp_path / "b.pgm").write_bytes(2 * (b"P5 4 4 255\n" + bytes(16)))
        (tmp_path / "c.pgm").write_text(2 * ("P2 # plain\n2 2 # size\n255\n" + "1 2 3 4\n"))
        with (tmp_path / "d.npy").open("wb") as file:
            for value in (1, 2):
                np.save(file, grey(value))
        with tifffile.TiffWriter(tmp_path / "e.tif") as tiff:
            tiff.write(grey(1), subifds=1)
            tiff.write(grey(2)[:8, :8])
        for name, reason in {
            "a.png": "holds 2 pictures, not one",
            "d.npy": "is no NPY file with one array",
            "e.tif": "holds 2 pages, not one",
            "b.pgm": "goes on after its 4 x 4 pixels; it must hold one picture",
            "c.pgm": "goes on after its 2 x 2 pixels; it must hold one picture",
        }.items():
            with pytest.raises(BadFileError, match=reason):
                read_grey(tmp_path / name)

    def test_an_imagej_stack_of_one_page_is_named(self, tmp_path):
        said = "ImageJ=1.53\nimages=3\nslices=3\n"
        tifffile.imwrite(tmp_path / "a.tif", grey(1), description=said, metadata=None)
        with (tmp_path / "a.tif").open("ab") as file:  # where ImageJ puts the others
            file.write(bytes(16 * 16 * 2))
        with pytest.raises(BadFileError, match="holds several pictures"):
            read_grey(tmp_path / "a.tif")

    @pytest.mark.parametrize("name", ["a.png", "a.tif"])
    def test_pixels_that_are_not_square_are_named(self, tmp_path, name):
        Image.fromarray(grey(1)).save(tmp_path / name, dpi=(144, 72))
        with pytest.raises(BadFileError, match=r"has 14\S+ x 7\S+ pixels to the same length; pixels must be square"):
            read_grey(tmp_path / name)

    def test_a_tiff_that_only_another_package_reads_names_it(self, tmp_path):
        Image.fromarray(grey(1)).save(tmp_path / "a.tif", compression="tiff_lzw")
        content = bytearray((tmp_path / "a.tif").read_bytes())
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            offset = tiff.pages.first.tags["Compression"].valueoffset
        content[offset : offset + 2] = (50001).to_bytes(2, "little")  # WebP, which Pillow's TIFF reader has not
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(BadFileError, match="is compressed by WEBP; to read it, pip install imagecodecs"):
            read_grey(tmp_path / "a.tif")

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_lzw_is_read(self, tmp_path, dtype):
        stored = (RAMP * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
        Image.fromarray(stored).save(tmp_path / "a.tif", compression="tiff_lzw")
        image = read_grey(tmp_path / "a.tif").pixels
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, stored)

    def test_a_plain_pgm_is_read(self, tmp_path):
        (tmp_path / "a.pgm").write_text("P2\n# made by hand\n3 2\n15\n0 1 2 # first row\n3 4 15\n")
        assert read_grey(tmp_path / "a.pgm").pixels.tolist() == [[0, 1, 2], [3, 4, 15]]


def write_pgms(folder: Path, *files: tuple[np.ndarray, int]) -> None:
    for number, (pixels, maxval) in enumerate(files):
        pair(folder, grey(1), name=f"{number}.pgm")
        stored = pixels.astype(">u1" if maxval < 256 else ">u2").tobytes()
        (folder / "images" / f"{number}.pgm").write_bytes(b"P5\n16 16\n%d\n" % maxval + stored)


class TestScale:
    @pytest.mark.parametrize("white", [1023, 4095])
    def test_a_stray_pixel_darkens_no_folder_and_is_named(self, tmp_path, white):
        for number in range(4):
            stored = (RAMP * white).astype(np.uint16)
            if number == 2:
                stored[3, 3] = 65535
            pair(tmp_path, stored, name=f"{number}.png")
        pairs = load_pairs(tmp_path, 16)
        for item in pairs.items:
            image = item["image"][0].numpy().copy()
            image[3, 3] = RAMP[3, 3] * 2 - 1
            np.testing.assert_allclose(image, RAMP * 2 - 1, atol=2 / white)
        assert pairs.warnings == (
            "1 of 4 images have pixels far brighter than all others, which are cut off at white: 2",
        )
        assert pairs.reading["white"] == {"more bits": white}

    def test_one_image_in_twenty_may_be_of_another_scale_and_is_named(self, tmp_path):
        for number in range(21):
            pair(tmp_path, (RAMP * (65535 if number == 7 else 4095)).astype(np.uint16), name=f"{number:02d}.png")
        pairs = load_pairs(tmp_path, 16)
        assert pairs.reading["white"] == {"more bits": 4095}
        assert pairs.warnings[0].endswith("at white: 07")

    def test_a_brighter_tenth_is_no_stray(self, tmp_path):
        for number in range(10):
            pair(tmp_path, (RAMP * (30000 if number == 7 else 3000)).astype(np.uint16), name=f"{number}.png")
        pairs = load_pairs(tmp_path, 16)
        assert pairs.reading["white"] == {"more bits": 65535}
        assert not pairs.warnings

    @pytest.mark.parametrize(
        ("brightest", "white"),
        [((100, 200, 250), 255), ((1000, 3000, 2500), 4095), ((300, 400, 500), 1023)],
    )
    def test_pgms_whose_maxval_is_their_own_brightest_pixel_keep_their_levels(self, tmp_path, brightest, white):
        write_pgms(tmp_path, *((RAMP * value, value) for value in brightest))
        images = [float(item["image"].max()) for item in load_pairs(tmp_path, 16).items]
        assert images == pytest.approx([value / white * 2 - 1 for value in brightest], abs=1e-6)

    @pytest.mark.parametrize("maxval", [15, 4095])
    def test_a_maxval_that_all_pgms_share_is_white(self, tmp_path, maxval):
        write_pgms(tmp_path, (RAMP * maxval, maxval), (RAMP * maxval / 4, maxval))
        images = [float(item["image"].max()) for item in load_pairs(tmp_path, 16).items]
        assert images == pytest.approx([1, maxval // 4 / maxval * 2 - 1], abs=1e-6)

    @pytest.mark.parametrize(
        ("brightest", "white"), [(200, 255), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (16384, 65535)]
    )
    def test_wide_integers_are_read_at_the_least_depth_that_holds_the_brightest(self, tmp_path, brightest, white):
        pair(tmp_path, (RAMP * brightest).astype(np.uint16))
        assert only_image(load_pairs(tmp_path, 16)).max() == pytest.approx(brightest / white * 2 - 1, abs=1e-6)

    def test_the_whole_folder_has_one_scale(self, tmp_path):
        pair(tmp_path, grey(4000, np.uint16), name="bright.png")
        pair(tmp_path, grey(1000, np.uint16), name="dim.tif")
        pair(tmp_path, grey(100), name="narrow.png")
        images = [float(item["image"].max()) for item in load_pairs(tmp_path, 16)]
        assert images == pytest.approx([4000 / 4095 * 2 - 1, 1000 / 4095 * 2 - 1, 100 / 255 * 2 - 1], abs=1e-6)

    def test_a_dim_8_bit_image_stays_dim(self, tmp_path):
        pair(tmp_path, grey(51))
        assert only_image(load_pairs(tmp_path, 16)).max() == pytest.approx(-0.6)


class TestFitting:
    def test_shrinking_averages_areas(self):
        image = np.array([[0, 2, 8, 8], [4, 6, 8, 8], [1, 1, 0, 0], [1, 1, 0, 4]], np.float32)
        np.testing.assert_array_equal(fit_image(image, 2), [[3, 8], [1, 1]])

    def test_shrinking_by_a_fraction_shares_pixels_out(self):
        image = np.diag([9, 0, 0]).astype(np.float32)
        np.testing.assert_allclose(fit_image(image, 2), [[4, 0], [0, 0]], atol=1e-6)
        np.testing.assert_allclose(fit_image(np.eye(3, dtype=np.float32) * 9, 2), [[5, 1], [1, 5]], atol=1e-6)

    @pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
    def test_aspect_is_kept_by_black_on_both_sides(self, tmp_path, shape):
        pair(tmp_path, np.full(shape, 255, np.uint8), np.full(shape, 1, np.uint8))
        (item,) = load_pairs(tmp_path, 20).items
        upright = item["image"][0] if shape == (40, 20) else item["image"][0].T
        assert (upright[:, 5:15] == 1).all()
        assert (upright[:, :5] == -1).all()
        assert (upright[:, 15:] == -1).all()
        assert torch.equal(item["mask"] == 1, item["image"] == 1)

    def test_enlarging_keeps_values_within_the_image(self):
        enlarged = fit_image(np.array([[1, 3], [3, 1]], np.float32), 7)
        assert enlarged.shape == (7, 7)
        assert (enlarged.min(), enlarged.max()) == (1, 3)

    @pytest.mark.parametrize("shape", [(97, 61), (200, 333), (20, 15), (64, 64)])
    def test_image_and_mask_stay_aligned(self, shape):
        rows, columns = np.indices(shape)
        lesion = (rows - 0.7 * shape[0]) ** 2 + (columns - 0.3 * shape[1]) ** 2 < (0.2 * min(shape)) ** 2
        image = fit_image(lesion.astype(np.float32), 64)
        mask, _ = fit_mask(lesion, 64)
        clear = abs(image - 0.5) > 0.3
        np.testing.assert_array_equal(mask[clear], image[clear] > 0.5)
        assert mask.mean() == pytest.approx(image.mean(), rel=0.06)


class TestTinyLesions:
    def test_a_lesion_too_small_to_show_is_kept_where_it_is(self):
        mask = np.zeros((256, 256), bool)
        mask[100:150, 30:90] = True
        mask[200:202, 77:79] = True
        mask[5, 250] = True
        fitted, enlarged = fit_mask(mask, 32)
        assert enlarged == 2
        assert fitted[25, 9] == fitted[0, 31] == 1
        large = mask.copy()
        large[160:] = large[:50] = False
        alone, none = fit_mask(large, 32)
        assert none == 0
        assert fitted.sum() == alone.sum() + 2

    def test_it_is_said(self, tmp_path):
        speck = np.zeros((256, 256), np.uint8)
        speck[40, 40] = 1
        pair(tmp_path, np.zeros((256, 256), np.uint8), speck, "speck.png")
        pair(tmp_path, grey(9), SQUARE, "square.png")
        pairs = load_pairs(tmp_path, 16)
        assert pairs[0]["mask"].sum() == 1
        assert pairs.warnings == ("a lesion too small for 16 x 16 pixels is kept as one pixel in 1 masks: speck",)

    def test_nothing_is_lost_when_enlarging(self):
        mask = np.zeros((50, 50), bool)
        mask[17, 31] = True
        assert fit_mask(mask, 64)[0].any()


def make_bad(folder: Path) -> dict[str, str]:
    """A folder with one good pair, called good, and a file of every bad kind; what must be said of each."""
    pair(folder, grey(9), name="good.png")
    rgb = np.zeros((16, 16, 3), np.uint8)
    pair(folder, rgb, name="colour.png")
    write(folder / "images" / "alpha.png", np.zeros((16, 16, 4), np.uint8))
    write(folder / "masks" / "alpha.tif", rgb)
    Image.fromarray(grey(1)).convert("P").save(folder / "images" / "palette.png")
    write(folder / "masks" / "palette.png", SQUARE)
    pair(folder, np.where(RAMP > 0.5, np.nan, RAMP), name="nan.npy")
    pair(folder, RAMP * 2, name="beyond.npy")
    pair(folder, RAMP.astype(np.int16) - 5, name="negative.npy")
    pair(folder, np.zeros((3, 16, 16), np.uint8), name="volume.npy")
    pair(folder, RAMP > 0.5, name="bilevel.png")
    pair(folder, np.zeros((16, 12), np.uint8), name="narrow.png")
    pair(folder, grey(1), (RAMP * 7).astype(np.uint8), name="grades.png")
    pair(folder, grey(1), name="double.png")
    write(folder / "images" / "double.tif", grey(1))
    write(folder / "images" / "lonely.png", grey(1))
    write(folder / "masks" / "orphan.png", SQUARE)
    pair(folder, grey(1), name="pages.png")
    (folder / "images" / "pages.png").unlink()
    with tifffile.TiffWriter(folder / "images" / "pages.tif") as tiff:
        for _ in range(2):
            tiff.write(grey(1))
    noise = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    for suffix in ("png", "pgm", "tif", "npy"):
        pair(folder, noise, name=f"short_{suffix}.{suffix}")
        path = folder / "images" / f"short_{suffix}.{suffix}"
        path.write_bytes(path.read_bytes()[:-100])
        pair(folder, noise, name=f"void_{suffix}.{suffix}")
        (folder / "images" / f"void_{suffix}.{suffix}").write_bytes(b"")
    (folder / "images" / "notes.txt").write_text("a note")
    (folder / "masks" / "more").mkdir()
    both = {f"images/{kind}_{suffix}.{suffix}" for kind in ("short", "void") for suffix in ("png", "pgm", "tif", "npy")}
    return {
        "images/colour.png": "is RGB, not grey",
        "images/alpha.png": "is RGBA, not grey",
        "masks/alpha.tif": "is RGB, not grey with black as zero",
        "images/palette.png": "is P, not grey",
        "images/nan.npy": "holds NaN or infinity",
        "images/beyond.npy": "holds 0 to 2; float64 must lie in 0 to 1",
        "images/negative.npy": "holds -5 to -4; int16 must lie in 0 to 65535",
        "images/volume.npy": "has the shape (3, 16, 16); a grey image has (rows, columns)",
        "images/bilevel.png": "is 1 bit deep, which no grey image is",
        "masks/narrow.png": "has 16 x 16 pixels, but its image 16 x 12",
        "masks/grades.png": "holds 8 values (0, 1, 2, 3, 4, ...); a mask holds 0 and one other",
        "images/double.png": "shares its stem with double.tif",
        "images/double.tif": "shares its stem with double.png",
        "images/lonely.png": "has no partner in masks/",
        "masks/orphan.png": "has no partner in images/",
        "images/pages.tif": "holds 2 pages, not one",
        "images/notes.txt": "is none of .dcm, .dicom, .npy, .pgm, .png, .tif, .tiff",
        "masks/more": "is none of .dcm, .dicom, .npy, .pgm, .png, .tif, .tiff",
        **dict.fromkeys(both, "cannot be read ("),
    }


class TestManyBadFiles:
    def test_those_with_the_same_fault_share_a_line(self, tmp_path):
        pair(tmp_path, grey(1), name="good.png")
        for number in range(300):
            (tmp_path / "images" / f"{number:03d}.png").touch()
        with pytest.raises(DataError) as caught:
            load_pairs(tmp_path, 16)
        first, *lines = str(caught.value).split("\n")
        assert "mend these (300)" in first
        named = ", ".join(f"images/{number:03d}.png" for number in range(5))
        assert lines == [f"  300 files: each has no partner in masks/ ({named} and 295 more)"]

    def test_a_long_list_of_different_faults_is_cut(self, tmp_path):
        for number in range(60):
            pair(tmp_path, grey(1), name=f"{number:02d}.png")
            (tmp_path / "images" / f"{number:02d}.png").write_bytes(b"")
        with pytest.raises(DataError) as caught:
            load_pairs(tmp_path, 16)
        lines = str(caught.value).split("\n")[1:]
        assert len(lines) == 40
        assert lines[-1] == "  and 21 more"


class TestBadFiles:
    def test_one_error_names_every_bad_file_and_its_reason(self, tmp_path):
        expected = make_bad(tmp_path)
        with pytest.raises(DataError) as caught:
            load_pairs(tmp_path, 16)
        first, *lines = str(caught.value).split("\n")
        assert f"mend these ({len(expected)}) or leave them out with skip_bad (--skip-bad)" in first
        found = dict(line.strip().split(" ", 1) for line in lines)
        assert found.keys() == expected.keys()
        for path, reason in expected.items():
            assert found[path].startswith(reason), path
            assert found[path] == reason or reason.endswith("("), path

    def test_both_files_of_a_pair_are_looked_at(self, tmp_path):
        pair(tmp_path, np.zeros((16, 16, 3), np.uint8), (RAMP * 7).astype(np.uint8))
        with pytest.raises(DataError, match=r"images/a.png is RGB(.|\n)*masks/a.png holds 8 values"):
            load_pairs(tmp_path, 16)

    def test_skip_bad_keeps_the_good_and_reports_the_rest(self, tmp_path, caplog):
        expected = make_bad(tmp_path)
        pairs = load_pairs(tmp_path, 16, skip_bad=True)
        assert pairs.names == ("good",)
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert f"left out ({len(expected)})" in warning
        assert all(f"  {path} " in warning for path in expected)

    def test_what_is_left_out_is_said_once_and_counted_by_files(self, tmp_path, caplog):
        pair(tmp_path, grey(9), name="good.png")
        for suffix in ("png", "tif"):  # alike in their stem, and without a mask
            write(tmp_path / "images" / f"double.{suffix}", grey(1))
        for _ in range(2):
            assert load_pairs(tmp_path, 16, skip_bad=True).reading["left_out"] == 2
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "left out (2)" in warning

    def test_an_empty_folder_is_an_error_even_when_skipping(self, tmp_path):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for skip_bad in (False, True):
            with pytest.raises(DataError, match="images/ and masks/ hold no pair"):
                load_pairs(tmp_path, 16, skip_bad=skip_bad)

    def test_a_folder_with_nothing_but_bad_files_is_an_error(self, tmp_path):
        pair(tmp_path, grey(1), (RAMP * 7).astype(np.uint8))
        with pytest.raises(DataError, match="hold no pair"):
            load_pairs(tmp_path, 16, skip_bad=True)
