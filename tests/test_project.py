"""What pyproject.toml promises: each extra brings all that its packages need to be imported."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRA_OF = {
    "serving": None,
    "serving/page": "page",
    "kernels": "export",
    "training": "train",
    "training/federated/door.py": "federated",  # imported where a server is opened
    "export": "export",
    "benchmarks": "bench",
}
GIVEN_BY_TRITON = {"triton_python_backend_utils"}


def declared(extra: str | None) -> set[str]:
    """The distributions that ``pip install medgen[extra]`` asks for."""
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, [])]
    names = {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}
    for requirement in requirements:
        if also := re.match(r"medgen\[(\w+)\]", requirement):
            names |= declared(also[1])
    return names


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_at_once(file: Path) -> Iterator[str]:
    """Top-level names that importing the file imports; what functions import is needed by some users alone."""
    for node in ast.parse(file.read_text(), file).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def extra_of(file: Path) -> str | None:
    """Its own, or that of the innermost folder that has one."""
    places = [place.relative_to(ROOT).as_posix() for place in (file, *file.parents) if place.is_relative_to(ROOT)]
    return next(EXTRA_OF[place] for place in places if place in EXTRA_OF)


@pytest.mark.parametrize("package", EXTRA_OF)
def test_what_is_imported_is_declared(package):
    distributions = packages_distributions()
    known = {*sys.stdlib_module_names, *EXTRA_OF, *GIVEN_BY_TRITON}
    missing = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in ([ROOT / package] if package.endswith(".py") else (ROOT / package).rglob("*.py"))
        if not file.name.startswith("test_") and extra_of(file) == EXTRA_OF[package]
        if (file.parent / "__init__.py").exists()  # of a package; examples are run by who has what they need
        for name in imported_at_once(file)
        if name not in known and not declared(EXTRA_OF[package]) & {normal(d) for d in distributions.get(name, [])}
    ]
    assert not missing
