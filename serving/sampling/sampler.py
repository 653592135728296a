"""From requests to samples: noise, tables and batches for an engine."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import Engine, open_engine
from serving.sampling.requests import SampleRequest
from serving.sampling.rows import Row, not_finite, provenance, rows_of
from serving.sampling.trajectory import trajectory

Arrays = dict[str, NDArray]  # by name, row i of every array belonging to one sample


class Sampler:
    """Samples of one bundle; each depends on (bundle, seed, solver, steps) and its condition, and on nothing else."""

    def __init__(self, bundle: Bundle, engine: Engine | None = None) -> None:
        self.bundle = bundle
        self._engine = engine or open_engine(bundle)

    def sample(
        self, requests: Sequence[SampleRequest], progress: Callable[[int, int], object] | None = None
    ) -> list[Arrays]:
        """Draw what the requests ask for, in batches that mix them.

        Args:
            progress: called with (samples done, samples in all) after every batch.

        Returns:
            For each request the manifest's outputs by name, [N, ...] each, and "provenance", object [N, 1]: JSON as
            bytes, saying model, bundle, seed, solver, steps, under a condition the sha256 of its bytes, of a label its
            index and its name, the manifest's "notices" if it has any, and "unfinished" if the model's training was not
            through.

        Raises:
            EngineError: the engine failed, or its values are not finite.
        """
        manifest = self.bundle.manifest
        count = sum(len(request.seeds) for request in requests)
        samples = {o.name: np.empty((count, *o.shape), o.dtype) for o in manifest.outputs}  # first: it may be too much
        rows = [row for request in requests for row in rows_of(self.bundle, request)]
        longest_first = sorted(range(count), key=lambda k: -len(rows[k].table))
        for first in range(0, len(rows), manifest.max_batch):
            chosen = longest_first[first : first + manifest.max_batch]
            for name, values in self._batch([rows[k] for k in chosen]).items():
                samples[name][chosen] = values
            if progress is not None:
                progress(first + len(chosen), len(rows))
        samples["provenance"] = provenance(self.bundle, rows)
        cuts = np.cumsum([len(request.seeds) for request in requests], dtype=int)[:-1]
        parts = {name: np.split(values, cuts) for name, values in samples.items()}
        return [{name: part[k] for name, part in parts.items()} for k in range(len(requests))]

    def _batch(self, rows: list[Row]) -> dict[str, NDArray]:
        state, outputs = self._engine.generate(trajectory(self.bundle.manifest, rows))
        if problem := not_finite(self.bundle.manifest.model, rows, state, outputs):
            raise problem
        return outputs
