"""Where tables are printed."""

from rich.console import Console

WIDTH = 160  # of a file or a pipe, which have no edge to cut the columns at


def wide_console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    return console
