"""The tiny bundle for OpenVINO."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
from tiny import write_tiny_bundle

from export.build import write_bundle
from export.openvino import describe_target, representations
from serving.bundle import load_bundle


def write_tiny_openvino_bundle(folder: Path, **options: Any) -> Path:
    """As ``write_tiny_bundle``, and the same networks."""
    bundle = load_bundle(write_tiny_bundle(folder, **options))
    manifest = dataclasses.replace(bundle.manifest, target=describe_target())
    graphs = {}
    for name in manifest.engines:
        graphs[name] = onnx.load(bundle.engine_path(name))
        bundle.engine_path(name).unlink()
    return write_bundle(folder, manifest, representations(graphs, manifest)).folder
