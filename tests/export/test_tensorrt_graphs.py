"""Bytes in graphs for TensorRT 10, which casts them to floats and does nothing else with them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_families import EXPORTED, STEPPING, random_condition, tiny_family

from export.graphs import step_graph
from export.tensorrt_graphs import by_way_of_floats

CONDITIONAL = [name for name in STEPPING if name in EXPORTED and tiny_family(name).condition]
BYTES = onnx.TensorProto.UINT8


def floats(graph):
    after = onnx.ModelProto.FromString(graph.SerializeToString())
    by_way_of_floats(after)
    return after


def consumers(graph, name):
    return [node for node in graph.graph.node if name in node.input]


def assert_bytes_are_cast_once(graph):
    names = [value.name for value in graph.graph.input if value.type.tensor_type.elem_type == BYTES]
    assert names
    for name in names:
        (cast,) = consumers(graph, name)
        assert (cast.op_type, cast.attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT)


def run(graph, feeds):
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, feeds)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_condition_is_cast_once(name):
    family = tiny_family(name)
    before = step_graph(family)
    after = floats(before)
    onnx.checker.check_model(after, full_check=True)
    assert_bytes_are_cast_once(after)
    random = np.random.default_rng(0)
    (mask,) = random_condition(family, 2)
    states = ("sample", "history_1", "history_2", "history_3", "noise")
    feeds = {state: random.normal(size=(2, *family.sample_shape)).astype(np.float32) for state in states}
    feeds |= {"coeffs": random.random((2, 12), np.float32), "condition": mask.numpy()}
    for one, two in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_reader_of_bytes_reads_floats_then():
    graph = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        step (uint8[B,1,4,4] condition) => (int64[B,1,4,4] classes, int64[4] shape, float[B,1,4,4] mask) {
          shape = Shape(condition)
          classes = Cast <to = 7> (condition)
          mask = Cast <to = 1> (condition)
        }
    """)
    after = floats(graph)
    onnx.checker.check_model(after, full_check=True)
    assert_bytes_are_cast_once(after)
    feeds = {"condition": np.random.default_rng(0).integers(256, size=(2, 1, 4, 4), dtype=np.uint8)}
    for one, two in zip(run(graph, feeds), run(after, feeds), strict=True):
        np.testing.assert_array_equal(one, two)
