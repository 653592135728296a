"""How a model can draw, for those who ask it before they choose."""

from dataclasses import dataclass

from serving.bundle import Manifest
from serving.sampling.solvers import solvers_for


@dataclass(frozen=True)
class Ways:
    """The solvers that a model takes, and how many steps; ``solver`` and ``steps`` are its own unless one chooses.

    A student takes its own alone.
    """

    solvers: tuple[str, ...]
    solver: str
    steps: int
    most_steps: int
    least_steps: int = 1

    @property
    def allowed_steps(self) -> str:
        """In words."""
        if self.least_steps == self.most_steps:
            return f"{self.steps}, which is all that it has learnt"
        return f"from {self.least_steps} to {self.most_steps}"


def ways_of(manifest: Manifest) -> Ways | None:
    """None of a model that draws in one pass."""
    schedule = manifest.schedule
    if schedule is None or manifest.default_solver is None:
        return None
    if student := manifest.student:
        return Ways((student.solver,), student.solver, student.steps, student.steps, student.steps)
    solvers = tuple(solvers_for(schedule))
    return Ways(solvers, manifest.default_solver, manifest.default_steps, schedule.num_train_timesteps)
