"""Labels to draw under: one class for a whole sample, such as a BI-RADS category or the density of a breast."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Condition
from serving.sampling.requests import BadRequest, shown


@dataclass(frozen=True, eq=False)
class Labels:
    """Class indices int64 [N, 1], and the names of all classes of the model that they are for, where it has any."""

    values: NDArray[np.int64]
    names: tuple[str, ...] = ()

    def rows(self, first: int, end: int) -> "Labels":
        return Labels(self.values[first:end], self.names)


def labels_of(asked: Sequence[int | str], condition: Condition, rows: int) -> Labels:
    """What N samples are drawn under: the labels that were asked for, in turn.

    Each is a class's index, or its name; a text is a name if there is one like it. Raises BadRequest.
    """
    if len(asked) > rows:
        raise BadRequest(f"{len(asked)} values of {condition.name} were given for {rows} samples: give one for each")
    found = [index_of(label, condition) for label in asked]
    return Labels(np.resize(np.array(found, np.int64), rows)[:, None], condition.labels)


def index_of(label: int | str, condition: Condition) -> int:
    assert condition.classes is not None
    if isinstance(label, str):
        if label in condition.labels:
            return condition.labels.index(label)
        if label.isdecimal() and not any(name.isdecimal() for name in condition.labels):
            label = int(label)
    if isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label < condition.classes:
        return int(label)
    raise BadRequest(f"{condition.name} is {shown(label)}; allowed are {named(condition)}")


def named(condition: Condition) -> str:
    """The classes in words."""
    if not condition.labels:
        return f"0 to {condition.limits[1]}"
    return ", ".join(f"{index} ({name})" for index, name in enumerate(condition.labels))
