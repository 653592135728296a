import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from tiny_pig import tiny_pig

from export import BuildError, ToleranceError, default_target
from export.__main__ import main
from export.build import build, describe_target
from export.openvino import check, representations
from export.options import TOLERANCES, Options
from export.rows import rows_are_independent
from kernels.onnx_functions import DOMAIN, add_functions, written_by_channel
from serving.bundle import bundle_folder
from serving.engines import open_engine
from serving.engines.openvino import OpenVinoEngine
from serving.sampling.solvers import solver_table


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
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "dynamic"}
        compiled = openvino.Core().compile_model(openvino.Core().read_model(content), "CPU", options)
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


def test_tf32_is_for_gpus():
    with pytest.raises(BuildError, match="tf32 is for GPUs; --target openvino takes fp32, bf16 and fp16"):
        describe_target(Options(target="openvino", precision="tf32"))


def test_the_default_is_the_fastest_that_is_installed(monkeypatch):
    monkeypatch.setattr(default_target, "gpu_here", lambda: None)
    assert [name for name, _ in default_target.default_targets("fp32")] == ["openvino", "onnx"]
    assert [name for name, _ in default_target.default_targets("bf16")] == ["openvino"]
    assert [name for name, _ in default_target.default_targets("tf32")] == ["onnx"]
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
