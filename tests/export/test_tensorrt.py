"""TensorRT plans up to the library's door: what it is told, and what is made of its answers."""

import dataclasses
import os
import signal
import sys
import time
from threading import Thread
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from fake_tensorrt import tensorrt_recorded
from tensorrt_bindings_alone import tensorrt_bindings_alone
from tiny import contents, write_tiny_bundle
from tiny_pig import SIZE, tiny_pig

from export import BuildError, silent, tensorrt
from export.__main__ import main
from export.build import build
from export.options import TARGETS, Options, PlanOptions
from export.parity import compare_engines
from export.tensorrt_callbacks import make_monitor
from export.tensorrt_graphs import by_way_of_floats
from export.tensorrt_libraries import LIBRARIES
from serving.bundle import Condition, bundle_folder, load_bundle
from serving.engines import EngineError
from serving.engines.onnxruntime import OnnxRuntimeEngine

SIZES = [1, 2, 4, 5]
STATE = (2, SIZE, SIZE)
PLAN_FILES = {"SHA256SUMS", "manifest.json", "parity.json", "README.md", "step.plan", "finish.plan"}


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def trt(built, monkeypatch):
    """TensorRT, a GPU, and graphs that were exported before."""
    monkeypatch.setattr("export.build.step_graph", lambda *_: onnx.load(built.engine_path("step")))
    monkeypatch.setattr("export.build.finish_graph", lambda *_: onnx.load(built.engine_path("finish")))
    monkeypatch.setattr("export.tensorrt_libraries.driver_version", lambda: "580.65.06")
    with tensorrt_recorded(SIZES) as recording:
        yield recording


def build_plans(checkpoint, repository, **options):
    return build("pig", checkpoint, repository, Options("tensorrt", max_batch=SIZES[-1], **{"fused": True, **options}))


def timings(tmp_path):
    (file,) = (tmp_path / "cache" / "medgen").iterdir()
    return file.name, file.read_bytes()[32:]  # after its digest


def test_every_target_has_its_library():
    assert ("onnx", "openvino", *LIBRARIES) == TARGETS


def test_bundle(trt, checkpoint, tmp_path):
    bundle = build_plans(checkpoint, tmp_path)
    assert contents(bundle.folder).keys() == PLAN_FILES
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.target == {
        "name": "tensorrt",
        "tensorrt": "11.4.0.106",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "driver": "580.65.06",
        "hardware_compatibility": "none",
        "buckets": SIZES,
        "opset": 18,
        "fused": True,
    }
    assert bundle.manifest.parity["onnx"].keys() == {"state", "mask", "image"}
    assert not list(bundle.folder.parent.glob(".bundle.*"))


