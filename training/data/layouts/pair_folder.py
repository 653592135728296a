"""A folder of pairs: ``images/`` and ``masks/``, matched by stem."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.classes import LESION
from training.data.dataset import LoadedPairs
from training.data.formats.grey_image import GreyImage, read_grey
from training.data.layouts.picture_folder import (
    Files,
    beyond_white,
    files_by_stem,
    read_image,
    to_range,
    told_by,
    unlike,
    without_pixels,
)
from training.data.listing import list_files
from training.data.preparation.grey_scale import Levels, levels_of
from training.data.preparation.resize import fit_image, fit_mask
from training.data.problems import BadFileError, DataError, Problems, progress, some, tiny_lesions
from training.data.spooled import Spooled


def load_pairs(folder: Path, size: int, skip_bad: bool = False) -> LoadedPairs:
    """Decode every pair of a folder into ``size`` x ``size`` pixels, aspect kept by padding with black.

    Images are PNG, PGM, TIFF, NPY or DICOM and are scaled to [-1, 1] by one rule for the whole folder, never image by
    image: ``grey_scale`` has it. Masks hold 0 for background and one other value, whichever, for the lesion; a mask
    may be empty.

    Raises:
        DataError: a file cannot be used or lacks its partner (all are listed), or no pair is left. With ``skip_bad``
            such files are left out and logged.
    """
    problems = Problems(folder)
    images, masks = (files_by_stem(folder / name, problems) for name in ("images", "masks"))
    names, tiny, turned_alone = [], [], []
    fitted_images, fitted_masks = Spooled[np.float32](), Spooled[np.uint8]()
    levels: list[Levels] = []
    read: list[GreyImage] = []
    for name in progress(_matched(images, masks, problems), folder):
        pair = _read_pair(images[name][0], masks[name][0], problems)
        if pair is None:
            continue
        image, mask = pair
        pixels = image.pixels
        levels.append(levels_of(pixels, image.maxval))
        read.append(without_pixels(image))
        turned_alone += [name] * (image.turned != mask.turned)
        fitted_mask, enlarged = fit_mask(mask.pixels, size)
        names.append(name)
        fitted_images.append(fit_image(pixels.astype(np.float32), size))
        fitted_masks.append(fitted_mask)
        tiny += [name] * (enlarged > 0)
    problems.settle(skip_bad)
    if not names:
        raise DataError(f"{folder}: images/ and masks/ hold no pair that can be used")

    scale = to_range(fitted_images, levels)
    warnings = [*tiny_lesions(tiny, size), *beyond_white(names, scale), *unlike(read)]
    if turned_alone:
        warnings.append(
            f"the tags of image and mask turn one of the two alone in {len(turned_alone)} pairs, which were so read; "
            f"look whether they fit: {some(turned_alone)}"
        )
    reading = {
        "layout": "pairs",
        "white": scale.kinds,
        **told_by(read),
        "left_out": problems.left_out,
    }
    files = [path for name in names for path in (images[name][0], masks[name][0])]
    return LoadedPairs(names, fitted_images, fitted_masks, LESION, reading, warnings, list_files(folder, files))


def _matched(images: Files, masks: Files, problems: Problems) -> list[str]:
    """The stems that name one image and one mask."""
    matched = []
    for stem in sorted(images.keys() | masks.keys()):
        pair = images.get(stem, []), masks.get(stem, [])
        for paths, partners, where in ((pair[0], masks, "masks"), (pair[1], images, "images")):
            for path in paths:
                if len(paths) > 1:
                    problems.add(path, f"shares its stem with {', '.join(p.name for p in paths if p != path)}")
                elif stem not in partners:
                    problems.add(path, f"has no partner in {where}/")
        if [len(paths) for paths in pair] == [1, 1]:
            matched.append(stem)
    return matched


def _read_pair(image_path: Path, mask_path: Path, problems: Problems) -> tuple[GreyImage, GreyImage] | None:
    image = mask = None
    with problems.of(image_path):
        image = read_image(image_path)
    with problems.of(mask_path):
        mask = _read_mask(mask_path)
    if image is None or mask is None:
        return None
    if image.pixels.shape != mask.pixels.shape:
        problems.add(mask_path, f"has {_extent(mask.pixels)} pixels, but its image {_extent(image.pixels)}")
        return None
    return image, mask


def _read_mask(path: Path) -> GreyImage:
    """Its pixels are bool: lesion or not."""
    mask = read_grey(path)
    values = np.unique(mask.pixels)
    if np.count_nonzero(values) > 1:
        some_values = ", ".join(f"{value:g}" for value in values[:5]) + ", ..." * (len(values) > 5)
        raise BadFileError(f"holds {len(values)} values ({some_values}); a mask holds 0 and one other")
    return mask._replace(pixels=mask.pixels != 0)


def _extent(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"
