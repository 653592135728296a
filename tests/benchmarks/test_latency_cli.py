"""``python -m benchmarks``, run as its users run it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress

import benchmarks.__main__ as program
from benchmarks.latency.command import Progressing, latency, print_table
from benchmarks.latency.contenders import PAPER, ROWS
from benchmarks.latency.timing import Figures

CHECKOUT = Path(__file__).parents[2]
FEW = ["pytorch-eager", "medgen"]
ALL = ["pytorch-eager", "medgen", "medgen-triton", PAPER]


@pytest.mark.parametrize(
    ("model", "names", "asked", "stages"),
    [
        ("pig", ALL, ["--solver=ddim"], [("pig", "ddim", 2)]),
        (
            "cmr_flow",
            FEW,
            ["--solver=euler", "--mask-solver=dpmpp_2m", "--mask-steps=3"],
            [("cmr_mask", "dpmpp_2m", 3), ("cmr_flow_image", "euler", 2)],
        ),
    ],
)
def test_rows_in_one_run(built, tmp_path, model, names, asked, stages):
    file = tmp_path / "latency.json"
    only = [f"--only={name}" for name in names]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "latency",
        f"--model={model}",
        f"--repository={built(model)}",
        *asked,
        *only,
        "--rounds=2",
        "--steps=2",
        f"--json={file}",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert (report["model"], report["batch"]) == (model, 4)
    assert [(stage["model"], stage["solver"], stage["steps"]) for stage in report["stages"]] == stages
    assert report["versions"].keys() >= {"torch", "onnxruntime"}
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == names
    if paper := rows.pop(PAPER, None):
        assert "pig ddim 256 steps" in paper["note"]
        assert (paper["rounds"], paper["max_difference"]) == (1, None)
    for name, row in rows.items():
        assert name in done.stdout
        assert row["ratio_to_eager"] > 0
        assert 0 < row["seconds_per_sample"] <= row["p95"]
        assert row["peak_memory_mib"] > 20
        assert (row["max_difference"] == 0) == (name == "pytorch-eager")  # nobody else computes in the same order
    assert rows["pytorch-eager"]["ratio_to_eager"] == 1
    assert rows["medgen"]["peak_memory_mib"] < rows["pytorch-eager"]["peak_memory_mib"]  # it has no torch
    assert 0 < rows["medgen"]["network_share"] < 1


@pytest.mark.parametrize(
    ("model", "asked", "words"),
    [
        ("cmr_flow", ["--solver=ddim"], ["cmr_flow_image", "'ddim'", "euler"]),
        ("cmr_flow", ["--solver=euler"], ["cmr_mask", "'euler'", "mask_solver"]),
        ("cmr_ddpm", ["--mask-steps=1001"], ["mask_steps", "1001", "1000"]),
        ("pig", ["--mask-steps=4"], ["mask_steps", "value 4", "steps and solver"]),
        ("cmr_ddpm", ["--checkpoint={pig}"], ["holds a pig", "cmr_mask or cmr_ddpm_image"]),
        ("pig", ["--checkpoint={pig}", "--checkpoint={pig}"], ["both hold a pig"]),
        ("pig", ["--checkpoint={other}"], ["was not built from", "other"]),
        ("pig", ["--repository={nowhere}"], ["medgen export build --model pig"]),
        ("cmr_ddpm", ["--repository={nowhere}"], ["medgen export build --model cmr_ddpm"]),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(built, case_of, tmp_path, model, asked, words):
    (stage,) = case_of("pig").stages
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((stage.checkpoint / "config.json").read_bytes())
    (other / "model.safetensors").write_bytes(b"other weights")
    places = {"pig": stage.checkpoint, "other": other, "nowhere": tmp_path}
    options = [option.format(**places) for option in asked]
    result = CliRunner().invoke(latency, [f"--model={model}", f"--repository={built(model)}", *options])
    assert result.exit_code == 1
    assert all(word in result.output for word in words), result.output


def test_what_is_no_model_is_not_told_to_be_built(tmp_path):
    result = CliRunner().invoke(latency, ["--model=gan", f"--repository={tmp_path}"])
    assert "'gan' is neither a model family nor a chain; allowed are" in result.output
    assert "'cmr_flow'" in result.output


def test_a_missing_package_stops_its_own_command_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "monai.losses", None)
    monkeypatch.delitem(sys.modules, "benchmarks.quality.figures", raising=False)
    monkeypatch.delitem(sys.modules, "benchmarks.quality.segmenter", raising=False)
    assert "latency" in CliRunner().invoke(program.main, ["--help"]).output
    refused = CliRunner().invoke(program.main, ["anatomy", str(tmp_path), "--data", "phantom"])
    assert refused.exit_code == 1
    assert "anatomy needs the package monai.losses, which is not installed" in refused.output


def test_the_table_fits_a_terminal(case_of, capsys):
    figures = {"seconds_per_sample": 9.8765, "p95": 9.8765, "ratio_to_eager": 10.25, "network_share": 0.998}
    rows = [
        Figures(name, 20, **figures, peak_memory_mib=1234.0, max_difference=1e-6, label_difference=2e-4)
        for name in ROWS
    ]
    print_table(Console(width=80), case_of("pig"), "a CPU", rows)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count("9.8765 9.8765 10.25x    0.2% 1234 1e-06 2e-04") == len(ROWS)


def test_a_pipe_gets_a_line_now_and_then_that_says_how_long_it_will_take(monkeypatch, capsys):
    monkeypatch.setattr("serving.progress.SECONDS", 0)
    clock = [0.0]
    progress = Progressing(Progress(console=Console(file=io.StringIO())), lambda: clock[0])
    for doing, done, clock[0] in (("warming up medgen", 0, 60), ("medgen", 0.25, 90), ("medgen", 0.5, 100)):
        progress(doing, done)
    assert capsys.readouterr().err.splitlines() == [
        "warming up medgen",
        "medgen",
        "medgen, 50% of the rounds, about 20 s to go",
    ]
