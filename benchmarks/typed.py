"""What somebody typed, for whom figures are to be made again."""

import shlex
import sys
from pathlib import Path


def as_typed(command: str) -> str | None:
    """The command of benchmarks that runs, without folders of this machine: what has it may be given to others. None
    if another program runs it."""
    if command not in sys.argv:
        return None
    return shlex.join(["medgen", "benchmarks", *map(_named, sys.argv[sys.argv.index(command) :])])


def _named(word: str) -> str:
    """A path from the root by its last part, also in NAME=PATH and --option=PATH."""
    name, equals, value = word.rpartition("=")
    return name + equals + (Path(value).name if Path(value).is_absolute() else value)
