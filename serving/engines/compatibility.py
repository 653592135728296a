"""Whether a TensorRT plan can run here; a plan is for the TensorRT, and mostly the GPU, that it was built with."""

from collections.abc import Mapping
from typing import Any

from serving.engines import EngineError


def check_version(target: Mapping[str, Any], version: str, model: str) -> None:
    """Raises EngineError if the plans of a manifest's target are of another TensorRT than ``version``."""
    if version != target["tensorrt"]:
        raise EngineError(
            f"the plans of {model} are of TensorRT {target['tensorrt']}, and here is {version}: {_rebuild(model)}, "
            f"or pip install tensorrt=={target['tensorrt']}"
        )


def check_gpu(target: Mapping[str, Any], gpu: str, compute_capability: tuple[int, int], model: str) -> None:
    """Raises EngineError if the plans of a manifest's target do not run on a GPU of this name and capability."""
    here = f"{compute_capability[0]}.{compute_capability[1]}"
    fits = {
        "none": gpu == target["gpu"] and here == target["compute_capability"],
        "same_compute_capability": here == target["compute_capability"],
        "ampere_plus": compute_capability >= (8, 0),
    }
    if not fits[target["hardware_compatibility"]]:
        raise EngineError(
            f"the plans of {model} are for {target['gpu']} (compute capability {target['compute_capability']}, "
            f"hardware compatibility {target['hardware_compatibility']}), and here is {gpu} ({here}): {_rebuild(model)}"
        )


def _rebuild(model: str) -> str:
    return f"build them here with: python -m export build --model {model} --target tensorrt"
