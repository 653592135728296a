"""A folder of samples, however many, that many processes fill, part by part, and that a kill at any moment spares.

    index.json            what is drawn, and by what: whoever comes with other options, or another bundle, is refused
    parts/000000.json     of a part that is there: its seeds, its files' sha256 and size, and what made each sample
    ...                   the files, as their layout has them

A part is written aside; then its files are put in place, and at last its record is linked, once. Without a record
a part is not there, and is drawn again: the same bytes.
"""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bundle import BundleError, Output, decoded, file_digest, read_json
from serving.sample_set import Samples
from serving.writers.layout import Layout, text_of
from serving.writers.layouts import part_name

FORMAT = 1
INDEX, RECORDS, DRAFTS = "index.json", "parts", ".drafts"
# In a sample's provenance; the rest is the set's.
OF_ONE_SAMPLE = ("seed", "condition_sha256", "condition_file", "label", "label_name", "numbers")
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # what a file system without hard links says


class SetError(Exception):
    """A set of samples is not what it should be, or is another's; the message names the folder."""


@dataclass(frozen=True)
class Plan:
    """What is to be drawn: `count` samples of seeds from `seed` up, `per_file` a part.

    asked: solver and steps as they were asked for. condition: the sha256 of the masks or pictures, if there are.
    layout: its name and its options.
    """

    model: str
    seed: int
    count: int
    per_file: int
    asked: Mapping[str, Any]
    condition: str | None
    layout: Mapping[str, Any]

    @property
    def parts(self) -> int:
        return -(-self.count // self.per_file)

    @property
    def seeds_of_all(self) -> range:
        return range(self.seed, self.seed + self.count)

    def seeds(self, part: int) -> range:
        first = part * self.per_file
        return range(self.seed + first, self.seed + min(first + self.per_file, self.count))


class DrawnSet:
    """The set in a folder, for one who draws it by a plan."""

    def __init__(self, folder: Path, plan: Plan, layout: Layout) -> None:
        self.folder, self.plan, self._layout = folder, plan, layout
        self._drawn_by: Any = None
        self.outputs: tuple[Output, ...] = ()
        self._given: Sequence[str] = ()

    def open(self) -> bool:
        """Whether it is begun; raises SetError if it is another's, or if there is something else in the folder."""
        if not (self.folder / INDEX).exists():
            others = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
            if strangers := sorted({*others} - {RECORDS, DRAFTS}):
                raise SetError(f"{self.folder} holds {strangers[0]}, and no {INDEX}: choose another folder")
            return False
        index = read_index(self.folder)
        for name, ours in json.loads(json.dumps(dataclasses.asdict(self.plan))).items():
            if (theirs := index["plan"].get(name)) != ours:
                raise SetError(
                    f"{self.folder} was begun with other options: its {name} is {theirs!r}, not {ours!r}; draw those "
                    "into another folder"
                )
        self._drawn_by, self.outputs, self._given = index["drawn_by"], _outputs(index), index.get("given", ())
        return True

    def begin(self, samples: Samples, notes: Sequence[str] = ()) -> None:
        """The index, by some first samples; if another process has begun the set meanwhile, it must be the same set.

        notes: what is to be said of the whole set, such as how pictures were scaled.
        """
        index = {
            "format": FORMAT,
            "plan": dataclasses.asdict(self.plan),
            "drawn_by": common(samples.provenance),
            "outputs": [dataclasses.asdict(output) for output in samples.outputs],
            **({"given": list(samples.given)} if samples.given else {}),
            "set_files": list(self._layout.set_files),
            **({"notes": list(notes)} if notes else {}),
        }
        self._layout.check_outputs(samples.outputs, samples.given)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _draft(self.folder, "index") as draft:
            _write(draft / INDEX, text_of(index))
            if not _link(draft / INDEX, self.folder / INDEX):
                self.open()
                self._check_common(samples)
        self.open()

    def describe(self) -> None:
        """Writes the layout's files of the whole set."""
        names = (f"{seed:06d}" for seed in range(self.plan.seed, self.plan.seed + self.plan.count))
        with _draft(self.folder, "set") as draft:
            model = str(self._drawn_by["model"])  # as files have it; the plan's is what the folder is called
            self._layout.describe(draft, model, names, self.plan.count, self.outputs, self._given)
            for name in self._layout.set_files:
                _flush(draft / name)
                (draft / name).replace(self.folder / name)

    def has(self, part: int) -> bool:
        """Whether a part is there, by its record and the sizes of its files; what is left of one that is not goes."""
        record = self.folder / RECORDS / f"{part:06d}.json"
        try:
            files = read_record(record)["files"]
        except FileNotFoundError:  # and another process may put it there now: it is left alone
            return False
        except SetError:  # cut short by a power cut
            files = None
        if files is not None and all(_has_size(self.folder / name, file["bytes"]) for name, file in files.items()):
            return True
        record.unlink(missing_ok=True)
        return False

    def add(self, part: int, samples: Samples) -> None:
        """Puts a part in its place, once; raises SetError if its samples are not the set's."""
        if samples.seeds != [*self.plan.seeds(part)]:
            raise SetError(f"part {part} of {self.folder} came with other seeds than were asked for")
        self._check_common(samples)
        name = f"{part:06d}"
        try:
            with _draft(self.folder, name) as draft:
                self._put(part, samples, draft)
        except FileNotFoundError:  # who else drew it at the same time was first, and cleared up
            if not self.has(part):
                raise
        drafts = self.folder / DRAFTS
        for left in drafts.glob(f"{name}-*"):  # by a kill, or of one who is at it, and finds it gone at once
            with suppress(OSError):
                left.rename(left.with_name(f"gone-{uuid.uuid4().hex}"))
        for gone in drafts.glob("gone-*"):
            shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            drafts.rmdir()

    def _put(self, part: int, samples: Samples, draft: Path) -> None:
        self._layout.write(samples, draft, part_name(part))
        files = sorted(path.relative_to(draft) for path in draft.rglob("*") if path.is_file())
        described = {
            str(file): {"sha256": file_digest(draft / file), "bytes": (draft / file).stat().st_size} for file in files
        }
        if not draft.is_dir():  # and files that were open were still written
            raise FileNotFoundError(draft)
        seeds = {"seed": samples.seeds[0], "count": len(samples)}
        record = text_of({"part": part, **seeds, "files": described, "samples": samples.provenance})
        place = self.folder / RECORDS / f"{part:06d}.json"
        if not place.exists():
            for file in files:
                _flush(draft / file)
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                (draft / file).replace(self.folder / file)
            for folder in {(self.folder / file).parent for file in files}:
                _flush(folder)
            place.parent.mkdir(exist_ok=True)
            _write(draft / place.name, record)
            if _link(draft / place.name, place):
                _flush(place.parent)
                return
        if place.read_text() != record:  # somebody else has drawn it at the same time
            raise SetError(f"part {part} of {self.folder} was drawn twice at the same time, and not alike")

    def _check_common(self, samples: Samples) -> None:
        if (drawn_by := common(samples.provenance)) != self._drawn_by:
            raise SetError(f"{self.folder} was drawn by {self._drawn_by}, and what draws now is {drawn_by}")


@dataclass(frozen=True)
class Checked:
    """What a check found: parts and samples that are there and good, a digest of them, and what is wrong."""

    parts: int
    samples: int
    digest: str
    problems: tuple[str, ...]


def check_set(folder: Path, most: int = 10) -> Checked:
    """Reads every file of a set; names the first `most` problems, and counts the rest.

    digest: the sha256 over the sha256s of the records, in order: two sets of one digest are the same, bit for bit.
    Raises SetError if there is no set.
    """
    index = read_index(folder)
    try:
        plan = Plan(**index["plan"])
    except (KeyError, TypeError) as error:
        raise SetError(f"{folder / INDEX} is damaged: {error}") from None
    problems: list[str] = []
    more = 0
    digest, good, samples, files = hashlib.sha256(), 0, 0, set[str]()
    for part in range(plan.parts):
        wrong = list(_problems_of(folder, part, plan, index.get("drawn_by")))
        problems += wrong[: most - len(problems)]
        more += len(wrong)
        if wrong:
            continue
        record = folder / RECORDS / f"{part:06d}.json"
        digest.update(bytes.fromhex(file_digest(record)))
        good, samples = good + 1, samples + len(plan.seeds(part))
        files |= {*read_record(record)["files"]}
    if not more:
        files |= {*index["set_files"], INDEX}
        lost = [folder / name for name in index["set_files"] if not (folder / name).is_file()]
        problems += [f"{file} is missing: the same draw writes it again" for file in lost]
        there = {Path(place, name) for place, _, names in os.walk(folder) for name in names}
        there = {file for file in there if file.relative_to(folder).parts[0] not in (RECORDS, DRAFTS)}
        strangers = sorted(there - {folder / name for name in files})
        problems += [f"{file} is not of the set" for file in strangers[: most - len(problems)]]
        more += len(lost) + len(strangers)
    if more > len(problems):
        problems.append(f"and {more - len(problems)} more")
    return Checked(good, samples, digest.hexdigest(), tuple(problems))


def _problems_of(folder: Path, part: int, plan: Plan, drawn_by: object) -> Iterator[str]:
    path = folder / RECORDS / f"{part:06d}.json"
    try:
        record = read_record(path)
    except FileNotFoundError:
        yield f"part {part} is not there"
        return
    except SetError as error:
        yield str(error)
        return
    seeds = [facts.get("seed") for facts in record["samples"]]
    if seeds != [*plan.seeds(part)]:
        yield f"{path} has other seeds than part {part} of {INDEX}"
    if drawn_by is not None and common(record["samples"]) != drawn_by:
        yield f"{path} was not drawn by what {INDEX} says"
    for name, file in record["files"].items():
        try:
            if file_digest(folder / name) != file["sha256"]:
                yield f"{folder / name} is not the file that was drawn: remove it, and the same draw makes it again"
        except OSError as error:
            yield f"{folder / name} cannot be read: {error.strerror or error}"


def common(provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What made samples, but for what is each one's own; raises SetError if it is not the same for all."""
    found = [_common(facts) for facts in provenance]
    for facts in found:
        if facts != found[0]:
            raise SetError(f"samples were drawn by {found[0]}, and others with them by {facts}")
    return found[0]


def _common(facts: Mapping[str, Any]) -> dict[str, Any]:
    stages = {"stages": [_common(stage) for stage in facts["stages"]]} if "stages" in facts else {}
    return {name: value for name, value in {**facts, **stages}.items() if name not in OF_ONE_SAMPLE}


def read_index(folder: Path) -> dict[str, Any]:
    """Raises SetError if it is missing, damaged, or of another medgen."""
    try:
        index = _read(folder / INDEX)
    except FileNotFoundError:
        raise SetError(f"{folder} has no {INDEX}: it is no set of samples") from None
    if index.get("format") != FORMAT:
        raise SetError(f"{folder / INDEX} has format {index.get('format')!r}; this medgen reads {FORMAT}")
    return index


def _has_size(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except FileNotFoundError:
        return False


def read_record(file: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or SetError if it is damaged."""
    record = _read(file)
    if not isinstance(record.get("files"), dict) or not isinstance(record.get("samples"), list):
        raise SetError(f"{file} is no record of a part")
    return record


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file.read_bytes())
    except ValueError as error:
        raise SetError(f"{file} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise SetError(f"{file} is damaged: it holds no object")
    return found


def _outputs(index: Mapping[str, Any]) -> tuple[Output, ...]:
    try:
        return tuple(decoded(Output, fields, "outputs") for fields in index["outputs"])
    except BundleError as error:
        raise SetError(f"{INDEX}: {error}") from None


@contextmanager
def _draft(folder: Path, what: str) -> Iterator[Path]:
    """A folder to write aside in, which goes with all that is left in it."""
    drafts = folder / DRAFTS
    path = drafts / f"{what}-{uuid.uuid4().hex}"
    while True:
        with suppress(FileNotFoundError):  # another process has just removed the folder around it, which was empty
            path.mkdir(parents=True)
            break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            drafts.rmdir()


def _link(draft: Path, place: Path) -> bool:
    """Puts a file in its place if nothing is there; whether it did."""
    try:
        os.link(draft, place)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS or place.exists():
            raise
        draft.replace(place)
    return True


def _write(file: Path, text: str) -> None:
    file.write_text(text)
    _flush(file)


def _flush(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
