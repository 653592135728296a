"""Which package may import which, kept for every file whether or not a test runs it."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {
    f"serving.{name}"
    for name in (
        "bundle",
        "command_list",
        "finite",
        "folders",
        "pgm",
        "namesakes",
        "progress",
        "sample_set",
        "sampling.betas",
        "sampling.noise",
        "sampling.solvers",
        "sampling.spacing",
        "user",
        "writers.pictures",
    )
}
ALLOWED = {
    "kernels": set(),
    "serving": set(),
    "training": {"kernels", *LEAVES},
    "export": {"kernels", "serving", "training"},
    "benchmarks": {"export", "kernels", "serving", "training"},
    "model_repository": {"serving"},
}
# Within serving: a room may use what stands before it, and what lies beside the rooms but the client and the commands.
ROOMS = {
    "engines": {"sampling.solvers"},
    "sampling": {"engines"},
    "writers": set(),
    "triton": {"engines", "sampling"},
    "page": {"client", "client_checks", "conditions", "sampling.ways", "step_watch", "writers"},
}
BESIDE = {"bundle", "chain", "condition_files", "folders", "kept", "pgm", "picture_files", "sample_set", "user"}
FRAMEWORKS = {"accelerate", "diffusers", "onnx", "onnxscript", "safetensors", "torch"}


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its whole name."""
    for node in ast.walk(ast.parse(file.read_text(), file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} imports relatively; write the whole name"
            for alias in node.names:
                is_module = (ROOT / str(node.module).replace(".", "/") / f"{alias.name}.py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else str(node.module)


def files_of(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no Python files"
    return files


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_arrows(package):
    ours = {*ALLOWED, "tests"}
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files_of(package)
        for module in imported(file)
        if is_within(module, ours) and not is_within(module, {package, *ALLOWED[package]})
    ]
    assert not wrong


def test_files_of_kernels_import_one_another_without_circles():
    arrows = {f"kernels.{file.stem}": set(imported(file)) for file in files_of("kernels")}
    graphlib.TopologicalSorter(arrows).prepare()


def test_the_list_has_every_package():
    assert {file.parent.name for file in ROOT.glob("*/__init__.py")} | {"model_repository"} == set(ALLOWED)


def test_what_training_takes_from_serving_takes_nothing_else_from_it():
    for leaf in LEAVES:
        file = ROOT / f"{leaf.replace('.', '/')}.py"
        assert {module for module in imported(file) if is_within(module, {"serving"})} <= LEAVES, file


def test_no_file_that_serves_names_a_training_framework():
    for file in [*files_of("serving"), *files_of("model_repository")]:
        assert not [module for module in imported(file) if is_within(module, FRAMEWORKS)], file


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_serving_use_those_before_them(room):
    allowed = {f"serving.{name}" for name in {room, *ROOMS[room], *BESIDE}}
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files_of(f"serving/{room}")
        for module in imported(file)
        if is_within(module, {"serving"}) and not is_within(module, allowed)
    ]
    assert not wrong


def test_every_room_of_serving_is_known():
    assert {file.parent.name for file in (ROOT / "serving").glob("*/__init__.py")} == set(ROOMS)
