"""What the tests themselves remember of exports is what an export would give."""

from pathlib import Path

import onnx
import pytest
import torch
from exported_once import exported_once
from tiny_families import tiny_family

from export.graphs import finish_graph


def test_what_is_remembered_is_what_is_exported(tmp_path: Path) -> None:
    """Of one family in two precisions, which share a trace, and of other weights, which do not."""
    family, other = tiny_family("dcgan"), tiny_family("dcgan")
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    asked = [(family, "fp16"), (family, "bf16"), (other, "bf16")]

    def graphs() -> list[bytes]:
        return [finish_graph(one, 22, precision=precision).SerializeToString() for one, precision in asked]

    expected = graphs()
    with exported_once(tmp_path / "exported"):
        for _ in range(2):
            assert graphs() == expected
            assert len([*(tmp_path / "exported").iterdir()]) == len({*expected}) == 3


@pytest.mark.parametrize("other", ["weights", "preset", "opset", "precision", "fused"])
def test_nothing_else_is_taken_for_it(other: str, tmp_path: Path, monkeypatch) -> None:
    exports = []

    def exported(module, inputs, input_names, output_names, family, opset, fused, precision):
        exports.append((opset, fused, precision))
        return onnx.helper.make_model(onnx.helper.make_graph([], f"{len(exports)}", [], []))

    monkeypatch.setattr("export.graphs.export_graph", exported)
    family = tiny_family("dcgan", default_steps=0)
    with exported_once(tmp_path / "exported"):
        finish_graph(family, 20)
        if other == "weights":
            with torch.no_grad():
                next(family.parameters()).view(-1)[-1].add_(1e-6)
        elif other == "preset":
            family = tiny_family("dcgan", batch=3)
        how = {"opset": {"opset": 21}, "precision": {"precision": "bf16"}, "fused": {"fused": False}}.get(other, {})
        found = finish_graph(family, **{"opset": 20, **how})
        assert found.graph.name == "2"
        assert finish_graph(family, **{"opset": 20, **how}).graph.name == "2"
    assert len(exports) == 2
