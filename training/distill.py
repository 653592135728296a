"""Progressive distillation: a student of the same networks whose every step is worth several of its teacher's.

Salimans and Ho 2022 (arXiv 2202.00512), algorithm 2. What a step of the student should have predicted follows from
where its teacher's steps led, for a row of a solver's table is linear in what the network gives: so diffusion and flow,
one network or two, with a condition or without, are all the same to it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serving.bundle import Student
from serving.sampling.solvers import COLUMNS, solver_table
from training.family import Batch, Family
from training.lineage import line
from training.noising import levels

PHASE = "distillation"
SOLVERS = {"diffusion": "ddim_clipped_trailing", "flow": "euler"}  # of first order: their steps need no history
MOST_WEIGHT = 100.0  # of the square of an error in what the network predicts
SUBSTEPS = 4  # of a teacher that is no student itself, in one of its student's

# Columns of a solver's table.
T, P, Q, A, B, C, *_ = range(len(COLUMNS))


@dataclass(frozen=True)
class Plan:
    """Whose student learns to take how many steps."""

    teacher: str  # sha256 of its weights
    line: tuple[str, ...]  # and those that it comes from
    teacher_steps: int
    steps: int
    solver: str

    @property
    def substeps(self) -> int:
        """Of the teacher in one of the student's."""
        return self.teacher_steps // self.steps

    def record(self) -> dict[str, Any]:
        """What the config of the student's checkpoints says under "student"."""
        return asdict(Student(self.teacher, self.teacher_steps, self.solver, self.steps, self.line))


