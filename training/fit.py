"""The training loop of every family: phase after phase, resumable to the bit."""

import csv
import math
import pickle
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from serving.folders import Busy, locked, remove
from serving.progress import NowAndThen
from training.checkpoint import CONFIGS, TRAINING, CheckpointError, find_checkpoint, save_checkpoint
from training.data.listing import Listing, write_listing
from training.family import Batch, Family, Loss, Preset, Turn, WaitedInVain
from training.memory import keep_freed_memory
from training.preview import save_preview

LOG_FIELDS = ("step", "phase", "loss", "learning_rate", "samples_per_second")
WARNING = "warning"  # the last field of the logs of families that can say what is wrong
LOCK = ".lock"
THROUGH = "stopped after all {} steps; they are saved"
LONG = 10.0  # seconds that a picture may take without a word


@dataclass(frozen=True)
class Run:
    """Where a run writes and how often; ``config`` is recorded in each checkpoint, and of 0 there are no previews."""

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
    """One turn's loss as a forward pass, which is what accelerate wraps."""

    def __init__(self, family: Family, turn: Turn) -> None:
        super().__init__()
        self.family, self.turn = family, turn

    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        return self.turn.loss(batch, generator)


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
    distributed = DistributedDataParallelKwargs(find_unused_parameters=family.has_idle_weights)
    accelerator = Accelerator(mixed_precision=run.precision, kwargs_handlers=[distributed])
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if resume:
        find_checkpoint(run.out)
    run.out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run.out / LOCK) if accelerator.is_main_process else nullcontext():
            return train(family, dataset, run, resume, accelerator)
    except Busy as error:
        raise CheckpointError(under_way(run.out, error)) from None


def check_folder(out: Path, resume: bool) -> None:
    """Raises CheckpointError where ``fit`` would not begin, or not go on."""
    if resume:
        find_checkpoint(out)
    else:
        check_new(out)
    try:
        with locked(out / LOCK) if out.exists() else nullcontext():
            pass
    except Busy as error:
        raise CheckpointError(under_way(out, error)) from None


def check_new(out: Path) -> None:
    if any(out.glob(CONFIGS)):
        raise CheckpointError(f"{out} already holds a run; go on with it (--resume) or name another folder")


def under_way(out: Path, error: Busy) -> str:
    return f"{out} is the folder of a run that is under way: {error}"


def train(family: Family, dataset: Dataset, run: Run, resume: bool, accelerator: Accelerator) -> Path:
    """``fit`` in a folder that nobody else trains in."""
    if not resume:
        check_new(run.out)
    state = load_training_state(run.out) if resume else None
    step = state["step"] if state else 0
    if state:
        family.load_state_dict(state["weights"])
        for name, memory in state["memories"].items():
            family.get_buffer(name).copy_(memory)
    if accelerator.is_main_process:
        clear(run.out / "checkpoints")
        if not state:
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
        family.stops = stops
        say = partial(progress.console.print, soft_wrap=True, markup=False, highlight=False)
        log = Log(run.out / "log.csv", family, step, say) if accelerator.is_main_process else None
        task = progress.add_task("", total=total, completed=step)
        piped = NowAndThen() if log and not progress.console.is_terminal else None
        # stopped while that was drawn
        if log and state and run.preview_every and step == total and not picture(run, step).exists():
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
                try:
                    measures = trainer.step(batch, seeded(run.seed, step, accelerator.process_index))
                except WaitedInVain:
                    if log and step:
                        checkpoint(family, trainer, run, step)
                    go_on = "go on with --resume" if step else "nothing had been learnt"
                    raise Interrupted(f"stopped at step {step} of {total}; {go_on}") from None
                step += 1
                phase_ends = step == end
                saves = step % run.checkpoint_every == 0 or phase_ends or bool(stops)
                if log:
                    log.add(measures, family.preset.batch * accelerator.num_processes)
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
                last_phase = phase == family.phases[-1]
                previews = run.preview_every and last_phase and (step % run.preview_every == 0 or phase_ends)
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


