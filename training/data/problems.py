"""The account of the files of a data set that cannot be used."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import get_console
from rich.progress import track

log = logging.getLogger(__name__)

NAMED = 5  # files that are named one by one
LINES = 40  # of a list of problems


class BadFileError(Exception):
    """Why one file cannot be used."""


class DataError(Exception):
    """A data set cannot be trained on; the message names every file at fault and what is wrong with it."""


# What this process has logged: each split of a data set is read by itself, and has the problems of all again.
_TOLD: set[tuple[Path, str, str]] = set()


class Problems:
    """Collects what is wrong with a folder's files, so that all of it is said at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[tuple[str, str]] = []

    def add(self, path: Path, reason: str) -> None:
        self.found.append((str(path.relative_to(self.folder)), reason))

    @contextmanager
    def of(self, path: Path) -> Iterator[None]:
        """Turns a BadFileError into a problem of ``path``."""
        try:
            yield
        except BadFileError as bad:
            self.add(path, str(bad))

    def settle(self, skip_bad: bool) -> None:
        """Raise the DataError that lists every problem or, to skip them, log the list as a warning."""
        if not self.found:
            return
        if not skip_bad:
            raise DataError(
                f"{self.folder}: not every file can be used; mend these ({self.left_out}) "
                "or leave them out with skip_bad (--skip-bad):" + "".join(f"\n  {line}" for line in self.lines())
            )
        new = [each for each in self.found if (self.folder, *each) not in _TOLD]
        _TOLD.update((self.folder, *each) for each in new)
        if new:
            listed = "".join(f"\n  {line}" for line in self.lines(new))
            log.warning("%s: left out (%d):%s", self.folder, len({path for path, _ in new}), listed)

    @property
    def left_out(self) -> int:
        """How many files; one may have several problems."""
        return len({path for path, _ in self.found})

    def lines(self, found: Sequence[tuple[str, str]] | None = None) -> list[str]:
        """A line for each problem; where many files have the same one they share a line, and too many lines are cut.

        found: some of the problems; None: all.
        """
        same = defaultdict(list)
        for path, reason in self.found if found is None else found:
            same[reason].append(path)
        lines = []
        for reason, paths in same.items():
            if len(paths) > NAMED:
                lines.append(f"{len(paths)} files: each {reason} ({some(paths)})")
            else:
                lines += [f"{path} {reason}" for path in paths]
        return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"and {len(lines) - LINES + 1} more"]


def some(names: Sequence[str]) -> str:
    """The names, or where they are many the first of them and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def progress(names: Sequence[str], folder: Path) -> Iterable[str]:
    """The names, with a bar on a terminal while they are worked through."""
    return track(names, f"Reading {folder.name}", transient=True, disable=not get_console().is_terminal)


def tiny_lesions(names: Sequence[str], size: int) -> list[str]:
    """Says which pairs have a lesion too small for the training size, drawn larger than it is rather than lost."""
    if not names:
        return []
    return [f"a lesion too small for {size} x {size} pixels is kept as one pixel in {len(names)} masks: {some(names)}"]
