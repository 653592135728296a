import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from serving.bundle import BundleError, Condition, Output
from serving.condition_files import MaskFileError, read_masks
from serving.sample_set import Samples, under
from serving.writers.npz import NameClashError
from serving.writers.pictures import PALETTE, contact_sheet, drawings, legend, mask_picture, outline, overlay, to_8_bit
from serving.writers.sample_folder import check_destination, write_samples
from training.data.layouts.pair_folder import load_pairs


def pairs(count: int = 3, size: int = 32) -> Samples:
    """A bright disc with its mask, and a ring of class 2 around it; a dark and a bright end of the scale."""
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(y - size / 2, x - size / 2)
    mask = np.where(radius < size / 6, 1, np.where(radius < size / 3, 2, 0)).astype(np.uint8)
    image = np.where(mask == 1, 50.0, -50.0).astype(np.float32)
    seeds = [7 + row for row in range(count)]
    provenance = [{"model": "m", "bundle": "b", "seed": seed, "solver": "ddim", "steps": 4} for seed in seeds]
    outputs = (
        Output("mask", "uint8", (1, size, size), 0, 2, ("background", "disc", "ring")),
        Output("image", "float32", (1, size, size), -100.0, 100.0),
    )
    return Samples(
        {"mask": np.stack([mask[None]] * count), "image": np.stack([image[None]] * count)}, provenance, outputs
    )


def test_grey_levels_follow_the_declared_range_alone() -> None:
    values = np.array([-1.5, -1, 0, 0.5, 1, 7], np.float32)
    assert to_8_bit(values, -1, 1).tolist() == [0, 0, 128, 191, 255, 255]
    assert to_8_bit(values[2:4], -1, 1).tolist() == [128, 191]
    assert to_8_bit(np.array([-1024, 1023, 3071], np.int16), -1024, 3071).tolist() == [0, 127, 255]


def test_an_outline_is_the_inner_edge_of_each_class() -> None:
    mask = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 2, 2],
            [0, 1, 1, 1, 2, 2],
            [0, 0, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    expected = [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 1, 1],
        [0, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]
    assert outline(mask).astype(int).tolist() == expected
    assert not outline(np.ones((4, 4), np.uint8)).any()


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.getcolors(maxcolors=1 << 16)}


@pytest.mark.parametrize("zoom", [1, 3])
def test_an_overlay_keeps_the_picture_and_draws_each_class_in_its_colour(zoom: int) -> None:
    mask = pairs().arrays["mask"][0, 0]
    grey = np.full(mask.shape, 90, np.uint8)
    drawn = overlay(grey, mask, zoom)
    assert drawn.size == (32 * zoom, 32 * zoom)
    assert colours(drawn) == {(90, 90, 90), tuple(PALETTE[1]), tuple(PALETTE[2])}
    assert drawn.getpixel((16 * zoom, 16 * zoom)) == (90, 90, 90)


def test_a_mask_of_many_classes_holds_indices_and_shows_colours() -> None:
    mask = pairs().arrays["mask"][0, 0]
    picture = mask_picture(mask, classes=3)
    np.testing.assert_array_equal(np.asarray(picture), mask)
    assert colours(picture.convert("RGB")) == {(0, 0, 0), tuple(PALETTE[1]), tuple(PALETTE[2])}


def test_pairs_of_two_classes_can_be_trained_on(tmp_path: Path) -> None:
    samples = pairs()
    lesion = samples.arrays["mask"] == 1
    outputs = (replace(samples.outputs[0], high=1), samples.outputs[1])
    write_samples(Samples({**samples.arrays, "mask": lesion.astype(np.uint8)}, samples.provenance, outputs), tmp_path)
    loaded = load_pairs(tmp_path, size=32)
    assert loaded.names == ("000007", "000008", "000009")
    for item, expected in zip(loaded.items, lesion, strict=True):
        np.testing.assert_array_equal(item["mask"].numpy(), expected)


