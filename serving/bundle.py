"""The bundle: a folder with a model's engines and the manifest that says everything serving needs to know of them."""

import dataclasses
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from serving.folders import Busy, recover
from serving.sampling.solvers import Schedule, solver_table

SCHEMA = 4
MANIFEST = "manifest.json"
PARITY = "parity.json"
SUMS = "SHA256SUMS"
REPOSITORY = Path("model_repository")  # of the folder that one works in
TEMPLATES = Path(__file__).resolve().parent / "templates"  # what a repository needs of each model but its bundle
MAX_BATCH = 65_536
MOST_VALUES = 2**31  # that one sample may have

# What JSON may hold: the types say it, and no others are converted.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=65_536)]
Shape = Annotated[tuple[Side, ...], Field(min_length=1, max_length=8)]
Millimetres = Annotated[float, Field(gt=0)]
CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Described = TypeVar("Described")


class BundleError(Exception):
    """A bundle is missing, damaged or of another schema; the message names the file, and the field if it is one."""


@dataclasses.dataclass(frozen=True)
class Output:
    """One named output of the finish graph; ``shape`` is that of one sample.

    ``low`` and ``high`` are the values an output can take; ``labels`` names the classes of a mask, from 0 up;
    ``spacing`` is how far rows, and columns, are apart in mm, where the pixels of a picture have a known size;
    ``modality`` is DICOM's word for a picture: MG for a mammogram, MR for magnetic resonance.
    """

    __pydantic_config__ = CHECKED

    name: Name
    dtype: Literal["uint8", "int16", "int32", "int64", "float32"]
    shape: Shape
    low: float
    high: float
    labels: tuple[str, ...] = ()
    spacing: tuple[Millimetres, Millimetres] | None = None
    modality: Literal["MG", "MR"] | None = None


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a model draws under, a mask, a label or a picture; ``shape`` is that of one sample.

    A mask is uint8, class indices 0 .. classes-1, and ``labels`` names the classes from 0 up. A label is one such
    index, int64 of shape (1,). A picture is float32, no value below ``low`` or above ``high``. ``spacing`` is as an
    output's. Without labels or spacing any will do.
    """

    __pydantic_config__ = CHECKED

    name: Name
    shape: Shape
    classes: Annotated[int, Field(ge=1, le=256)] | None = None
    labels: tuple[str, ...] = ()
    spacing: tuple[Millimetres, Millimetres] | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_label(self) -> bool:
        return self.classes is not None and self.shape == (1,)

    @property
    def dtype(self) -> Literal["uint8", "int64", "float32"]:
        if self.is_label:
            return "int64"
        return "float32" if self.classes is None else "uint8"

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value, or class, that it may hold."""
        if self.classes is not None:
            return 0, self.classes - 1
        assert self.low is not None  # as ``problem`` sees to
        assert self.high is not None
        return self.low, self.high

    def as_output(self) -> Output:
        """The same beside what was drawn under it."""
        return Output(self.name, self.dtype, self.shape, *self.limits, self.labels, self.spacing)

    def problem(self) -> str | None:
        """What does not go together."""
        if self.classes is None:
            if self.low is None or self.high is None or self.low >= self.high:
                return f"condition.classes is null, low {self.low} and high {self.high}; a picture has low below high"
            return f"condition.labels is {list(self.labels)}; a picture has none" if self.labels else None
        if (self.low, self.high) != (None, None):
            return f"condition.classes is {self.classes}, and low and high are not null: those are a picture's"
        if self.labels and len(self.labels) != self.classes:
            return f"condition.labels is {list(self.labels)}; it must name all {self.classes} classes, or none"
        return None


@dataclasses.dataclass(frozen=True)
class SealedFile:
    """A file in the bundle's folder and the sha256 (hexadecimal) of its bytes."""

    file: Name
    sha256: Digest


@dataclasses.dataclass(frozen=True)
class EngineFile(SealedFile):
    """``weights``: a second file, that of a graph whose weights are not in it."""

    weights: SealedFile | None = None


