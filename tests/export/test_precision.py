"""Half precision where it is wanted, float32 where it is needed, and graphs that are still close to PyTorch."""

import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from tiny_families import tiny_family
from tiny_pig import tiny_pig
from torch import nn
from torch.nn import functional as F

from export import BuildError
from export.__main__ import main
from export.build import build, write_bundle
from export.graphs import step_graph
from export.options import BF16_OPSET, OPSET, TOLERANCES, Options
from export.parity import measure_parity
from export.precision import in_half_precision, widened
from serving.bundle import bundle_folder
from serving.engines.onnxruntime import OnnxRuntimeEngine, machine
from training.checkpoint import save_checkpoint

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def graphs():
    family = tiny_pig()
    opsets = {"fp16": OPSET, "bf16": BF16_OPSET}
    return {name: step_graph(family, opset, precision=name) for name, opset in opsets.items()}


def types(model):
    """The element type of every value."""
    model = onnx.shape_inference.infer_shapes(model)
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {weight.name: weight.data_type for weight in model.graph.initializer}


@pytest.mark.parametrize("precision", HALF)
class TestGraph:
    def test_the_boundary_is_float32(self, graphs, precision):
        graph = graphs[precision].graph
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.elem_type == TensorProto.FLOAT

    def test_what_is_computed_in_what(self, graphs, precision):
        found = types(graphs[precision])
        kinds = {}
        for node in graphs[precision].graph.node:
            first = node.input[1] if node.op_type == "SolverStep" else node.input[0] if node.input else ""
            kinds.setdefault(node.op_type, set()).add(found.get(first))
        norm = "InstanceNormalization" if precision == "fp16" else "GroupNormalization"
        for kind in ("Conv", "MatMul", "PackedAttention", "GroupNormSilu", "SolverStep"):
            assert kinds[kind] == {HALF[precision]}, kind
        for kind in (norm, "Gemm", "Sin", "Cos", "Sigmoid", "Clip"):  # Gemm: the time embedding
            assert kinds[kind] == {TensorProto.FLOAT}, kind

    def test_the_update_reads_float32_states(self, graphs, precision):
        found = types(graphs[precision])
        (update,) = (node for node in graphs[precision].graph.node if node.op_type == "SolverStep")
        rest = [name for name in update.input if name != update.input[1]]
        assert {found[name] for name in (*rest, *update.output)} == {TensorProto.FLOAT}

    def test_fused_nodes_have_inputs_of_one_type(self, graphs, precision):
        """TensorRT's plugins take no other."""
        found = types(graphs[precision])
        for node in graphs[precision].graph.node:
            if node.op_type in ("GroupNormSilu", "PackedAttention"):
                assert {found[name] for name in node.input} == {HALF[precision]}

    def test_weights_take_half_the_bytes(self, graphs, precision):
        sizes = {HALF[precision]: 0, TensorProto.FLOAT: 0}
        for weight in graphs[precision].graph.initializer:
            if weight.data_type in sizes:
                sizes[weight.data_type] += np.prod(weight.dims, dtype=int)
        assert sizes[HALF[precision]] > sizes[TensorProto.FLOAT]


def test_fp16_bundle(checkpoint, tmp_path):
    arguments = [
        "build",
        "--model",
        "pig",
        "--checkpoint",
        checkpoint,
        "--repository",
        tmp_path,
        "--precision",
        "fp16",
        "--target",
        "onnx",
    ]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    folder = bundle_folder(tmp_path, "pig")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["precision"] == "fp16"
    seen = {"rows_are_independent": True, "seen_on": machine()}
    assert manifest["target"] == {"name": "onnx", "opset": OPSET, "fused": True, **seen}
    assert manifest["parity"]["tolerance"] == {
        "step": 5e-3,
        "end_to_end": 1e-2,
        "mask": 1e-3,
        "gradient": 2e-2,
        "loss": 5e-2,
    }
    assert 1e-5 < manifest["parity"]["step"]["sample_next"] < TOLERANCES["fp16"].step