def test_the_sheet_has_a_tile_for_every_sample() -> None:
    one, five = contact_sheet(pairs(1)), contact_sheet(pairs(5))
    assert (five.width // one.width, five.height // one.height) in {(2, 1), (3, 2), (2, 2)}
    tile = np.asarray(one)[4:196, 4:196]
    assert tuple(PALETTE[1]) in {tuple(pixel) for pixel in tile.reshape(-1, 3)}
    caption = np.asarray(one)[196:, 4:60]
    assert caption.max() > 150, "no seed is written under the tile"


def test_masks_alone_have_their_colours_on_the_sheet() -> None:
    both = pairs(4)
    alone = contact_sheet(Samples({"mask": both.arrays["mask"]}, both.provenance, both.outputs[:1]))
    assert {tuple(PALETTE[1]), tuple(PALETTE[2])} <= colours(alone.crop((0, 0, alone.width, alone.height - 40)))


def test_columns_of_the_sheet_have_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    text = ImageDraw.ImageDraw.text

    def noted(draw: ImageDraw.ImageDraw, at: tuple[float, float], *args: Any) -> None:
        written.append((at, args[0]))
        text(draw, at, *args)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    drawn = pairs(3)
    picture = drawn.outputs[1]
    outputs = tuple(replace(picture, name=name) for name in ("image", "reconstruction", "result"))
    arrays = {output.name: drawn.arrays["image"] for output in outputs}
    contact_sheet(Samples(arrays, drawn.provenance, outputs, ("image",)))
    headings = [(at, words) for at, words in written if not words.startswith("seed")]
    assert [words for _, words in headings][:3] == ["image, given", "reconstruction", "result"]
    (left, y), (middle, _), (right, _) = (at for at, _ in headings[:3])
    assert middle - left == right - middle == 192
    assert y < min(at[1] for at, words in written if words.startswith("seed")) - 192, "above the pictures"


def test_samples_without_a_mask_or_without_a_picture_are_drawn_too() -> None:
    both = pairs()
    for name in ("mask", "image"):
        output = next(output for output in both.outputs if output.name == name)
        single = Samples({name: both.arrays[name]}, both.provenance, (output,))
        assert list(drawings(single, 0)) == [f"{name}s"]
        assert contact_sheet(single).width == contact_sheet(both).width


def test_the_sheet_says_which_colour_is_which_class() -> None:
    samples = pairs(1)
    assert legend(samples) == [("disc", tuple(PALETTE[1])), ("ring", tuple(PALETTE[2]))]
    assert {tuple(PALETTE[1]), tuple(PALETTE[2])} <= colours(contact_sheet(samples).crop((0, 218, 200, 240)))
    image = Samples({"image": samples.arrays["image"]}, samples.provenance, samples.outputs[1:])
    assert legend(image) == []
    many = (
        replace(samples.outputs[0], labels=("background", *(f"structure {k}" for k in range(9)))),
        samples.outputs[1],
    )
    sheet = contact_sheet(Samples(samples.arrays, samples.provenance, many))
    assert sheet.width == contact_sheet(samples).width
    assert sheet.height > contact_sheet(samples).height + 2 * 22, "nine names take more than one line"
    odd = (replace(samples.outputs[0], labels=("background", "half \ud800\nof it", "")), samples.outputs[1])
    assert contact_sheet(Samples(samples.arrays, samples.provenance, odd)).size == contact_sheet(samples).size


def test_the_files(tmp_path: Path) -> None:
    samples, out = pairs(), tmp_path / "deep" / "samples"
    assert write_samples(samples, out) == [
        "images/",
        "masks/",
        "overlays/",
        "pairs.npz",
        "provenance.json",
        "sheet.png",
    ]
    with np.load(out / "pairs.npz") as arrays:
        assert arrays["seed"].tolist() == [7, 8, 9]
        for name, values in samples.arrays.items():
            np.testing.assert_array_equal(arrays[name], values)
    for folder in ("images", "masks", "overlays"):
        assert sorted(path.name for path in (out / folder).iterdir()) == ["000007.png", "000008.png", "000009.png"]
    image = np.asarray(Image.open(out / "images" / "000008.png"))
    assert sorted(np.unique(image)) == [64, 191]  # -50 and 50 between -100 and 100
    np.testing.assert_array_equal(np.asarray(Image.open(out / "masks" / "000008.png")), samples.arrays["mask"][1, 0])
    record = json.loads((out / "provenance.json").read_text())
    assert record["samples"] == samples.provenance
    assert record["outputs"][0]["labels"] == ["background", "disc", "ring"]
    assert [path.name for path in out.parent.iterdir()] == ["samples"]


def test_a_seed_that_comes_again_has_files_of_its_own(tmp_path: Path) -> None:
    three = pairs(3)
    arrays = {**three.arrays, "mask": np.stack([three.arrays["mask"][0] * (row == 0) for row in range(3)])}
    provenance = [{**three.provenance[row], "seed": seed} for row, seed in enumerate((7, 8, 7))]
    write_samples(Samples(arrays, provenance, three.outputs), tmp_path)
    files = ["000007", "000008", "000007_2"]
    for folder in ("images", "masks", "overlays"):
        assert {path.stem for path in (tmp_path / folder).iterdir()} == set(files)
    for name, mask in zip(files, arrays["mask"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / f"{name}.png")), mask[0])
    assert json.loads((tmp_path / "provenance.json").read_text())["files"] == files


