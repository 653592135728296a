"""The operators as nodes of an ONNX file, run by ONNX Runtime from their bodies."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from kernels import attention, group_norm_silu, group_norm_sizes, solver_step
from kernels.onnx_functions import DOMAIN, add_functions, functions, split_large_groups, translations

IMAGE, TABLE = ("B", 4, 6, 10), ("B", 4)
CASES = {
    "SolverStep": (
        [("B", 2, 5, 3)] * 6 + [("B", 12)],
        {"clip": 0.7},
        2,
        lambda *tensors: solver_step.reference(*tensors, 0.7),
    ),
    "PackedAttention": ([("B", 9, 3, 2, 16)], {"scale": 0.3}, 1, lambda qkv: attention.reference(qkv, 0.3)),
    "GroupNormSilu": (
        [IMAGE, TABLE, (1, 4), TABLE],
        {"groups": 2, "eps": 1e-3},
        1,
        lambda *tensors: group_norm_silu.reference(*tensors, 2, 1e-3),
    ),
    "GroupNormStatistics": ([IMAGE, (1, 4)], {"tiles": 5}, 1, lambda *tensors: statistics(*tensors, 5)),
    "GroupNormSiluApply": (
        [IMAGE, TABLE, (1, 4), TABLE, ("B", 4, 5, 2)],
        {"groups": 2, "eps": 1e-3},
        1,
        lambda *tensors: group_norm_silu.reference(*tensors[:4], 2, 1e-3),
    ),
}


def statistics(x, embedding, tiles):
    """[B, C, tiles, 2]: mean and variance of each tile of a channel."""
    tile = (x + embedding[:, :, None, None]).flatten(2).unflatten(2, (tiles, -1))
    return torch.stack((tile.mean(-1), tile.var(-1, correction=0)), -1)


def types_of(name, dtype):
    """Of the inputs; a solver's state is float32 whatever the network is."""
    shapes, *_ = CASES[name]
    wide = {"SolverStep": {*range(7)} - {1}, "GroupNormSiluApply": {4}}.get(name, set())
    return [torch.float32 if i in wide else dtype for i in range(len(shapes))]


def model_of(name, attributes, dtype, opset=18):
    shapes, _, outputs, _ = CASES[name]
    inputs = [f"input_{i}" for i in range(len(shapes))]
    results = [f"output_{i}" for i in range(outputs)]
    kinds = [TensorProto.FLOAT if kind == torch.float32 else TensorProto.FLOAT16 for kind in types_of(name, dtype)]
    graph = helper.make_graph(
        [helper.make_node(name, inputs, results, domain=DOMAIN, **attributes)],
        "graph",
        [helper.make_tensor_value_info(*value) for value in zip(inputs, kinds, shapes, strict=True)],
        [helper.make_tensor_value_info(result, output_type(name, kinds), [None] * 4) for result in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    assert add_functions(model) == {name: 1}
    return model


def output_type(name, kinds):
    return TensorProto.FLOAT if name == "GroupNormStatistics" else kinds[0]


def run(model, tensors):
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), tensors, strict=True)}
    return session.run(None, feeds)


def test_every_function_is_tested():
    assert set(functions()) == set(CASES)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 4e-3)])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("opset", [18, 23])
def test_body_on_onnx_runtime(name, dtype, tolerance, opset):
    shapes, attributes, outputs, reference = CASES[name]
    model = model_of(name, attributes, dtype, opset)
    for batch in (1, 3):
        tensors = [
            torch.randn(*(batch if n == "B" else n for n in shape)).to(kind)
            for shape, kind in zip(shapes, types_of(name, dtype), strict=True)
        ]
        if name == "GroupNormSiluApply":
            tensors[4] = statistics(*(tensor.float() for tensor in tensors[:2]), 5)
        expected = reference(*(tensor.double() for tensor in tensors))
        expected = expected if outputs > 1 else (expected,)
        for found, wanted in zip(run(model, tensors), expected, strict=True):
            assert found.dtype == (np.float32 if name == "GroupNormStatistics" else tensors[0].numpy().dtype)
            np.testing.assert_allclose(found, wanted.numpy(), atol=tolerance, rtol=tolerance)


