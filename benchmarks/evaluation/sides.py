"""The sides of a comparison: real pairs that were trained on, others that were not, and samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evaluation.pairs import (
    EvaluationError,
    Pairs,
    check_alike,
    check_apart,
    check_no_picture_twice,
    halves_by_patient,
    together,
)
from benchmarks.evaluation.reading import has_split, of_samples, read_pairs
from serving.client import LocalClient, SamplingError
from serving.progress import NowAndThen

FEW_PATIENTS = 30


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
    count: int
    sample_seed: int
    solving: dict[str, Any]
    repository: Path
    skip_bad: bool

    def read(self, source: str, size: int, split: str, labels: tuple[str, ...], name: str | None = None) -> Pairs:
        """Real pairs."""
        return read_pairs(source, size, split, labels, self.patient, name, self.skip_bad)


@dataclass(frozen=True)
class Sides:
    """train: real pairs that a generator may have learnt from. held_out: of other patients. synthetic: samples.

    as_fit: whether train and held_out are what `fit` and its user set apart, and not halves that were drawn here.
    """

    train: Pairs
    held_out: Pairs
    synthetic: Pairs
    as_fit: bool

    @property
    def labels(self) -> tuple[str, ...]:
        return self.train.labels or self.synthetic.labels

    @property
    def classes(self) -> int:
        """Of all masks, the background's too."""
        return max(
            len(self.labels), *(int(each.masks.max()) + 1 for each in (self.train, self.held_out, self.synthetic))
        )

    def warnings(self) -> list[str]:
        lines = [line for each in (self.train, self.held_out, self.synthetic) for line in each.warnings]
        for each in (self.train, self.held_out):
            if each.knows_patients and each.patient_count < FEW_PATIENTS:
                lines.append(
                    f"{each.name}: {each.patient_count} patients are few. Intervals over so few are too narrow, and "
                    "what is found of them need not hold for others"
                )
            if empty := int((~each.masks.any((1, 2))).sum()):
                lines.append(f"{each.name}: {empty} of {len(each)} masks are empty, and counted")
        if empty := int((~self.synthetic.masks.any((1, 2))).sum()):
            lines.append(f"{self.synthetic.name}: {empty} of {len(self.synthetic)} masks are empty, and counted")
        return list(dict.fromkeys(lines))

    def facts(self) -> dict[str, Any]:
        named = {"train": self.train, "held out": self.held_out, "synthetic": self.synthetic}
        return {name: pairs.described() for name, pairs in named.items()}


def open_sides(asked: Asked) -> Sides:
    """Read or draw all of them, and see that they can be compared.

    Without --train, what `fit` splits by patient is split as `fit` does; other folders are halved by patient.

    Raises EvaluationError if they cannot, or if a picture or patient is on both real sides.
    """
    synthetic = _samples(asked)
    size = asked.size or synthetic.size
    labels = synthetic.labels
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
    check_alike(train, held_out, synthetic)
    check_apart(train, held_out)
    return Sides(train, held_out, synthetic, as_fit)


def other_data(source: str, sides: Sides, asked: Asked) -> tuple[Pairs | None, Pairs]:
    """Another data set: what to train on, if `fit` splits it, and what to test on.

    Raises EvaluationError if it does not fit, or if a picture of it is in the training set.
    """
    name = Path(source).name
    if has_split(source):
        train = asked.read(source, sides.train.size, "train", sides.labels, name)
        test = asked.read(source, sides.train.size, "validation", sides.labels, name)
    else:
        train, test = None, asked.read(source, sides.train.size, "all", sides.labels, name)
    for each in filter(None, (train, test)):
        check_alike(sides.train, each)
    check_no_picture_twice(sides.train, test)
    return train, test


def even_halves(sides: Sides, seed: int) -> tuple[Pairs, Pairs]:
    """All real pairs in two halves by patient, if no generator's training decides which is which."""
    whole = together(sides.train, sides.held_out)
    one, other = halves_by_patient(whole, seed)
    return one.at(range(len(one)), "real, one half"), other.at(range(len(other)), "real, other half")


def _samples(asked: Asked) -> Pairs:
    if (asked.synthetic is None) == (asked.model is None):
        raise EvaluationError("give either SYNTHETIC, a folder of pairs, or --model, which draws them")
    if asked.synthetic is not None:
        return read_pairs(asked.synthetic, asked.size, name="synthetic")
    assert asked.model is not None
    line = NowAndThen()
    try:
        with LocalClient(asked.repository) as client:
            samples = client.sample(
                asked.model,
                asked.count,
                seed=asked.sample_seed,
                progress=lambda done, of: line(f"{asked.model}: {done} of {of} samples"),
                **asked.solving,
            )
    except SamplingError as error:
        raise EvaluationError(str(error)) from error
    pairs = of_samples(samples, "synthetic")
    if asked.size not in (None, pairs.size):
        raise EvaluationError(f"{asked.model} draws {pairs.size} pixels; --size is {asked.size}")
    return pairs
