"""The Triton kernels' numbers, in Triton's interpreter, against float64."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLERANCE = {"float32": 5e-6, "float16": 2e-3}  # of the norm of the difference over the norm


@pytest.fixture(scope="module")
def distances():
    command = [sys.executable, ROOT / "tests" / "interpret_kernels.py"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("kernel", ["solver_step", "attention", "group_norm_silu"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_numbers(distances, kernel, dtype):
    found = {name: distance for name, distance in distances.items() if name.startswith(f"{kernel} {dtype}")}
    assert found
    assert {name: distance for name, distance in found.items() if not distance <= TOLERANCE[dtype]} == {}
