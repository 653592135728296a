"""Rings that a model breaks on its way from noise are counted by where it began."""

import json

import pytest
import torch
from click.testing import CliRunner
from tiny_families import SIZE, tiny_family

from benchmarks.__main__ import main
from benchmarks.quality import redraw
from benchmarks.quality.anatomy import LV, MYO, faults
from benchmarks.quality.redraw import thinnest, wall
from serving.sampling.solvers import data_weights
from training.checkpoint import save_checkpoint
from training.noising import levels


@pytest.fixture
def checkpoint(tmp_path):
    family = tiny_family("cmr_mask")
    save_checkpoint(tmp_path / "mask", family, family.state_dict(), {"preset_name": "small", "step": 7})
    return tmp_path / "mask"


def run(*arguments):
    return CliRunner().invoke(main, ["redraw", *map(str, arguments)])


def test_what_breaks_above_a_level_breaks_from_there_alone(checkpoint, tmp_path, monkeypatch):
    masks = thinnest(4, 12, SIZE, seed=0)
    assert [faults(mask[0].numpy()) for mask in masks] == [[]] * 4
    opened, times = masks.clone(), []
    opened[0][masks[0] == MYO] = 0

    def network(family, sample, coeffs, condition=None):
        """It knows the masks, but for one of those that were noised beyond 250."""
        times.append(int(coeffs[0, 0]))
        data = family.data({"mask": opened if max(times) > 250 else masks})
        schedule = family.preset.schedule
        p, q = data_weights(schedule.prediction, *levels(schedule, coeffs[:, 0].long()))
        return (data - p * sample) / q

    monkeypatch.setattr("training.models.cmr_mask.CmrMask.network", network)
    asked = ("--count", 4, "--of", 12, "--steps", 20, "--from", 200, "--from", 300, "--json", tmp_path / "rows.json")
    result = run(checkpoint, *asked)
    assert result.exit_code == 0, result.output
    low, high = json.loads((tmp_path / "rows.json").read_text())
    assert low == {"from": 200, "steps": 5, "broken": 0, "pixels": 0, "of": 4}
    assert (high["from"], high["steps"], high["broken"]) == (300, 7, 1)
    assert high["pixels"] == int((masks[0] == MYO).sum()) / 4
    assert "1 of 4" in result.output


def test_the_thinnest_are_those_whose_blood_comes_nearest_to_the_outside():
    masks = thinnest(12, 12, SIZE, seed=0)
    walls = [wall(mask[0].numpy()) for mask in masks]
    assert walls == sorted(walls)
    assert walls[0] < walls[-1]
    assert torch.equal(thinnest(3, 12, SIZE, seed=0), masks[:3])
    ring = torch.zeros(9, 9, dtype=torch.uint8)
    ring[2:7, 2:7] = MYO
    ring[4, 4] = LV
    assert wall(ring.numpy()) == 3
    ring[4, 5] = LV
    assert wall(ring.numpy()) == 2


def test_what_has_no_rings_or_no_such_timestep_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(redraw, "thinnest", None)
    family = tiny_family("pig")
    save_checkpoint(tmp_path / "pig", family, family.state_dict(), {"preset_name": "small", "step": 7})
    assert "pig; it must be a cmr_mask, which draws rings" in run(tmp_path / "pig").stderr
    assert "--from is 1000; it must be from 0 to 999" in run(checkpoint, "--from", 1000).stderr
    assert "--steps is 1001" in run(checkpoint, "--steps", 1001).stderr
    assert "9 rings are more than the 8 phantoms" in run(checkpoint, "--count", 9, "--of", 8).stderr
