"""The training loop of every family: phase after phase, resumable to the bit."""

import csv
import math
import pickle
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from serving.folders import Busy, locked, remove
from serving.progress import NowAndThen
from training.checkpoint import CONFIGS, CheckpointError, find_checkpoint, save_checkpoint
from training.data.listing import Listing, write_listing
from training.family import Batch, Family
from training.preview import save_preview

LOG_FIELDS = ("step", "phase", "loss", "learning_rate", "samples_per_second")
ROW = re.compile(r"\d+,\w+(,[\d.e+-]+){3}")
LOCK = ".lock"
THROUGH = "stopped after all {} steps; they are saved"
LONG = 10.0  # seconds that a picture may take without a word


@dataclass(frozen=True)
class Run:
    """Where a run writes and how often; ``config`` is recorded in each checkpoint."""

    out: Path
    config: dict[str, Any]
    seed: int = 0
    precision: str = "no"
    compile: bool = False
    workers: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    preview_every: int = 1000
    keep: int = 2
    files: Listing = field(default_factory=dict)  # what the data were read from, kept to know them again


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop; its checkpoint is written."""


class NotDrawn(Exception):  # noqa: N818 - it is no error
    """A picture was given up, for the run was asked to stop."""


class Shuffled(Sampler[list[int]]):
    """Batches of indices from ``step`` on, for ever; batch k is the same however often the run was stopped."""

    def __init__(self, length: int, batch: int, seed: int, step: int, rank: int, world: int) -> None:
        self.length, self.batch, self.seed, self.step, self.rank, self.world = length, batch, seed, step, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        position = (self.step * self.world + self.rank) * self.batch
        epoch, order = -1, torch.empty(0)
        while True:
            indices = []
            for n in range(position, position + self.batch):
                if n // self.length != epoch:
                    epoch = n // self.length
                    order = torch.randperm(self.length, generator=seeded(self.seed, epoch))
                indices.append(int(order[n % self.length]))
            yield indices
            position += self.world * self.batch


class Objective(nn.Module):
    """One phase's loss as a forward pass, which is what accelerate wraps."""

    def __init__(self, family: Family, phase: str) -> None:
        super().__init__()
        self.family, self.phase = family, phase

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.family.loss(self.phase, batch, generator)


