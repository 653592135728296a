"""The sides of a comparison: real pairs that were trained on, others that were not, and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.drawing import Drawing, side_of
from benchmarks.evaluation.pairs import (
    EvaluationError,
    Pairs,
    check_alike,
    check_apart,
    check_no_picture_twice,
    drawn_by_patient,
    halves_by_patient,
    share_names,
    together,
)
from benchmarks.evaluation.reading import OF_PATIENTS, has_split, read_pairs
from benchmarks.evaluation.report import Cell, Section, Table
from serving.bundle import REPOSITORY

FEW_PATIENTS = 30
SHAPES_GIVEN = "the shapes of the masks are none of the model's, and not compared"
COUNT = 512  # of samples that are drawn


@dataclass(frozen=True)
class Asked:
    """What the options of the commands say; see there."""

    real: str
    synthetic: str | None
    train: str | None
    out: Path
    size: int | None
    seed: int
    patient: str | None
    model: str | None
    count: int | None
    sample_seed: int | None
    solving: dict[str, Any]
    repository: Path | None
    url: str | None
    skip_bad: bool

    @property
    def cache(self) -> Cache:
        return Cache(self.out / "cache")

    def read(self, source: str, size: int, split: str, labels: tuple[str, ...], name: str | None = None) -> Pairs:
        """Real pairs."""
        return read_pairs(source, size, split, labels, self.patient, name, self.skip_bad)


@dataclass(frozen=True)
class Sides:
    """train: real pairs that a generator may have learnt from. held_out: of other patients. synthetic: samples.

    as_fit: whether train and held_out are what `fit` and its user set apart, and not halves that were drawn here.
    under: pairs of held_out under whose masks or pictures the samples were drawn in turn; None of others. drawing: how
    samples were drawn; None of a folder's.
    """

    train: Pairs
    held_out: Pairs
    synthetic: Pairs
    as_fit: bool
    under: Pairs | None = None
    drawing: Drawing | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.train.labels or self.synthetic.labels

    @property
    def classes(self) -> int:
        """Of all masks, the background's too."""
        return max(
            len(self.labels), *(int(each.masks.max()) + 1 for each in (self.train, self.held_out, self.synthetic))
        )

    @property
    def given(self) -> str | None:
        """ "mask" or "picture", what of the held-out patients the samples were drawn under; None if nothing was."""
        return None if self.under is None else str(self.synthetic.facts["drawn_under"]["what"])

    def to_train_with(self, seed: int) -> "Sides":
        """With samples that nothing of the held-out patients went into, for those are tested on."""
        if self.drawing is None or self.under is None:
            return self
        under = drawn_by_patient(self.train, len(self.drawing.seeds), seed)
        return replace(self, synthetic=self.drawing.drawn(under), under=under)

    @property
    def without_masks(self) -> str | None:
        """Which sides have none, in words; None if all have."""
        sides = {"the real images": self.real_masks, "the samples": self.synthetic.has_masks}
        lacking = [name for name, there in sides.items() if not there]
        return f"{' and '.join(lacking)} have no masks" if lacking else None

    @property
    def real_masks(self) -> bool:
        return self.train.has_masks and self.held_out.has_masks

    @property
    def notices(self) -> Sequence[str]:
        """What a user must know of the samples, as the models say that drew them."""
        found: Sequence[str] = self.synthetic.facts.get("notices", ())
        return found

    def warnings(self) -> list[str]:
        lines = [line for each in (self.train, self.held_out, self.synthetic) for line in warnings_of(each)]
        if (under := self.synthetic.facts.get("drawn_under")) is not None:
            lines.append(f"{self.synthetic.name}: {_said(under)}")
        if self.synthetic.facts.get("given_conditions"):
            lines.append(
                f"{self.synthetic.name}: drawn under masks or pictures. Samples with the mask of a real image count as "
                "of its patient, others each as its own: intervals are too narrow where many of those are of few"
            )
        if self.synthetic.facts.get("given_masks"):
            lines.append(f"{self.synthetic.name}: {SHAPES_GIVEN}")
        if self.synthetic.facts.get("unfinished"):
            lines.append(f"{self.synthetic.name}: the model's training was not through when its bundle was built")
        lines += [f"{self.synthetic.name}: the model says of its samples: {line}" for line in self.notices]
        return list(dict.fromkeys(lines))

    def facts(self) -> dict[str, Any]:
        named = {"train": self.train, "held out": self.held_out, "synthetic": self.synthetic}
        return {name: pairs.described() for name, pairs in named.items()}


