"""Time against distance, as an SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.evaluation.report import Picture

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BELOW = 830, 420, 56, 260, 34, 44
COLOURS = {"accepted": "#2c7d3a", "too few samples": "#b8860b", "refused": "#c0392b"}


@dataclass(frozen=True)
class Point:
    name: str
    seconds: float
    distance: float
    verdict: str
    is_best: bool  # none is both faster and nearer
    is_chosen: bool


def best(figures: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (seconds, distance), which have none beside them that is no worse in both and better in one: Pareto's."""
    return [
        not any(other[0] <= each[0] and other[1] <= each[1] and other != each for other in figures) for each in figures
    ]


def plot(points: Sequence[Point], what: str) -> Picture:
    """A logarithmic axis of seconds a sample; circles, filled if accepted, a ring around what was chosen."""
    title = f"Seconds a sample against {what}"
    seconds = [point.seconds for point in points]
    low, high = math.log10(min(seconds)) - 0.1, math.log10(max(seconds)) + 0.1
    most = max([point.distance for point in points if math.isfinite(point.distance)], default=1.0) * 1.1 or 1.0

    def at(point: Point) -> tuple[float, float]:
        across = LEFT + (math.log10(point.seconds) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        distance = point.distance if math.isfinite(point.distance) else most
        return across, HEIGHT - BELOW - distance / most * (HEIGHT - TOP - BELOW)

    base = HEIGHT - BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/><text x="8" y="16">{escape(title)}</text>'
        f'<path d="M{LEFT},{TOP}V{base}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>'
    ]
    every = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high)) for digit in (1, 2, 5)]
    for tick in [tick for tick in every if low <= math.log10(tick) <= high]:
        across = LEFT + (math.log10(tick) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<path d="M{across:.1f},{base}v5" stroke="#888"/>')
        parts.append(f'<text x="{across:.1f}" y="{base + 18}" text-anchor="middle">{tick:g} s</text>')
    for share in (0, 0.5, 1):
        height = base - share * (HEIGHT - TOP - BELOW)
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{share * most:.3g}</text>')
    front = sorted(at(point) for point in points if point.is_best)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#bbb" stroke-dasharray="4 3"/>')
    for number, point in enumerate(sorted(points, key=lambda point: point.seconds), 1):
        x, y = at(point)
        colour = COLOURS[point.verdict]
        fill = colour if point.verdict == "accepted" else "white"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>')
        if point.is_chosen:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="#222" stroke-width="1.5"/>')
        parts.append(f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" fill="#333">{number}</text>')
        name = f"{number} {point.name}" + (" (chosen)" if point.is_chosen else "")
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 14 * number}" fill="{colour}">{escape(name)}</text>')
    return Picture(title, "".join([*parts, "</svg>"]))
