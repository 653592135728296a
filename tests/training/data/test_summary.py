import json

import numpy as np
import pytest

from training.data.classes import HEART, LESION
from training.data.dataset import LoadedPairs
from training.data.phantom import Phantoms
from training.data.problems import DataError
from training.data.summary import lines, summarise

SIZE = 16
ROWS, COLUMNS = np.indices((SIZE, SIZE))
RAMP = np.linspace(-1, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
LESION_MASK = ((ROWS < 4) & (COLUMNS < 4)).astype(np.uint8)
EIGHTH = "images use less than an eighth of the grey range"
RADIUS = np.hypot(ROWS - 8, COLUMNS - 9)
HEART_MASK = np.where(RADIUS < 2.5, 1, np.where(RADIUS < 4.5, 2, np.where(COLUMNS < 4, 3, 0))).astype(np.uint8)


def pairs(images=(RAMP, RAMP), masks=(LESION_MASK, LESION_MASK * 0), labels=LESION, **more) -> LoadedPairs:
    return LoadedPairs([f"p{index}" for index in range(len(images))], images, masks, labels, **more)


def test_it_has_the_figures_and_is_json():
    summary = summarise(pairs(reading={"layout": "pairs", "white": {"8 bits": 255}}))
    assert summary == json.loads(json.dumps(summary))
    assert summary["pairs"] == 2
    assert summary["white"] == {"8 bits": 255}
    assert summary["empty_masks"] == 1
    assert summary["classes"]["lesion"] == {"masks": 1, "share": 1 / 16}
    assert summary["grey"] == pytest.approx(
        {"lowest": -1, "0.1 %": -1, "1 %": -0.98, "50 %": 0, "99 %": 0.98, "99.9 %": 1, "highest": 1}, abs=0.01
    )
    assert summary["warnings"] == []


def test_it_is_said_in_a_few_lines():
    assert lines(summarise(pairs(reading={"layout": "pairs"}, warnings=["odd"]))) == [
        "data: 2 pairs",
        "  layout pairs",
        "  grey levels in [-1, 1]: "
        "lowest -1, 0.1 % -0.9998, 1 % -0.9841, 50 % -0.0042, 99 % 0.9841, 99.9 % 0.9998, highest 1",
        "  masks: lesion in 1 masks (6.2 % of their pixels); 1 are empty",
        "  Warning: odd",
    ]


def test_drawn_pairs_are_counted():
    assert summarise(Phantoms(3, 32)) == {"pairs": 3, "classes": ["background", "lesion"], "warnings": []}


@pytest.mark.parametrize(
    ("odd", "warning"),
    [
        ({"images": [(RAMP + 1) / 255 - 1] * 2}, "nearly all is black: 99.9 % of all pixels lie below -0.99"),
        ({"images": [(RAMP - 1) / 255 + 1] * 2}, "nearly all is white: 99.9 % of all pixels lie above 0.99"),
        ({"images": [RAMP, RAMP * 0]}, "1 of 2 images have one grey level alone: p1"),
        ({"images": [RAMP] * 2 + [(RAMP + 1) / 255 - 1], "masks": [LESION_MASK] * 3}, f"1 of 3 {EIGHTH}: p2"),
        (
            {"images": [RAMP] + [(RAMP + 1) / 16 - 1] * 2, "masks": [LESION_MASK] * 3},
            f"2 of 3 {EIGHTH}: white is as bright as it is for p0 alone",
        ),
        ({"masks": [LESION_MASK * 0] * 2}, "all masks are empty"),
        ({"masks": [LESION_MASK, 1 - LESION_MASK]}, "more than half is lesion in 1 of 2 masks, 93.8 % at most; are"),
        ({"masks": [np.minimum(HEART_MASK, 2)] * 2, "labels": HEART}, "no mask has RV"),
    ],
)
def test_what_cannot_be_is_said(odd, warning):
    (said,) = summarise(pairs(**odd))["warnings"]
    assert said.startswith(warning)


@pytest.mark.parametrize("order", [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)])
def test_classes_in_another_order_are_noticed(order):
    masks = [np.array([0, *order], np.uint8)[HEART_MASK]] * 2
    said = summarise(pairs(masks=masks, labels=HEART))["warnings"]
    assert [warning[:31] for warning in said] == ["the LV does not lie within MYO:"] * (order != (1, 2, 3))


def test_a_name_is_of_one_pair():
    with pytest.raises(DataError, match="more than one pair has the name a"):
        LoadedPairs(["a", "b", "a"], [RAMP] * 3, [LESION_MASK] * 3, LESION)
