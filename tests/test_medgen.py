"""One command for all of them, and what it says where something is missing or in the way."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import training
from medgen import main
from serving.namesakes import NamesakeError, check_names


@pytest.mark.parametrize(
    "command", ["fit", "distill", "pack", "up", "sample", "draw", "export build", "export verify", "benchmarks latency"]
)
def test_every_command_is_there(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--help"], prog_name="medgen")
    assert result.exit_code == 0
    assert f"Usage: medgen {command} " in result.output


def test_it_lists_them_all() -> None:
    said = CliRunner().invoke(main, ["--help"]).output
    assert {"fit", "pack", "up", "sample", "export", "benchmarks"} <= {*said.split()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sampel", "--model", "pig"], "'sampel' is no command; there are benchmarks, certificates, distill, draw, "),
        (["export", "biuld"], "'biuld' is no command; there are build, "),
        (["benchmarks", "latncy"], "'latncy' is no command; there are anatomy, "),
    ],
)
def test_a_command_that_is_none_is_told_what_there_is(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert f"Error: {said}" in result.output


def test_a_package_that_is_missing_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "training.fit", None)
    result = CliRunner().invoke(main, ["fit", "--model", "pig", "--data", "phantom", "--out", "nowhere"])
    assert (
        "Error: fit needs the package training.fit, which is not installed: pip install 'medgen[train]'"
        in result.output
    )


def test_commands_that_need_an_extra_are_listed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.__main__", None)
    said = CliRunner().invoke(main, ["--help"])
    assert said.exit_code == 0
    assert "Not installed: pip install 'medgen[bench]'" in said.output
    for arguments in (["--help"], ["latency", "--steps", "3"]):
        result = CliRunner().invoke(main, ["benchmarks", *arguments])
        assert result.exit_code == 1
        assert "not installed: pip install 'medgen[bench]'" in result.output


def test_who_comes_before_us_on_the_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_names()
    theirs = tmp_path / "training.py"
    theirs.write_text("")
    monkeypatch.delitem(sys.modules, "training")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NamesakeError, match=r"training\.py comes before medgen's own training, in .*remove it"):
        check_names()
    assert isinstance(training, ModuleType)
