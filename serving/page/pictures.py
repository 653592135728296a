"""Samples as a visitor sees them."""

import html
import uuid

import numpy as np
from PIL import Image

from serving.sample_set import Samples, notices_of
from serving.writers.layout import is_mask, is_picture
from serving.writers.pictures import PALETTE, Bytes, caption, legend, to_8_bit

GAP = 2  # pixels between an input and its result


def tile(samples: Samples, row: int, opacity: float) -> Image.Image:
    """One sample as RGB, pixel for pixel: its pictures side by side, first what was given, and what was drawn with its
    mask over it.

    opacity: of the mask, 0 to 1; at 0 a picture's pixels are those of the PNG that `sample` writes.
    """
    shown = [output for output in samples.outputs if is_picture(output)]
    masks = [samples.arrays[output.name][row, 0] for output in shown if is_mask(output)]
    pictures = [output for output in shown if not is_mask(output)]
    if not pictures:
        return Image.fromarray(PALETTE[masks[0]]) if masks else Image.new("RGB", (1, 1))
    parts = []
    for output in pictures:
        grey = to_8_bit(samples.arrays[output.name][row, 0], output.low, output.high)
        is_drawn = output.name not in samples.given
        parts.append(blended(grey, masks[0], opacity) if masks and is_drawn else coloured(grey))
    height = max(part.shape[0] for part in parts)
    padded = [np.pad(part, ((0, height - part.shape[0]), (0, GAP), (0, 0)), constant_values=255) for part in parts]
    return Image.fromarray(np.concatenate(padded, axis=1)[:, :-GAP])


def coloured(grey: Bytes) -> Bytes:
    return np.repeat(grey[..., None], 3, axis=-1)


def blended(grey: Bytes, mask: Bytes, opacity: float) -> Bytes:
    """The picture [H, W] as [H, W, 3] under the classes of a mask, but for 0; as it is if the mask has another size."""
    picture = coloured(grey)
    if grey.shape != mask.shape:
        return picture
    mixed = np.rint((1 - opacity) * picture + opacity * PALETTE[mask].astype(np.float64)).astype(np.uint8)
    return np.where((mask != 0)[..., None], mixed, picture)


def tiles(samples: Samples, opacity: float) -> list[tuple[Image.Image, str]]:
    """All of them, with what stands below each.

    Each time other files: Gradio calls a file after its bytes, and would write it again while a browser reads it.
    """
    shown = [(tile(samples, row, opacity), caption(samples, row)) for row in range(len(samples))]
    for picture, _ in shown:
        picture.info["shown"] = uuid.uuid4().hex
    return shown


def has_mask_over(samples: Samples) -> bool:
    """Whether a mask is blended with what was drawn."""
    masks = [output for output in samples.outputs if is_picture(output) and is_mask(output)]
    drawn = [output for output in samples.outputs if is_picture(output) and output.name not in samples.given]
    return any(output.shape == masks[0].shape for output in drawn if not is_mask(output)) if masks else False


def what_is_seen(samples: Samples) -> str:
    """The colours of the classes, which side is which, and what the model says of its samples, as HTML."""
    pictures = [output.name for output in samples.outputs if is_picture(output) and not is_mask(output)]
    named = [f"{name} (given)" if name in samples.given else name for name in pictures]
    sides = f"<p>Side by side: {html.escape(', '.join(named))}</p>" if len(pictures) > 1 else ""
    notices = dict.fromkeys(notice for facts in samples.provenance for notice in notices_of(facts))
    sides += "".join(f'<p class="notice">{html.escape(notice)}</p>' for notice in notices)
    swatches = "".join(
        f'<li><span class="swatch" style="background: rgb{colour}"></span>{html.escape(label)}</li>'
        for label, colour in legend(samples)
    )
    return sides + (f'<ul class="legend" aria-label="Classes">{swatches}</ul>' if swatches else "")
