"""Graphs in the real parser of TensorRT for RTX, and plans of its real builder, which need no GPU."""

import os
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from fake_cuda import FakeCuda, installed
from fake_engines import FakeRtx, as_tensorrt
from real_tensorrt_rtx import real_tensorrt_rtx
from tiny import contents
from tiny_families import EXPORTED, FAMILIES, MADE, STEPPING, tiny_family

from export import BuildError
from export.__main__ import main
from export.build import best_opset, build
from export.graphs import finish_graph, step_graph
from export.options import Options, PlanOptions
from export.report import verify
from export.tensorrt_libraries import LIBRARIES
from export.tensorrt_parser import read
from kernels import group_norm_sizes
from kernels.onnx_functions import functions, split_large_groups
from serving.bundle import buckets, bundle_folder

rtx = real_tensorrt_rtx()
RTX = LIBRARIES["tensorrt-rtx"]
ALL = [
    (name, precision, fused)
    for name in FAMILIES
    for precision in (("fp32",) if name in MADE else ("fp32", "fp16", "bf16"))
    for fused in (True, False)
]
# An export takes longer than all the rest, so all are done on demand alone. test_families reads what it builds, fused
# graphs in fp32 and of some in fp16; with these every network but the flow's is read in bf16, one of them unfused.
SOME = [
    (name, "fp32" if name in MADE else "bf16", name != "cmr_ddpm_image")
    for name in EXPORTED
    if name != "cmr_flow_image"
]
WAYS = ALL if os.environ.get("MEDGEN_ALL_GRAPHS") else SOME


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "precision", "fused"), WAYS)
def test_every_graph_is_read(name, precision, fused):
    """As any of its users would read it: the plugins are not there, and nothing is prepared."""
    family = tiny_family(name, **{"head_dim": 16} if name in STEPPING else {})  # TensorRT's own attention begins there
    opset = best_opset({"name": "tensorrt-rtx"}, precision, fused)
    graphs = {"finish": finish_graph} | ({"step": step_graph} if family.preset.schedule else {})
    for kind, graph in graphs.items():
        read(graph(family, opset, fused, precision), kind, RTX)


def test_no_operator_of_ours_has_the_name_of_one_of_the_parsers():
    parser = rtx.OnnxParser(network := rtx.Builder(log := rtx.Logger()).create_network(1), log)
    assert parser.supports_operator("Attention")
    assert not [name for name in functions() if parser.supports_operator(name)]
    del network


def test_what_it_does_not_read_is_listed(built):
    graph = onnx.load(built.engine_path("step"))
    for node in [node for node in graph.graph.node if node.op_type in ("Sin", "Cos")][:2]:
        node.op_type, node.domain = f"My{node.op_type}", "elsewhere"
    graph.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(BuildError, match=r"TensorRT for RTX cannot read the step graph: node \S+ \(My(Sin|Cos)\)"):
        read(graph, "step", RTX)


def test_parts_of_large_groups_are_read(built, monkeypatch):
    monkeypatch.setattr(group_norm_sizes, "WHOLE", 16)
    monkeypatch.setattr(group_norm_sizes, "TILE", 64)
    graph = onnx.load(built.engine_path("step"))
    split_large_groups(graph)
    assert "GroupNormSiluApply" in {node.op_type for node in graph.graph.node}
    read(graph, "step", RTX)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("rtx")
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        said = []
        options = Options("tensorrt-rtx", "fp16", max_batch=4)
        built = build("pig", checkpoint, home / "repository", options, lambda *call: said.append(call))
        assert not (home / "cache").exists()  # its timings would be empty: kernels are made where they run
        assert [total for line, _, total in (call for call in said if len(call) == 3) if "step.plan" in line]
        return built


def test_bundle(bundle):
    assert contents(bundle.folder).keys() == {
        "SHA256SUMS",
        "manifest.json",
        "parity.json",
        "README.md",
        "step.plan",
        "finish.plan",
    }
    assert bundle.manifest.target == {
        "name": "tensorrt-rtx",
        "tensorrt_rtx": rtx.__version__,
        "compute_capabilities": ["8.0", "8.6", "8.9", "12.0", "12.1"],
        "buckets": [1, 2, 4],
        "opset": 23,
        "fused": True,
    }
    assert "the plans were not run" in bundle.manifest.parity["note"]
    assert 0 < bundle.manifest.parity["step"]["sample_next"] < 5e-3


def test_inspect_and_verify(bundle):
    for command in ("inspect", "verify"):
        result = CliRunner().invoke(main, [command, str(bundle.folder)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["verify", str(bundle.folder), "--parser"])
    assert result.exit_code == 1
    assert "holds no ONNX graphs that a parser could read" in result.output


def test_verify_on_a_gpu_compares_the_plans(built, checkpoint, monkeypatch, capsys):
    """On stand-ins for both."""
    with installed(FakeCuda((8, 9), "NVIDIA RTX 6000 Ada Generation")) as cuda:
        fake = FakeRtx(cuda, list(buckets(built.manifest.max_batch)))
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
        target = {"name": "tensorrt-rtx", "tensorrt_rtx": fake.__version__, "compute_capabilities": ["8.9"]}
        verify(as_tensorrt(built, **target), checkpoint)
        assert cuda.named("cuGraphLaunch")
    assert "difference from PyTorch" in capsys.readouterr().out


def test_verify_by_the_parser(built):
    result = CliRunner().invoke(main, ["verify", str(built.folder), "--parser"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"TensorRT for RTX {rtx.__version__} reads the graphs" in result.output


class TestFailures:
    def fails(self, checkpoint, tmp_path, message, **options):
        with pytest.raises(BuildError, match=message):
            build("pig", checkpoint, tmp_path, Options("tensorrt-rtx", max_batch=2, **options))
        assert not bundle_folder(tmp_path, "pig").exists()

    @pytest.fixture(autouse=True)
    def _exported(self, built, monkeypatch):
        monkeypatch.setattr("export.build.step_graph", lambda *_: onnx.load(built.engine_path("step")))
        monkeypatch.setattr("export.build.finish_graph", lambda *_: onnx.load(built.engine_path("finish")))

    def test_no_time_left(self, checkpoint, tmp_path):
        self.fails(checkpoint, tmp_path, "no time left to build the step plan", plan=PlanOptions(deadline=0))

    def test_a_graph_that_is_too_far_from_pytorch(self, checkpoint, tmp_path, monkeypatch, built):
        def wrong(*_):
            model = onnx.load(built.engine_path("step"))
            for weight in model.graph.initializer:
                if weight.name.endswith("generator.conv_out.bias"):
                    changed = onnx.numpy_helper.to_array(weight) + np.float32(1)
                    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
            return model

        monkeypatch.setattr("export.build.step_graph", wrong)
        monkeypatch.setattr(
            "export.build.tensorrt.build_plans", lambda graphs, *_: dict.fromkeys(["step.plan", "finish.plan"], b"")
        )
        self.fails(checkpoint, tmp_path, "differs from PyTorch")

    def test_options_of_the_other_library(self, checkpoint, tmp_path):
        plan = PlanOptions(hardware_compatibility="ampere_plus")
        self.fails(checkpoint, tmp_path, "--hardware-compatibility is for --target tensorrt", plan=plan)

    def test_a_version_that_does_not_do(self, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(rtx, "__version__", "1.4.0")
        self.fails(checkpoint, tmp_path, "TensorRT for RTX is 1.4.0; medgen needs 1.7 or newer")
