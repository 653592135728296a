"""``python -m benchmarks``, run as its users run it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner

import benchmarks.__main__ as program
from benchmarks.latency.command import latency

CHECKOUT = Path(__file__).parents[2]
MEASURED = ["pytorch-eager", "pytorch-channels-last", "onnxruntime-python-loop", "medgen", "medgen-triton"]


def options(case):
    return [f"--model={case.model}", f"--checkpoint={case.checkpoint}", f"--repository={case.repository}"]


def test_all_rows_in_one_run(case, tmp_path):
    file = tmp_path / "latency.json"
    only = [f"--only={name}" for name in MEASURED]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "latency",
        *options(case),
        *only,
        "--rounds=2",
        "--steps=2",
        f"--json={file}",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["model"] == "pig"
    assert (report["solver"], report["steps"], report["batch"]) == ("ddim", 2, 4)
    assert report["versions"].keys() >= {"torch", "onnxruntime"}
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == MEASURED
    for name, row in rows.items():
        assert name in done.stdout
        assert row["ratio_to_eager"] > 0
        assert 0 < row["seconds_per_sample"] <= row["p95"]
        assert row["peak_memory_mib"] > 20
        assert (row["max_difference"] == 0) == (name == "pytorch-eager")  # nobody else computes in the same order
    assert rows["pytorch-eager"]["ratio_to_eager"] == 1
    assert rows["medgen"]["peak_memory_mib"] < rows["pytorch-eager"]["peak_memory_mib"]  # it has no torch
    assert 0 < rows["medgen"]["network_share"] < 1


def test_weights_that_are_not_the_bundle_s_are_refused(case, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((case.checkpoint / "config.json").read_bytes())
    (other / "model.safetensors").write_bytes(b"other weights")
    result = CliRunner().invoke(latency, options(replace(case, checkpoint=other)))
    assert result.exit_code == 1
    assert "was not built from" in result.output


def test_a_model_that_is_not_built(tmp_path):
    result = CliRunner().invoke(latency, ["--model=pig", f"--repository={tmp_path}"])
    assert result.exit_code == 1
    assert "python -m export build --model pig" in result.output


def test_a_missing_package_stops_its_own_command_alone(monkeypatch):
    monkeypatch.setitem(program.COMMANDS, "gpu", "no_such_package.gpu:gpu")
    listed = CliRunner().invoke(program.main, ["--help"])
    assert listed.exit_code == 0
    assert "latency" in listed.output
    refused = CliRunner().invoke(program.main, ["gpu", "--anything", "here"])
    assert refused.exit_code == 1
    assert "gpu needs the package no_such_package" in refused.output