def learning_rates(preset: Preset, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The preset's schedule over this many steps."""
    if preset.lr_schedule == "linear_from_half":
        return LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    return get_scheduler(
        preset.lr_schedule, optimizer, num_warmup_steps=min(500, steps // 20), num_training_steps=steps
    )


class Learner:
    """One turn's optimiser, learning rate and, if it has one, moving average."""

    def __init__(self, family: Family, turn: Turn, steps: int, accelerator: Accelerator, state: Any) -> None:
        preset = family.preset
        self.family, self.turn, self.accelerator = family, turn, accelerator
        self.alone_learns()
        self.parameters = list(turn.learns.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=preset.learning_rate, betas=turn.betas, weight_decay=preset.weight_decay
        )
        self.schedule = learning_rates(preset, self.optimizer, steps)
        self.ema = (
            EMAModel(self.parameters, decay=preset.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
            if turn.averaged
            else None
        )
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
                self.ema.to(accelerator.device)
        self.objective, self.optimizer = accelerator.prepare(Objective(family, turn), self.optimizer)

    def alone_learns(self) -> None:
        self.family.requires_grad_(False)
        self.turn.learns.requires_grad_(True)

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.alone_learns()
        loss, measures = self.objective(batch, generator)
        self.accelerator.backward(loss)
        if self.turn.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.turn.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.step(self.parameters)
            measures = {"loss": loss, **measures}
        return {name: measure.detach() for name, measure in measures.items()}

    def state(self) -> dict[str, Any]:
        kept = {"optimizer": self.optimizer, "schedule": self.schedule, "ema": self.ema}
        return {name: part.state_dict() for name, part in kept.items() if part}


class Phase:
    """The learners of a phase, in the order of their turns."""

    def __init__(self, family: Family, phase: str, accelerator: Accelerator, state: dict[str, Any] | None) -> None:
        steps = family.preset.steps[family.phases.index(phase)]
        states = state["turns"] if state and state["phase"] == phase else {}
        self.family, self.name, self.accelerator = family, phase, accelerator
        family.train()
        self.learners = [
            Learner(family, turn, steps, accelerator, states.get(turn.name)) for turn in family.turns(phase)
        ]
        self.averages = [(learner.ema, learner.parameters) for learner in self.learners if learner.ema]

    @property
    def learning_rate(self) -> float:
        return float(self.learners[0].schedule.get_last_lr()[0])

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [weight for learner in self.learners for weight in learner.parameters]

    def step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        measures: dict[str, Tensor] = {}
        for learner in self.learners:
            measures |= learner.step(batch, generator)
        self.family.advance(self.name)
        return measures

    def adopt_average(self) -> None:
        """The moving average becomes the weights: later phases build on it."""
        for ema, parameters in self.averages:
            ema.copy_to(parameters)
        self.family.eval().settle(self.name)
        self.family.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has its averaged weights and is in eval mode."""
        buffers = {name: buffer.clone() for name, buffer in self.family.named_buffers()}
        for ema, parameters in self.averages:
            ema.store(parameters)
            ema.copy_to(parameters)
        self.family.eval().settle(self.name)
        try:
            yield
        finally:
            self.family.train()
            for ema, parameters in self.averages:
                ema.restore(parameters)
            for name, buffer in buffers.items():
                self.family.get_buffer(name).copy_(buffer)


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
        "weights": (weights := {name: tensor.clone() for name, tensor in family.state_dict().items()}),  # no average
        "memories": {name: buffer.clone() for name, buffer in family.named_buffers() if name not in weights},
        "turns": {learner.turn.name: learner.state() for learner in trainer.learners},
    }
    folder = run.out / "checkpoints" / f"{step:08d}"
    family.saving(step)
    with trainer.averaged():
        save_checkpoint(
            folder, family, family.state_dict(), {**run.config, "phase": trainer.name, "step": step}, training
        )
    for old in sorted(folder.parent.glob("[0-9]*"))[: -run.keep]:
        old.rename(old.with_name(f".{old.name}.old"))
    clear(folder.parent)


def clear(checkpoints: Path) -> None:
    """Remove what is no checkpoint, or none any longer, and what a kill has left of such."""
    for left_over in checkpoints.glob(".*"):
        remove(left_over)


def load_training_state(out: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds to go on from."""
    file = find_checkpoint(out) / TRAINING
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: this checkpoint can be exported, not resumed")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is damaged: remove its folder to go on from the checkpoint before") from error
    if "turns" not in state:  # of before a phase could have several
        learner = {name: state.pop(name) for name in ("optimizer", "schedule", "ema")}
        state |= {"memories": {}, "turns": {state["phase"]: learner}}
    return state


class Log:
    """``log.csv``: the means since the row before of the loss and of what else a family measures, and what is wrong."""

    def __init__(self, file: Path, family: Family, step: int, say: Callable[[str], object]) -> None:
        self.file, self.family, self.say = file, family, say
        self.fields = [*LOG_FIELDS, *family.measures, *[WARNING] * bool(family.measures)]
        self.row = re.compile(
            rf"\d+,\w+(,[\d.e+-]+){{{3 + len(family.measures)}}}" + (",.*" if family.measures else "")
        )
        rows = [row for row in self.read() if int(row[0]) <= step]
        self.trouble = rows[-1][-1] if rows and family.measures else ""
        aside = file.with_name(".log.csv.writing")
        with aside.open("w") as stream:
            csv.writer(stream).writerows([self.fields, *rows])
        aside.replace(file)
        self.reset()

    def read(self) -> list[list[str]]:
        """The rows that are there, up to the first that a crash has spoilt; then the file is kept, by another name."""
        if not self.file.is_file():
            return []
        rows: list[list[str]] = []
        for number, line in enumerate(self.file.read_text(errors="replace").splitlines()[1:], 2):
            if not self.row.fullmatch(line):
                kept = self.file.replace(self.file.with_name("log.csv.damaged"))
                self.say(f"{self.file}: line {number} is damaged; the rows before it are kept, the old file is {kept}")
                break
            rows += csv.reader([line])
        return rows

    def reset(self) -> None:
        self.measured: list[Mapping[str, Tensor]] = []
        self.samples = 0
        self.since = time.perf_counter()

    def add(self, measures: Mapping[str, Tensor], samples: int) -> None:
        self.measured.append(measures)
        self.samples += samples

    def write(self, step: int, phase: str, learning_rate: float) -> float:
        """The mean loss.

        Raises:
            FloatingPointError: it, or another mean, is not finite.
        """
        names = ("loss", *self.family.measures)
        means = {name: torch.stack([each[name] for each in self.measured]).mean().item() for name in names}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the {name} of phase {phase} is {mean} at step {step}; the last checkpoint is good"
                )
        speed = self.samples / (time.perf_counter() - self.since)
        others = [f"{means[name]:.6f}" for name in self.family.measures]
        if self.family.measures:
            trouble = self.family.trouble(step, means) or ""
            if trouble and not self.trouble:
                self.say(f"step {step}: {trouble}")
            self.trouble = trouble
            others.append(trouble)
        with self.file.open("a") as stream:
            csv.writer(stream).writerow(
                [step, phase, f"{means['loss']:.6f}", f"{learning_rate:.3e}", f"{speed:.1f}", *others]
            )
        self.reset()
        return means["loss"]
