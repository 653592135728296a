"""What every model family is: networks, a loss for each training phase, a step and a finish."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import formatannotation
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset

from kernels.solver_step import solver_step
from serving.bundle import Condition, Output
from serving.sampling.solvers import Schedule, solver_table

# Of diffusers.optimization.get_scheduler, those that need nothing but the numbers of warm-up and of all steps.
# The last is Zhu et al.'s (arXiv 1703.10593, section 4): as it is for the first half, then linearly down to 0.
LR_SCHEDULES = ("constant", "constant_with_warmup", "cosine", "linear", "polynomial", "linear_from_half")

Batch = Mapping[str, Tensor]
Network = Callable[..., Tensor]  # (input [B, C, H, W], t) or (input, t, condition)
Loss = tuple[Tensor, Mapping[str, Tensor]]  # a scalar, and scalars that ``log.csv`` has beside it


class WaitedInVain(Exception):  # noqa: N818 - it is no error
    """A loss waits for others who are not there, and the run is to stop."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """What every family's preset says; a family adds its own fields.

    A family that draws in one pass has no schedule, no default solver and 0 default steps.
    """

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    size: int
    schedule: Schedule | None
    clip: float | None  # bound of the data estimate inside the step; None for none
    default_solver: str | None
    default_steps: int
    batch: int
    steps: tuple[int, ...]  # of the optimiser, in each phase
    learning_rate: float
    lr_schedule: str  # one of LR_SCHEDULES
    weight_decay: float  # of AdamW; with 0 it is Adam
    ema_decay: float

    def __post_init__(self) -> None:
        for name, value in {"size": self.size, "batch": self.batch, "steps": min(self.steps, default=1)}.items():
            if value < 1:
                raise ValueError(f"preset field {name!r} is {value}; it must be at least 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"preset field 'clip' is {self.clip}; it must be above 0, or null for none")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"preset field 'ema_decay' is {self.ema_decay}; it must be at least 0 and below 1")
        for name, rate in {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}.items():
            if not rate >= 0:
                raise ValueError(f"preset field {name!r} is {rate}; it must be at least 0")
        if self.lr_schedule not in LR_SCHEDULES:
            known = ", ".join(LR_SCHEDULES)
            raise ValueError(f"preset field 'lr_schedule' is {self.lr_schedule!r}; allowed are {known}")
        if self.schedule is None:
            if (self.default_solver, self.default_steps) != (None, 0):
                given = f"{self.default_solver!r} and {self.default_steps}"
                raise ValueError(
                    f"preset fields 'default_solver' and 'default_steps' are {given}; without a schedule null and 0"
                )
        else:
            solver_table(str(self.default_solver), self.schedule, self.default_steps)  # says so if they do not fit

    def replaced(self, fields: Mapping[str, Any]) -> "Preset":
        """The preset with some fields changed, as JSON gives them: lists are tuples, a mapping changes the schedule.

        Raises:
            ValueError: a field is unknown or its value is of the wrong type or out of range.
        """
        changed = _merged(self, fields, "preset field")
        schedule = changed["schedule"]
        if isinstance(schedule, Mapping) and self.schedule is not None:
            changed["schedule"] = _merged(self.schedule, schedule, "schedule field")
        try:
            return TypeAdapter(type(self)).validate_json(json.dumps(changed, default=dataclasses.asdict))
        except ValidationError as error:
            raise ValueError(_in_words(self, changed, error)) from None


@dataclasses.dataclass(frozen=True)
class SteppingPreset(Preset):
    """Of a family that takes steps, and so has a schedule."""

    schedule: Schedule
    default_solver: str


def _merged(old: Any, fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    known = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
    if unknown := fields.keys() - known.keys():
        raise ValueError(f"{what} {min(unknown)!r} is unknown; there are {', '.join(known)}")
    return {**known, **fields}


def _in_words(old: Any, changed: Mapping[str, Any], error: ValidationError) -> str:
    (first, *_) = error.errors()
    if "error" in first.get("ctx", {}):
        return str(first["ctx"]["error"])  # of __post_init__
    (name, *inner), what = map(str, first["loc"]), "preset field"
    if name == "schedule" and inner:
        (name, *_), what, old, changed = inner, "schedule field", old.schedule, changed["schedule"]
    kind = formatannotation(get_type_hints(type(old))[name])
    return f"{what} {name!r} is {changed[name]!r}; it must be {kind}, like {getattr(old, name)!r}"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One optimiser's part in each step of training.

    name: unlike those of the other turns. learns: whose weights. loss: of a batch; random numbers come from the
    generator alone. betas: of Adam. clip: the longest gradient, None for any. averaged: whether the moving average of
    its weights is what is drawn, exported and built on; of a phase's turns one at least, whose loss is the log's.
    """

    name: str
    learns: nn.Module
    loss: Callable[[Batch, torch.Generator], Loss]
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    averaged: bool = True


