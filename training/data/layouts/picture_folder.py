"""A folder of grey images without masks, and what reading one of them has in common with reading pairs."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.dataset import LoadedPairs
from training.data.formats.grey_image import SUFFIXES, GreyImage, read_grey
from training.data.listing import list_files
from training.data.preparation.grey_scale import BIT_DEPTHS, Levels, Scale, levels_of, scale_of
from training.data.preparation.resize import Floats, fit_image
from training.data.problems import BadFileError, DataError, Problems, progress, some
from training.data.spooled import Spooled

Files = dict[str, list[Path]]
SAME_SIDE = 0.01  # how far sides of pixels may be apart, as a share


def load_pictures(folder: Path, size: int, skip_bad: bool = False) -> LoadedPairs:
    """Decode every image of a folder into ``size`` x ``size`` pixels, as ``load_pairs`` does its images; no masks.

    Raises:
        DataError: a file cannot be used (all are listed), or none is left. With ``skip_bad`` such files are left out
            and logged.
    """
    problems = Problems(folder)
    files = files_by_stem(folder, problems)
    names, fitted = [], Spooled[np.float32]()
    read: list[GreyImage] = []
    levels: list[Levels] = []
    for name in progress(sorted(files), folder):
        path, *others = files[name]
        for other in others:
            problems.add(other, f"shares its stem with {path.name}")
        with problems.of(path):
            image = read_image(path)
            levels.append(levels_of(image.pixels, image.maxval))
            fitted.append(fit_image(image.pixels.astype(np.float32), size))
            names.append(name)
            read.append(without_pixels(image))
    problems.settle(skip_bad)
    if not names:
        raise DataError(f"{folder} holds no image that can be used")
    scale = to_range(fitted, levels)
    reading = {
        "layout": "images",
        "white": scale.kinds,
        **told_by(read),
        "left_out": problems.left_out,
    }
    listing = list_files(folder, [files[name][0] for name in names])
    return LoadedPairs(names, fitted, None, (), reading, [*beyond_white(names, scale), *unlike(read)], listing)


def files_by_stem(folder: Path, problems: Problems) -> Files:
    files = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in SUFFIXES and path.is_file():
            files[path.stem].append(path)
        else:
            problems.add(path, f"is none of {', '.join(SUFFIXES)}")
    return files


def read_image(path: Path) -> GreyImage:
    image = read_grey(path)
    pixels = image.pixels
    if pixels.dtype.kind == "b":
        raise BadFileError("is 1 bit deep, which no grey image is")
    highest = 1 if pixels.dtype.kind == "f" else 2 ** BIT_DEPTHS[-1] - 1
    if pixels.min() < 0 or pixels.max() > highest:
        raise BadFileError(f"holds {pixels.min():g} to {pixels.max():g}; {pixels.dtype} must lie in 0 to {highest}")
    return image


def to_range(images: Sequence[Floats], levels: Sequence[Levels]) -> Scale:
    """Bring images as their files hold them to [-1, 1], in place, by one rule for all: ``grey_scale`` has it."""
    scale = scale_of(levels)
    for image, white in zip(images, scale.white, strict=True):
        image *= 2 / white
        image -= 1
        image.clip(-1, 1, out=image)
    return scale


def beyond_white(names: Sequence[str], scale: Scale) -> list[str]:
    if not scale.beyond:
        return []
    return [
        f"{len(scale.beyond)} of {len(names)} images have pixels far brighter than all others, which are cut off "
        f"at white: {some([names[index] for index in scale.beyond])}"
    ]


def without_pixels(image: GreyImage) -> GreyImage:
    return image._replace(pixels=np.empty((0, 0)))


def told_by(images: Sequence[GreyImage]) -> dict[str, Any]:
    """What the files themselves asked for or say, as JSON holds it."""
    told: dict[str, Any] = {"turned_by_their_tags": sum(image.turned for image in images)}
    if decided := Counter(word for image in images for word in image.decided):
        told["dicom"] = dict(sorted(decided.items()))
    if sides := [image.spacing for image in images if image.spacing is not None]:
        told["mm_a_pixel"] = [[min(sides), max(sides)]]
    return told


def unlike(images: Sequence[GreyImage]) -> list[str]:
    """Warnings where images are of several sizes of pixels, or not what is looked at."""
    sides = [image.spacing for image in images if image.spacing is not None]
    warnings = []
    if sides and max(sides) > (1 + SAME_SIDE) * min(sides):
        warnings.append(
            f"pixels are from {min(sides):g} to {max(sides):g} mm wide, and nothing brings them to one size: "
            "structures will be of as many sizes"
        )
    if raw := sum("for processing" in image.decided for image in images):
        warnings.append(f"{raw} of {len(images)} images are raw (FOR PROCESSING), and not as one looks at them")
    if drawn := sum("synthetic" in image.decided for image in images):
        warnings.append(f"{drawn} of {len(images)} images are synthetic, as they say themselves")
    return warnings
