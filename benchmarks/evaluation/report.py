"""A report as one HTML page that needs no network, and the same as JSON."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evaluation.pairs import Pairs
from benchmarks.evaluation.statistics import Interval
from serving.writers.pictures import overlay, to_8_bit

TEMPLATE = Path(__file__).with_name("report.html.j2")
LONG = 32  # letters, beyond which a cell is a sentence
TILE = 128  # pixels at least
GRID = 6  # tiles in a row
GAP = 3
BINS = 24
NOTHING = 1e-12  # what is left of 0 by rounding

Cell = Interval | float | int | str | None


@dataclass(frozen=True)
class Table:
    """rows: a name, and a cell for each column after the first."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def words(self) -> set[int]:
        """The columns after the first that hold sentences."""
        return {
            place
            for row in self.rows
            for place, cell in enumerate(row)
            if place and isinstance(cell, str) and len(cell) > LONG
        }


@dataclass(frozen=True)
class Picture:
    """A PNG or, as text, an SVG."""

    title: str
    content: bytes | str

    @property
    def source(self) -> str:
        kind, content = ("png", self.content) if isinstance(self.content, bytes) else ("svg+xml", self.content.encode())
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass
class Section:
    """One of quality, utility and privacy."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def write(sections: Sequence[Section], facts: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """NAME.html and NAME.json, each put in its place when it is whole."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=name, sections=sections, facts=json.dumps(facts, indent=1), dumped=[_dumped(each) for each in sections]
    )
    told = {"format": 1, "facts": facts, "sections": [as_json(section) for section in sections]}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for ending, text in (("json", json.dumps(told, indent=1, allow_nan=False) + "\n"), ("html", page)):
        aside = folder / f".{name}.{ending}.writing"
        aside.write_text(text)
        written.append(aside.replace(folder / f"{name}.{ending}"))
    return written


def _dumped(section: Section) -> str:
    return json.dumps(section.facts, indent=1)


def as_json(section: Section) -> dict[str, Any]:
    """All but the pictures."""
    tables = [
        {
            "title": table.title,
            "columns": list(table.columns),
            "rows": [[_told(cell) for cell in row] for row in table.rows],
            "note": table.note,
        }
        for table in section.tables
    ]
    return {
        "title": section.title,
        "text": section.text,
        "warnings": section.warnings,
        "tables": tables,
        "facts": section.facts,
    }


def _told(cell: Cell) -> Any:
    if isinstance(cell, Interval):
        return cell.as_json()
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    return cell


def shown(cell: Cell) -> str:
    """A figure to three places that count, with its interval; a dash where there is none."""
    if isinstance(cell, Interval):
        if math.isnan(cell.value):
            return "-"
        if math.isnan(cell.low):
            return f"{_rounded(cell.value)} [no interval]"
        return f"{_rounded(cell.value)} [{_rounded(cell.low)}, {_rounded(cell.high)}]"
    if isinstance(cell, float):
        return _rounded(cell) if math.isfinite(cell) else "-"
    return "-" if cell is None else str(cell)


def _rounded(value: float) -> str:
    if abs(value) < NOTHING:
        return "0"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def picture(image: NDArray[np.float32], mask: NDArray[np.uint8]) -> Image.Image:
    """A pair to look at: the outlines of its mask on the picture, at least TILE pixels wide."""
    return overlay(to_8_bit(image, 0, 1), mask, max(1, math.ceil(TILE / image.shape[-1])))


def sheet(tiles: Sequence[Image.Image], columns: int = GRID) -> bytes:
    """Tiles of one size in rows, as a PNG."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    columns = min(columns, len(tiles))
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, tile in enumerate(tiles):
        whole.paste(tile.convert("RGB"), (number % columns * (width + GAP), number // columns * (height + GAP)))
    stream = io.BytesIO()
    whole.save(stream, "PNG")
    return stream.getvalue()


def sample_grid(pairs: Pairs, seed: int, count: int = 2 * GRID) -> Picture:
    rows = np.random.default_rng(seed).permutation(len(pairs))[:count]
    tiles = [picture(pairs.images[row], pairs.masks[row]) for row in rows]
    return Picture(f"{pairs.name}: {len(tiles)} of {len(pairs)}, drawn at random", sheet(tiles))


def histogram(title: str, values: Mapping[str, NDArray[np.float64]]) -> Picture:
    """Shares of each group of values in common bins, as an SVG with a legend; what is not finite is left out."""
    kept = {name: each[np.isfinite(each)] for name, each in values.items()}
    kept = {name: each for name, each in kept.items() if len(each)}
    width, height, left, top, below = 300, 158, 34, 18, 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="10"><rect width="100%" height="100%" fill="white"/>'
    ]
    if kept:
        every = np.concatenate(list(kept.values()))
        low, high = float(every.min()), float(every.max())
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        shares = {name: np.histogram(each, edges)[0] / len(each) for name, each in kept.items()}
        most = max(float(share.max()) for share in shares.values())
        across, up = width - left - 8, height - top - below
        for colour, dash, (number, (name, share)) in zip(COLOURS, DASHES, enumerate(shares.items()), strict=False):
            points = " ".join(
                f"{left + across * step / BINS:.1f},{top + up * (1 - value / most):.1f}"
                for place, value in enumerate(share)
                for step in (place, place + 1)
            )
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5" {dash}/>'
                f'<text x="{left + 88 * number}" y="12" fill="{colour}">{_escaped(name)[:16]}</text>'
            )
        base = height - below
        parts.append(
            f'<path d="M{left},{top}V{base}H{width - 8}" fill="none" stroke="#888"/>'
            f'<text x="{left}" y="{height - 8}">{edges[0]:.3g}</text>'
            f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">{edges[-1]:.3g}</text>'
            f'<text x="2" y="{top + 8}">{most:.0%}</text>'
        )
    return Picture(title, "".join([*parts, "</svg>"]))


COLOURS = ("#1f5fa8", "#c8501e", "#4a7d2c")
DASHES = ("", 'stroke-dasharray="5 2"', 'stroke-dasharray="2 2"')  # not by colour alone


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
