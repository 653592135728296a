"""The bundle: a folder with a model's engines and the manifest that says everything serving needs to know of them."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from serving.sampling.solvers import Schedule, solver_table

SCHEMA = 2
MANIFEST = "manifest.json"
REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
DTYPES = ("uint8", "int16", "int32", "int64", "float32")

Described = TypeVar("Described")


class BundleError(Exception):
    """A bundle is missing, damaged or of another schema; the message names the file, and the field if it is one."""


@dataclasses.dataclass(frozen=True)
class Output:
    """One named output of the finish graph, of one of ``DTYPES``; ``shape`` is that of one sample.

    ``low`` and ``high`` are the values an output can take; ``labels`` names the classes of a mask, from 0 up;
    ``spacing`` is how far rows, and columns, are apart in mm, where the pixels of a picture have a known size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float
    labels: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Condition:
    """A uint8 mask of class indices 0 .. classes-1 that a model is conditioned on; ``shape`` is that of one sample.

    ``labels`` names the classes from 0 up, and ``spacing`` is as an output's; without them any will do.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class EngineFile:
    """A file in the bundle's folder and the sha256 (hexadecimal) of its bytes."""

    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    ``engines`` has "finish" and, for a model that takes steps, "step". A model without steps (a GAN) has neither
    schedule nor default solver, and ``default_steps`` 0. ``target``, ``parity``, ``checkpoint`` and ``tools`` are
    JSON objects for people to read; of them serving reads ``target`` alone.
    """

    model: str
    preset: str
    sample_shape: tuple[int, int, int]
    condition: Condition | None
    outputs: tuple[Output, ...]
    schedule: Schedule | None
    default_solver: str | None
    default_steps: int
    max_batch: int
    precision: str
    engines: Mapping[str, EngineFile]
    target: Mapping[str, Any]
    parity: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    tools: Mapping[str, Any]

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The inverse of ``to_json``; raises ``BundleError`` naming the field that is missing or wrong."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST} is not JSON: {error}") from None
        schema = fields.pop("schema", None) if isinstance(fields, dict) else None
        if schema != SCHEMA:
            raise BundleError(f"{MANIFEST}: schema is {schema!r}; this version of medgen reads schema {SCHEMA}")
        manifest = _decode(cls, fields, "")
        for problem in manifest._problems():
            raise BundleError(f"{MANIFEST}: {problem}")
        return manifest

    def _problems(self) -> Iterator[str]:
        engines = ["finish"] if self.schedule is None else ["finish", "step"]
        if sorted(self.engines) != engines:
            yield f"engines has {sorted(self.engines)}; it must have {engines}"
        for name, engine in self.engines.items():
            if Path(engine.file).name != engine.file:
                yield f"engines.{name}.file is {engine.file!r}; it must be a file in the bundle's folder"
        for k, output in enumerate(self.outputs):
            if output.dtype not in DTYPES:
                yield f"outputs[{k}].dtype is {output.dtype!r}; allowed are {', '.join(DTYPES)}"
            yield from _spacing_problems(f"outputs[{k}]", output.spacing)
        if not self.outputs:
            yield "outputs is empty"
        if self.condition is not None:
            yield from _spacing_problems("condition", self.condition.spacing)
            labels, classes = self.condition.labels, self.condition.classes
            if labels and len(labels) != classes:
                yield f"condition.labels is {list(labels)}; it must name all {classes} classes, or none"
        if self.max_batch < 1:
            yield f"max_batch is {self.max_batch}; it must be at least 1"
        if self.schedule is None:
            if (self.default_solver, self.default_steps) != (None, 0):
                yield "default_solver and default_steps must be null and 0 where schedule is null"
        else:
            try:
                solver_table(str(self.default_solver), self.schedule, self.default_steps)
            except ValueError as error:
                yield f"default_solver and default_steps do not go with the schedule: {error}"


def _spacing_problems(where: str, spacing: tuple[float, float] | None) -> Iterator[str]:
    if spacing is not None and not all(0 < side < math.inf for side in spacing):
        yield f"{where}.spacing is {list(spacing)}; both must be above 0 mm"


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


def file_digest(path: Path | str) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle: its manifest's schema and fields, and the sha256 of every engine file.

    Raises ``BundleError`` naming what is missing or damaged, and the command that builds it where that helps.
    """
    folder = Path(folder).absolute()
    try:
        text = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        model = folder.parents[1].name if folder.parts[-2:] == ("1", "bundle") else "NAME"
        raise BundleError(f"no bundle at {folder}; {_build_command(model)}") from None
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from None
    try:
        manifest = Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{folder}: {error}; {_build_command()}") from None
    for engine in manifest.engines.values():
        _check_file(folder / engine.file, engine.sha256, manifest.model)
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest())


def _check_file(path: Path, sha256: str, model: str) -> None:
    try:
        found = file_digest(path)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; {_build_command(model)}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if found != sha256:
        raise BundleError(
            f"{path} is not the file that was built: expected sha256 {sha256}, found {found}; {_build_command(model)}"
        )


def _build_command(model: str = "NAME") -> str:
    return f"build it with: python -m export build --model {model}"


def decoded(kind: type[Described], fields: Any, what: str) -> Described:
    """The inverse of ``dataclasses.asdict`` after JSON; raises ``BundleError`` naming the field of ``what``."""
    return _decode(kind, fields, what)


def _decode(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the annotated type ``kind``: a dataclass, tuple, mapping, union with None or plain scalar."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return None if value is None else _decode(next(arg for arg in args if arg is not NoneType), value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, _checked(value, dict, "an object", where), where)
    if origin is tuple:
        items = _checked(value, list, "a list", where)
        kinds = [args[0]] * len(items) if args[-1] is Ellipsis else args
        if len(items) != len(kinds):
            raise BundleError(f"{MANIFEST}: {where} has {len(items)} items; it must have {len(kinds)}")
        return tuple(_decode(k, item, f"{where}[{n}]") for n, (k, item) in enumerate(zip(kinds, items, strict=True)))
    if origin is Mapping:
        fields = _checked(value, dict, "an object", where)
        return {name: _decode(args[1], item, f"{where}.{name}") for name, item in fields.items()}
    names = {str: "a string", int: "an integer", float: "a number"}
    return _checked(value, (int, float) if kind is float else kind, names[kind], where)


def _decode_fields(kind: Any, fields: dict[str, Any], where: str) -> Any:
    types = get_type_hints(kind)
    dot = f"{where}." if where else ""
    if missing := types.keys() - fields.keys():
        raise BundleError(f"{MANIFEST}: {dot}{min(missing)} is missing")
    if unknown := fields.keys() - types.keys():
        raise BundleError(f"{MANIFEST}: {dot}{min(unknown)} is not a field that schema {SCHEMA} has")
    try:
        return kind(**{name: _decode(types[name], value, dot + name) for name, value in fields.items()})
    except ValueError as error:
        raise BundleError(f"{MANIFEST}: {where}: {error}") from None


def _checked(value: Any, kind: Any, name: str, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{MANIFEST}: {where} is {repr(value)[:60]}; it must be {name}")
    return value
