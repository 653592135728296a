"""What ONNX Runtime's threads cut is known, and the rest of a row is in one order wherever it stands."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from tiny_families import tiny_family

from export.build import seen_of_rows
from export.options import Options
from export.sums import summed_by_products
from export.threads import WHOLE, are_cut


def graph_of(kind: str, shape: list[int | str], *weights: np.ndarray, **attributes) -> ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in (("x", shape), ("y", None)))
    given = [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)]
    node = helper.make_node(kind, ["x", *(weight.name for weight in given)], ["y"], **attributes)
    graph = helper.make_graph([node], "graph", [x], [y], given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("kind", "shape", "most", "expected"),
    [
        ("Softplus", ["batch", WHOLE // 16], 16, False),
        ("Softplus", ["batch", WHOLE // 16], 17, True),
        ("Mish", ["batch", 32, 28, 28], 16, True),
        ("Log", ["batch", "free"], 1, True),
        ("Sigmoid", ["batch", 64, 64, 64], 16, False),
    ],
)
def test_functions_of_large_maps_are_cut(kind, shape, most, expected):
    assert are_cut(graph_of(kind, shape), most) == expected


@pytest.mark.parametrize(("channels", "expected"), [(6, False), (8, False), (18, True), (30, True), (32, False)])
def test_convolutions_of_channels_in_no_blocks_are_cut(channels, expected):
    model = graph_of("Conv", ["batch", channels, 9, 9], np.ones((4, channels, 3, 3), np.float32))
    assert are_cut(model, 16) == expected


def test_a_row_that_is_no_multiple_of_four_is_added_up_in_one_order_in_every_place():
    model = graph_of("ReduceMean", ["batch", 30, 1, 1], np.array([1, 2, 3]), keepdims=0)
    values = np.random.default_rng(0).normal(size=(4, 30, 1, 1)).astype(np.float32)
    places = [np.roll(values, shift, 0) for shift in range(4)]

    def found(model: ModelProto) -> list[bytes]:
        session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return [np.roll(session.run(None, {"x": each})[0], -shift, 0).tobytes() for shift, each in enumerate(places)]

    assert len(set(found(model))) > 1, "the runtime has changed"
    assert len(set(found(summed_by_products(model)))) == 1
    mean = np.frombuffer(found(summed_by_products(model))[0], np.float32)
    np.testing.assert_allclose(mean, values.mean((1, 2, 3), dtype=np.float64), rtol=0, atol=1e-6)
    whole = graph_of("ReduceMean", ["batch", 32, 1, 1], np.array([1, 2, 3]), keepdims=0)
    assert [node.op_type for node in summed_by_products(whole).graph.node] == ["ReduceMean"]


@pytest.mark.parametrize(("target", "expected"), [("onnx", False), ("openvino", True)])
def test_a_graph_that_is_cut_has_no_independent_rows_whatever_was_seen(monkeypatch, target, expected):
    monkeypatch.setattr("export.build.rows_are_independent", lambda family, engine, most: True)
    graphs = {"step": graph_of("Mish", ["batch", 32, 28, 28]), "finish": graph_of("Sigmoid", ["batch", 8])}
    engine, options = SimpleNamespace(buckets=None, machine="here"), Options(target=target)

    def independent():
        seen = seen_of_rows(tiny_family("ddpm"), None, engine, graphs, options)
        assert seen["seen_on"] == engine.machine
        return seen["rows_are_independent"]

    assert independent() == expected
    graphs["step"] = graph_of("Softplus", ["batch", WHOLE // 16 - 1])  # which has four values for each in packets
    assert independent() == expected
    del graphs["step"]
    assert independent()
