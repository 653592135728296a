"""Which part of a work is this process's, where many do it."""

import re
from collections.abc import Mapping
from typing import NamedTuple

SLURM, KUBERNETES = "SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"


class ShardError(ValueError):
    """It cannot be said which part is this process's."""


class Shard(NamedTuple):
    """Number `number`, from 0, of `of`; source: who says so."""

    number: int
    of: int
    source: str

    def parts(self, count: int) -> range:
        """Those of `count` parts, from 0, that are this shard's: every `of`-th."""
        return range(self.number, count, self.of)


def shard_of(text: str | None, environment: Mapping[str, str]) -> Shard:
    """K/N as given; or N alone, or nothing, and K from Slurm's or Kubernetes' environment.

    K is the task's id where N is given, so that a few tasks can be sent again by themselves. Without N, of a Slurm
    array with ids from A to B by S, K is how many come before this one, and N how many there are. Without `text` and
    either variable it is the whole. Raises ShardError.
    """
    if match := re.fullmatch(r"(\d+)/(\d+)", text or ""):
        return _checked(int(match[1]), int(match[2]), "--shard")
    if text is not None and not re.fullmatch(r"\d+", text):
        raise ShardError(f"--shard is {text!r}; it must be K/N, with K from 0 to N - 1, or N")
    if SLURM in environment:
        number, count = _of_slurm(environment) if text is None else (_number(environment, SLURM), int(text))
        return _checked(number, count, SLURM)
    if KUBERNETES in environment:
        if text is None:
            raise ShardError(f"{KUBERNETES} is {environment[KUBERNETES]}, and nothing says of how many: give --shard N")
        return _checked(_number(environment, KUBERNETES), int(text), KUBERNETES)
    if text is not None:
        raise ShardError(f"--shard is {text}, and neither {SLURM} nor {KUBERNETES} says which: give --shard K/N")
    return Shard(0, 1, "")


def _of_slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    """How many tasks of the array come before this one, and how many there are."""
    task, count = _number(environment, SLURM), _number(environment, "SLURM_ARRAY_TASK_COUNT")
    first, last = (_number(environment, f"SLURM_ARRAY_TASK_{which}") for which in ("MIN", "MAX"))
    step = max(1, (last - first) // max(1, count - 1))
    if first + step * (count - 1) != last or (task - first) % step or not first <= task <= last:
        raise ShardError(
            f"{SLURM} is {task}, of {count} from {first} to {last}, which are not evenly spaced: give --shard K/N"
        )
    return (task - first) // step, count


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"\d+", value):
        raise ShardError(f"{name} is {value!r}; it must be a whole number: give --shard K/N")
    return int(value)


def _checked(number: int, of: int, source: str) -> Shard:
    if not 0 <= number < of:
        raise ShardError(f"shard {number} of {of}, by {source}: K must be from 0 to N - 1")
    return Shard(number, of, source)
