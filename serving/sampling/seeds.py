"""Seeds as a person or a program gives them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.sampling.requests import BadRequest, shown, whole_number

LAST = 2**63 - 1
ALLOWED = f"from 0 to {LAST}"


def seed_column(count: Any = None, seed: Any = 0, seeds: Any = None) -> NDArray[np.int64]:
    """int64 [N, 1]: of `count` seeds from `seed` up, or of the given `seeds` in their order.

    seeds: whole numbers of any integer type in a list, a tuple, a range or an array [N].
    Raises BadRequest for all else, naming it.
    """
    if (count is None) == (seeds is None):
        raise BadRequest("give either count or seeds")
    if seeds is not None:
        return _column_of(seeds)
    count, first = whole_number("count", count, "of at least 1"), whole_number("seed", seed, ALLOWED)
    if count < 1:
        raise BadRequest(f"count is {shown(count)}; it must be at least 1")
    return _column_of(range(first, first + count))


def _column_of(seeds: Any) -> NDArray[np.int64]:
    if isinstance(seeds, np.ndarray) and (seeds.ndim != 1 or seeds.dtype.kind not in "iuO"):
        raise BadRequest(f"seeds is {seeds.dtype} {list(seeds.shape)}; it must be an array [N] of integers {ALLOWED}")
    if not isinstance(seeds, list | tuple | range | np.ndarray):
        kind = type(seeds).__name__
        raise BadRequest(f"seeds is {shown(seeds)}, a {kind}; it must be a list, an array or a range of whole numbers")
    if isinstance(seeds, range) and seeds:
        _check_ends(seeds[0], seeds[-1])
        return (seeds[0] + seeds.step * np.arange(len(seeds), dtype=np.int64))[:, None]
    if len(seeds) == 0:
        raise BadRequest("seeds is empty; at least 1 is needed")
    if isinstance(seeds, np.ndarray) and seeds.dtype.kind in "iu":
        _check_ends(int(seeds.min()), int(seeds.max()))
        return seeds.astype(np.int64)[:, None]
    numbers = [whole_number(f"seeds[{row}]", value, ALLOWED) for row, value in enumerate(seeds)]
    _check_ends(min(numbers), max(numbers))
    return np.array(numbers, np.int64)[:, None]


def _check_ends(*ends: int) -> None:
    for end in ends:
        if not 0 <= end <= LAST:
            raise BadRequest(f"seed is {shown(end)}; it must be {ALLOWED}")