def test_numbers_are_in_the_record_and_on_the_sheet(tmp_path: Path) -> None:
    samples = pairs()
    psnr = Output("psnr", "float32", (1,), 0.0, 100.0)
    values = np.linspace(20, 40, len(samples), dtype=np.float32)[:, None]
    with_numbers = Samples({**samples.arrays, "psnr": values}, samples.provenance, (*samples.outputs, psnr))
    write_samples(with_numbers, tmp_path)
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert [sample["numbers"]["psnr"] for sample in record["samples"]] == values[:, 0].tolist()
    assert not (tmp_path / "psnrs").exists()
    with np.load(tmp_path / "pairs.npz") as arrays:
        np.testing.assert_array_equal(arrays["psnr"], values)
    assert contact_sheet(with_numbers).tobytes() != contact_sheet(samples).tobytes()


def test_pairs_say_what_their_classes_are(tmp_path: Path) -> None:
    samples = pairs()
    outputs = (replace(samples.outputs[0], spacing=(1.5, 0.75)), samples.outputs[1])
    write_samples(Samples(samples.arrays, samples.provenance, outputs), tmp_path)
    with np.load(tmp_path / "pairs.npz") as arrays:
        assert set(arrays) == {"seed", "mask", "image", "mask_labels", "mask_spacing", "image_range"}
        assert arrays["image_range"].tolist() == [-100, 100]
    masks = read_masks(tmp_path / "pairs.npz")
    np.testing.assert_array_equal(masks.values, samples.arrays["mask"])
    assert (masks.labels, masks.spacing) == (("background", "disc", "ring"), (1.5, 0.75))
    np.save(tmp_path / "bare.npy", masks.values)
    assert (read_masks(tmp_path / "bare.npy").labels, read_masks(tmp_path / "bare.npy").spacing) == ((), None)
    np.savez(tmp_path / "odd.npz", mask=masks.values, mask_labels=np.arange(3))
    with pytest.raises(MaskFileError, match=r"odd.npz holds int64 \[3\] as mask_labels; it must be strings"):
        read_masks(tmp_path / "odd.npz")
    np.savez(tmp_path / "odd.npz", mask=masks.values, mask_spacing=np.array([1.5]))
    with pytest.raises(MaskFileError, match=r"odd.npz holds float64 \[1\] as mask_spacing; it must be two floats"):
        read_masks(tmp_path / "odd.npz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seed", "two arrays are called 'seed'"),
        ("mask_labels", "two arrays are called 'mask_labels'"),
        ("overlay", "an output is called 'overlay', and no folder of samples can have it"),
        ("../../mask", "an output is called '../../mask', and"),
        ("im\0age", "an output is called"),
        ("\ud800", "an output is called"),
    ],
)
def test_names_that_would_lose_something_are_refused(tmp_path: Path, name: str, message: str) -> None:
    samples = pairs()
    outputs = (samples.outputs[0], replace(samples.outputs[1], name=name))
    clashing = Samples({"mask": samples.arrays["mask"], name: samples.arrays["image"]}, samples.provenance, outputs)
    with pytest.raises(NameClashError, match=re.escape(message)):
        write_samples(clashing, tmp_path / "samples")
    assert not list(tmp_path.iterdir())


