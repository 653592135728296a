"""Samples as files to look at and to train on: PNG, a contact sheet, pairs.npz, provenance.json and NIfTI."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.nifti import write_nifti
from serving.samples import Samples

Bytes = NDArray[np.uint8]

PROVENANCE = "provenance.json"
SHEET = "sheet.png"
NIFTI = "nifti"
SHEET_LIMIT = 100
TILE_WIDTH = 192
CAPTION_HEIGHT = 18
GAP = 4
PAPER, INK = (24, 24, 24), (210, 210, 210)
CLASS_COLOURS = ((255, 70, 70), (80, 200, 255), (255, 210, 60), (120, 230, 110), (240, 120, 255), (255, 150, 50))
# One colour per class index; 0, the background, is black.
PALETTE = np.array([(0, 0, 0), *(CLASS_COLOURS[k % len(CLASS_COLOURS)] for k in range(255))], np.uint8)


def to_8_bit(values: NDArray[Any], low: float, high: float) -> Bytes:
    """Grey levels 0 to 255 for values in [low, high]: a value is the same grey whatever else its picture holds."""
    scaled = (np.asarray(values, np.float64) - low) / (high - low)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def outline(mask: Bytes) -> NDArray[np.bool_]:
    """The pixels of every class but 0 in a mask [H, W] that touch another class at one of their four sides."""
    framed = np.pad(mask, 1, mode="edge")
    sides = framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]
    return (mask != 0) & np.logical_or.reduce([side != mask for side in sides])


def overlay(grey: Bytes, mask: Bytes, zoom: int = 1) -> Image.Image:
    """The picture grey [H, W], enlarged, with each class of mask [H, W] outlined one pixel thin in its colour."""
    height, width = grey.shape
    enlarged = Image.fromarray(grey).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    pixels = np.array(enlarged.convert("RGB"))
    classes = mask.repeat(zoom, axis=0).repeat(zoom, axis=1)
    edge = outline(classes)
    pixels[edge] = PALETTE[classes[edge]]
    return Image.fromarray(pixels)


def mask_picture(mask: Bytes, classes: int) -> Image.Image:
    """A mask [H, W] to look at: two classes are black and white, more are class indices with a palette of colours."""
    if classes == 2:
        return Image.fromarray(mask * np.uint8(255))
    picture = Image.fromarray(mask)
    picture.putpalette(PALETTE.tobytes())
    return picture


def drawings(samples: Samples, row: int, zoom: int = 1) -> dict[str, Image.Image]:
    """What there is to see of one sample, under the names of the folders of write_samples; "overlays" comes last.

    A uint8 output [1, H, W] is a mask, one of another dtype a picture between its low and high; others are not drawn.
    """
    drawn: dict[str, Image.Image] = {}
    masks, greys = [], []
    for output in samples.outputs:
        if len(output.shape) != 3 or output.shape[0] != 1:
            continue
        values = samples.arrays[output.name][row, 0]
        if output.dtype == "uint8":
            masks.append(values)
            drawn[f"{output.name}s"] = mask_picture(values, int(output.high) + 1)
        else:
            greys.append(to_8_bit(values, output.low, output.high))
            drawn[f"{output.name}s"] = Image.fromarray(greys[-1])
    if masks and greys and masks[0].shape == greys[0].shape:
        drawn["overlays"] = overlay(greys[0], masks[0], zoom)
    return drawn


def contact_sheet(samples: Samples) -> Image.Image:
    """The first SHEET_LIMIT samples side by side, masks as outlines on pictures, each with its seed."""
    plain = list(drawings(samples, 0).values())[-1]
    zoom = max(1, round(TILE_WIDTH / plain.width))
    width, height = plain.width * zoom, plain.height * zoom
    tiles = [list(drawings(samples, row, zoom).values())[-1] for row in range(min(len(samples), SHEET_LIMIT))]
    columns = math.ceil(math.sqrt(len(tiles)))
    step_x, step_y = width + GAP, height + CAPTION_HEIGHT + GAP
    sheet = Image.new("RGB", (GAP + columns * step_x, GAP + math.ceil(len(tiles) / columns) * step_y), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, tile in enumerate(tiles):
        x, y = GAP + row % columns * step_x, GAP + row // columns * step_y
        sheet.paste(tile.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 2, y + height + 1), f"seed {samples.seeds[row]}", INK, font)
    return sheet


def check_destination(folder: Path, replace: bool = False) -> None:
    """Raises FileExistsError if folder holds something that write_samples may not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / PROVENANCE).is_file():
        raise FileExistsError(f"{folder} exists and holds no samples: choose another folder")
    if not replace:
        raise FileExistsError(f"{folder} holds samples already: choose another folder, or replace them with --force")
    if others := sorted({path.name for path in folder.iterdir()} - _written_names(folder)):
        raise FileExistsError(f"{folder} holds {others[0]} beside samples, and would lose it: choose another folder")


def _written_names(folder: Path) -> set[str]:
    """What write_samples may have put into a folder of samples."""
    try:
        outputs = json.loads((folder / PROVENANCE).read_text())["outputs"]
        return {"pairs.npz", SHEET, PROVENANCE, "overlays", NIFTI, *(f"{output['name']}s" for output in outputs)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_samples(samples: Samples, folder: Path, replace: bool = False, nifti: bool = False) -> list[str]:
    """Writes samples to a new folder, whole or not at all, and returns the names of what it holds.

    pairs.npz: every output [N, ...] as it came, and seed [N]. masks/, images/ and overlays/ (images with outlines): one
    8-bit PNG per sample, named by its seed. sheet.png: an overview. provenance.json: what made each sample, and what
    the outputs mean. nifti/, if asked for: see write_nifti. Raises FileExistsError as check_destination does.
    """
    folder = folder.resolve()
    check_destination(folder, replace)
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        np.savez(unfinished / "pairs.npz", seed=np.array(samples.seeds, np.int64), **samples.arrays)
        for row, seed in enumerate(samples.seeds):
            for name, picture in drawings(samples, row).items():
                (unfinished / name).mkdir(exist_ok=True)
                picture.save(unfinished / name / f"{seed:06d}.png")
        if drawings(samples, 0):
            contact_sheet(samples).save(unfinished / SHEET)
        if nifti:
            write_nifti(samples, unfinished / NIFTI)
        record = {"outputs": [dataclasses.asdict(output) for output in samples.outputs], "samples": samples.provenance}
        (unfinished / PROVENANCE).write_text(json.dumps(record, indent=1) + "\n")
        _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())


def _put_in_place(unfinished: Path, folder: Path) -> None:
    replaced = unfinished.with_name(f"{unfinished.name}-replaced")
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
