import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_tiny_bundle
from tiny_openvino import write_tiny_openvino_bundle

import serving

FORBIDDEN = {"torch", "diffusers", "onnx", "training", "export", "kernels", "benchmarks"}
ROOM = Path(serving.__file__).parent

SAMPLE = """
import importlib, importlib.abc, pkgutil, sys, types

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ImportError(f"serving imported {{name}}")

sys.meta_path.insert(0, Forbid())
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")  # Triton brings it

import numpy as np
import serving
for module in pkgutil.walk_packages(serving.__path__, "serving."):
    importlib.import_module(module.name)

from serving.bundle import load_bundle
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
sampler = Sampler(load_bundle({folder!r}))
(samples,) = sampler.sample([parse_request(sampler.bundle.manifest, np.array([[1], [2]]), {{}})])
print(samples["image"].shape)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOM.parent, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("write", [write_tiny_bundle, write_tiny_openvino_bundle])
def test_serving_imports_and_samples_where_torch_is_not(tmp_path, write):
    folder = write(tmp_path)
    result = run(SAMPLE.format(forbidden=FORBIDDEN, folder=str(folder)))
    assert (result.stdout.strip(), result.returncode) == ("(2, 1, 16, 16)", 0), result.stderr


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOM)))
def test_no_file_of_serving_imports_what_a_serving_host_lacks(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(str(node.module).partition(".")[0])
    assert not imported & FORBIDDEN
