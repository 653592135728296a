"""Pairs of image and mask from one side of a comparison, whatever they are stored as."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.problems import some

Floats = NDArray[np.float32]
Masks = NDArray[np.uint8]


class EvaluationError(Exception):
    """What was asked for cannot be measured; the message says what is missing, or what does not fit."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs in memory.

    name: what tables call them. images: float32 [N, S, S] in [0, 1]. masks: uint8 [N, S, S] of class indices, which
    ``labels`` names; empty if their file named none. names: one a pair. patients: of each pair, whose it is; where
    nothing is known of patients (``knows_patients`` is False), and of samples, each pair stands for itself; samples
    under masks or pictures are of the patients of these. facts: what was read and decided, as JSON holds it. warnings:
    what of it may be wrong. spacing: float64 [N, 2], mm between rows and between columns, NaN of a pair of which that
    is not known; None: of no pair. has_masks: False of pictures alone, whose masks here are empty.
    """

    name: str
    images: Floats
    masks: Masks
    labels: tuple[str, ...]
    names: tuple[str, ...]
    patients: tuple[str, ...]
    knows_patients: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    spacing: NDArray[np.float64] | None = None
    has_masks: bool = True

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        return int(self.images.shape[-1])

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """The patient of each pair as a number from 0 up."""
        return np.unique(np.array(self.patients), return_inverse=True)[1].astype(np.int64)

    @property
    def patient_count(self) -> int:
        return len(set(self.patients))

    @property
    def in_mm(self) -> bool:
        """Whether the size of every pixel is known."""
        return self.spacing is not None and bool(np.isfinite(self.spacing).all())

    @property
    def pixels_mm(self) -> list[list[float]] | None:
        """The least and the greatest sides of a pixel, as JSON holds them; None if one is not known."""
        if self.spacing is None or not self.in_mm:
            return None
        return [self.spacing.min(0).round(6).tolist(), self.spacing.max(0).round(6).tolist()]

    @property
    def empty(self) -> int:
        """How many masks are empty."""
        return int((~self.masks.any((1, 2))).sum()) if self.has_masks else 0

    @cached_property
    def digest(self) -> str:
        """The sha256 of images and masks."""
        found = hashlib.sha256(np.ascontiguousarray(self.images).data)
        found.update(np.ascontiguousarray(self.masks).data)
        return found.hexdigest()

    def at(self, rows: Sequence[int] | NDArray[Any], name: str | None = None) -> "Pairs":
        """Some of them, in this order."""
        rows = np.asarray(rows, np.int64)
        return Pairs(
            name or self.name,
            self.images[rows],
            self.masks[rows],
            self.labels,
            tuple(self.names[row] for row in rows),
            tuple(self.patients[row] for row in rows),
            self.knows_patients,
            self.facts,
            self.warnings,
            None if self.spacing is None else self.spacing[rows],
            self.has_masks,
        )

    def described(self) -> dict[str, Any]:
        """What a report records of them."""
        return {
            "name": self.name,
            "pairs": len(self),
            "patients": self.patient_count if self.knows_patients else None,
            "size": self.size,
            "labels": list(self.labels),
            "has_masks": self.has_masks,
            "empty_masks": self.empty,
            "pixels_mm": self.pixels_mm,
            "sha256": self.digest,
            **self.facts,
        }


def together(one: Pairs, other: Pairs) -> Pairs:
    """Both. Where a side knows no patients, nobody is taken for the same one by the name of a file."""
    knows = one.knows_patients and other.knows_patients
    patients = [
        each.patients if knows else tuple(f"{each.name}: {name}" for name in each.patients) for each in (one, other)
    ]
    unknown = [np.full((len(each), 2), np.nan) if each.spacing is None else each.spacing for each in (one, other)]
    return Pairs(
        f"{one.name} and {other.name}",
        np.concatenate([one.images, other.images]),
        np.concatenate([one.masks, other.masks]),
        one.labels or other.labels,
        one.names + other.names,
        patients[0] + patients[1],
        knows,
        spacing=np.concatenate(unknown),
        has_masks=one.has_masks and other.has_masks,
    )


def halves_by_patient(pairs: Pairs, seed: int, share: float = 0.5) -> tuple[Pairs, Pairs]:
    """Two parts, of which no patient is in both: the first has at least ``share`` of the pairs, as near as it goes.

    Raises EvaluationError if there is one patient alone.
    """
    order = np.random.default_rng(seed).permutation(pairs.groups.max() + 1)
    if len(order) < 2:
        raise EvaluationError(f"{pairs.name} shows one patient alone, and cannot be split by patient")
    sizes = np.bincount(pairs.groups)[order]
    first = min(int(np.searchsorted(np.cumsum(sizes), share * len(pairs))) + 1, len(order) - 1)
    inside = np.isin(pairs.groups, order[:first])
    return pairs.at(np.flatnonzero(inside)), pairs.at(np.flatnonzero(~inside))


def drawn_by_patient(pairs: Pairs, count: int, seed: int) -> Pairs:
    """``count`` of the pairs, or all: drawn in turn from patient to patient, so that as many as can be are in it."""
    if count >= len(pairs):
        return pairs
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(pairs))
    seen: dict[int, int] = {}
    turn = np.empty(len(pairs), np.int64)
    for row in shuffled:
        group = int(pairs.groups[row])
        turn[row] = seen[group] = seen.get(group, -1) + 1
    chosen = shuffled[np.argsort(turn[shuffled], kind="stable")][:count]
    return pairs.at(np.sort(chosen))


def of_same_patients(one: Pairs, other: Pairs) -> NDArray[np.bool_]:
    """Whether each of one side and each of the other [N, M] are of one patient, by the names."""
    return np.array(one.patients)[:, None] == np.array(other.patients)


def check_apart(one: Pairs, other: Pairs) -> None:
    """Raises EvaluationError if a picture, or a patient where both know theirs, is on both sides."""
    if one.knows_patients and other.knows_patients and (both := {*one.patients} & {*other.patients}):
        raise EvaluationError(
            f"{len(both)} patients are both in {one.name} and in {other.name}: {some(sorted(both))}; no patient may be"
        )
    check_no_picture_twice(one, other)


def share_names(one: Pairs, other: Pairs) -> bool:
    """Whether a patient of both would have the same name in both: patients are known, and of the same layout."""
    known = one.knows_patients and other.knows_patients
    return known and one.facts.get("layout") == other.facts.get("layout")


def check_no_picture_twice(one: Pairs, other: Pairs) -> None:
    """Raises EvaluationError if a picture is on both sides."""
    pictures = {hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in one.images}
    same = [
        name
        for name, image in zip(other.names, other.images, strict=True)
        if hashlib.sha256(np.ascontiguousarray(image).data).digest() in pictures
    ]
    if same:
        raise EvaluationError(f"{len(same)} pictures of {other.name} are in {one.name} too: {some(same)}")


def check_alike(real: Pairs, *others: Pairs) -> None:
    """Raises EvaluationError if sizes differ or classes do."""
    for other in others:
        if other.size != real.size:
            raise EvaluationError(
                f"{real.name} has pictures of {real.size} pixels, {other.name} of {other.size}: name one with --size"
            )
        check_classes(other, real.name, real.labels)


def check_classes(pairs: Pairs, name: str, labels: tuple[str, ...]) -> None:
    """Raises EvaluationError if there are masks of other classes than these, ``name``'s; where it has none, any do."""
    if labels and pairs.labels and labels != pairs.labels:
        raise EvaluationError(f"{name} has masks of {', '.join(labels)}, and {pairs.name} of {', '.join(pairs.labels)}")
    if labels and (highest := int(pairs.masks.max())) >= len(labels):
        raise EvaluationError(f"{pairs.name} has masks of class {highest}; {name} names 0 to {len(labels) - 1}")
