"""Samples of a candidate, some seeds at a time."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.cache import Arrays, Cache
from benchmarks.evaluation.drawing import masks_of
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.reading import of_samples
from benchmarks.tune.candidates import Candidate
from serving.client import LocalClient, Progress, SamplingError
from serving.condition_files import Masks
from serving.progress import NowAndThen
from serving.sample_set import Samples

PART = 32  # samples, after which a candidate may be given up


class Drawer:
    """Opens each repository once; what was drawn before is taken from the cache.

    given: real pairs whose masks a model is given that draws under masks, in turn.
    """

    def __init__(self, cache: Cache, given: Pairs) -> None:
        self._cache, self._given = cache, given
        self._clients: dict[Path, LocalClient] = {}
        self._stack = ExitStack()
        self._line = NowAndThen()

    def __enter__(self) -> "Drawer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def parts(self, candidate: Candidate, seeds: range) -> Iterator[Pairs]:
        """All that was drawn so far, after each part."""
        parts: list[Pairs] = []
        for first in range(0, len(seeds), PART):
            some = seeds[first : first + PART]

            def tell(done: int, _: int, before: int = first) -> None:
                self._line(f"{candidate.name}: {before + done} of {len(seeds)} samples")

            made_of = [candidate.held.bundle.digest, candidate.solver, candidate.steps, some.start, len(some)]
            if candidate.held.bundle.manifest.condition:
                made_of += [self._given.digest, self._given.labels, self._given.pixels_mm]
            arrays = self._cache.arrays("samples", made_of, partial(self._arrays, candidate, some, tell))
            parts.append(self._pairs(candidate, some, arrays))
            yield _joined(parts)

    def all(self, candidate: Candidate, seeds: range) -> Pairs:
        *_, last = self.parts(candidate, seeds)
        return last

    def draw(self, candidate: Candidate, seeds: range, progress: Progress | None = None) -> Samples:
        """Whether they are kept already or not.

        Raises EvaluationError if they cannot be drawn, or if the bundle was rebuilt since it was loaded.
        """
        asked: dict[str, Any] = {
            "solver": candidate.solver,
            "steps": candidate.steps,
            "condition": self._condition(candidate, seeds),
            "progress": progress,
        }
        try:
            samples = self._client(candidate).sample(candidate.held.model, seeds=seeds, **asked)
        except SamplingError as error:
            raise EvaluationError(f"{candidate.name}: {error}") from error
        bundle = candidate.held.bundle
        if (drew := {facts["bundle"] for facts in samples.provenance}) != {bundle.digest}:
            raise EvaluationError(
                f"{bundle.folder} was rebuilt meanwhile: {', '.join(sorted(drew))} drew the samples, {bundle.digest} "
                "was to"
            )
        return samples

    def _arrays(self, candidate: Candidate, seeds: range, progress: Progress) -> Arrays:
        pairs = of_samples(_with_picture(self.draw(candidate, seeds, progress)), candidate.name)
        return {"images": pairs.images, "masks": pairs.masks}

    def _client(self, candidate: Candidate) -> LocalClient:
        place = candidate.held.repository
        if place not in self._clients:
            self._clients[place] = self._stack.enter_context(LocalClient(place))
        return self._clients[place]

    def _condition(self, candidate: Candidate, seeds: range) -> Masks | None:
        condition = candidate.held.bundle.manifest.condition
        if condition is None:
            return None
        if condition.classes is None:
            raise EvaluationError(f"{candidate.held.model} draws under pictures; there are none to give it here")
        return masks_of(self._given, self._rows(seeds))

    def _rows(self, seeds: range) -> NDArray[np.int64]:
        """Of what is given: whose masks these seeds are drawn under."""
        return np.array(seeds) % len(self._given)

    def _pairs(self, candidate: Candidate, seeds: range, arrays: Arrays) -> Pairs:
        held = candidate.held
        names = patients = tuple(f"seed {seed}" for seed in seeds)
        if held.bundle.manifest.condition:  # samples under masks of one patient are no more independent than the masks
            patients = tuple(self._given.patients[row] for row in self._rows(seeds))
        facts = {"bundle": held.model, "solver": candidate.solver, "steps": candidate.steps}
        return Pairs(candidate.name, arrays["images"], arrays["masks"], held.labels, names, patients, True, facts)


def _with_picture(samples: Samples) -> Samples:
    """Of masks alone, their classes as grey levels."""
    if "image" in samples.arrays or "mask" not in samples.arrays:
        return samples
    mask = samples.arrays["mask"]
    classes = max(len(samples.outputs[0].labels), 2)
    return Samples({"mask": mask, "image": grey_of(mask, classes)}, samples.provenance, samples.outputs)


def as_pictures(pairs: Pairs) -> Pairs:
    """Real pairs for samples that are masks alone."""
    classes = max(len(pairs.labels), int(pairs.masks.max()) + 1, 2)
    return replace(pairs, images=grey_of(pairs.masks, classes))


def grey_of(mask: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    return (mask / np.float32(classes - 1)).astype(np.float32)


def _joined(parts: list[Pairs]) -> Pairs:
    first = parts[0]
    names, patients = (sum((getattr(part, what) for part in parts), ()) for what in ("names", "patients"))
    images, masks = (np.concatenate([getattr(part, what) for part in parts]) for what in ("images", "masks"))
    return Pairs(first.name, images, masks, first.labels, names, patients, True, first.facts)
