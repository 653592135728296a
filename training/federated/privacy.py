"""Votes made less telling before they leave a site: FLARE's own filter of differential privacy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from training.federated.channel import check_installed
from training.federated.panel import Vote
from training.federated.site import Filter

FIELDS = ("epsilon", "epsilon_release", "gamma", "fraction", "tau", "noise_var")


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raises ValueError if a field is unknown, or its value no number above 0."""
    for name, value in fields.items():
        if name not in FIELDS:
            raise ValueError(f"--private {name} is unknown; there are {', '.join(FIELDS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"--private {name} is {value!r}; it must be a number above 0")
    if not fields.get("fraction", 0.1) <= 1:
        raise ValueError(f"--private fraction is {fields['fraction']}; it must be at most 1")


def sparse_vector_privacy(fields: Mapping[str, Any], say: Callable[[str], object] = lambda _: None) -> Filter:
    """FLARE's SVTPrivacy on the gradient: clipped at gamma, a fraction of its values chosen, Laplace noise on those.

    ``epsilon`` is of which values are sent. What they are costs ``epsilon_release`` more, by default the number of them
    times noise_var; of the first answer ``say`` is told of both. The losses are not sent: no noise covers them.
    ``fields`` are the filter's own, of FIELDS.

    Raises ValueError as ``check_fields`` does.
    """
    check_fields(fields)
    check_installed()
    from nvflare.apis.dxo import DXO, DataKind, from_shareable
    from nvflare.apis.fl_context import FLContext
    from nvflare.app_common.filters.svt_privacy import SVTPrivacy

    privacy = SVTPrivacy(**fields)

    def private(vote: Vote) -> Vote:
        gradient = DXO(DataKind.WEIGHT_DIFF, {"gradient": vote.gradient.numpy()})
        filtered = from_shareable(privacy.process(gradient.to_shareable(), FLContext()))
        if len(spent := privacy.get_privacy_ledger()) == 1:
            say(f"--private: an answer's epsilon is {spent[0]['epsilon_total']:.4g}, and answers add up")
        return Vote(vote.step, torch.from_numpy(filtered.data["gradient"]).float(), 0.0, None, vote.size)

    return private


def try_privacy(fields: Mapping[str, Any], shape: Sequence[int], say: Callable[[str], object]) -> None:
    """Have it said what an answer on pictures of this shape costs."""
    sparse_vector_privacy(fields, say)(Vote(0, torch.zeros(*shape), 0.0, None, 0))
