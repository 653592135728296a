"""Pictures of what a half-trained model draws."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from serving.sample_set import Samples, under
from serving.sampling.noise import draw
from serving.sampling.solvers import SOLVERS, solver_table
from serving.writers.pictures import contact_sheet
from training.family import Family

COUNT = 16


class Noises(Sequence[Tensor]):
    """Of seeds 0 to 15: the start, and one for each of some rows. Each is drawn when it is asked for, for those of a
    thousand rows at 512 pixels take 17 GB."""

    def __init__(self, family: Family, rows: int, device: torch.device) -> None:
        self.family, self.rows, self.device = family, rows, device

    def __len__(self) -> int:
        return 1 + self.rows

    def __getitem__(self, number: Any) -> Any:
        noise = np.empty((COUNT, *self.family.sample_shape), np.float32)
        for seed, sample in enumerate(noise):
            draw(seed, self.family.name, number, out=sample)
        return torch.from_numpy(noise).to(self.device)


def save_preview(
    family: Family, dataset: Dataset[Any], file: Path, progress: Callable[[int, int], object] = lambda *_: None
) -> None:
    """Draw seeds 0 to 15 with the preset's own solver and steps, as serving would, and write one contact sheet.

    A family that draws under masks gets those from all over the data set, and the sheet shows their outlines; one that
    draws under pictures gets images, brought from [-1, 1] to its own range.
    ``progress`` is called as ``Family.sample`` does; if it raises, there is no sheet.
    """
    preset = family.preset
    schedule, solver = preset.schedule, str(preset.default_solver)
    rows = 0 if schedule is None else len(solver_table(solver, schedule, preset.default_steps))
    device = next(family.parameters()).device
    noises = Noises(family, rows if rows and SOLVERS[solver].stochastic else 0, device)
    condition = None
    if (wanted := family.condition) is not None:
        pairs = len(dataset)  # type: ignore[arg-type]
        items = [dataset[k * pairs // COUNT][family.condition_item] for k in range(COUNT)]
        condition = torch.stack(items).to(device)
        if not wanted.classes:
            low, high = wanted.limits
            condition = (low + (condition + 1) / 2 * (high - low)).clamp(low, high)
    tensors = family.sample(noises, preset.default_solver, preset.default_steps, condition, progress)
    arrays = {output.name: tensor.cpu().numpy() for output, tensor in zip(family.outputs, tensors, strict=True)}
    samples = Samples(arrays, [{"seed": seed} for seed in range(COUNT)], family.outputs)
    if family.condition is not None and condition is not None:
        samples = under(family.condition, condition.cpu().numpy(), samples)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".writing{file.suffix}")  # one name: what a kill leaves, the next one replaces
    contact_sheet(samples).save(aside)
    aside.replace(file)
