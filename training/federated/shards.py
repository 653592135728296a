"""One data set, as if several sites had it: cut by patients, of whom none is in two."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from training.data.layouts.mini_mias import patient_of

DDSM = re.compile(r"([A-Z]_\d+)_\d\.(LEFT|RIGHT)_(CC|MLO).*")  # X_CASE_1.RIGHT_MLO
CBIS = re.compile(r"(?:Mass|Calc)-(?:Training|Test)_(P_\d{5})_(LEFT|RIGHT)_(CC|MLO).*")
MIAS = re.compile(r"mdb\d{3}")
SERVER_SHARE = 5  # one patient in so many is the server's own


def known_patient(name: str) -> str | None:
    """Whose picture a file of mini-MIAS, DDSM or CBIS-DDSM is, by its name; None of any other name."""
    if MIAS.fullmatch(name):
        return f"mdb{patient_of(name)}"
    found = DDSM.fullmatch(name) or CBIS.fullmatch(name)
    return found[1] if found else None


def patient(name: str) -> str:
    """Where it is not known, a patient of its own."""
    return known_patient(name) or name


def shards(names: Sequence[str], sizes: Sequence[float] | None, count: int) -> tuple[list[int], list[list[int]]]:
    """Which pictures are the server's own, and which each site's, as indices.

    Every fifth patient is the server's, whatever the number of sites, in an order that the names alone decide. The
    others are cut into equal runs by size, as the paper does it, or where sizes are not known, in that order.

    Args:
        names: of the pictures.
        sizes: of the breasts that they show, or None.
        count: of sites.

    Raises:
        ValueError: there are not enough patients.
    """
    of_patient: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        of_patient[patient(name)].append(index)
    order = sorted(of_patient, key=lambda who: hashlib.sha256(who.encode()).digest())
    own = order[::SERVER_SHARE]
    others = [who for who in order if who not in set(own)]
    if len(others) < count:
        raise ValueError(
            f"--sites is {count}; of the {len(order)} patients {len(own)} are the server's own, and {len(others)} are "
            "left, of whom each site needs one"
        )
    if sizes is not None:
        others.sort(key=lambda who: sum(sizes[index] for index in of_patient[who]) / len(of_patient[who]))
    cuts = [round(k * len(others) / count) for k in range(count + 1)]
    parts = [others[first:last] for first, last in pairwise(cuts)]
    return (
        [index for who in own for index in of_patient[who]],
        [[index for who in part for index in of_patient[who]] for part in parts],
    )