@dataclasses.dataclass(frozen=True)
class Student:
    """Whose student a model is, by the sha256 of the teacher's weights, and the only solver and steps it has learnt.

    ``teacher_steps`` of the teacher, by the same solver, are what its ``steps`` stand for. ``line`` is all that it
    comes from, the teacher first: what taught the teacher, and what was packed.
    """

    __pydantic_config__ = CHECKED

    teacher: Digest
    teacher_steps: Annotated[int, Field(ge=2)]
    solver: str
    steps: Annotated[int, Field(ge=1)]
    line: tuple[Digest, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    ``engines`` has "finish" and, for a model that takes steps, "step". A model without steps (a GAN) has neither
    schedule nor default solver, and ``default_steps`` 0. ``noise_channels`` is how many of a state's channels start as
    noise; those after them start at 0. ``notices`` are sentences that whoever uses a sample must know: its provenance
    has them. ``target``, ``parity``, ``checkpoint`` and ``tools`` are JSON objects for people to read; of them serving
    reads ``target``, and of ``checkpoint`` "unfinished", which is there if the training was not through, and says how
    far it came. ``student`` is there if the model was distilled: it takes the default solver and steps and no others.
    ``tuned`` is a JSON object too: what the defaults were measured to be worth, where they are not the preset's.
    """

    __pydantic_config__ = CHECKED

    model: Name
    preset: str
    sample_shape: tuple[Side, Side, Side]
    noise_channels: Annotated[int, Field(ge=0)]
    condition: Condition | None
    outputs: tuple[Output, ...]
    schedule: Schedule | None
    default_solver: str | None
    default_steps: int
    notices: tuple[str, ...]
    max_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    precision: str
    engines: Mapping[str, EngineFile]
    target: Mapping[str, Any]
    parity: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    tools: Mapping[str, Any]
    student: Student | None = None
    tuned: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        fields = {"schema": SCHEMA, **dataclasses.asdict(self)}
        for engine in fields["engines"].values():
            if engine["weights"] is None:
                del engine["weights"]
        for name in ("student", "tuned"):
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The inverse of ``to_json``; raises ``BundleError`` naming the field that is missing or wrong."""
        try:
            fields = read_json(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST} is not JSON: {error}") from None
        schema = fields.pop("schema", None) if isinstance(fields, dict) else None
        if schema != SCHEMA:
            raise BundleError(f"{MANIFEST}: schema is {schema!r}; this version of medgen reads schema {SCHEMA}")
        manifest = decoded(cls, fields)
        for problem in manifest._problems():
            raise BundleError(f"{MANIFEST}: {problem}")
        return manifest

    def _problems(self) -> Iterator[str]:
        engines = ["finish"] if self.schedule is None else ["finish", "step"]
        if sorted(self.engines) != engines:
            yield f"engines has {sorted(self.engines)}; it must have {engines}"
        shapes = {f"outputs[{k}].shape": output.shape for k, output in enumerate(self.outputs)}
        shapes["sample_shape"] = self.sample_shape
        if self.condition is not None:
            shapes["condition.shape"] = self.condition.shape
            if problem := self.condition.problem():
                yield problem
        if self.noise_channels > self.sample_shape[0]:
            yield f"noise_channels is {self.noise_channels}; sample_shape has {self.sample_shape[0]} channels"
        for where, shape in shapes.items():
            if math.prod(shape) > MOST_VALUES:
                yield f"{where} is {list(shape)}; a sample has at most {MOST_VALUES} values"
        for k, output in enumerate(self.outputs):
            if output.low > output.high:
                yield f"outputs[{k}].low is {output.low:g}; it must be at most high, which is {output.high:g}"
        names = [output.name for output in self.outputs]
        if not names or len({*names}) < len(names):
            yield f"outputs has the names {names}; there must be one or more, all different"
        if self.schedule is None:
            if (self.default_solver, self.default_steps) != (None, 0):
                yield "default_solver and default_steps must be null and 0 where schedule is null"
        else:
            try:
                solver_table(str(self.default_solver), self.schedule, self.default_steps)
            except ValueError as error:
                yield f"default_solver and default_steps do not go with the schedule: {error}"
        learnt = self.student and (self.student.solver, self.student.steps)
        if learnt and learnt != (self.default_solver, self.default_steps):
            yield f"default_solver and default_steps must be {learnt}, what the student has learnt"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle whose files are there and are what the manifest says; ``digest`` is the sha256 of ``manifest.json``."""

    folder: Path
    manifest: Manifest
    digest: str

    def engine_path(self, name: str) -> Path:
        return self.folder / self.manifest.engines[name].file


def buckets(max_batch: int) -> tuple[int, ...]:
    """Batch sizes that a GPU engine is built and captured for: 1, 2, 4, ... and max_batch itself."""
    return tuple(sorted({*(2**k for k in range(max_batch.bit_length()) if 2**k <= max_batch), max_batch}))


def bundle_folder(repository: Path | str, model: str) -> Path:
    """Where a model's bundle is in a Triton model repository."""
    return Path(repository) / model / "1" / "bundle"


def option_for(repository: Path) -> str:
    """What a command needs to find a repository, a space before it; nothing for the one that it takes by itself."""
    return "" if repository.absolute() == REPOSITORY.absolute() else f" --repository {shlex.quote(str(repository))}"


def missing(repository: Path) -> str:
    """What to say of a repository that is not there."""
    return f"there is no {repository} yet: medgen export build makes it, or --repository names another"


def file_digest(path: Path | str) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return stream_digest(file)


def stream_digest(stream: BinaryIO) -> str:
    """The same of what is left to read."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Write down the digests of all files in a bundle's folder, so that ``sha256sum -c SHA256SUMS`` reads them too."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    (folder / SUMS).write_text("".join(f"{file_digest(file)}  {file.name}\n" for file in files))


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle: the sha256 of every file, and its manifest's schema and fields.

    A build that was cut short when this bundle was to be replaced is finished first. Raises ``BundleError`` naming what
    is missing or damaged, and the command that builds it where that helps.
    """
    folder = Path(folder).absolute()
    try:
        recover(folder)
    except (OSError, Busy) as error:
        raise BundleError(f"{folder} was being replaced when that was cut short, and still is: {error}") from None
    if not (folder / MANIFEST).exists():
        raise BundleError(f"no bundle at {folder}; {_remedy(folder)}")
    text = _read(folder / MANIFEST)
    try:
        manifest = Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}; {_remedy(folder)}") from None
    digests = sums_in(folder)
    for file, sha256 in digests.items():
        _check_file(folder / file, sha256)
    named = [part for engine in manifest.engines.values() for part in (engine, engine.weights) if part]
    for name in (MANIFEST, *(part.file for part in named)):
        if name not in digests:
            raise BundleError(f"{folder / SUMS} does not have {name}; {_remedy(folder)}")
    for part in named:
        if digests[part.file] != part.sha256:
            raise BundleError(f"{folder}: {part.file} is not the file that {MANIFEST} names; {_remedy(folder)}")
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest())


