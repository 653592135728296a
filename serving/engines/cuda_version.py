"""NVIDIA's driver, and whether a library that was built for some CUDA can work with it.

TensorRT does not say: after a CUDA check that failed it hands out objects whose use ends the process.
"""

import re
import subprocess
from importlib.metadata import distributions

from serving.engines import EngineError


def check_driver(module: str, version: str) -> None:
    """Raise EngineError, naming both, if a module such as "tensorrt" is for a newer CUDA than the driver has.

    Call it before the module is asked for anything that uses a GPU. A module that was not installed as a wheel named
    for its CUDA (tensorrt_cu13) is taken to fit, as in NVIDIA's containers.
    """
    needed = cuda_of_wheel(module)
    if needed is None:
        return
    here = cuda_of_driver()
    if here[0] < needed:
        raise EngineError(
            f"{module} {version} here is for CUDA {needed}, and NVIDIA's driver ({driver_version()}) has CUDA "
            f"{here[0]}.{here[1]}: update the driver, or install {module} for CUDA {here[0]}"
        )


def cuda_of_wheel(module: str) -> int | None:
    """The CUDA that the installed wheel of a module is named for."""
    wanted = re.compile(rf"{module}_cu(\d+)(_libs|_bindings)?")
    names = (str(found.metadata["Name"]).lower().replace("-", "_") for found in distributions())
    found = [int(match[1]) for match in map(wanted.fullmatch, names) if match]
    return min(found, default=None)


def cuda_of_driver() -> tuple[int, int]:
    """The newest CUDA that the driver knows, such as (13, 0). Raises EngineError if there is no driver."""
    try:
        from cuda.bindings import driver

        code, number = driver.cuDriverGetVersion()
    except (ImportError, RuntimeError) as error:
        raise EngineError(f"there is no NVIDIA driver that could be asked ({error})") from None
    if int(code):
        raise EngineError(f"NVIDIA's driver does not say which CUDA it has ({code.name})")
    return number // 1000, number % 1000 // 10


def driver_version() -> str:
    """NVIDIA's driver, such as "580.65.06"."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
