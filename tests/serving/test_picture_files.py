"""Pictures as files, brought to a model's range or refused."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Condition
from serving.condition_files import MaskFileError, check_unpacked, read_masks
from serving.picture_files import PictureFileError, read_pictures

ARRAYS = {"photo": np.zeros((1, 4, 6), np.float32), "mask": np.zeros((1, 4, 6), np.uint8)}
PHOTO = Condition("photo", (1, 4, 6), low=-1.0, high=1.0)
RAMP = np.linspace(0, 1, 24).reshape(4, 6)
EIGHT, SIXTEEN = np.rint(255 * RAMP).astype(np.uint8), np.rint(65535 * RAMP).astype(np.uint16)


def pgm(values: np.ndarray, white: int, kind: bytes = b"P5") -> bytes:
    rows, columns = values.shape
    raster = values.astype(">u1" if white < 256 else ">u2").tobytes()
    if kind == b"P2":
        raster = b" ".join(str(value).encode() for value in values.ravel())
    return kind + b"\n# made here\n%d %d\n%d\n" % (columns, rows, white) + raster


def write(folder: Path, name: str, held: object) -> Path:
    file = folder / name
    if isinstance(held, bytes):
        file.write_bytes(held)
    elif isinstance(held, Image.Image):
        held.save(file)
    elif isinstance(held, dict):
        np.savez(file, **held)
    else:
        np.save(file, held)
    return file


@pytest.mark.parametrize(
    ("name", "held", "said", "apart"),
    [
        ("a.png", Image.fromarray(EIGHT), "8-bit, 0..255 to -1..1", 1 / 255),
        ("a.png", Image.fromarray(SIXTEEN), "16-bit, 0..65535 to -1..1", 1 / 65535),
        ("a.pgm", pgm(EIGHT, 255), "8-bit, 0..255 to -1..1", 1 / 255),
        ("a.pgm", pgm(EIGHT, 255, b"P2"), "8-bit, 0..255 to -1..1", 1 / 255),
        ("a.pgm", pgm(SIXTEEN, 65535), "16-bit, 0..65535 to -1..1", 1 / 65535),
        ("a.pgm", pgm(np.rint(4095 * RAMP).astype(np.uint16), 4095), "12-bit, 0..4095 to -1..1", 1 / 4095),
        ("a.npy", EIGHT[None], "8-bit, 0..255 to -1..1", 1 / 255),
        ("a.npz", {"photo": SIXTEEN[None, None]}, "16-bit, 0..65535 to -1..1", 1 / 65535),
        ("a.npz", {"photo": RAMP[None].astype(np.float32), "photo_range": [0.0, 1.0]}, "float32, 0..1 to -1..1", 1e-6),
        (
            "a.npz",
            {"photo": (2 * RAMP - 1)[None]},
            "float64, which does not say what is black and white, taken as it is, within -1..1",
            1e-6,
        ),
    ],
)
def test_a_ramp_is_a_ramp_in_the_models_range(tmp_path, name, held, said, apart):
    pictures, notes = read_pictures([write(tmp_path, name, held)], PHOTO)
    assert notes == [f"{name}: {said}"]
    assert (pictures.values.dtype, pictures.values.shape) == (np.float32, (1, 1, 4, 6))
    assert pictures.values.min() == -1
    assert pictures.values.max() == 1
    np.testing.assert_allclose(pictures.values[0, 0], 2 * RAMP - 1, atol=apart)
    assert pictures.names == (name,)


def test_folders_and_several_files_are_taken_in_order(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in (2, 1):
        write(folder, f"{number}.png", Image.fromarray(EIGHT + number if number < 2 else EIGHT))
    write(folder, "3.pgm", pgm(SIXTEEN, 65535))
    more = write(tmp_path, "more.npy", np.stack([EIGHT, EIGHT]))
    pictures, notes = read_pictures([folder, more], PHOTO)
    assert pictures.names == ("1.png", "2.png", "3.pgm", "more.npy[0]", "more.npy[1]")
    assert notes == ["3 files from 1.png to more.npy: 8-bit, 0..255 to -1..1", "3.pgm: 16-bit, 0..65535 to -1..1"]
    np.testing.assert_array_equal(pictures.values[1], pictures.values[4])


def with_transparency() -> bytes:
    """A grey PNG whose black is transparent."""
    import io

    stream = io.BytesIO()
    Image.fromarray(EIGHT).save(stream, "PNG", transparency=0)
    return stream.getvalue()


def of_16_colours() -> bytes:
    """A grey PNG of four bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (6).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes([4, 0, 0, 0, 0])
    rows = zlib.compress(4 * bytes(4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("a.png", Image.fromarray(np.stack([EIGHT] * 3, -1)), "PNG of 8 bits and colour type 2; it must be grey, of 8"),
        ("a.png", Image.fromarray(EIGHT).convert("LA"), "colour type 4; it must be grey"),
        ("a.png", Image.fromarray(EIGHT).convert("P"), "colour type 3; it must be grey"),
        ("a.png", of_16_colours(), "PNG of 4 bits and colour type 0; it must be grey, of 8 or 16 bits"),
        ("a.png", with_transparency(), "has a transparent grey, which cannot be honoured"),
        ("a.png", b"no picture at all, though it is long enough", "a.png is no PNG"),
        ("a.png", of_16_colours()[:20], "a.png is no PNG"),
        ("a.png", Image.fromarray(EIGHT[:3]), "a.png is 1 x 3 x 6, and photo must be 1 x 4 x 6: nothing is resized"),
        ("a.pgm", pgm(EIGHT, 255)[:-3], "a.pgm cannot be read: image file is truncated: 21 of 24 pixels are there"),
        ("a.pgm", pgm(EIGHT, 100), "a.pgm cannot be read: holds 255, above its own maxval 100"),
        ("a.pgm", b"P2\n2 1\n255\n-1 7", "a.pgm cannot be read: '-1' is no sample; they are 0 to 255"),
        ("a.pgm", b"P2\n2 1\n255\n7 99999999999999999999", "'99999999999999999999' is no sample; they are 0 to 255"),
        ("a.pgm", b"P6\n6 4\n255\n" + bytes(72), "a.pgm cannot be read: its header is no PGM's"),
        ("a.npy", np.full((1, 4, 6), np.nan), "a.npy: row 0 holds nan; allowed are values from -1 to 1"),
        ("a.npy", np.float32([RAMP, RAMP + 0.5]), "a.npy: row 1 holds 1.02.*; allowed are values from -1 to 1"),
        ("a.npy", EIGHT, r"holds an array of shape \[4, 6\]; it must be \[N, H, W\]"),
        ("a.npy", EIGHT[None].astype(np.int64), "holds int64 values; pictures are uint8, uint16, float32 or float64"),
        ("a.npz", {"image": EIGHT[None]}, "has no array 'photo'; it holds image"),
        ("a.npz", {"photo": RAMP[None], "photo_range": [1.0, 1.0]}, r"has \[1.0, 1.0\] as photo_range"),
        ("a.npz", {"photo": RAMP[None] + 1, "photo_range": [0.0, 1.0]}, "row 0 holds 1.04.*; .* from 0 to 1"),
        ("a.jpg", b"", "a.jpg is none of .png, .pgm, .npz, .npy"),
    ],
)
def test_what_will_not_do_is_named(tmp_path, name, held, message):
    with pytest.raises(PictureFileError, match=message):
        read_pictures([write(tmp_path, name, held)], PHOTO)


