"""The tritonserver program that is there, and what it needs to run our models."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from serving.triton.errors import ServerError
from serving.user import cache_folder

PACKAGES = Path(__file__).resolve().parents[2]
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A tritonserver program, the arguments that lead it to its Python backend, and the environment it needs.

    folders: those that are named in the arguments.
    """

    program: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folders: tuple[Path, ...] = ()


def find_installation() -> Installation:
    """tritonserver on PATH (NVIDIA's container), else the one inside the nvidia-pytriton wheel.

    Raises ServerError if there is none, or if the wheel cannot run this Python.
    """
    environment = {**os.environ, "PYTHONPATH": _joined(PACKAGES, os.environ.get("PYTHONPATH"))}
    environment.pop("AIP_MODE", None)  # would open a front end for Vertex AI, which no option of ours closes
    if on_path := shutil.which("tritonserver"):
        return Installation(Path(on_path), (), environment)
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise ServerError(
            "no tritonserver on PATH and no nvidia-pytriton package: pip install nvidia-pytriton 'numpy<2', "
            "or run inside NVIDIA's tritonserver container"
        )
    package = Path(wheel.origin).parent
    stub, backends = _backend_directory(package / "tritonserver")
    libraries = [package.parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    environment |= {
        "LD_LIBRARY_PATH": _joined(*libraries, os.environ.get("LD_LIBRARY_PATH")),
        "PATH": _joined(Path(sys.executable).parent, os.environ.get("PATH")),
        "VIRTUAL_ENV": sys.prefix,
    }
    _check_libraries(stub, environment)
    program = package / "tritonserver" / "bin" / "tritonserver"
    return Installation(program, (f"--backend-directory={backends}",), environment, (backends,))


def _joined(*paths: Path | str | None) -> str:
    return os.pathsep.join(str(path) for path in paths if path)


def _backend_directory(wheel: Path) -> tuple[Path, Path]:
    """The Python backend laid out as Triton wants it: links into the wheel, kept in the user's cache.

    The wheel holds one stub per Python version, Triton looks for *the* stub beside the backend's library, and neither
    the wheel nor the repository is ours to write to.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / STUB
    if not stub.exists():
        known = ", ".join(sorted(folder.parent.name for folder in wheel.glob(f"python_backend_stubs/*/{STUB}")))
        raise ServerError(f"nvidia-pytriton runs models under Python {known}, and this is Python {version}")
    try:
        cache = cache_folder()
    except OSError as error:
        raise ServerError(str(error)) from None
    directory = cache / f"triton-{sha256(str(stub).encode()).hexdigest()[:16]}"
    if not directory.exists():
        unfinished = cache / f".{directory.name}-{uuid.uuid4().hex}"
        try:
            (unfinished / "python").mkdir(parents=True)
            for file in (stub, *(wheel / "backends" / "python").glob("*triton_python*")):
                (unfinished / "python" / file.name).symlink_to(file)
            unfinished.rename(directory)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not directory.exists():  # else another launch was quicker
                raise ServerError(f"cannot write {directory}: {error.strerror or error}; set XDG_CACHE_HOME") from None
    return stub, directory


def _check_libraries(program: Path, environment: Mapping[str, str]) -> None:
    """The dynamic loader lists what it would load and does not start the program."""
    listing = subprocess.run(
        [program], env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
    )
    missing = [line.split()[0] for line in listing.stdout.splitlines() if line.endswith("not found")]
    if missing:
        raise ServerError(
            f"Triton's Python backend needs {', '.join(missing)}, which this Python ({sys.executable}) does not have: "
            "install its shared library (on Debian and Ubuntu the package libpython3.x) or use a Python that has one"
        )
