"""The model families: one module each, found by its name, so that a new file is a new family."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from serving.user import have_a_name

if TYPE_CHECKING:  # for imports of torch take seconds
    from training.family import Family


def family_names() -> tuple[str, ...]:
    """The families that this checkout has."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_family(name: str) -> "type[Family]":
    """The class of a family.

    Raises:
        ValueError: no module has this name.
    """
    if name not in family_names():
        raise ValueError(f"model {name!r} is unknown; there are {', '.join(family_names())}")
    have_a_name()  # MONAI asks for it
    from training.family import Family

    module = import_module(f"{__name__}.{name}")
    return next(
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Family) and item.__module__ == module.__name__
    )