def seeded(seed: int, *numbers: int) -> torch.Generator:
    """A CPU generator of its own for every tuple of numbers."""
    value = seed
    for number in numbers:
        value = (value * 0x9E3779B97F4A7C15 + number + 1) % 2**63
    return torch.Generator().manual_seed(value)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one gets its usual effect."""
    received: list[int] = []
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def fit(family: Family, dataset: Dataset, run: Run, resume: bool = False) -> Path:
    """Train every phase of a family and return the last checkpoint's folder.

    The weights of a run depend on the preset, the data and the seed; on one CPU process they are the same bit for bit
    whether or not the run was stopped and resumed.

    Raises:
        ValueError: the preset has not one number of steps for each phase.
        CheckpointError: there is nothing to resume, a run is there already, or another process trains in its folder.
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the step it stopped at is written.
        FloatingPointError: the loss is no longer finite.
    """
    if len(family.preset.steps) != len(family.phases):
        raise ValueError(
            f"preset field 'steps' is {family.preset.steps}; {family.name} needs one number for each of its phases, "
            f"{' and '.join(family.phases)}"
        )
    accelerator = Accelerator(mixed_precision=run.precision)
    if resume:
        find_checkpoint(run.out)
    run.out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run.out / LOCK) if accelerator.is_main_process else nullcontext():
            return train(family, dataset, run, resume, accelerator)
    except Busy as error:
        raise CheckpointError(f"{run.out} is the folder of a run that is under way: {error}") from None


def train(family: Family, dataset: Dataset, run: Run, resume: bool, accelerator: Accelerator) -> Path:
    """``fit`` in a folder that nobody else trains in."""
    if not resume and any(run.out.glob(CONFIGS)):
        raise CheckpointError(f"{run.out} already holds a run; go on with it (--resume) or name another folder")
    state = load_training_state(run.out) if resume else None
    step = state["step"] if state else 0
    if state:
        family.load_state_dict(state["weights"])
    elif accelerator.is_main_process:
        write_listing(run.out, run.files)

    # channels_last is the layout that convolutions are fastest in, on CPUs and GPUs alike
    family = family.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.compile:
        for network in family.children():
            network.compile()
    ends = list(accumulate(family.preset.steps))
    total = ends[-1]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with stop_requests() as stops, Progress(*columns, disable=not accelerator.is_main_process) as progress:
        say = partial(progress.console.print, soft_wrap=True, markup=False, highlight=False)
        log = Log(run.out / "log.csv", step, say) if accelerator.is_main_process else None
        task = progress.add_task("", total=total, completed=step)
        piped = NowAndThen() if log and not progress.console.is_terminal else None
        if log and state and step == total and not picture(run, step).exists():  # stopped while that was drawn
            with suppress(NotDrawn):
                save_preview(family.eval(), dataset, picture(run, step), Watched(picture(run, step), stops, say))
            if stops:
                raise Interrupted(THROUGH.format(total))
        for phase, end in zip(family.phases, ends, strict=True):
            if step >= end:
                continue
            if state is None or state["phase"] != phase:
                family.begin(phase, dataset)
            trainer = Phase(family, phase, accelerator, state)
            state = None
            sampler = Shuffled(
                len(dataset),  # type: ignore[arg-type]
                family.preset.batch,
                run.seed,
                step,
                accelerator.process_index,
                accelerator.num_processes,
            )
            loader = DataLoader(dataset, batch_sampler=sampler, num_workers=run.workers)
            for batch in loader:
                loss = trainer.step(batch, seeded(run.seed, step, accelerator.process_index))
                step += 1
                phase_ends = step == end
                saves = step % run.checkpoint_every == 0 or phase_ends or bool(stops)
                if log:
                    log.add(loss, family.preset.batch * accelerator.num_processes)
                    if step % run.log_every == 0 or saves:  # a loss that is not finite is never saved
                        mean = log.write(step, phase, trainer.learning_rate)
                        progress.update(task, description=f"{phase} loss {mean:.4f}")
                if phase_ends:
                    trainer.adopt_average()
                if log and saves:
                    checkpoint(family, trainer, run, step)
                progress.update(task, completed=step)
                if piped:
                    piped(how_far(progress.tasks[task]))
                previews = phase == family.phases[-1] and (step % run.preview_every == 0 or phase_ends)
                if log and previews and not stops:
                    file = picture(run, step)
                    with suppress(NotDrawn), trainer.averaged():
                        save_preview(family, dataset, file, Watched(file, stops, say))
                    if stops and not saves:
                        checkpoint(family, trainer, run, step)
                if stops:
                    raise Interrupted(
                        f"stopped at step {step} of {total}; go on with --resume"
                        if step < total
                        else THROUGH.format(total)
                    )
                if phase_ends:
                    break
    accelerator.wait_for_everyone()  # for the last checkpoint, which one process writes
    accelerator.end_training()
    return find_checkpoint(run.out)


def how_far(task: Task) -> str:
    """What the bar shows, in words."""
    parts = [f"step {task.completed} of {task.total}", task.description]
    if task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=math.ceil(task.time_remaining))} to go")
    return ", ".join(filter(None, parts))


def picture(run: Run, step: int) -> Path:
    """Where the picture of a step is."""
    return run.out / "previews" / f"{step:08d}.png"


class Watched:
    """Is told of every step of a picture: says how long it will take, if that is long, and heeds requests to stop."""

    def __init__(self, file: Path, stops: list[int], say: Callable[[str], object]) -> None:
        self.file, self.stops, self.say = file, stops, say
        self.since = time.monotonic()

    def __call__(self, done: int, rows: int) -> None:
        if self.stops:
            raise NotDrawn
        seconds = (time.monotonic() - self.since) * rows
        if done == 1 and seconds > LONG:
            self.say(
                f"drawing {self.file}: {rows} steps, about {math.ceil(seconds / 60)} min; Ctrl-C ends and saves the run"
            )


class Phase:
    """One phase's optimiser, learning rate and moving average."""

    def __init__(self, family: Family, phase: str, accelerator: Accelerator, state: dict[str, Any] | None) -> None:
        preset = family.preset
        steps = preset.steps[family.phases.index(phase)]
        self.family, self.name, self.accelerator = family, phase, accelerator
        self.module = family.trainable(phase)
        family.train().requires_grad_(False)
        self.parameters = list(self.module.requires_grad_(True).parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=preset.learning_rate, weight_decay=preset.weight_decay)
        self.schedule = get_scheduler(
            preset.lr_schedule,
            self.optimizer,
            num_warmup_steps=min(500, steps // 20),
            num_training_steps=steps,
        )
        self.ema = EMAModel(self.parameters, decay=preset.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
        if state and state["phase"] == phase:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.ema.load_state_dict(state["ema"])
            self.ema.to(accelerator.device)
        self.objective, self.optimizer = accelerator.prepare(Objective(family, phase), self.optimizer)

    @property
    def learning_rate(self) -> float:
        return self.schedule.get_last_lr()[0]

    def step(self, batch: Batch, generator: torch.Generator) -> Tensor:
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        loss = self.objective(batch, generator)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        return loss.detach()

    def adopt_average(self) -> None:
        """The moving average becomes the weights: later phases build on it."""
        self.ema.copy_to(self.parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has its averaged weights and is in eval mode."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.family.eval()
        try:
            yield
        finally:
            self.family.train()
            self.ema.restore(self.parameters)


def checkpoint(family: Family, trainer: Phase, run: Run, step: int) -> None:
    """Write the checkpoint of this step and drop all but the newest ones.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    if not all(weight.isfinite().all() for weight in trainer.parameters):
        raise FloatingPointError(
            f"a weight of phase {trainer.name} is not finite at step {step}; the last checkpoint is good"
        )
    training = {
        "step": step,
        "phase": trainer.name,
        "weights": {name: tensor.clone() for name, tensor in family.state_dict().items()},  # not the average's
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "ema": trainer.ema.state_dict(),
    }
    folder = run.out / "checkpoints" / f"{step:08d}"
    with trainer.averaged():
        save_checkpoint(
            folder, family, family.state_dict(), {**run.config, "phase": trainer.name, "step": step}, training
        )
    for old in sorted(folder.parent.glob("[0-9]*"))[: -run.keep]:
        old.rename(old.with_name(f".{old.name}.old"))
    for left_over in folder.parent.glob(".*"):
        remove(left_over)


def load_training_state(out: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds to go on from."""
    file = find_checkpoint(out) / "training.pt"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: this checkpoint can be exported, not resumed")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is damaged: remove its folder to go on from the checkpoint before") from error


class Log:
    """``log.csv``: the mean loss of the steps since the row before."""

    def __init__(self, file: Path, step: int, say: Callable[[str], object]) -> None:
        self.file = file
        rows = [row for row in self.read(say) if int(row[0]) <= step]
        aside = file.with_name(".log.csv.writing")
        with aside.open("w") as stream:
            csv.writer(stream).writerows([LOG_FIELDS, *rows])
        aside.replace(file)
        self.reset()

    def read(self, say: Callable[[str], object]) -> list[list[str]]:
        """The rows that are there, up to the first that a crash has spoilt; then the file is kept, by another name."""
        if not self.file.is_file():
            return []
        rows = []
        for number, line in enumerate(self.file.read_text(errors="replace").splitlines()[1:], 2):
            if not ROW.fullmatch(line):
                kept = self.file.replace(self.file.with_name("log.csv.damaged"))
                say(f"{self.file}: line {number} is damaged; the rows before it are kept, the old file is {kept}")
                break
            rows.append(line.split(","))
        return rows

    def reset(self) -> None:
        self.losses: list[Tensor] = []
        self.samples = 0
        self.since = time.perf_counter()

    def add(self, loss: Tensor, samples: int) -> None:
        self.losses.append(loss)
        self.samples += samples

    def write(self, step: int, phase: str, learning_rate: float) -> float:
        mean = torch.stack(self.losses).mean().item()
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss of phase {phase} is {mean} at step {step}; the last checkpoint is good")
        speed = self.samples / (time.perf_counter() - self.since)
        with self.file.open("a") as stream:
            csv.writer(stream).writerow([step, phase, f"{mean:.6f}", f"{learning_rate:.3e}", f"{speed:.1f}"])
        self.reset()
        return mean
