"""Rows keep their bits where ONNX Runtime computes four values at a time."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnxruntime import InferenceSession
from tiny_families import tiny_family

from export.build import onnx_files
from export.graphs import finish_graph
from export.packets import KINDS, in_whole_packets

Bits = NDArray[np.uint32]


def bits_by_batch(model: ModelProto | bytes, *given: NDArray[np.float32]) -> dict[int, Bits]:
    """Of the last output, all rows, computed in batches of each size."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = {}
    for batch in (1, 2, 3, 4, 5, 8, 16):
        starts = range(0, len(given[0]), batch)
        cut = [dict(zip(names, [each[row : row + batch] for each in given], strict=True)) for row in starts]
        found[batch] = np.concatenate([session.run(None, feeds)[-1] for feeds in cut]).view(np.uint32)
    return found


def function(kind: str, features: int) -> ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", features]) for name in "xy")
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "graph", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_batch(kind, features):
    values = np.random.default_rng(0).uniform(1e-3 if kind == "Log" else -1, 1, (960, features)).astype(np.float32)
    plain = function(kind, features)
    found = bits_by_batch(plain, values)
    assert not np.array_equal(found[1], found[4]), "the runtime has changed"
    alone, *others = bits_by_batch(in_whole_packets(plain), values).values()
    assert all(np.array_equal(alone, other) for other in others)
    np.testing.assert_allclose(alone.view(np.float32), found[1].view(np.float32), rtol=1e-6, atol=1e-6)


def test_whole_packets_and_other_functions_stay():
    for plain in (function("Cos", 8), function("Exp", 3)):
        assert in_whole_packets(plain) == plain


def test_the_psnr_of_an_inversion_does_not_depend_on_the_batch():
    family = tiny_family("mganprior")
    content = onnx_files({"finish": finish_graph(family)})["finish.onnx"]
    random = np.random.default_rng(1)
    samples = random.normal(size=(48, *family.sample_shape)).astype(np.float32)
    pictures = random.uniform(-1, 1, (48, 1, family.preset.size, family.preset.size)).astype(np.float32)
    alone, *others = bits_by_batch(content, samples, pictures).values()
    assert alone.shape == (48, 1)
    assert all(np.array_equal(alone, other) for other in others)
