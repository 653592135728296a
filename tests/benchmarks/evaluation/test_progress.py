"""On a terminal a bar shows how much of what takes long is done."""

import io

from rich.console import Console

from benchmarks.evaluation import progress


def test_a_bar_on_a_terminal(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "get_console", lambda: terminal)
    monkeypatch.setattr("rich.progress.get_console", lambda: terminal)
    assert list(progress.followed(range(3), "told, 32 samples at a time")) == [0, 1, 2]
    assert "told, 32 samples at a time" in shown.getvalue()
    assert "100%" in shown.getvalue()