def open_sides(asked: Asked) -> Sides:
    """Read or draw all of them, and see that they can be compared.

    Without --train, what `fit` splits by patient is split as `fit` does; other folders are halved by patient.

    Raises EvaluationError if they cannot, or if a picture or patient is on both real sides.
    """
    drawing, under = _drawing(asked), None
    condition = None if drawing is None else drawing.condition()
    if drawing is not None and condition is not None and not condition.is_label:
        side = side_of(condition, drawing.model)
        train, held_out, as_fit = _real_sides(asked, side, condition.labels)
        under = drawn_by_patient(held_out, len(drawing.seeds), asked.seed)
        synthetic = drawing.drawn(under)
        if not (train.knows_patients and held_out.knows_patients):  # as ``together`` will call whose masks they are
            synthetic = replace(synthetic, patients=tuple(f"{under.name}: {each}" for each in synthetic.patients))
    else:
        synthetic = _samples(asked) if drawing is None else drawing.drawn()
        train, held_out, as_fit = _real_sides(asked, asked.size or synthetic.size, synthetic.labels)
        synthetic = _of_whose_masks(synthetic, train, held_out) if drawing is None else synthetic
    if asked.model is not None and asked.size not in (None, synthetic.size):
        raise EvaluationError(f"{asked.model} draws {synthetic.size} pixels; --size is {asked.size}")
    train, held_out, synthetic = _named_alike(train, held_out, synthetic)
    check_alike(train, held_out, synthetic)
    check_apart(train, held_out)
    return Sides(train, held_out, synthetic, as_fit, under, drawing)


def warnings_of(side: Pairs) -> list[str]:
    """What was said when it was read, and what it is too few of."""
    lines = [f"{side.name}: {line}" if line in OF_PATIENTS else line for line in side.warnings]
    if side.knows_patients and side.patient_count < FEW_PATIENTS:
        lines.append(
            f"{side.name}: {side.patient_count} patients are few. Intervals over so few are too narrow, and what is "
            "found of them need not hold for others"
        )
    if side.empty:
        lines.append(f"{side.name}: {side.empty} of {len(side)} masks are empty, and counted")
    return lines


def _real_sides(asked: Asked, size: int, labels: tuple[str, ...]) -> tuple[Pairs, Pairs, bool]:
    """What a generator may have learnt from, other patients, and whether that was set apart and not halved here."""
    as_fit = True
    if asked.train is not None and Path(asked.train).resolve() != Path(asked.real).resolve():
        held_out = asked.read(asked.real, size, "all", labels, "real, held out")
        train = asked.read(asked.train, size, "all", labels, "real, trained on")
    elif has_split(asked.real):
        train = asked.read(asked.real, size, "train", labels, "real, trained on")
        held_out = asked.read(asked.real, size, "validation", labels, "real, held out")
    else:
        as_fit = False
        whole = asked.read(asked.real, size, "all", labels)
        one, other = halves_by_patient(whole, asked.seed)
        train, held_out = one.at(range(len(one)), "real, one half"), other.at(range(len(other)), "real, other half")
    return train, held_out, as_fit


def _named_alike(*sides: Pairs) -> list[Pairs]:
    """With the same classes on all: where a file names none they are those of the others, in their order."""
    number = max(int(each.masks.max()) + 1 for each in sides)
    named = next((each.labels for each in sides if each.labels), None)
    labels = named or ("background", *(f"class {k}" for k in range(1, number)))
    return [each if each.labels or not each.has_masks else replace(each, labels=labels) for each in sides]


def overview(sides: Sides) -> Section:
    """What the page begins with."""

    def row(side: Pairs) -> list[Cell]:
        drawn_by = side.facts.get("drawn_by") or {}
        made = ", ".join(
            f"{stage['model']} {stage['bundle'][:12]} ({stage.get('solver')}, {stage.get('steps')} steps)"
            for stage in (drawn_by, *drawn_by.get("stages", ()))
            if stage.get("bundle")
        )
        patients = side.patient_count if side.knows_patients else "not known"
        masks = f"{side.empty} of {len(side)} empty" if side.has_masks else "none"
        whose: Cell = "each its own" if side is sides.synthetic and side.patient_count == len(side) else patients
        return [side.name, len(side), whose, f"{side.size} x {side.size}", masks, side.digest[:12], made or None]

    columns = ["", "pictures", "patients", "pixels", "masks", "sha256", "drawn by (bundle)"]
    rows = [row(side) for side in (sides.train, sides.held_out, sides.synthetic)]
    return Section("What is compared", tables=[Table("Sides", columns, rows)])


