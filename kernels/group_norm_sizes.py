"""How the work of a group norm is shared out among programs and threads."""

from collections.abc import Iterable

WHOLE = (
    32768  # elements of a group, sides rounded up, that a program holds in registers; larger groups are cut into tiles
)
TILE = 8192
TACTICS = (1, 2)  # elements a thread takes, in units of 16


def tiles_of(channels: int, groups: int, pixels: int) -> int:
    """Tiles that a channel is cut into so that a group's work is shared out, or 0 where one program takes a group."""
    if power_of_two(channels // groups) * power_of_two(pixels) <= WHOLE:
        return 0
    return next(tiles for tiles in range(-(-pixels // TILE), pixels + 1) if pixels % tiles == 0)


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def warps(elements: int, tactic: int = TACTICS[0]) -> int:
    return min(32, max(2, elements // (32 * 16))) // tactic


def strides(embedding: Iterable[int], gain: Iterable[int], offset: Iterable[int]) -> dict[str, int]:
    """From the shapes of three tables: 0 along an axis of one element, which serves every row or channel."""
    (rows, columns), (gain_rows, channels), (offset_rows, _) = embedding, gain, offset
    return {
        "EMBEDDING_ROW": columns if rows != 1 else 0,
        "EMBEDDING_COLUMN": int(columns != 1),
        "GAIN_ROW": channels if gain_rows != 1 else 0,
        "OFFSET_ROW": channels if offset_rows != 1 else 0,
    }