def sums_in(folder: Path) -> dict[str, str]:
    """The sha256 that each of a bundle's files must have, by its name."""
    lines = _read(folder / SUMS).decode("ascii", "replace").split("\n")
    found = [re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line, re.ASCII) for line in lines[:-1]]
    if lines[-1] or not all(found):
        raise BundleError(f"{folder / SUMS} is damaged; {_remedy(folder)}")
    return {match[2]: match[1] for match in found if match}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; {_remedy(path.parent)}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = file_digest(path)
    except FileNotFoundError:
        raise BundleError(f"{path}, which {path.with_name(SUMS)} names, is missing; {_remedy(path.parent)}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None
    if found != sha256:
        raise BundleError(
            f"{path} is not the file that was built, or {path.with_name(SUMS)} is damaged: that has sha256 {sha256}, "
            f"found {found}; {_remedy(path.parent)}"
        )


def _remedy(folder: Path) -> str:
    model, elsewhere = "NAME", ""
    if folder.parts[-2:] == ("1", "bundle"):
        model, repository = folder.parents[1].name, folder.parents[2]
        elsewhere = option_for(repository)
    return (
        f"build it with: medgen export build --model {model}{elsewhere} "
        "(and --checkpoint RUN, what `medgen fit` wrote, where medgen ships none)"
    )


def read_json(text: str | bytes) -> Any:
    """What JSON says; raises ValueError with the line and the column where it is none, or nested too deep."""
    try:
        return _reader(Any).validate_json(text)
    except ValidationError as error:
        (first, *_) = error.errors()
        raise ValueError(first["ctx"]["error"]) from None


def decoded(kind: type[Described], fields: Any, what: str = "") -> Described:
    """The inverse of ``dataclasses.asdict`` after JSON; raises ``BundleError`` naming the field of ``what``."""
    try:
        found: Described = _reader(kind).validate_json(json.dumps(fields))  # type: ignore[arg-type]  # types are hashable
        return found
    except ValidationError as error:
        (first, *_) = error.errors()
        raise BundleError(f"{MANIFEST}: {_in_words(first, what)}") from None


@lru_cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # which takes milliseconds to make


def _in_words(error: Any, what: str) -> str:
    """What is wrong: where it is, the value, and what it must be."""
    where = what + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    where = where.removeprefix(".")
    match error["type"]:
        case "missing":
            return f"{where} is missing"
        case "unexpected_keyword_argument":
            return f"{where} is not a field that schema {SCHEMA} has"
        case "value_error":
            return f"{where}: {error['ctx']['error']}"
    must = re.sub("^(Input|String|Tuple|Value)( should)?", "it must", error["msg"])
    return f"{where} is {repr(error['input'])[:60]}; {must}"