def plan(teacher: Family, config: Mapping[str, Any], steps: int, teacher_steps: int | None = None) -> Plan:
    """What ``steps`` and the teacher's checkpoint mean.

    Args:
        config: as ``load_checkpoint`` gives it.
        steps: that the student is to take.
        teacher_steps: that it learns to do in them, a multiple; by default what the teacher was distilled to, or 4 for
            each of the student's if it was not.

    Raises:
        ValueError: the family takes no steps that can be joined, or the numbers do not go together.
    """
    schedule = teacher.preset.schedule
    process = None if schedule is None else schedule.process
    if schedule is None or process not in SOLVERS:
        does = "draws in one pass" if schedule is None else "goes down a loss"
        raise ValueError(f"{teacher.name} {does}: it has no steps that a student could take fewer of")
    if not teacher.phases:
        raise ValueError(f"{teacher.name} learns nothing here, and neither would a student of it")
    its_own = config.get("student")
    solver = its_own["solver"] if its_own else SOLVERS[str(process)]
    taken = teacher_steps or (its_own["steps"] if its_own else SUBSTEPS * steps)
    if its_own and taken != its_own["steps"]:
        raise ValueError(
            f"--teacher-steps is {taken}; the teacher is a student itself, and takes {its_own['steps']} steps"
        )
    if taken % steps or taken <= steps:
        raise ValueError(f"--steps is {steps}; it must divide the teacher's {taken} steps, and be fewer")
    coarse, fine = (solver_table(solver, schedule, count)[:, T] for count in (steps, taken))
    if coarse.tolist() != fine[:: taken // steps].tolist():
        raise ValueError(f"{steps} steps of {solver} are not at timesteps of {taken}, and cannot stand for them")
    return Plan(config["digest"], tuple(line(config)), taken, steps, solver)


def student_of(teacher: Family, plan: Plan, updates: int, fields: Mapping[str, Any]) -> Family:
    """A copy of the teacher for ``fit`` to train, whose state dict and preset are the family's.

    Args:
        updates: of the optimiser.
        fields: of the preset, that the student's training shall have other than the teacher's.

    Raises:
        ValueError: a field is unknown, of the wrong type or out of range, or is one that says what the networks are.
    """
    if wrong := fields.keys() - LEARNING:
        allowed = ", ".join(sorted(LEARNING))
        raise ValueError(f"preset field {min(wrong)!r} is the teacher's; of a student these can be set: {allowed}")
    preset = teacher.preset.replaced(
        {**fields, "steps": (updates,), "default_solver": plan.solver, "default_steps": plan.steps}
    )
    student = _kind(type(teacher))(preset)
    student.load_state_dict(teacher.state_dict())
    student.learn_from(teacher, plan)
    return student


LEARNING = {"batch", "learning_rate", "lr_schedule", "weight_decay", "ema_decay"}


class Learning(Family):
    """What a student has over its family while it learns; the networks, the step and the finish are the family's."""

    phases = (PHASE,)
    _teacher: tuple[Family]  # in a tuple, so that its weights are not the student's
    _rows: Tensor
    _fine: Tensor
    _substeps: int

    def learn_from(self, teacher: Family, plan: Plan) -> None:
        schedule = self.preset.schedule
        assert schedule is not None
        teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._teacher, self._substeps = (teacher,), plan.substeps
        tables = (solver_table(plan.solver, schedule, steps) for steps in (plan.steps, plan.teacher_steps))
        self._rows, self._fine = (torch.from_numpy(table.copy()) for table in tables)

    def train(self, mode: bool = True) -> "Learning":
        """Always as it will draw: the families' networks have no dropout, and PIG's guide is cut as in drawing."""
        super().train(False)
        return self

    def trainable(self, phase: str) -> nn.Module:
        return Networks(self)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> Tensor:
        """The mean square of the data estimate's error over sigma: the weights SNR + 1 of Salimans and Ho, section 4.

        Of a "v" or "velocity" it is the square of the error in what the network predicts. Of noise that has the weight
        1 / alpha^2, up to 31,588 in the first row of the papers' schedules, beside which no other row would be learnt;
        so what the network predicts weighs 100 at most. Salimans and Ho have no such bound: they distil no network that
        predicts noise.
        """
        (teacher,) = self._teacher
        data = self.data(batch)
        teacher.to(data.device)
        which = torch.randint(len(self._rows), (len(data),), generator=generator)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        condition = self.training_condition(batch, generator)
        rows = self._rows[which].to(data)
        schedule = self.preset.schedule
        assert schedule is not None
        alpha, sigma = levels(schedule, rows[:, T] if schedule.process == "flow" else rows[:, T].long())
        state = alpha * data + sigma * noise
        with torch.no_grad():
            after, zeros = state, torch.zeros_like(state)
            for k in range(self._substeps):
                fine = self._fine[self._substeps * which + k].to(data)
                after, _ = teacher.step(after, zeros, zeros, zeros, zeros, fine, *condition)
            wanted = self._estimate(rows, state, self._output(rows, state, after.float()))
            if self.preset.clip is not None:  # as drawing clips, of the rows that use the estimate
                clipped = wanted.clamp(-self.preset.clip, self.preset.clip)
                wanted = torch.where(_of(rows, B) != 0, clipped, wanted)
        found = self._estimate(rows, state, self.network(state, rows, *condition).float())
        bounded = (MOST_WEIGHT * (sigma / _of(rows, Q)).square()).clamp(max=1)
        return (((found - wanted) / sigma).square() * bounded).mean()

    def _estimate(self, rows: Tensor, state: Tensor, out: Tensor) -> Tensor:
        """x0 = p*x + q*out"""
        return _of(rows, P) * state + _of(rows, Q) * out

    def _output(self, rows: Tensor, state: Tensor, after: Tensor) -> Tensor:
        """The out for which x' = a*x + b*(p*x + q*out) + c*out is the state after."""
        kept = _of(rows, A) + _of(rows, B) * _of(rows, P)
        return (after - kept * state) / (_of(rows, B) * _of(rows, Q) + _of(rows, C))


class Networks(nn.Module):
    """The networks of a denoising step, all together, as what is learnt."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(family.networks())


def _of(rows: Tensor, column: int) -> Tensor:
    return rows[:, column].view(-1, 1, 1, 1)


def _kind(family: type[Family]) -> type[Learning]:
    """A class of its own for each family; its checkpoints are the family's."""
    return type(f"{family.__name__}Student", (Learning, family), {})