def test_a_picture_that_asks_to_be_turned_is_refused(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(EIGHT).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(PictureFileError, match=r"asks to be turned \(Exif orientation 6\), which cannot be honoured"):
        read_pictures([tmp_path / "a.png"], PHOTO)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    with pytest.raises(PictureFileError, match="holds no pictures"):
        read_pictures([tmp_path], PHOTO)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(PictureFileError, match=r"holds notes.txt, which is neither a .png nor a .pgm"):
        read_pictures([tmp_path], PHOTO)


def test_pictures_that_may_have_another_white_are_said(tmp_path):
    """Twelve bits in a PNG of sixteen, which cannot say so."""
    twelve = np.rint(4095 * RAMP).astype(np.uint16)
    _, notes = read_pictures([write(tmp_path, "a.png", Image.fromarray(twelve))], PHOTO)
    assert notes == [
        "a.png: 16-bit, 0..65535 to -1..1, though none is above 4095: if that is white, a PGM or an .npz can say so"
    ]


def archive(**changed: int) -> bytes:
    """An .npz with the bits of some fields of its headers set."""
    held = io.BytesIO()
    np.savez(held, **ARRAYS)
    content = bytearray(held.getvalue())
    for signature, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        start = content.find(signature)
        while start >= 0:
            for field, bits in changed.items():
                content[start + {"flags": 6, "method": 8}[field] + shift] |= bits
            start = content.find(signature, start + 1)
    return bytes(content)


def torn() -> bytes:
    """A compressed .npz, whose compressed bytes are others."""
    held = io.BytesIO()
    np.savez_compressed(held, **ARRAYS)
    content = bytearray(held.getvalue())
    with zipfile.ZipFile(held) as packed:
        for member in packed.infolist():
            lengths = content[member.header_offset + 26 : member.header_offset + 30]
            start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            content[start : start + member.compress_size] = b"\xff" * member.compress_size
    return bytes(content)


DAMAGED = {
    "locked.npz": archive(flags=1),
    "packed.npz": archive(method=99),
    "torn.npz": torn(),
    "header.npy": b"\x93NUMPY\x01\x00\x0a\x00{'descr': (",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name, DAMAGED[name])
    with pytest.raises(PictureFileError, match=rf"{name} cannot be read: "):
        read_pictures([file], PHOTO)
    with pytest.raises(MaskFileError, match=rf"{name} is no .npz or .npy of masks: "):
        read_masks(file)


def test_a_small_file_that_would_take_all_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", **{PHOTO.name: np.zeros((1, 1, 2048, 2048), np.float32)})
    monkeypatch.setattr(check_unpacked, "__defaults__", (1 << 20,))
    with pytest.raises(PictureFileError, match=r"zeros.npz unpacks to 16 MiB; at most 1 are read"):
        read_pictures([tmp_path / "zeros.npz"], PHOTO)
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png")
    with pytest.raises(PictureFileError, match=r"large.png has 9000 x 9000 pixels; at most 67108864 are read"):
        read_pictures([tmp_path / "large.png"], PHOTO)