class Family(nn.Module):
    """A generator as start, step x N, finish; training, export and the training preview all run this one class.

    Where its preset has no schedule N is 0: ``finish`` makes the outputs of the first state, without a ``network``.

    A batch of training data is ``{"image": float32 [B, 1, H, W] in [-1, 1], "mask": uint8 [B, 1, H, W]}``, the mask
    holding class indices.
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Preset]]
    phases: ClassVar[tuple[str, ...]]
    measures: ClassVar[tuple[str, ...]] = ()  # what the losses of its turns give to the log
    chosen_when_built: ClassVar[tuple[str, ...]] = ()  # fields of the preset that training does not decide
    unpaired: ClassVar[bool] = False  # whether a batch is not pairs, but {"a": images, "b": others} of two kinds
    has_idle_weights: ClassVar[bool] = False  # whether some that a turn learns take no part in some steps
    as_published: ClassVar[tuple[str, int] | None] = None  # the paper's solver and steps, where the preset's are others
    made_from: ClassVar[str | None] = None  # the family whose checkpoints it is made of, if it learns nothing itself
    learns_through: ClassVar[str | None] = None  # the family through whose checkpoint its conditions are found

    preset: Preset
    stops: Sequence[int] = ()  # signals that have come, while it trains; who waits for others looks at them
    sample_shape: tuple[int, int, int]
    outputs: tuple[Output, ...]
    condition: Condition | None = None
    notices: tuple[str, ...] = ()  # sentences that the provenance of every sample has

    @classmethod
    def sampling_of_the_paper(cls) -> tuple[str, int] | None:
        """The paper's solver and steps; None of a family that has no preset of it, or draws in one pass."""
        paper = cls.presets.get("paper")
        if paper is None or paper.default_solver is None:
            return None
        return cls.as_published or (paper.default_solver, paper.default_steps)

    @property
    def noise_channels(self) -> int:
        """How many of a state's channels start as noise; those after them start at 0."""
        return self.sample_shape[0]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a bundle's manifest records, for people to read, beside the origin of the weights."""
        return {}

    @property
    def condition_item(self) -> str:
        """What of the data the training preview draws under, where the family has a condition."""
        return "mask" if self.condition and self.condition.classes else "image"

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the masks that it learns from, from 0 up; nothing if it needs none."""
        return next((output.labels for output in self.outputs if output.labels), ())

    @property
    def has_threshold(self) -> bool:
        """Whether the step cuts an estimate of the data at a threshold, and rounding decides what is on which side."""
        return False

    def deciding_by(self, estimate: Tensor) -> AbstractContextManager[None]:
        """While it lasts ``step`` cuts this estimate, [B, C, H, W], in its own one's place."""
        raise NotImplementedError

    def network(self, sample: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        """All networks of one denoising step: state [B, C, H, W] and table rows [B, 12] -> raw output [B, C, H, W]."""
        raise NotImplementedError

    def step(
        self,
        sample: Tensor,
        history_1: Tensor,
        history_2: Tensor,
        history_3: Tensor,
        noise: Tensor,
        coeffs: Tensor,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One row of a solver's table for every sample: (next state, prediction for the history), float32."""
        out = self.network(sample, coeffs, condition)
        return self.update(out, sample, history_1, history_2, history_3, noise, coeffs)

    def update(
        self,
        out: Tensor,
        sample: Tensor,
        history_1: Tensor,
        history_2: Tensor,
        history_3: Tensor,
        noise: Tensor,
        coeffs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What ``step`` does with the network's output."""
        clip = math.inf if self.preset.clip is None else self.preset.clip
        return solver_step(sample, out.to(sample.dtype), history_1, history_2, history_3, noise, coeffs, clip)

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """The last state [B, C, H, W] -> the named outputs, in the order of ``outputs``."""
        raise NotImplementedError

    def data(self, batch: Batch) -> Tensor:
        """The states [B, C, H, W] that a batch has without noise."""
        raise NotImplementedError

    def training_condition(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What its networks are trained under, or nothing."""
        return ()

    def trainable(self, phase: str) -> nn.Module:
        """The part of the model whose weights this phase learns."""
        raise NotImplementedError

    @classmethod
    def of(cls, prior: "Family", preset: Preset, fields: Mapping[str, Any]) -> "Family":
        """The model that is made of a trained one of ``made_from``, as a preset with some fields changed says.

        Raises:
            ValueError: a field is unknown, or they do not go together.
        """
        raise NotImplementedError

    def begin(self, phase: str, dataset: Dataset[Any]) -> None:
        """Called before the first step of a phase: a place to look at the data with what earlier phases learned.

        What it finds is kept in buffers, which checkpoints hold. Those that are not persistent are only in what a run
        is resumed from: memories of training that are not handed on.
        """

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> Tensor:
        """A scalar; every random number comes from ``generator`` (on the CPU), so a run can be repeated."""
        raise NotImplementedError

    def turns(self, phase: str) -> tuple[Turn, ...]:
        """Who learns in each step of a phase, one after the other on the same batch."""
        return (Turn(phase, self.trainable(phase), lambda *given: (self.loss(phase, *given), {})),)

    def advance(self, phase: str) -> None:
        """Called after the last turn of each step of a phase: what grows with the steps is kept in the state dict."""

    def saving(self, step: int) -> None:
        """Called before a checkpoint of this step is written: who learns elsewhere is to keep what it has learnt."""

    def settle(self, phase: str) -> None:
        """Called when averaged weights have come into place, in eval mode: statistics that hang on them are to be
        taken anew."""

    def trouble(self, step: int, means: Mapping[str, float]) -> str | None:
        """What ``measures`` say is wrong with a run, if anything; means of the steps since the last row of the log."""
        return None

    def load_published(self, file: Path) -> str:
        """Take weights that others have published, and say in a line what was taken.

        Raises:
            ValueError: the file is none that this family knows.
        """
        raise ValueError(f"{file} is no checkpoint folder, and {self.name} knows no published weights")

    def networks(self) -> dict[str, nn.Module]:
        """Each network alone: what is exported without medgen's step.

        ``(input [B, C, H, W], t [B]) -> tensor`` or, where the family has a condition, ``(input, t, condition)``.
        """
        raise NotImplementedError

    def scheduler_step(
        self,
        networks: Mapping[str, Network],
        scheduler: Any,
        t: Tensor,
        sample: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        """One step of the loop that users write by hand around a diffusers scheduler: the reference for ``step``."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        noises: Sequence[Tensor],
        solver: str | None,
        steps: int,
        condition: Tensor | None = None,
        progress: Callable[[int, int], object] = lambda *_: None,
    ) -> tuple[Tensor, ...]:
        """Draw samples in PyTorch.

        Args:
            noises: standard normal tensors [B, C, H, W]: the start, then one for each row of the solver's table;
                rows of a deterministic solver need none.
            solver: a name in ``serving.sampling.solvers.SOLVERS``; None where the preset has no schedule.
            steps: 1 .. the schedule's number of training timesteps; without a schedule 0.
            condition: [B, C, H, W] of the condition's dtype, for the families that take one.
            progress: called with (rows done, rows in all) before each row of the solver's table; what it raises ends
                the drawing.

        Returns:
            The named outputs, in the order of ``outputs``.
        """
        sample = noises[0].clone()
        zeros = torch.zeros_like(sample)
        sample[:, self.noise_channels :] = 0
        if self.preset.schedule is None:
            return self.finish(sample, condition)
        table = torch.tensor(solver_table(str(solver), self.preset.schedule, steps)).to(sample)
        history = zeros, zeros, zeros
        for k, row in enumerate(table):
            progress(k, len(table))
            noise = noises[k + 1] if k + 1 < len(noises) else zeros
            coeffs = row.expand(len(sample), -1)
            sample, prediction = self.step(sample, *history, noise, coeffs, condition)
            history = prediction, *history[:2]
        return self.finish(sample, condition)
