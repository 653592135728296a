"""Samples that are drawn for the purpose, here or by a server."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.cache import Arrays, Cache
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.progress import followed
from benchmarks.evaluation.reading import of_samples
from serving.bundle import Condition
from serving.client import Client, LocalClient, SampleClient, SamplingError
from serving.condition_files import Masks
from serving.drawn_set import OF_ONE_SAMPLE, common
from serving.picture_files import Pictures
from serving.sample_set import Samples

PART = 32  # samples that are kept together: a run that is cut short loses no more


@dataclass(frozen=True)
class Drawing:
    """A bundle in the repository or, with a url, of the server there (gRPC), and how it is asked."""

    model: str
    seeds: range
    solving: Mapping[str, Any]
    repository: Path
    url: str | None
    cache: Cache

    def condition(self) -> Condition | None:
        """What it draws under. Raises EvaluationError if there is no such model."""
        with self._client() as client:
            return client.condition(self.model)

    def drawn(self, given: Pairs | None = None) -> Pairs:
        """The samples; given: real pairs, whose masks or pictures a model that wants such is given in turn.

        One is drawn anew, whose provenance tells what makes them; of the same bundle, solver, seeds and conditions the
        others are kept. A model that wants a label has its classes in turn. Samples count as of the patients of
        the masks or pictures: they are no more independent than these.

        Raises EvaluationError if they cannot be drawn, or have no image.
        """
        with self._client() as client:
            return self._drawn(client, client.condition(self.model), given)

    @contextmanager
    def _client(self) -> Iterator[Client]:
        try:
            with SampleClient(self.url) if self.url else LocalClient(self.repository) as client:
                yield client
        except SamplingError as error:
            raise EvaluationError(str(error)) from error

    def _drawn(self, client: Client, condition: Condition | None, given: Pairs | None) -> Pairs:
        def sample(seeds: range) -> Samples:
            under = self._under(condition, given, seeds)
            return client.sample(self.model, seeds=seeds, **under, **self.solving)

        first = sample(self.seeds[:1])
        of_samples(first, self.model)
        made_by = common(first.provenance)
        used = given if condition is not None and not condition.is_label else None
        parts = []
        for start in followed(range(0, len(self.seeds), PART), f"{self.model}, {PART} samples at a time"):
            some = self.seeds[start : start + PART]

            def draw(some: range = some) -> Arrays:
                samples = sample(some)
                if common(samples.provenance) != made_by:
                    raise EvaluationError(f"{self.model} was replaced while its samples were drawn")
                return samples.arrays

            made_of = [made_by, some.start, len(some)]
            if condition is not None:  # whose turn it is depends on the first seed of all
                made_of += [None if used is None else used.digest, self.seeds.start]
            parts.append(self.cache.arrays("samples", made_of, draw))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        of_all = {name: value for name, value in first.provenance[0].items() if name not in OF_ONE_SAMPLE}
        provenance = [{**of_all, "seed": seed} for seed in self.seeds]
        pairs = of_samples(Samples(arrays, provenance, first.outputs, first.given), "synthetic")
        if condition is None:
            return pairs
        pairs = replace(pairs, facts={**pairs.facts, **_told(condition, used)})
        if used is None:
            return pairs
        patients = tuple(used.patients[row % len(used)] for row in range(len(pairs)))
        return replace(pairs, patients=patients, knows_patients=used.knows_patients)

    def _under(self, condition: Condition | None, given: Pairs | None, seeds: range) -> dict[str, Any]:
        """What the samples of these seeds are drawn under, as a client takes it."""
        if condition is None:
            return {}
        turns = np.arange(len(seeds)) + seeds.start - self.seeds.start
        if condition.is_label:
            assert condition.classes is not None
            return {"label": (turns % condition.classes).tolist()}
        if given is None:
            raise EvaluationError(f"{self.model} draws under a {condition.name}, and there is none to give it")
        rows = turns % len(given)
        if condition.classes is not None:
            if not given.has_masks:
                raise EvaluationError(f"{self.model} draws under masks; {given.name} has none")
            return {"condition": masks_of(given, rows)}
        low, high = condition.limits
        pictures = given.images[rows][:, None] * np.float32(high - low) + np.float32(low)
        return {"condition": Pictures(pictures.clip(low, high), tuple(given.names[row] for row in rows))}


def masks_of(given: Pairs, rows: NDArray[Any]) -> Masks:
    """Those of some pairs, as a client takes them: with their classes and, where all have the same, their spacing."""
    sides = given.spacing[0].tolist() if given.in_mm and given.spacing is not None else None
    spacing = None if sides is None or (given.spacing != sides).any() else (sides[0], sides[1])
    return Masks(given.masks[rows][:, None], given.labels, spacing)


def side_of(condition: Condition, model: str) -> int:
    """Rows and columns of the masks or pictures that it wants.

    Raises EvaluationError if they are not square or of several channels.
    """
    if condition.shape[0] != 1 or condition.shape[1] != condition.shape[2]:
        raise EvaluationError(f"{model} draws under {list(condition.shape)}; there are grey squares alone to give it")
    return condition.shape[1]


def _told(condition: Condition, used: Pairs | None) -> dict[str, Any]:
    """What a report records of the conditions."""
    if used is None:
        return {"drawn_under": {"what": "label", "classes": list(condition.labels) or condition.classes}}
    what = "picture" if condition.classes is None else "mask"
    return {"drawn_under": {"what": what, "of": used.name, "count": len(used), "sha256": used.digest}}