def test_bf16_on_onnx_runtime_is_refused_in_plain_words(built, checkpoint, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr("export.build.step_graph", lambda *_: graphs["bf16"])
    monkeypatch.setattr("export.build.finish_graph", lambda *_: onnx.load(built.engine_path("finish")))
    with pytest.raises(BuildError, match=r"ONNX Runtime has no bf16 convolutions here.*--precision fp16"):
        build("pig", checkpoint, tmp_path, Options(precision="bf16"))
    assert not bundle_folder(tmp_path, "pig").exists()


def test_bf16_in_the_opset_of_attention_is_close_to_pytorch(built, tmp_path):
    """What --target tensorrt-rtx makes; its nodes' bodies hold ONNX's own Attention."""
    family = tiny_family("pig", head_dim=16)
    step, finish = step_graph(family, 23, precision="bf16"), built.engine_path("finish").read_bytes()
    (attention,) = (function for function in step.functions if function.name == "PackedAttention")
    step = widened(step)
    bundle = write_bundle(tmp_path, built.manifest, {"step.onnx": step.SerializeToString(), "finish.onnx": finish})
    figures = measure_parity(family, OnnxRuntimeEngine(bundle))
    assert 1e-4 < figures["step"]["sample_next"] < TOLERANCES["bf16"].step
    assert "Attention" in {node.op_type for node in attention.node}


def test_bf16_needs_a_new_opset(checkpoint, tmp_path):
    with pytest.raises(BuildError, match=r"--opset 18 .* bf16 needs 22"):
        build("pig", checkpoint, tmp_path, Options(precision="bf16", opset=18))


def test_widened_bf16_is_close_to_pytorch(built, graphs, tmp_path):
    family = tiny_pig()
    step, finish = widened(graphs["bf16"]), built.engine_path("finish").read_bytes()
    onnx.checker.check_model(step, full_check=True)
    bundle = write_bundle(tmp_path, built.manifest, {"step.onnx": step.SerializeToString(), "finish.onnx": finish})
    figures = measure_parity(family, OnnxRuntimeEngine(bundle))
    limits = TOLERANCES["bf16"]
    assert 1e-4 < figures["step"]["sample_next"] < limits.step
    assert figures["end_to_end"]["image"] < limits.end_to_end


def test_overflow_leaves_no_bundle(built, graphs, tmp_path, monkeypatch):
    """Activations beyond what fp16 holds are infinite there, and NaN after the next norm."""
    pig = tiny_pig()
    with torch.no_grad():
        pig.generator.conv_in.weight.mul_(1e6)
    save_checkpoint(tmp_path / "checkpoint", pig, pig.state_dict(), {"preset_name": "small"})
    step = onnx.ModelProto()
    step.CopyFrom(graphs["fp16"])
    (weight,) = (
        each for each in step.graph.initializer if each.name == "family_generator_conv_in_weight_torch_float16"
    )
    weight.CopyFrom(onnx.numpy_helper.from_array(pig.generator.conv_in.weight.detach().half().numpy(), weight.name))
    monkeypatch.setattr("export.build.step_graph", lambda *_: step)
    monkeypatch.setattr("export.build.finish_graph", lambda *_: onnx.load(built.engine_path("finish")))
    with pytest.raises(BuildError, match="differs from PyTorch by inf"):
        build("pig", tmp_path / "checkpoint", tmp_path / "repository", Options(precision="fp16"))
    assert not bundle_folder(tmp_path / "repository", "pig").exists()


def test_each_figure_has_its_own_limit():
    bf16 = TOLERANCES["bf16"]
    kinds = {("step", "prediction"): 5e-2, ("random", "sample_next"): 5e-2, ("end_to_end", "image"): 1e-1}
    kinds |= {("end_to_end", "mask"): 1e-3, ("onnx", "mask"): 1e-3, ("onnx", "state"): 1.0}
    assert {key: bf16.of(*key, masks=["mask"]) for key in kinds} == kinds
    for name in ("state", "mask", "image"):
        assert TOLERANCES["fp32"].of("end_to_end", name, masks=["mask"]) == 1e-3
    assert TOLERANCES["fp32"].of("step", "prediction", masks=["mask"]) == 1e-4


class Parts(nn.Module):
    """Forms that are not fused."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.group_norm, self.layer_norm = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.image, self.row = nn.Linear(8, 8), nn.Linear(4, 8)
        self.register_buffer("blur", torch.ones(8, 1, 3, 3) / 9)

    def forward(self, x, row):
        hidden = F.conv2d(self.conv(x), self.blur, padding=1, groups=8)
        hidden = hidden / (hidden.square().mean(1, keepdim=True) + 1e-8).sqrt()
        tokens = self.group_norm(hidden).flatten(2).transpose(1, 2)
        tokens = self.image(self.layer_norm(tokens)) + self.row(row)[:, None]
        scores = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
        return F.scaled_dot_product_attention(scores, tokens, tokens), torch.einsum("bnc,bmc->bnm", tokens, tokens)


@pytest.mark.parametrize("precision", HALF)
def test_every_form_of_product_and_island(precision):
    torch.manual_seed(0)
    parts, example = Parts().eval(), (torch.randn(2, 2, 4, 4), torch.randn(2, 4))
    module = in_half_precision(parts, example, ({0: torch.export.Dim.DYNAMIC},) * 2, precision)

    seen = {}

    class Watch(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            kinds = {
                value.dtype
                for value in (*args, *(part for several in args if isinstance(several, list) for part in several))
                if isinstance(value, torch.Tensor)
            }
            seen.setdefault(str(target), []).append(kinds)
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        found, expected = Watch(module).run(*example), parts(*example)
    half, full = {getattr(torch, {"fp16": "float16", "bf16": "bfloat16"}[precision])}, {torch.float32}
    assert seen["aten.conv2d.default"] == [half, half]
    assert seen["aten.linear.default"] == [half, full]
    assert seen["aten.matmul.default"] == [half, half]
    assert seen["aten.einsum.default"] == [half if precision == "fp16" else full]  # ONNX has none of bfloat16
    islands = "group_norm.default", "layer_norm.default", "square.default", "softmax.int"
    for island in (*islands, "scaled_dot_product_attention.default"):
        assert seen[f"aten.{island}"] == [full], island
    casts = [node.args[0] for node in module.graph.nodes if node.op == "call_method"]
    assert not [value for value in casts if value.op == "get_attr"]  # weights are kept in half precision, not converted
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.05)
    assert {parameter.dtype for parameter in parts.parameters()} == {torch.float32}