def test_a_threshold_has_pytorch_decide_for_each_batch(trt, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("training.models.pig.Pig.has_threshold", True)
    parity = build_plans(checkpoint, tmp_path).manifest.parity
    assert parity["batches"].keys() == {"state", "mask", "image"}
    assert "onnx" not in parity


def test_what_tensorrt_is_told(trt, checkpoint, tmp_path):
    build_plans(checkpoint, tmp_path)
    assert trt.flags == [0b101] * 2  # strongly typed, plugins compiled ahead of time
    assert trt.capabilities == [90]  # the finish graph has no plugins
    step, finish = trt.configs
    assert (step.set, step.cleared, step.pools) == ([], ["TF32"], {})
    assert step.hardware_compatibility_level.name == "NONE"
    states = ("sample", "history_1", "history_2", "history_3", "noise")
    assert step.profiles == [{**dict.fromkeys(states, (k, *STATE)), "coeffs": (k, 12)} for k in SIZES]
    assert finish.profiles == [{"sample": (k, *STATE)} for k in SIZES]


def test_options(trt, checkpoint, tmp_path):
    plan = PlanOptions(workspace=0.5, hardware_compatibility="ampere_plus")
    bundle = build_plans(checkpoint, tmp_path, precision="tf32", plan=plan)
    for config in trt.configs:
        assert (config.set, config.cleared) == (["TF32"], [])
        assert config.pools == {"WORKSPACE": 2**29}
        assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert trt.capabilities == [80]
    assert bundle.manifest.precision == "tf32"
    assert bundle.manifest.target["hardware_compatibility"] == "ampere_plus"


class TestFasterOfTwo:
    """Which of the plans with and without fused operators is kept."""

    @pytest.fixture
    def timed(self, monkeypatch):
        """Plans with fused operators take a step in so many seconds, those without in 2."""
        seconds = {"fused": 1.0}

        def measure(family, engine, batch):
            measured.append((engine, batch))
            return seconds["fused"] if len(measured) % 2 else 2.0

        measured = []
        monkeypatch.setattr("export.build.seconds_a_step", measure)
        return seconds

    @pytest.mark.parametrize(("seconds", "fused"), [(1.0, True), (3.0, False)])
    def test_is_kept(self, trt, timed, checkpoint, tmp_path, seconds, fused):
        timed["fused"] = seconds
        bundle = build_plans(checkpoint, tmp_path, fused=None)
        target = bundle.manifest.target
        assert target["fused"] == fused
        assert target["seconds_a_step"] == {"fused": seconds, "plain": 2.0}
        assert target["timed_batch"] == SIZES[-1]
        assert contents(bundle.folder).keys() == PLAN_FILES
        assert len(trt.configs) == 4

    def test_is_measured_for_real(self, trt, checkpoint, tmp_path):
        target = build_plans(checkpoint, tmp_path, fused=None).manifest.target
        assert target["fused"] == (target["seconds_a_step"]["fused"] <= target["seconds_a_step"]["plain"])
        assert min(target["seconds_a_step"].values()) > 0

    def test_opsets_are_those_of_each(self, trt, timed, checkpoint, tmp_path):
        """Attention is a layer of TensorRT's own only in fused graphs of half precision."""
        timed["fused"] = 3.0
        assert build_plans(checkpoint, tmp_path, fused=None, precision="fp16").manifest.target["opset"] == 18
        timed["fused"] = 1.0
        assert build_plans(checkpoint, tmp_path, fused=None, precision="fp16").manifest.target["opset"] == 23


def test_the_oldest_tensorrt_that_does(trt, checkpoint, tmp_path, monkeypatch):
    """10.9 numbers its flags otherwise, as it has one for batches too."""
    import tensorrt as bindings

    flags = SimpleNamespace(STRONGLY_TYPED=1, PREFER_JIT_PYTHON_PLUGINS=2, PREFER_AOT_PYTHON_PLUGINS=3)
    monkeypatch.setattr(bindings, "__version__", "10.9.0.34")
    monkeypatch.setattr(bindings, "NetworkDefinitionCreationFlag", flags)
    bundle = build_plans(checkpoint, tmp_path, plan=PlanOptions(hardware_compatibility="same_compute_capability"))
    assert trt.flags == [0b1010] * 2
    assert {config.hardware_compatibility_level.name for config in trt.configs} == {"SAME_COMPUTE_CAPABILITY"}
    assert bundle.manifest.target["tensorrt"] == "10.9.0.34"


def test_the_command(trt, checkpoint, tmp_path):
    arguments = ["build", "--model", "pig", "--checkpoint", checkpoint, "--repository", tmp_path, "--max-batch", "5"]
    arguments += ["--target", "tensorrt", "--fuse", "--workspace", "2"]
    arguments += ["--hardware-compatibility", "same_compute_capability"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "step.plan" in result.stdout
    assert trt.configs[0].pools == {"WORKSPACE": 2**31}
    verified = CliRunner().invoke(main, ["verify", str(bundle_folder(tmp_path, "pig"))])
    assert "digests are good; nothing is known of what is in its plans" in verified.stdout


def test_masks_become_bytes_by_way_of_floats(built):
    """TensorRT makes bytes of nothing but floats."""
    before = onnx.load(built.engine_path("finish"))
    after = onnx.load(built.engine_path("finish"))
    by_way_of_floats(after)
    onnx.checker.check_model(after, full_check=True)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(after).graph.value_info
    }
    casts = [
        node for node in after.graph.node if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.UINT8
    ]
    assert [kinds[node.input[0]] for node in casts] == [onnx.TensorProto.FLOAT]
    sample = np.random.default_rng(0).normal(size=(2, *STATE)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"sample": sample})
        for model in (before, after)
    ]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])


@pytest.mark.parametrize(("version", "casts"), [("10.9.0.34", 2), ("11.4.0.106", 1)])
def test_only_tensorrt_10_needs_it(built, version, casts):
    graph = LIBRARIES["tensorrt"].prepared(onnx.load(built.engine_path("finish")), version)
    before = sum(node.op_type == "Cast" for node in onnx.load(built.engine_path("finish")).graph.node)
    assert sum(node.op_type == "Cast" for node in graph.graph.node) == before + casts - 1


