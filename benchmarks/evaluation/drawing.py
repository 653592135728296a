"""Samples that are drawn for the purpose, here or by a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.cache import Arrays, Cache
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.reading import of_samples
from serving.client import Client, LocalClient, SampleClient, SamplingError
from serving.drawn_set import common
from serving.progress import NowAndThen
from serving.sample_set import Samples

PART = 32  # samples that are kept together: a run that is cut short loses no more


def drawn(
    model: str, seeds: range, solving: Mapping[str, Any], repository: Path, url: str | None, cache: Cache
) -> Pairs:
    """Samples of a bundle in the repository or, with a url, of the server there (gRPC).

    One is drawn anew, whose provenance tells what makes them; of the same bundle, solver and seeds the others are kept.

    Raises EvaluationError if they cannot be drawn, or have no image.
    """
    client: Client
    try:
        with SampleClient(url) if url else LocalClient(repository) as client:
            return _drawn(client, model, seeds, solving, cache)
    except SamplingError as error:
        raise EvaluationError(str(error)) from error


def _drawn(client: Client, model: str, seeds: range, solving: Mapping[str, Any], cache: Cache) -> Pairs:
    first, line = client.sample(model, seeds=seeds[:1], **solving), NowAndThen()
    of_samples(first, model)
    made_by = common(first.provenance)
    parts = []
    for start in range(0, len(seeds), PART):
        line(f"{model}: {start} of {len(seeds)} samples")
        some = seeds[start : start + PART]

        def draw(some: range = some) -> Arrays:
            samples = client.sample(model, seeds=some, **solving)
            if common(samples.provenance) != made_by:
                raise EvaluationError(f"{model} was replaced while its samples were drawn")
            return samples.arrays

        parts.append(cache.arrays("samples", [made_by, some.start, len(some)], draw))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    provenance = [{**first.provenance[0], "seed": seed} for seed in seeds]
    return of_samples(Samples(arrays, provenance, first.outputs), "synthetic")
