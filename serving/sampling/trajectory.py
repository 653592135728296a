"""The trajectory of a batch: all that an engine needs for it, from the first noise to the last step."""

from collections.abc import Sequence

import numpy as np

from serving.bundle import Manifest
from serving.engines import Float32, Trajectory
from serving.sampling import noise
from serving.sampling.rows import Row
from serving.sampling.solvers import COLUMNS

A, S = COLUMNS.index("a"), COLUMNS.index("s")


def trajectory(manifest: Manifest, rows: Sequence[Row]) -> Trajectory:
    """Of up to max_batch rows, those with the longest tables first."""
    lengths = np.array([len(row.table) for row in rows])
    coeffs = np.zeros((lengths[0], len(rows), len(COLUMNS)), np.float32)
    coeffs[:, :, A] = 1
    for k, row in enumerate(rows):
        coeffs[: len(row.table), k] = row.table
    seeds = [row.seed for row in rows]
    start = noise.draw_starts(seeds, manifest.model, manifest.sample_shape, manifest.noise_channels)
    buffer = np.zeros_like(start)
    stochastic = np.flatnonzero(coeffs[:, :, S].any(axis=0))

    def row_noise(number: int) -> Float32:
        live = np.count_nonzero(lengths > number)
        noisy = [k for k in stochastic[stochastic < live] if coeffs[number, k, S]]
        buffer[[k for k in stochastic if k not in noisy]] = 0
        noise.draw_all([rows[k].seed for k in noisy], manifest.model, number + 1, [buffer[k] for k in noisy])
        return buffer[:live]

    conditions = [row.condition for row in rows if row.condition is not None]
    return Trajectory(start, lengths, coeffs, row_noise, np.stack(conditions) if conditions else None)
