"""The tiny bundle for OpenVINO."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
from tiny import write_tiny_bundle

from export.build import write_bundle
from export.openvino import describe_target, representations
from serving.bundle import load_bundle
from serving.engines.openvino import OpenVinoEngine


def write_tiny_openvino_bundle(folder: Path, **options: Any) -> Path:
    """As ``write_tiny_bundle``, and the same networks."""
    bundle = load_bundle(write_tiny_bundle(folder, **options))
    manifest = dataclasses.replace(bundle.manifest, target=describe_target())
    graphs = {}
    for name in manifest.engines:
        graphs[name] = onnx.load(bundle.engine_path(name))
        bundle.engine_path(name).unlink()
    files = representations(graphs, manifest)
    seen_on = OpenVinoEngine(write_bundle(folder, manifest, files)).machine
    target = {**manifest.target, "rows_are_independent": True, "seen_on": seen_on}
    return write_bundle(folder, dataclasses.replace(manifest, target=target), files).folder
