"""Which shard a process is, by its command line and by what schedulers say."""

import pytest

from serving.shards import Shard, ShardError, shard_of


def slurm(task: int, first: int, last: int, count: int) -> dict[str, str]:
    names = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(
    ("text", "environment", "number", "of"),
    [
        (None, {}, 0, 1),
        ("3/16", {}, 3, 16),
        ("3/16", slurm(1, 0, 3, 4), 3, 16),
        (None, slurm(3, 0, 15, 16), 3, 16),
        (None, slurm(3, 1, 16, 16), 2, 16),
        (None, slurm(6, 2, 10, 5), 2, 5),
        (None, slurm(7, 7, 7, 1), 0, 1),
        ("16", slurm(3, 0, 15, 16), 3, 16),
        ("16", slurm(5, 3, 5, 2), 5, 16),  # sent again by themselves
        ("32", slurm(16, 16, 31, 16), 16, 32),
        ("4", {"JOB_COMPLETION_INDEX": "2"}, 2, 4),
    ],
)
def test_shards_are_counted_from_zero(text: str | None, environment: dict[str, str], number: int, of: int) -> None:
    shard = shard_of(text, environment)
    assert (shard.number, shard.of) == (number, of)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("16/16", {}, "shard 16 of 16, by --shard: K must be from 0 to N - 1"),
        ("0/0", {}, "shard 0 of 0"),
        ("a/b", {}, "--shard is 'a/b'; it must be K/N"),
        ("-1/4", {}, "--shard is '-1/4'"),
        ("4", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX says which"),
        ("16", slurm(16, 1, 16, 16), "shard 16 of 16, by SLURM_ARRAY_TASK_ID: K must be from 0"),
        ("2", {"JOB_COMPLETION_INDEX": "2"}, "shard 2 of 2, by JOB_COMPLETION_INDEX"),
        (
            None,
            {"JOB_COMPLETION_INDEX": "2"},
            "JOB_COMPLETION_INDEX is 2, and nothing says of how many: give --shard N",
        ),
        (None, slurm(4, 1, 9, 4), "which are not evenly spaced: give --shard K/N"),
        (None, {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'; it must be a whole number"),
        (None, {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT is ''"),
    ],
)
def test_what_cannot_be_told_is_asked_for(text: str | None, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ShardError) as error:
        shard_of(text, environment)
    assert message in str(error.value)


def test_every_part_is_of_one_shard() -> None:
    parts = sorted(part for number in range(3) for part in Shard(number, 3, "").parts(10))
    assert parts == [*range(10)]
