"""What a visitor chose, as the client takes it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.client import SampleClient
from serving.sampling.ways import Ways
from serving.step_watch import Tell

MOST = 64  # pictures that are looked at together; for more there is `medgen draw`
KEPT_SECONDS = 3600  # samples, their pictures, and files that were given or are to be taken away
LAST_SEED = 2**63 - 1


class WrongSettingError(Exception):
    """What a visitor typed cannot be sent; the message names it, its value and what is allowed."""


@dataclass(frozen=True)
class Server:
    """Whom the page asks: HOST:PORT of gRPC, of this machine unless given, and of the metrics, if steps are shown."""

    url: str | None
    metrics_url: str | None
    timeout: float

    def client(self, tell: Tell | None = None) -> SampleClient:
        """Raises SamplingError for what is no address."""
        if tell is None or self.metrics_url is None:
            return SampleClient(self.url, "grpc", self.timeout)
        return SampleClient(self.url, "grpc", self.timeout, steps=tell, metrics_url=self.metrics_url)


@dataclass(frozen=True)
class Upload:
    """A file that was given: where it lies, and what the visitor calls it."""

    place: Path
    name: str


@dataclass(frozen=True)
class Settings:
    """What is to be drawn. count: None for one for each mask or picture of the files. solving: as Client.sample's.
    labels: classes that samples have in turn, of a model that draws under one.
    """

    model: str
    count: int | None
    seed: int
    solving: dict[str, Any]
    files: tuple[Upload, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Of the fields as they are shown: the model that they are of, and how it draws, None where there are no steps."""

    model: str
    steps: Ways | None
    mask_steps: Ways | None

    def check(self, settings: Settings) -> None:
        """Raises WrongSettingError: a chain would find out only when its mask is drawn."""
        if settings.model != self.model:
            raise WrongSettingError(f"solvers and steps were not yet those of {settings.model}: draw again")
        for name, ways in (("steps", self.steps), ("mask_steps", self.mask_steps)):
            value = settings.solving.get(name)
            if value is not None and ways is not None and not ways.least_steps <= value <= ways.most_steps:
                raise WrongSettingError(f"{name} is {value}; it must be {ways.allowed_steps}")


def read_settings(
    model: str | None,
    count: float | None,
    seed: str,
    solver: str | None,
    steps: float | None,
    mask_solver: str | None,
    mask_steps: float | None,
    labels: Sequence[str] | None,
    files: Sequence[str] | None,
    names: Sequence[str] | None,
) -> Settings:
    """The page's fields; raises WrongSettingError. Steps are checked by Limits, solvers by the server."""
    if not model:
        raise WrongSettingError("no model is chosen; choose one of the list, or look for models again")
    given = tuple(uploads(files or (), names or ()))
    if twice := [name for name, times in Counter(file.name for file in given).items() if times > 1]:
        raise WrongSettingError(f"several files are called {twice[0]}; rename them: samples are called by their files")
    wanted = None if given else whole("samples", count)
    if not given and (wanted is None or not 1 <= wanted <= MOST):
        raise WrongSettingError(f"samples is {wanted}; it must be from 1 to {MOST}: for more there is medgen draw")
    ways = {
        "solver": solver or None,
        "steps": whole("steps", steps),
        "mask_solver": mask_solver or None,
        "mask_steps": whole("mask steps", mask_steps),
    }
    solving = {name: value for name, value in ways.items() if value is not None}
    return Settings(model, wanted, read_seed(seed), solving, given, tuple(labels or ()))


def uploads(files: Sequence[str], names: Sequence[str]) -> list[Upload]:
    """Files, and what the visitor calls them if they can be called that."""
    told = [Path(name).name if isinstance(name, str) else "" for name in names]
    told += [""] * (len(files) - len(told))
    return [
        Upload(Path(file), name if name and name.isprintable() and len(name.encode()) <= 255 else Path(file).name)
        for file, name in zip(files, told, strict=False)
    ]


def whole(name: str, value: float | None) -> int | None:
    """A number field's value: a browser tells every number as a float."""
    if value is None:
        return None
    if not float(value).is_integer():
        raise WrongSettingError(f"{name} is {value}; it must be a whole number")
    return int(value)


def read_seed(text: str) -> int:
    """Typed as text: a browser's numbers are not exact above 2^53."""
    typed = text.strip()
    if not (typed.isascii() and typed.isdigit() and len(typed) <= 19 and int(typed) <= LAST_SEED):
        raise WrongSettingError(f"first seed is {typed[:40]!r}; it must be a whole number from 0 to {LAST_SEED}")
    return int(typed)
