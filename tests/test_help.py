"""What --help costs: it is asked for again and again, and imports of PyTorch take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from medgen import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "build"],
        ["training", "fit"],
        ["serving", "sample"],
        ["benchmarks"],
        ["benchmarks", "anatomy"],
        ["benchmarks", "gpu"],
        ["benchmarks", "latency"],
        ["benchmarks", "papers"],
    ],
)
def test_it_does_not_wait_for_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", *arguments, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--help" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "onnx", "onnxruntime", "diffusers", "monai", "scipy"}


@pytest.mark.parametrize("group", [[], ["export"], ["benchmarks"]])
def test_a_list_of_commands_says_whole_sentences(group: list[str]) -> None:
    said = CliRunner().invoke(main, [*group, "--help"], prog_name="medgen", terminal_width=80).output
    listed = said.partition("Commands:\n")[2]
    assert len(listed.splitlines()) >= 4
    assert "..." not in listed
    assert max(map(len, listed.splitlines())) <= 80
