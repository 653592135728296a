"""What a segmenter gains by more and more samples, as an SVG."""

import math
from collections.abc import Mapping
from html import escape

from benchmarks.evaluation.report import COLOURS, Picture
from benchmarks.evaluation.statistics import Interval

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BELOW = 420, 230, 46, 14, 16, 40


def curve(title: str, figures: Mapping[float, Interval], across: str) -> Picture:
    """Figures and their intervals against the numbers that they are of; the dashed line is as high as the first."""
    there = {number: each for number, each in sorted(figures.items()) if math.isfinite(each.value)}
    ends = [end for each in there.values() for end in each if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.08 * (high - low) or 0.01
    low, high, first, last = low - margin, high + margin, min(there, default=0), max(there, default=1)

    def x(number: float) -> float:
        return LEFT + 12 + (number - first) / (last - first or 1) * (WIDTH - LEFT - RIGHT - 24)

    def y(value: float) -> float:
        return HEIGHT - BELOW - (value - low) / (high - low) * (HEIGHT - TOP - BELOW)

    base, colour = HEIGHT - BELOW, COLOURS[0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="10"><rect width="100%" height="100%" fill="white"/>'
        f'<path d="M{LEFT},{TOP}V{base}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>'
    ]
    for value in (low + margin, (low + high) / 2, high - margin):
        parts.append(f'<text x="{LEFT - 5}" y="{y(value) + 3:.1f}" text-anchor="end">{value:.3f}</text>')
    for number, each in there.items():
        parts.append(f'<text x="{x(number):.1f}" y="{base + 14}" text-anchor="middle">{number:g}</text>')
        if math.isfinite(each.low) and math.isfinite(each.high):
            ends_at = f"{x(number):.1f},{y(each.low):.1f}V{y(each.high):.1f}"
            parts.append(f'<path d="M{ends_at}" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{x(number):.1f}" cy="{y(each.value):.1f}" r="3.5" fill="{colour}"/>')
    if there:
        level = y(there[first].value)
        parts.append(f'<path d="M{LEFT},{level:.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-dasharray="4 3"/>')
        points = " ".join(f"{x(number):.1f},{y(each.value):.1f}" for number, each in there.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    return Picture(title, "".join([*parts, "</svg>"]))
