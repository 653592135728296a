"""ONNX graphs -> OpenVINO's intermediate representation, for CPUs."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from export import BuildError
from export.linears import joined_linears
from kernels.onnx_functions import written_by_channel
from serving.bundle import Manifest
from serving.engines import EngineError
from serving.engines.openvino import load, the_core


def describe_target(model: str = "--target openvino") -> dict[str, Any]:
    """A manifest's target. Raises BuildError if OpenVINO is not installed."""
    try:
        load(model)
    except EngineError as error:
        raise BuildError(str(error)) from None
    return {"name": "openvino", "openvino": importlib.metadata.version("openvino")}


def check(path: Path, model: str) -> None:
    """Raises BuildError if OpenVINO does not read a bundle's graph."""
    try:
        load(model)
        the_core().read_model(path)
    except (EngineError, RuntimeError) as error:
        raise BuildError(f"OpenVINO does not read {path}: {error}") from None


def representations(graphs: Mapping[str, onnx.ModelProto], manifest: Manifest) -> dict[str, bytes]:
    """Files of graphs by name, such as "step.xml" and "step.bin": the weights once, whatever the batch."""
    openvino = load(manifest.model)
    core = the_core()
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in graphs.items():
            try:
                model = core.read_model(joined_linears(written_by_channel(graph)).SerializeToString())
            except RuntimeError as error:
                raise BuildError(f"OpenVINO cannot read the {name} graph, which --target onnx can: {error}") from None
            for number, node in enumerate(model.get_ordered_ops()):
                kind = node.get_type_name()
                if node.get_friendly_name().startswith(f"{kind}_"):  # and a number of all nodes of this process
                    node.set_friendly_name(f"{kind}_{number}")
            path = Path(folder) / f"{name}.xml"
            try:
                openvino.save_model(model, path, compress_to_fp16=False)  # the graph has the types that it is to have
                core.read_model(path)  # it is whole
            except RuntimeError as error:
                raise BuildError(f"OpenVINO cannot write the {name} graph into {folder}: {error}") from None
            files |= {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
    return files
