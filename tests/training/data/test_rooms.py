"""Which room of ``training.data`` may import which: layouts know formats and preparation, and neither knows them."""

import ast
from pathlib import Path

import pytest

import training.data

HOME = Path(training.data.__file__).parent
ALLOWED = {
    "formats": {"formats", "problems"},
    "preparation": {"classes", "formats", "preparation", "problems"},
    "layouts": {"classes", "dataset", "formats", "layouts", "listing", "preparation", "problems", "spooled"},
}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    for file in (HOME / room).glob("*.py"):
        modules = (node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom))
        ours = {str(module).split(".")[2] for module in modules if str(module).startswith("training.data.")}
        assert ours <= ALLOWED[room], file