def test_profiles_have_each_tensors_own_size(tmp_path):
    """The mask of a model of latents is larger than they are."""
    mask = Condition("mask", (1, 64, 64), classes=4)
    bundle = load_bundle(write_tiny_bundle(tmp_path, sample_shape=(4, 16, 16), condition=mask))
    graphs = {name: onnx.load(bundle.engine_path(name)) for name in ("step", "finish")}
    with tensorrt_recorded(SIZES) as recording:
        target = tensorrt.describe_target("tensorrt", SIZES[-1], PlanOptions())
        manifest = dataclasses.replace(bundle.manifest, target=target)
        tensorrt.build_plans(graphs, manifest, PlanOptions(), silent)
    step, finish = recording.configs
    assert [profile["condition"] for profile in step.profiles] == [(k, 1, 64, 64) for k in SIZES]
    assert [profile["sample"] for profile in step.profiles] == [(k, 4, 16, 16) for k in SIZES]
    assert finish.profiles == [{"sample": (k, 4, 16, 16)} for k in SIZES]


def test_one_thread_at_a_time_says_how_far_it_is():
    """TensorRT calls its monitor from several."""
    said, threads = [], []

    def progress(line, done, total):
        said.append(line)
        if not threads:
            threads.append(Thread(target=monitor.phase_start, args=("Tactics", "Building", 3)))
            threads[0].start()
            threads[0].join(0.3)
            assert said == ["step: Building"]

    with tensorrt_bindings_alone() as bindings:
        monitor = make_monitor(bindings, "step", progress, lambda: True)
        monitor.phase_start("Building", None, 2)
        threads[0].join()
    assert said == ["step: Building", "step: Tactics"]


def test_progress_counts_steps(trt, checkpoint, tmp_path):
    said = []
    build("pig", checkpoint, tmp_path, Options("tensorrt", max_batch=5, fused=True), lambda *call: said.append(call))
    for name in ("step", "finish"):
        line = f"building {name}.plan: Building"
        assert [call[1:] for call in said if call[0] == line] == [(0, 2), (1, 2), (2, 2)]


class TestTimings:
    def test_are_kept_between_builds(self, trt, checkpoint, tmp_path):
        build_plans(checkpoint, tmp_path)
        name, first = timings(tmp_path)
        assert name == "nvidia-h200-tensorrt-11.4.0.106.timings"
        assert first == b"timed;" * 2
        build_plans(checkpoint, tmp_path)
        assert timings(tmp_path)[1] == b"timed;" * 4

    def test_that_tensorrt_does_not_take_are_replaced(self, trt, checkpoint, tmp_path):
        build_plans(checkpoint, tmp_path)
        trt.takes_timings = False
        build_plans(checkpoint, tmp_path)
        assert timings(tmp_path)[1] == b"timed;"

    def test_that_cannot_be_written_do_not_stop_a_build(self, trt, checkpoint, tmp_path):
        (tmp_path / "cache").write_text("no folder")
        assert build_plans(checkpoint, tmp_path)