def test_no_clip():
    shapes, *_ = CASES["SolverStep"]
    model = model_of("SolverStep", {"clip": math.inf}, torch.float32)
    tensors = [torch.randn(*(2 if n == "B" else n for n in shape)) * 100 for shape in shapes]
    for found, wanted in zip(run(model, tensors), solver_step.reference(*tensors, math.inf), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_has_no_coefficient_does_not_count(value):
    """Neither in the body nor in PyTorch, as in the kernel, which does not read it."""
    shapes, *_ = CASES["SolverStep"]
    tensors = [torch.randn(*(2 if n == "B" else n for n in shape)) for shape in shapes]
    tensors[6][0, [6, 9, 11]] = 0  # s, d1 and d3 of the first sample
    expected = solver_step.reference(*tensors, 0.7)
    for k in (2, 4, 5):
        tensors[k][0] = value
    model = model_of("SolverStep", {"clip": 0.7}, torch.float32)
    for found, again, wanted in zip(run(model, tensors), solver_step.reference(*tensors, 0.7), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)
        torch.testing.assert_close(again, wanted, rtol=0, atol=0)


def test_no_operator_has_the_name_of_one_of_onnx():
    """Parsers go by the name and forget the domain."""
    assert not {name.lower() for name in functions()} & {
        schema.name.lower() for schema in onnx.defs.get_all_schemas_with_history()
    }


@pytest.mark.parametrize(
    ("dtype", "shape", "with_plugin"),
    [
        (torch.float16, ("B", 256, 3, 2, 32), True),
        (torch.float16, ("B", 1024, 3, 2, 32), False),
        (torch.float32, ("B", 1024, 3, 2, 32), True),
        (torch.float32, ("B", 256, 3, 1, 128), False),
    ],
)
def test_tensorrt_takes_the_plugin_where_it_was_fastest(monkeypatch, dtype, shape, with_plugin):
    monkeypatch.setitem(CASES, "PackedAttention", ([shape], {"scale": 0.3}, 1, None))
    (node,) = model_of("PackedAttention", {"scale": 0.3}, dtype).graph.node
    assert ("plugin_namespace" in {attribute.name for attribute in node.attribute}) == with_plugin


@pytest.mark.parametrize(
    ("dtype", "head_dim", "opset", "native"),
    [
        (torch.float16, 16, 23, True),
        (torch.float16, 8, 23, False),
        (torch.float16, 16, 22, False),
        (torch.float32, 16, 23, False),
    ],
)
def test_attention_is_onnx_own_where_tensorrt_has_a_kernel(monkeypatch, dtype, head_dim, opset, native):
    monkeypatch.setitem(CASES, "PackedAttention", ([("B", 9, 3, 2, head_dim)], {"scale": 0.3}, 1, None))
    model = model_of("PackedAttention", {"scale": 0.3}, dtype, opset)
    (body,), (node,) = model.functions, model.graph.node
    assert ("Attention" in {node.op_type for node in body.node}) == native
    assert ("plugin_namespace" in {attribute.name for attribute in node.attribute}) == (not native)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.randn(8)) for _ in range(2))
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, *inputs):
        sample, coeffs = inputs[0], inputs[-1]
        x = group_norm_silu.group_norm_silu(sample, 4, self.weight, self.bias, scale=coeffs[:, :8])
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, 1, 8))
        out = attention.attention(qkv).flatten(2).transpose(1, 2).reshape(sample.shape)
        return solver_step.solver_step(sample, out, *inputs[1:], 2.0)


@pytest.fixture(scope="module")
def exported():
    """A network of all three, exported with and without nodes of our own."""
    torch.manual_seed(0)
    network = Network().eval()
    inputs = network_inputs(2)
    shapes = (tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),)
    models = {}
    for name, table in (("fused", translations()), ("plain", None)):
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            opset_version=18,
            dynamic_shapes=shapes,
            custom_translation_table=table,
            verbose=False,
        )
        models[name] = program.model_proto
    return network, models


def network_inputs(batch):
    return (*(torch.randn(batch, 8, 6, 6) for _ in range(5)), torch.randn(batch, 12))


def test_export_keeps_the_nodes(exported):
    _, models = exported
    model = onnx.ModelProto.FromString(models["fused"].SerializeToString())
    assert add_functions(model) == {"GroupNormSilu": 1, "PackedAttention": 1, "SolverStep": 1}
    for node in model.graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (attributes.get("plugin_namespace") == b"medgen") == (node.domain == "medgen")
    assert {function.opset_import[0].version for function in model.functions} == {18}


def test_export_without_the_nodes(exported):
    _, models = exported
    model = onnx.ModelProto.FromString(models["plain"].SerializeToString())
    assert add_functions(model) == {}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


@pytest.mark.parametrize("name", ["fused", "plain"])
def test_exported_network_equals_pytorch(exported, name):
    network, models = exported
    model = onnx.ModelProto.FromString(models[name].SerializeToString())
    add_functions(model)
    inputs = network_inputs(3)
    for found, wanted in zip(run(model, inputs), network(*inputs), strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-5, rtol=1e-5)


def test_large_groups_are_split_for_tensorrt(exported, monkeypatch):
    _, models = exported
    model = onnx.ModelProto.FromString(models["fused"].SerializeToString())
    add_functions(model)
    before = model.SerializeToString()
    split_large_groups(model)
    assert model.SerializeToString() == before

    monkeypatch.setattr(group_norm_sizes, "WHOLE", 16)
    monkeypatch.setattr(group_norm_sizes, "TILE", 18)
    split_large_groups(model)
    nodes = {node.op_type: node for node in model.graph.node if node.domain == "medgen"}
    statistics, apply = nodes["GroupNormStatistics"], nodes["GroupNormSiluApply"]
    assert "GroupNormSilu" not in nodes
    assert list(apply.input[:2]) == list(statistics.input)
    assert apply.input[4] == statistics.output[0]
    assert {a.name: helper.get_attribute_value(a) for a in statistics.attribute} == {
        "tiles": 2,
        "plugin_namespace": b"medgen",
        "plugin_version": b"1",
    }
    names = [name for node in model.graph.node for name in node.output]
    assert names.index(statistics.output[0]) < names.index(apply.output[0])
    inputs = network_inputs(3)
    for one, two in zip(
        run(onnx.ModelProto.FromString(before), inputs), run(model, inputs), strict=True
    ):  # elsewhere the parts have bodies too
        np.testing.assert_allclose(one, two, atol=1e-5)
