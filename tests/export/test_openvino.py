import dataclasses
import json
import shutil
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from tiny_families import tiny_family
from tiny_pig import tiny_pig

from export import BuildError, ToleranceError, default_target
from export.__main__ import main
from export.build import build, describe_target
from export.graphs import step_graph
from export.linears import joined_linears
from export.openvino import check, representations
from export.options import TOLERANCES, Options
from export.rows import rows_are_independent
from export.sums import summed_by_products
from kernels.onnx_functions import DOMAIN, add_functions, written_by_channel
from serving.bundle import bundle_folder
from serving.engines import open_engine
from serving.engines.openvino import OpenVinoEngine, the_core
from serving.sampling.solvers import solver_table
from training.checkpoint import save_checkpoint


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp16"])
def bundle(request, checkpoint, tmp_path_factory):
    # Of an untrained model many pixels of the mask are undecided.
    limits = TOLERANCES[request.param]
    tolerance = dataclasses.replace(limits, mask=limits.mask and 0.1)
    options = Options(target="openvino", precision=request.param, max_batch=4, tolerance=tolerance)
    return build("pig", checkpoint, tmp_path_factory.mktemp(request.param), options)


def test_a_bundle_keeps_its_limits_and_names_its_files(bundle):
    manifest = bundle.manifest
    assert manifest.target["name"] == "openvino"
    assert manifest.target["openvino"][:2] == "20"
    assert isinstance(manifest.target["rows_are_independent"], bool)
    assert 0 < manifest.parity["step"]["sample_next"] < TOLERANCES[manifest.precision].step
    assert {file.name for file in bundle.folder.iterdir()} >= {"step.xml", "step.bin", "finish.xml", "finish.bin"}
    fields = json.loads((bundle.folder / "manifest.json").read_text())["engines"]["step"]
    assert (fields["file"], fields["weights"]["file"]) == ("step.xml", "step.bin")
    assert manifest.target["seen_on"] == OpenVinoEngine(bundle).machine


def test_a_descent_in_half_precision_is_rounded_and_gets_as_far(tmp_path):
    family = tiny_family("mganprior")
    save_checkpoint(tmp_path / "checkpoint", family, family.state_dict(), {"preset_name": "small"})
    options = Options(target="openvino", precision="bf16", max_batch=4)
    parity = build("mganprior", tmp_path / "checkpoint", tmp_path / "repository", options).manifest.parity
    assert 1e-3 < parity["step"]["gradient"] < TOLERANCES["bf16"].gradient
    assert parity["end_to_end"]["loss"] < TOLERANCES["bf16"].loss
    limits = dataclasses.replace(TOLERANCES["bf16"], gradient=1e-3)
    with pytest.raises(ToleranceError, match=r"random: .* differs from PyTorch by"):
        build("mganprior", tmp_path / "checkpoint", tmp_path, dataclasses.replace(options, tolerance=limits))


def test_sums_keep_their_layout(tmp_path):
    """As products they would cost a rearrangement each, a quarter of a step's time."""
    graph = step_graph(tiny_family("mganprior"))
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert kinds["ReduceSum"] + kinds["ReduceMean"] > 5
    products = Counter(node.op_type for node in summed_by_products(graph).graph.node)
    assert products["MatMul"] > kinds["MatMul"]
    assert Counter(node.op_type for node in graph.graph.node) == kinds


def test_linears_of_one_input_are_one_and_say_the_same():
    """The blocks' on the embedding of the time; what is a Gemm of another kind stays."""
    graph = written_by_channel(step_graph(tiny_pig()))
    joined = joined_linears(graph)
    assert Counter(node.op_type for node in graph.graph.node)["Gemm"] > 8
    kinds = Counter(node.op_type for node in joined.graph.node)
    assert kinds["Gemm"] == 5, (
        "the first, of the time, in common; then two networks' second, and one for all their blocks"
    )
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.normal(size=[size.dim_value or 2 for size in value.type.tensor_type.shape.dim])
        for value in graph.graph.input
    }
    feeds = {name: values.astype(np.float32) for name, values in feeds.items()}
    found, expected = (
        InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        for model in (joined, graph)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("attributes", "bias"), [({"alpha": 0.5}, [3]), ({"transB": 0}, [3]), ({}, [1]), ({}, None)])
def test_other_products_are_left_alone(attributes, bias):
    weights = [numpy_helper.from_array(np.ones((3, 3), np.float32), "weight")]
    weights += [numpy_helper.from_array(np.ones(bias, np.float32), "bias")] if bias else []
    names = [weight.name for weight in weights]
    nodes = [helper.make_node("Gemm", ["x", *names], [y], **{"transB": 1, **attributes}) for y in "ab"]
    x, *ys = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in "xab")
    model = helper.make_model(helper.make_graph(nodes, "graph", [x], ys, weights))
    assert [node.op_type for node in joined_linears(model).graph.node] == ["Gemm", "Gemm"]


def test_verify_reads_the_graphs(bundle, tmp_path):
    command = ["verify", str(bundle.folder)]
    assert "digests and graphs are good" in CliRunner().invoke(main, command).stdout
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    (folder / "step.xml").write_bytes((folder / "step.xml").read_bytes()[:5000])
    with pytest.raises(BuildError, match=r"OpenVINO does not read .*step\.xml: "):
        check(folder / "step.xml", "pig")