def other_data(sources: Sequence[str], sides: Sides, asked: Asked) -> list[tuple[Pairs | None, Pairs]]:
    """Of each other data set: what to train on, if `fit` splits it, and what to test on.

    Raises EvaluationError if one does not fit, if two have the same name, or if a picture would be trained on and
    tested on, or a patient where both data sets name theirs alike.
    """
    found: list[tuple[Pairs | None, Pairs]] = []
    names = [source.rstrip("/").rpartition("/")[2] or source for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError(f"two of --other are called {twice[0]!r}, and tables would not tell which is which")
    for source, name in zip(sources, names, strict=True):
        if has_split(source):
            train = asked.read(source, sides.train.size, "train", sides.labels, f"{name}, trained on")
            test = asked.read(source, sides.train.size, "validation", sides.labels, name)
        else:
            train, test = None, asked.read(source, sides.train.size, "all", sides.labels, name)
        for each in filter(None, (train, test)):
            if not each.has_masks:
                raise EvaluationError(f"{source} has no masks, which a segmenter is trained and tested on")
            check_alike(sides.train, each)
        found.append((train, test))
    learnt = [sides.train, *(train for train, _ in found if train is not None)]
    for tested in (sides.held_out, *(test for _, test in found)):
        for each in learnt:
            check = check_apart if share_names(each, tested) else check_no_picture_twice
            check(each, tested)
    return found


def even_halves(sides: Sides, seed: int) -> tuple[Pairs, Pairs]:
    """All real pairs in two halves by patient, if no generator's training decides which is which."""
    whole = together(sides.train, sides.held_out)
    one, other = halves_by_patient(whole, seed)
    return one.at(range(len(one)), "real, one half"), other.at(range(len(other)), "real, other half")


def _said(under: Mapping[str, Any]) -> str:
    if under["what"] == "label":
        return "drawn under each class that the model knows in turn, however often the real images show it"
    given = f"drawn under {under['count']} {under['what']}s of {under['of']}, in turn"
    if under["what"] == "mask":
        return f"{given}: {SHAPES_GIVEN}"
    return f"{given}: each is what the model makes of a real image, and its distance to real images is no new picture's"


def _samples(asked: Asked) -> Pairs:
    """Of a folder."""
    assert asked.synthetic is not None
    drawing = {"count": asked.count, "sample-seed": asked.sample_seed, "repository": asked.repository}
    given = {"url": asked.url, **drawing, **{name.replace("_", "-"): each for name, each in asked.solving.items()}}
    if useless := [f"--{name}" for name, value in given.items() if value is not None]:
        raise EvaluationError(f"{', '.join(useless)} is for --model, and SYNTHETIC was given: it is drawn already")
    return read_pairs(asked.synthetic, asked.size, name="synthetic")


def _of_whose_masks(samples: Pairs, *real: Pairs) -> Pairs:
    """Samples under masks of one patient are no more independent than the masks; named as ``together`` names them."""
    knows = all(side.knows_patients for side in real)
    of_mask = {
        mask.tobytes(): patient if knows else f"{side.name}: {patient}"
        for side in real
        for mask, patient in zip(side.masks, side.patients, strict=True)
        if mask.any()
    }
    own = zip(samples.masks, samples.patients, strict=True)
    return replace(samples, patients=tuple(of_mask.get(mask.tobytes(), patient) for mask, patient in own))


def _drawing(asked: Asked) -> Drawing | None:
    """None if samples are there already."""
    if (asked.synthetic is None) == (asked.model is None):
        raise EvaluationError("give either SYNTHETIC, a folder of pairs, or --model, which draws them")
    if asked.model is None:
        return None
    if asked.url and asked.repository:
        raise EvaluationError("give either --url, a server's, or --repository")
    first = asked.seed if asked.sample_seed is None else asked.sample_seed
    repository = asked.repository or Path(REPOSITORY)
    seeds = range(first, first + (asked.count or COUNT))
    return Drawing(asked.model, seeds, asked.solving, repository, asked.url, asked.cache)
