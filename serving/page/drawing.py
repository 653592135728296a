"""Samples that are being drawn while a page looks on."""

import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.client import SamplingError
from serving.client_checks import Given
from serving.condition_files import UNREADABLE, MaskFileError, check_unpacked
from serving.conditions import check_count, read_condition
from serving.page.settings import MOST, Server, Settings, Upload
from serving.picture_files import PictureFileError
from serving.sample_set import Samples

LOOK_SECONDS = 0.3
PLACES = 8  # of drawings at once; the server has a queue too
AT_ONCE = threading.BoundedSemaphore(PLACES)
UNPACKED = 128 * 2**20  # bytes of a file that a visitor gives: as many visitors as there are places may give one
FAILURES = (SamplingError, MaskFileError, PictureFileError, OSError)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples, how they were asked for, and what is to be said of what they were drawn under."""

    samples: Samples
    settings: Settings
    notes: tuple[str, ...]

    def told(self) -> str:
        """How many there are, and below it the notes."""
        count = len(self.samples)
        return "\n".join(["1 sample is drawn" if count == 1 else f"{count} samples are drawn", *self.notes])


class CancelledError(Exception):
    """The visitor did not want to wait."""


class Drawing:
    """Draws by a thread of its own. ``cancel`` ends it, and soon what the server has in flight for it."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self._settings = settings
        self._samples = self._steps = (0, 0)
        self._drawn: Drawn | None = None
        self._failure: Exception | None = None
        self._is_cancelled = False
        self._client = server.client(self._tell_steps)
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """May be called more than once, and when all is done."""
        self._is_cancelled = True
        self._client.close()  # which ends its requests, here and in the server

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def so_far(self) -> str:
        """In words."""
        done, total = self._samples
        text = f"{done} of {total} samples" if total else "Waiting for the server"
        steps, all_steps = self._steps
        return f"{text}, {steps} of {all_steps} steps" if all_steps else text

    def result(self) -> Drawn:
        """Raises CancelledError, SamplingError, MaskFileError, PictureFileError or OSError."""
        self._thread.join()
        if self._drawn is not None:
            return self._drawn
        if self._is_cancelled:
            done, total = self._samples
            raise CancelledError(f"Cancelled, with {done} of {total} samples drawn" if total else "Cancelled")
        assert self._failure is not None
        raise self._failure

    def _run(self) -> None:
        try:
            while not AT_ONCE.acquire(timeout=LOOK_SECONDS):
                if self._is_cancelled:
                    return
            try:
                self._drawn = self._draw()
            finally:
                AT_ONCE.release()
        except FAILURES as failure:  # raised again where the result is taken
            self._failure = failure
        except Exception as fault:  # told too, or the page would stand still
            if not self._is_cancelled:
                logging.getLogger(__name__).exception("a drawing failed")
            self._failure = SamplingError(f"{type(fault).__name__}: {fault}", 500)
        finally:
            self._client.close()

    def _draw(self) -> Drawn:
        client, settings = self._client, self._settings
        with named(settings.files) as files:
            try:
                for file in files:
                    check_unpacked(file, UNPACKED)
            except UNREADABLE as error:
                raise MaskFileError(str(error)) from None
            given, notes = read_condition(client, settings.model, files)
            count = _count(files, settings.count, given)
        self._samples = 0, count
        samples = client.sample(
            settings.model,
            count,
            seed=settings.seed,
            condition=given,
            label=settings.labels or None,
            progress=self._tell_samples,
            **settings.solving,
        )
        return Drawn(samples, settings, tuple(notes))

    def _tell_samples(self, done: int, total: int) -> None:
        self._samples = done, total

    def _tell_steps(self, done: int, total: int) -> None:
        self._steps = done, total


@contextmanager
def named(files: Sequence[Upload]) -> Iterator[list[Path]]:
    """Links that are called what the visitor calls the files; what is said of these does not tell where they lie."""
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder) / file.name for file in files]
        for link, file in zip(links, files, strict=True):
            link.symlink_to(file.place)
        try:
            yield links
        except (MaskFileError, PictureFileError) as error:
            raise type(error)(str(error).replace(f"{folder}/", "")) from None


def _count(files: Sequence[Path], wanted: int | None, given: Given | None) -> int:
    if given is None:
        assert wanted is not None
        return wanted
    count = check_count(given, files, wanted)
    if count > MOST:
        raise MaskFileError(f"there are {count} to draw under; a page takes {MOST}: for more there is medgen draw")
    return count
