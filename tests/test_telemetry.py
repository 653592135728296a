"""Nothing is told to anyone who was not asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", ["serving.engines.onnxruntime", "export.build", "benchmarks.latency.network_files"])
def test_onnx_runtime_keeps_nothing_to_tell(tmp_path: Path, module: str) -> None:
    """Where it is on, it writes an identifier of the machine, and what it will send, as soon as it is imported."""
    off = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS")
    environment = {name: value for name, value in os.environ.items() if name not in off}
    code = f"import {module}, sys; assert 'onnxruntime' in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environment, "XDG_CACHE_HOME": str(tmp_path)}, check=True
    )
    assert not (tmp_path / "Microsoft").exists()


@pytest.mark.parametrize("module", ["serving.engines", "export.openvino"])
def test_openvino_keeps_nothing_to_tell(tmp_path: Path, module: str) -> None:
    """Where it can, it writes an identifier of the machine when it is imported, and sends it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
    code = f"import {module}, openvino, sys; assert not sys.modules['openvino_telemetry']"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**environment, **home}, check=True)
    assert not list(tmp_path.iterdir())
