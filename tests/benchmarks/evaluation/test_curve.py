"""The augmentation curve shows each row's Dice where its number is, and its interval around it."""

import re
from xml.etree import ElementTree

import pytest

from benchmarks.evaluation.curve import curve
from benchmarks.evaluation.statistics import Interval
from benchmarks.evaluation.utility import ALONE, AUGMENTED, SHUFFLED

RISING = {0.0: Interval(0.80, 0.78, 0.82), 1.0: Interval(0.84, 0.81, 0.86), 2.0: Interval(0.86, 0.84, 0.88)}
BAR = re.compile(r'd="M([\d.]+),([\d.]+)V([\d.]+)"')
CIRCLE = re.compile(r'circle cx="([\d.]+)" cy="([\d.]+)"')


def test_rows_stand_by_how_many_samples_they_add():
    assert AUGMENTED == {"real": 0, "real + 0.5x": 0.5, "real + 1x": 1, "real + 1.5x": 1.5, "real + 2x": 2}
    assert not {ALONE, SHUFFLED} & AUGMENTED.keys()


def test_points_and_bars_are_where_the_figures_are():
    picture = curve("Dice of a < b", RISING, "times")
    ElementTree.fromstring(picture.content)  # it is whole
    assert picture.source.startswith("data:image/svg+xml;base64,")
    circles = [tuple(map(float, each)) for each in CIRCLE.findall(picture.content)]
    bars = [tuple(map(float, each)) for each in BAR.findall(picture.content)]
    assert len(circles) == len(bars) == 3
    left, middle, right = (x for x, _ in circles)
    assert middle - left == pytest.approx(right - middle)
    pixels = (circles[0][1] - circles[2][1]) / 0.06  # of a Dice of 1; pixels count downwards
    assert pixels > 500
    for (x, y), (of_bar, low, high), figure in zip(circles, bars, RISING.values(), strict=True):
        assert of_bar == x
        assert (low - y, y - high) == pytest.approx(
            (pixels * (figure.value - figure.low), pixels * (figure.high - figure.value)), abs=0.3
        )


def test_what_has_no_interval_has_no_bar_and_what_has_no_figure_no_point():
    nothing = float("nan")
    few = {0.0: Interval(0.8, nothing, nothing), 0.5: Interval(nothing, nothing, nothing)}
    shown = curve("Dice", few, "times").content
    assert (len(CIRCLE.findall(shown)), BAR.findall(shown)) == (1, [])
    assert "nan" not in shown
    assert CIRCLE.findall(curve("Dice", {0.0: few[0.5]}, "times").content) == []
