"""A bar on a terminal, a line now and then where the output is piped."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich import get_console
from rich.progress import track

from serving.progress import NowAndThen

T = TypeVar("T")


def followed(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, while it is shown how many of them are done."""
    piped, line = not get_console().is_terminal, NowAndThen()
    for number, item in enumerate(track(items, what, transient=True, disable=piped)):
        if piped:
            line(f"{what}: {number} of {len(items)}")
        yield item
