"""Pictures of samples: grey levels, masks in colours, outlines, and a contact sheet."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.sample_set import Samples

Bytes = NDArray[np.uint8]

SHEET_LIMIT = 100
TILE_WIDTH = 192
CAPTION_HEIGHT = 18
GAP = 4
SWATCH = 12
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
    masks: list[NDArray[np.uint8]] = []
    greys: list[NDArray[np.uint8]] = []
    for output in samples.outputs:
        if len(output.shape) != 3 or output.shape[0] != 1:
            continue
        values = samples.arrays[output.name][row, 0]
        if output.dtype == "uint8":
            masks.append(values)
            drawn[f"{output.name}s"] = mask_picture(values, int(output.high) + 1)
        else:
            grey = to_8_bit(values, output.low, output.high)
            drawn[f"{output.name}s"] = Image.fromarray(grey)
            greys.insert(len(greys) if output.name in samples.given else 0, grey)  # masks lie on what was drawn
    if masks and greys and masks[0].shape == greys[0].shape:
        drawn["overlays"] = overlay(greys[0], masks[0], zoom)
    return drawn


def legend(samples: Samples) -> list[tuple[str, tuple[int, ...]]]:
    """The classes of the mask that the sheet shows in colours, with their colours."""
    shown = drawings(samples, 0)
    for output in samples.outputs:
        if output.labels and f"{output.name}s" in shown and ("overlays" in shown or len(output.labels) > 2):
            return [(label, tuple(PALETTE[k].tolist())) for k, label in enumerate(output.labels) if k]
    return []


def columns_of(samples: Samples, row: int, zoom: int = 1) -> dict[str, Image.Image]:
    """What a sample is on a contact sheet: its overlay; or else its pictures, as far as they are of one height."""
    drawn = drawings(samples, row, zoom)
    name, last = [*drawn.items()][-1]
    greys = {
        output.name: drawn[f"{output.name}s"]
        for output in samples.outputs
        if output.dtype != "uint8" and f"{output.name}s" in drawn
    }
    if "overlays" in drawn or not greys:
        return {name: last}
    height = [*greys.values()][-1].height
    return {name: grey for name, grey in greys.items() if grey.height == height}


def tile_of(columns: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures of one height side by side."""
    beside = [picture.convert("RGB") for picture in columns.values()]  # pasted, a mask would lose its palette
    tile = Image.new("RGB", (sum(picture.width for picture in beside), beside[-1].height))
    for k, picture in enumerate(beside):
        tile.paste(picture, (sum(other.width for other in beside[:k]), 0))
    return tile


def contact_sheet(samples: Samples) -> Image.Image:
    """The first SHEET_LIMIT samples side by side, masks as outlines on pictures, each with its seed, and a legend.

    Samples of several pictures have the names of these above.
    """
    names = columns_of(samples, 0)
    plain = tile_of(names)
    zoom = max(1, round(TILE_WIDTH / min(plain.size)))
    width, height = plain.width * zoom, plain.height * zoom
    tiles = [tile_of(columns_of(samples, row, zoom)) for row in range(min(len(samples), SHEET_LIMIT))]
    columns = max(1, round(math.sqrt(len(tiles) * height / width))) if width > height else math.ceil(len(tiles) ** 0.5)
    step_x, step_y = width + GAP, height + CAPTION_HEIGHT + GAP
    top = GAP + (CAPTION_HEIGHT if len(names) > 1 else 0)
    whole_width, above = GAP + columns * step_x, top + math.ceil(len(tiles) / columns) * step_y
    font = ImageFont.load_default(12)
    entries, lines = _laid_out(legend(samples), whole_width - 2 * GAP, font)
    sheet = Image.new("RGB", (whole_width, above + lines * (CAPTION_HEIGHT + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, tile in enumerate(tiles):
        x, y = GAP + row % columns * step_x, top + row // columns * step_y
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 2, y + height + 1), caption(samples, row), INK, font)
    for column in range(columns if len(names) > 1 else 0):
        x = GAP + column * step_x
        for name, picture in names.items():
            draw.text((x + 2, GAP + 1), f"{name}, given" if name in samples.given else name, INK, font)
            x += picture.width * zoom
    for text, colour, left, line in entries:
        x, y = GAP + left, above + line * (CAPTION_HEIGHT + GAP)
        draw.rectangle((x, y + 2, x + SWATCH - 1, y + 1 + SWATCH), colour)
        draw.text((x + SWATCH + GAP, y + 1), text, INK, font)
    return sheet


def caption(samples: Samples, row: int) -> str:
    """A sample's seed, and its outputs of one number."""
    numbers = [o.name for o in samples.outputs if math.prod(o.shape) == 1]
    return ", ".join([f"seed {samples.seeds[row]}", *(f"{n} {samples.arrays[n][row].item():.4g}" for n in numbers)])


def _laid_out(
    entries: Sequence[tuple[str, tuple[int, ...]]], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> tuple[list[tuple[str, tuple[int, ...], int, int]], int]:
    """Text, colour, left edge and line of every entry of a legend, and how many lines there are."""
    placed, left, line = [], 0, 0
    for label, colour in entries:
        text = " ".join(label.encode(errors="replace").decode().split())  # JSON may hold halves of a character
        needed = SWATCH + 4 * GAP + math.ceil(font.getlength(text))
        if left and left + needed > width:
            left, line = 0, line + 1
        placed.append((text, colour, left, line))
        left += needed
    return placed, line + 1 if placed else 0
