"""Our TensorRT code is type-checked against TensorRT's real bindings, by stubs that are made here and never kept."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_bindings_alone import libraries, tensorrt_bindings_alone

ROOT = Path(__file__).parents[2]
SETTINGS = """
[mypy]
disallow_untyped_defs = True
[mypy-tensorrt.*]
ignore_errors = True
[mypy-torch.*,triton.*,onnx.*,onnxscript.*,onnxruntime.*,openvino.*,cuda.*,training.*]
ignore_missing_imports = True
follow_imports = skip
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubs")
    stubgen = [sys.executable, "-c", "from mypy.stubgen import main; main()", "--quiet", "--inspect-mode"]
    command = [*stubgen, "--output", folder, "--module", "tensorrt_bindings.tensorrt"]
    subprocess.run(command, check=True, env=os.environ | {"LD_LIBRARY_PATH": str(libraries())})
    made = (folder / "tensorrt_bindings" / "tensorrt.pyi").read_text()
    package = folder / "tensorrt"
    package.mkdir()
    # A data type of TensorRT's is called bool, which hides Python's own; and one method has a default in mid-list.
    made = made.replace("logger: typing_extensions.CapsuleType", "logger: ILogger")  # any object of C++ will do
    host_memory = "class IHostMemory:\n"  # one that bytes() takes
    made = made.replace(host_memory, f"{host_memory}    def __buffer__(self, flags: int, /) -> memoryview: ...\n")
    made = "import builtins\n__version__: str\n" + re.sub(r"(-> |: )bool\b", r"\1builtins.bool", made)
    (package / "__init__.pyi").write_text(re.sub(r"(= \.\.\., \w+: [^=,()]+)(?=[,)])", r"\1 = ...", made))
    with tensorrt_bindings_alone():
        import tensorrt.plugin as trtp

        shutil.copytree(Path(trtp.__file__).parent, package / "plugin")
        public = {name: getattr(trtp, name) for name in trtp.__all__ if hasattr(getattr(trtp, name), "__module__")}
    exports = [f"from {value.__module__} import {name} as {name}\n" for name, value in public.items()]
    (package / "plugin" / "__init__.py").write_text("".join(exports))
    return folder


def check(stubs, *files):
    settings = stubs / "mypy.ini"
    settings.write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", stubs / "cache", *files]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"MYPYPATH": str(stubs)})
    return found.returncode, found.stdout


def test_our_code_fits_the_bindings(stubs):
    folders = ROOT / "kernels", ROOT / "serving" / "engines"
    paths = [*(ROOT / "export").glob("tensorrt*.py"), *(file for folder in folders for file in folder.glob("*.py"))]
    files = sorted(str(path.relative_to(ROOT)) for path in paths)
    code, output = check(stubs, *files)
    assert code == 0, output


def test_a_misuse_is_found(stubs, tmp_path):
    """The stubs say something: what the bindings do not have, or take otherwise, is an error."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\n"
        "import tensorrt.plugin as trtp\n"
        "flag = trt.BuilderFlag.FP16\n"
        "launch = trtp.KernelLaunchParams(grid_x='1')\n"
        "exprs = trtp.SymIntExprs(size=0)\n"
        "def f(x: trtp.TensorDesc) -> int:\n"
        "    return x.dtype\n"
    )
    code, output = check(stubs, str(wrong))
    assert code == 1
    assert {int(line) for line in re.findall(r"wrong.py:(\d+): error", output)} == {3, 4, 5, 7}
