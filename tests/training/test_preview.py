"""Pictures of what a half-trained model draws need little memory."""

import pytest
import torch
from tiny_families import tiny_family

from training import preview


@pytest.mark.parametrize(("solver", "numbers"), [("ddpm", [0, 1, 2]), ("ddim", [0])])
def test_noise_is_drawn_when_a_step_asks_for_it(solver, numbers, tmp_path, monkeypatch):
    drawn = []

    def note(seed, model, number, out):
        drawn.append((number, seed))
        out.fill(0)

    monkeypatch.setattr(preview, "draw", note)
    family = tiny_family("ddpm", default_solver=solver, default_steps=2)
    preview.save_preview(family, [], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").is_file()
    assert sorted({number for number, _ in drawn}) == numbers
    assert [seed for number, seed in drawn if number == numbers[-1]] == [*range(preview.COUNT)]


def test_it_is_the_noise_of_its_number():
    noises = preview.Noises(tiny_family("ddpm"), 3, torch.device("cpu"))
    assert len(noises) == 4
    assert torch.equal(noises[2], noises[2])
    assert not torch.equal(noises[2], noises[3])
