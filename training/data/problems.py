"""The account of the files of a data set that cannot be used."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import get_console
from rich.progress import track

log = logging.getLogger(__name__)


class BadFileError(Exception):
    """Why one file cannot be used."""


class DataError(Exception):
    """A data set cannot be trained on; the message names every file at fault and what is wrong with it."""


class Problems:
    """Collects what is wrong with a folder's files, so that all of it is said at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[str] = []

    def add(self, path: Path, reason: str) -> None:
        self.found.append(f"{path.relative_to(self.folder)} {reason}")

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
        listed = "".join(f"\n  {problem}" for problem in self.found)
        if not skip_bad:
            raise DataError(
                f"{self.folder}: not every file can be used; mend these ({len(self.found)}) "
                f"or leave them out with skip_bad (--skip-bad):{listed}"
            )
        log.warning("%s: left out (%d):%s", self.folder, len(self.found), listed)


def progress(names: Sequence[str], folder: Path) -> Iterable[str]:
    """The names, with a bar on a terminal while they are worked through."""
    return track(names, f"Reading {folder.name}", transient=True, disable=not get_console().is_terminal)


def warn_of_tiny_lesions(names: Sequence[str], size: int) -> None:
    """Say which pairs have a lesion too small for the training size, drawn larger than it is rather than lost."""
    if names:
        log.warning("a lesion too small for %d x %d pixels is kept as one pixel in: %s", size, size, ", ".join(names))
