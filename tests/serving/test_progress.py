import io

from serving.progress import SECONDS, NowAndThen


def test_a_line_comes_when_the_last_is_long_enough_ago() -> None:
    stream, times = io.StringIO(), iter([0, 1, SECONDS, SECONDS + 1, 2 * SECONDS])
    line = NowAndThen(stream, lambda: next(times))
    for number in range(4):
        line(f"line {number}")
    assert stream.getvalue() == "line 1\nline 3\n"