def test_masks_are_not_lost_under_a_picture_of_their_name() -> None:
    samples = pairs()
    with pytest.raises(BundleError, match="m draws 'mask' under 'mask'"):
        under(Condition("mask", (1, 32, 32), 3), samples.arrays["mask"], samples)


@pytest.mark.parametrize("name", ["file/samples", "n" * 250, "sam\0ples", "\ud800", "mount"])
def test_where_nothing_can_be_written_is_found_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "mount")
    with pytest.raises(OSError, match="cannot be"):
        check_destination(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mount"]


def test_a_destination_is_left_as_it_was_found(tmp_path: Path) -> None:
    check_destination(tmp_path / "deep" / "er" / "samples")
    assert not list(tmp_path.iterdir())


def test_files_are_never_lost(tmp_path: Path) -> None:
    out, precious = tmp_path / "samples", tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("...")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="thesis exists and holds no samples"):
            write_samples(pairs(), precious, force)
    out.mkdir()
    write_samples(pairs(3), out)
    with pytest.raises(FileExistsError, match=r"holds samples already.*--force"):
        write_samples(pairs(1), out)
    assert len(list((out / "images").iterdir())) == 3
    write_samples(pairs(1), out, replace=True)
    assert len(list((out / "images").iterdir())) == 1
    (out / "notes.txt").write_text("...")
    with pytest.raises(FileExistsError, match=r"holds notes.txt beside samples"):
        write_samples(pairs(1), out, replace=True)
    assert (out / "notes.txt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples", "thesis"]


def test_samples_that_cannot_be_replaced_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    out = tmp_path / "samples"
    write_samples(pairs(3), out)
    monkeypatch.setattr("serving.folders._forward", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_samples(pairs(1), out, replace=True)
    assert len(list((out / "images").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_a_kill_while_samples_are_replaced_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two folders cannot change places at once there is a moment without either."""

    def killed(place: Path, _: int) -> None:
        if place.exists():
            place.rename(place.with_name(".samples.old"))
        raise KeyboardInterrupt

    out = tmp_path / "samples"
    write_samples(pairs(3), out)
    with monkeypatch.context() as patch:
        for step in ("_forward", "_back"):
            patch.setattr(f"serving.folders.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            write_samples(pairs(1), out, replace=True)
    assert not out.exists()
    with pytest.raises(FileExistsError, match="holds samples already"):
        check_destination(out)
    assert len(list((out / "images").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_two_who_write_to_one_folder_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, refused = tmp_path / "samples", []

    def meanwhile(samples: Samples) -> Image.Image:
        with pytest.raises(OSError, match="another process is at work in") as refusal:
            write_samples(pairs(2), out)
        refused.append(refusal)
        return contact_sheet(samples)

    monkeypatch.setattr("serving.writers.sample_folder.contact_sheet", meanwhile)
    write_samples(pairs(3), out)
    assert len(refused) == 1
    assert len(list((out / "images").iterdir())) == 3


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> NDArray[np.uint8]:
        raise OSError(28, "No space left on device")

    out = tmp_path / "samples"
    write_samples(pairs(3), out)
    monkeypatch.setattr("serving.writers.sample_folder.contact_sheet", full_disk)
    with pytest.raises(OSError, match="samples cannot be written: No space left on device"):
        write_samples(pairs(1), out, replace=True)
    assert len(list((out / "images").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_a_mask_lies_on_the_picture_that_was_drawn_with_it_not_on_the_one_that_was_given() -> None:
    samples = pairs(1)
    mask, image = samples.outputs
    given = replace(image, name="scan")
    arrays = {"scan": np.full_like(samples.arrays["image"], 100.0), **samples.arrays}
    under_scan = Samples(arrays, samples.provenance, (given, mask, image), ("scan",))
    np.testing.assert_array_equal(drawings(under_scan, 0)["overlays"], drawings(samples, 0)["overlays"])


def test_what_was_given_is_recorded(tmp_path: Path) -> None:
    write_samples(replace(pairs(1), given=("mask",)), tmp_path / "samples")
    assert json.loads((tmp_path / "samples" / "provenance.json").read_text())["given"] == ["mask"]
