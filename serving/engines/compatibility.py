"""Whether a TensorRT plan can run here; a plan is for the TensorRT, and mostly the GPU, that it was built with."""

import json
import shlex
from pathlib import Path

from serving.bundle import REPOSITORY, Bundle, Manifest, bundle_folder
from serving.engines import EngineError


def check_version(bundle: Bundle, title: str, built: str, version: str) -> None:
    """Raises EngineError if the bundle's plans are of another version of a library than the one here."""
    if version != built:
        package = bundle.manifest.target["name"]
        raise EngineError(
            f"the plans of {bundle.manifest.model} are of {title} {built}, and here is {version}: "
            f"pip install {package}=={built}, or {rebuild(bundle)}"
        )


def check_capability(manifest: Manifest, gpu: str, compute_capability: tuple[int, int]) -> None:
    """Raises EngineError if a GPU is not of those that plans of TensorRT for RTX are for."""
    target = manifest.target
    here = f"{compute_capability[0]}.{compute_capability[1]}"
    if here not in target["compute_capabilities"]:
        raise EngineError(
            f"the plans of {manifest.model} are of TensorRT for RTX, for GPUs of compute capability "
            f"{', '.join(target['compute_capabilities'])}, and here is {gpu} ({here}): "
            "build the bundle with --target tensorrt or --target onnx"
        )


def check_gpu(bundle: Bundle, gpu: str, compute_capability: tuple[int, int]) -> None:
    """Raises EngineError if the bundle's plans do not run on a GPU of this name and capability."""
    target = bundle.manifest.target
    here = f"{compute_capability[0]}.{compute_capability[1]}"
    fits = {
        "none": gpu == target["gpu"] and here == target["compute_capability"],
        "same_compute_capability": here == target["compute_capability"],
        "ampere_plus": compute_capability >= (8, 0),
    }
    if not fits[target["hardware_compatibility"]]:
        raise EngineError(
            f"the plans of {bundle.manifest.model} are for {target['gpu']} (compute capability "
            f"{target['compute_capability']}, hardware compatibility {target['hardware_compatibility']}), and here is "
            f"{gpu} ({here}): {rebuild(bundle)}"
        )


def rebuild(bundle: Bundle) -> str:
    """How to get plans for the machine at hand that are like the bundle's otherwise."""
    manifest, target = bundle.manifest, bundle.manifest.target
    command = ["medgen", "export", "build", "--model", manifest.model, "--target", target["name"]]
    command += ["--precision", manifest.precision, "--max-batch", str(manifest.max_batch)]
    was_timed = "seconds_a_step" in target  # with and without fused operators: the GPU here may like the other better
    if "opset" in target and not was_timed:
        command += ["--opset", str(target["opset"])]
    if bundle.folder.parts[-3:] == bundle_folder(Path(), manifest.model).parts:
        repository = bundle.folder.parents[2]
        command += ["--repository", str(repository)] if repository != REPOSITORY.absolute() else []
    if target.get("hardware_compatibility", "none") != "none":
        command += ["--hardware-compatibility", target["hardware_compatibility"]]
    if not target.get("fused", True) and not was_timed:
        command += ["--no-fuse"]
    made = manifest.checkpoint
    if "prior" in made:  # the preset is its own, and need not be called as the checkpoint's
        command += ["--preset", manifest.preset]
    for name, value in made.get("chosen", {}).items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    if "unfinished" in made:
        command += ["--unfinished"]
    if "license" in made:
        command += ["--license", made["license"]]
    report = bundle.folder / "parity.json"
    if report.is_file() and (checkpoint := json.loads(report.read_text()).get("checkpoint")):
        command += ["--checkpoint", checkpoint]
    return f"build them here with: {shlex.join(command)}"