def test_rows_are_the_same_bits_in_every_batch_and_order(bundle, monkeypatch):
    monkeypatch.setattr("serving.engines.openvino.threads", lambda: 1)  # with more, sums of so small maps are cut
    engine, family, random = OpenVinoEngine(bundle), tiny_pig(), np.random.default_rng(1)
    sample, *history, noise = random.normal(size=(5, 16, *family.sample_shape)).astype(np.float32)
    schedule, solver = family.preset.schedule, family.preset.default_solver
    coeffs = solver_table(solver, schedule, 16).astype(np.float32)

    def step(rows):
        return engine.step(sample[rows], tuple(state[rows] for state in history), noise[rows], coeffs[rows])

    alone = [np.concatenate(parts) for parts in zip(*(step([row]) for row in range(16)), strict=True)]
    for count in range(1, 17):
        rows = random.permutation(16)[:count]
        for found, expected in zip(step(rows), alone, strict=True):
            assert found.tobytes() == expected[rows].tobytes()


def test_a_graph_is_written_the_same_each_time(built):
    graphs = {"step": onnx.load(built.engine_path("step"))}
    assert representations(graphs, built.manifest) == representations(graphs, built.manifest)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_norm_by_channel_keeps_its_digits(engine):
    """Means a thousand times the spread, and other ones in each channel of a group."""
    torch.manual_seed(0)
    groups, shape = 2, (3, 8, 16, 16)
    x = torch.randn(shape) + 1000 + torch.arange(8.0)[:, None, None]
    tables = [torch.randn(3, 8), torch.randn(1, 8), torch.randn(3, 8)]
    wide = (
        x.double() + tables[0].double()[:, :, None, None],
        *(table.double()[:, :, None, None] for table in tables[1:]),
    )
    normal = torch.nn.functional.group_norm(wide[0], groups, eps=1e-5) * wide[1] + wide[2]
    expected = torch.nn.functional.silu(normal).numpy()
    names = ["x", "embedding", "gain", "offset"]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, each.shape)
        for name, each in zip(names, [x, *tables], strict=True)
    ]
    node = helper.make_node("GroupNormSilu", names, ["y"], domain=DOMAIN, groups=groups, eps=1e-5)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([node], "graph", values, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    add_functions(model)
    content = written_by_channel(model).SerializeToString()
    given = [each.numpy() for each in (x, *tables)]
    if engine == "openvino":
        options = {"INFERENCE_PRECISION_HINT": "dynamic"}
        compiled = the_core().compile_model(the_core().read_model(content), "CPU", options)
        found = compiled(dict(zip(names, given, strict=True)))[0]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, dict(zip(names, given, strict=True)))
    assert np.abs(found - expected).max() < 5e-4


def test_rows_that_depend_on_their_company_are_noticed(built):
    engine, family = open_engine(built), tiny_pig()
    assert rows_are_independent(family, engine, 4)
    step = engine.step
    engine.step = lambda sample, *others: [out + np.float32(1e-6) * (len(sample) == 3) for out in step(sample, *others)]
    assert not rows_are_independent(family, engine, 4)


@pytest.mark.parametrize("odd", [9, 20])
def test_rows_are_compared_in_every_batch_up_to_16_and_in_the_largest(built, monkeypatch, odd):
    """Also where there are more rows in it than were run alone."""
    monkeypatch.setattr("export.rows.SAMPLES", 5)
    engine, family = open_engine(built), tiny_pig()
    step = engine.step
    engine.step = lambda sample, *others: [out + np.float32(len(sample) == odd) for out in step(sample, *others)]
    assert rows_are_independent(family, engine, 8)
    assert not rows_are_independent(family, engine, 20)


def test_tf32_is_for_gpus():
    with pytest.raises(BuildError, match="tf32 is for GPUs; --target openvino takes fp32, bf16 and fp16"):
        describe_target(Options(target="openvino", precision="tf32"))


def test_the_default_is_the_fastest_that_is_installed(monkeypatch):
    monkeypatch.setattr(default_target, "gpu_here", lambda: None)
    assert [name for name, _ in default_target.default_targets("fp32")] == ["openvino", "onnx"]
    assert [name for name, _ in default_target.default_targets("bf16")] == ["openvino"]
    assert [name for name, _ in default_target.default_targets("tf32")] == ["onnx"]
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "openvino", None)
        broken.setattr("importlib.util.find_spec", lambda name: object())
        ((name, reason),) = default_target.default_targets("fp32")
        assert name == "onnx"
        assert "OpenVINO, which is faster on a CPU, does not load (import of openvino halted" in reason
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ((name, reason),) = default_target.default_targets("fp32")
    assert name == "onnx"
    assert "OpenVINO, which is faster on a CPU, is not installed" in reason
    monkeypatch.setattr(default_target, "gpu_here", lambda: "an H200")
    assert [name for name, _ in default_target.default_targets("fp32")] == ["onnx"]


def test_where_the_fastest_misses_the_tolerance_the_next_one_is_taken(built, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(default_target, "gpu_here", lambda: None)
    asked = []

    def pretended(model, source, repository, options, progress):
        asked.append(options.target)
        if options.target == "openvino":
            raise ToleranceError("step: prediction differs from PyTorch by 1, tolerance 0.5")
        return built

    monkeypatch.setattr("export.build.build", pretended)
    command = ["build", "--model", "pig", "--checkpoint", str(checkpoint), "--repository", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert asked == ["openvino", "onnx"]
    assert "--target onnx: OpenVINO missed the tolerance here" in result.stdout
    assert not bundle_folder(tmp_path, "pig").exists()
