"""How a model can draw, for those who ask it before they choose."""

from dataclasses import dataclass

from serving.bundle import Manifest
from serving.sampling.solvers import solvers_for


@dataclass(frozen=True)
class Ways:
    """The solvers that a model takes, and the most steps; ``solver`` and ``steps`` are its own unless one chooses."""

    solvers: tuple[str, ...]
    solver: str
    steps: int
    most_steps: int


def ways_of(manifest: Manifest) -> Ways | None:
    """None of a model that draws in one pass."""
    schedule = manifest.schedule
    if schedule is None or manifest.default_solver is None:
        return None
    solvers = tuple(solvers_for(schedule))
    return Ways(solvers, manifest.default_solver, manifest.default_steps, schedule.num_train_timesteps)