class TestFailures:
    """The old bundle stays as it was."""

    @pytest.fixture
    def repository(self, trt, checkpoint, tmp_path):
        build_plans(checkpoint, tmp_path / "repository")
        return tmp_path / "repository"

    def fails(self, repository, checkpoint, message, error=BuildError, **options):
        before = contents(repository)
        with pytest.raises(error, match=message):
            build_plans(checkpoint, repository, **options)
        assert contents(repository) == before

    def test_a_node_that_tensorrt_does_not_know(self, trt, repository, checkpoint):
        trt.parser_errors = [("node_stft_3", "STFT", "no importer"), ("node_nms", "NMS", "no plugin")]
        message = (
            r"cannot read the step graph: node node_stft_3 \(STFT\): no importer; node node_nms \(NMS\): no plugin"
        )
        self.fails(repository, checkpoint, message)

    def test_out_of_memory(self, trt, repository, checkpoint):
        trt.make_plan = lambda model: None
        trt.says = ["Error Code 2: OutOfMemory (Requested size was 123 bytes.)"]
        self.fails(
            repository, checkpoint, "step plan: the GPU is out of memory; a smaller --workspace or --max-batch .*123"
        )

    def test_no_plan(self, trt, repository, checkpoint):
        trt.make_plan = lambda model: None
        trt.says = ["Error Code 10: no implementation for node conv_7"]
        self.fails(
            repository, checkpoint, "cannot build the step plan: Error Code 10: no implementation for node conv_7"
        )

    def test_ctrl_c(self, trt, repository, checkpoint, tmp_path):
        def interrupted(model):
            os.kill(os.getpid(), signal.SIGINT)
            return model.SerializeToString()

        trt.make_plan = interrupted
        before = signal.getsignal(signal.SIGINT)
        self.fails(repository, checkpoint, None, KeyboardInterrupt)
        assert trt.went_on == [True, True, False]
        assert timings(tmp_path)[1] == b"timed;" * 3  # what was measured so far is kept
        assert signal.getsignal(signal.SIGINT) == before

    def test_no_time_left(self, trt, repository, checkpoint, tmp_path):
        message = "there was no time left to build the step plan"
        self.fails(repository, checkpoint, message, plan=PlanOptions(deadline=time.monotonic()))
        assert trt.went_on == [True, True, False]
        assert timings(tmp_path)[1] == b"timed;" * 3

    @pytest.mark.parametrize("value", [1e-2, np.nan])
    def test_a_plan_that_draws_something_else(self, trt, repository, checkpoint, value):
        def wrong(model):
            for weight in model.graph.initializer:
                if weight.name.endswith("generator.conv_out.bias"):
                    changed = onnx.numpy_helper.to_array(weight) + np.float32(value)
                    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
            return model.SerializeToString()

        trt.make_plan = wrong
        self.fails(repository, checkpoint, "differs from PyTorch by " + ("inf" if np.isnan(value) else "[1-9]"))

    def test_a_plan_that_differs_from_onnx_runtime(self, trt, repository, checkpoint, monkeypatch):
        monkeypatch.setattr("export.build.compare_engines", lambda *_: {"image": 0.5})
        self.fails(repository, checkpoint, "image differs from ONNX Runtime by 5.00e-01, tolerance 1.00e-03")

    @pytest.mark.parametrize("version", ["10.8.0.43", "10.14.1.48"])
    def test_a_tensorrt_that_does_not_do(self, trt, repository, checkpoint, monkeypatch, version):
        import tensorrt as bindings

        monkeypatch.setattr(bindings, "__version__", version)
        self.fails(repository, checkpoint, f"TensorRT is {version}; plugins need 10.9 or newer, and not 10.14")

    def test_a_gpu_that_the_kernels_are_not_compiled_for(self, trt, repository, checkpoint):
        trt.cuda.capability = (7, 5)
        self.fails(repository, checkpoint, r"not compiled for compute capability 7\.5.*build with --no-fuse")

    def test_a_driver_that_is_too_old(self, trt, repository, checkpoint):
        trt.cuda.cuda_version = 12080
        message = r"tensorrt 11\.4\.0\.106 here is for CUDA 13, and NVIDIA's driver \(.*\) has CUDA 12\.8"
        self.fails(repository, checkpoint, message, EngineError)

    def test_a_driver_that_is_too_old_for_the_parser(self, trt, built, monkeypatch):
        """Before there is a Builder, whose use would end the process."""
        trt.cuda.cuda_version = 12080
        trt.builder_says = "it was asked for a builder"
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        result = CliRunner().invoke(main, ["verify", str(built.folder), "--parser"])
        assert result.exit_code == 1
        assert "tensorrt 11.4.0.106 here is for CUDA 13, and NVIDIA's driver" in result.output

    def test_a_library_that_gives_no_builder(self, trt, repository, checkpoint):
        trt.builder_says = "CUDA initialization failure with error: 35"
        self.fails(repository, checkpoint, "TensorRT does not start here: CUDA initialization failure with error: 35")

    def test_no_triton(self, trt, repository, checkpoint, monkeypatch):
        monkeypatch.setattr("export.tensorrt_libraries.INSTALLED", False)
        self.fails(repository, checkpoint, "pip install triton, or build with --no-fuse")

    def test_options_of_tensorrt_without_it(self, checkpoint, tmp_path):
        with pytest.raises(BuildError, match="--workspace and --hardware-compatibility are for --target tensorrt"):
            build("pig", checkpoint, tmp_path, Options(plan=PlanOptions(workspace=1)))


def test_no_tensorrt(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BuildError, match="TensorRT is not installed: pip install tensorrt"):
        build_plans(checkpoint, tmp_path)
    assert not (tmp_path / "pig").exists()


def test_no_gpu(checkpoint, tmp_path):
    with tensorrt_bindings_alone(), pytest.raises(EngineError, match=r"GPU|driver"):
        build_plans(checkpoint, tmp_path)
    assert not (tmp_path / "pig").exists()


def test_every_bucket_is_compared(built):
    """An engine that is wrong for batches of 4 alone is seen."""

    class Wrong(OnnxRuntimeEngine):
        def generate(self, trajectory):
            state, outputs = super().generate(trajectory)
            if len(state) == 4:
                outputs["image"] = outputs["image"].copy()
                outputs["image"][3, 0, 0, 0] = np.nan
            return state, outputs

    family, reference = tiny_pig(), OnnxRuntimeEngine(built)
    assert compare_engines(family, Wrong(built), reference, [1, 2, 5]) == {"state": 0.0, "mask": 0.0, "image": 0.0}
    assert compare_engines(family, Wrong(built), reference, SIZES)["image"] == np.inf
