"""The GPU engines on a GPU that is ordinary memory: what they ask of the driver, and that the samples are the CPU's."""

import dataclasses
import itertools
import json
import logging
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from click.core import ParameterSource
from fake_cuda import CUresult, FakeCuda, installed
from fake_engines import FakeCudaSession, FakeTensorRT, as_tensorrt
from tiny import FLOW, write_tiny_bundle

from export.__main__ import build_command
from serving.bundle import Condition, buckets, bundle_folder, load_bundle
from serving.engines import EngineError, Trajectory, gpu, open_engine
from serving.engines.compatibility import rebuild
from serving.engines.device import Device
from serving.engines.gpu import GpuEngine
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from serving.engines.tensorrt import TensorRTEngine
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.solvers import COLUMNS, HISTORY, solvers_for

SHAPE = (2, 16, 16)
MASK = Condition("mask", (1, 16, 16), classes=4)
LATENT = {"condition": Condition("mask", (1, 64, 64), classes=4), "sample_shape": (4, 16, 16)}
MAX_BATCH = 6  # buckets 1, 2, 4, 6


@pytest.fixture
def cuda():
    with installed(FakeCuda()) as fake:
        yield fake


@pytest.fixture
def tiny(tmp_path):
    return load_bundle(write_tiny_bundle(tmp_path, max_batch=MAX_BATCH))


@pytest.fixture
def tensorrt(cuda, monkeypatch):
    fake = FakeTensorRT(cuda, list(buckets(MAX_BATCH)))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def onnxruntime_gpu(cuda, monkeypatch):
    monkeypatch.setattr(FakeCudaSession, "cuda", cuda, raising=False)
    monkeypatch.setattr("onnxruntime.InferenceSession", FakeCudaSession)
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


def trajectory(lengths, *, stochastic=False, seed=0, condition=None, shape=SHAPE):
    """Random coefficients and noise, each sample with a length of its own, longest first."""
    random = np.random.default_rng(seed)
    lengths = np.sort(np.array(lengths))[::-1]
    coeffs = (random.normal(size=(max(lengths), len(lengths), len(COLUMNS))) / 3).astype(np.float32)
    coeffs[:, :, COLUMNS.index("s")] *= stochastic
    still = np.eye(len(COLUMNS), dtype=np.float32)[COLUMNS.index("a")]
    for k, length in enumerate(lengths):
        coeffs[length:, k] = still
    start = random.normal(size=(len(lengths), *shape)).astype(np.float32)
    noises = random.normal(size=(max(lengths), len(lengths), *shape)).astype(np.float32)
    buffer = np.empty_like(start)

    def noise(row):
        live = np.count_nonzero(lengths > row)
        buffer[:live] = noises[row, :live]
        return buffer[:live]

    return Trajectory(start, lengths, coeffs, noise, condition)


class RecordingEngine(GpuEngine):
    """Does nothing and keeps what it is asked to run."""

    def __init__(self, bundle, device=None):
        super().__init__(bundle, device or Device(), buckets(bundle.manifest.max_batch))
        self.asked = []

    def enqueue(self, graph, tensors):
        self.asked.append((graph, tensors))


# --- samples ---


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one.keys() - {"provenance"}:
        assert (one[name].dtype, one[name].tobytes()) == (two[name].dtype, two[name].tobytes()), name


@pytest.mark.parametrize("limits", [{}, {"MOST_ROWS": 8, "NOISE_BYTES": 40_000, "KEPT_ROWS": 20}], ids=["", "small"])
@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": FLOW}, {"condition": MASK, "sample_shape": (1, 16, 16)}, LATENT, {"schedule": None}],
    ids=["diffusion", "flow", "conditional", "latent", "no steps"],
)
@pytest.mark.parametrize("target", ["tensorrt", "onnx"])
def test_samples_are_those_of_the_cpu(target, options, limits, tmp_path, cuda, tensorrt, onnxruntime_gpu, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(gpu, name, value)
    bundle = load_bundle(write_tiny_bundle(tmp_path, max_batch=MAX_BATCH, **options))
    manifest = bundle.manifest
    engine = open_engine(bundle if target == "onnx" else as_tensorrt(bundle))
    assert type(engine) is (OnnxRuntimeCudaEngine if target == "onnx" else TensorRTEngine)
    on_cpu, on_gpu = Sampler(bundle, OnnxRuntimeEngine(bundle)), Sampler(bundle, engine)
    random = np.random.default_rng(3)
    solvers = [] if manifest.schedule is None else solvers_for(manifest.schedule)
    for _ in range(5):
        requests = []
        for _ in range(random.integers(1, 5)):
            count = random.integers(1, 4)
            seeds = random.integers(0, 2**63 - 1, size=(count, 1))
            asks = manifest.condition
            condition = random.integers(4, size=(count, *asks.shape), dtype=np.uint8) if asks else None
            asked = {"solver": random.choice(solvers).item(), "steps": int(random.integers(1, 30))} if solvers else {}
            requests.append(parse_request(manifest, seeds, asked, condition))
        for one, two in zip(on_cpu.sample(requests), on_gpu.sample(requests), strict=True):
            assert_same_bits(one, two)


@pytest.mark.parametrize("lengths", [[1], [270, 3], [5, 5, 5], [600, 256, 9, 1, 1]])
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_last_state_and_the_outputs_are_those_of_the_loop_on_the_host(tiny, tensorrt, lengths, stochastic):
    expected = OnnxRuntimeEngine(tiny).generate(trajectory(lengths, stochastic=stochastic))
    engine = open_engine(as_tensorrt(tiny))
    for _ in range(2):  # captured, then launched again
        state, outputs = engine.generate(trajectory(lengths, stochastic=stochastic))
        assert_same_bits({"state": state, **outputs}, {"state": expected[0], **expected[1]})


@pytest.mark.parametrize("target", ["tensorrt", "onnx"])
def test_single_steps_and_finishes_are_those_of_the_cpu(tiny, target, tensorrt, onnxruntime_gpu):
    random = np.random.default_rng(1)
    sample, *history, noise = random.normal(size=(2 + HISTORY, 3, *SHAPE)).astype(np.float32)
    coeffs = random.normal(size=(3, len(COLUMNS))).astype(np.float32)
    engine = open_engine(tiny if target == "onnx" else as_tensorrt(tiny))
    on_cpu = OnnxRuntimeEngine(tiny)
    for one, two in zip(
        engine.step(sample, tuple(history), noise, coeffs),
        on_cpu.step(sample, tuple(history), noise, coeffs),
        strict=True,
    ):
        assert np.array_equal(one, two)
    assert_same_bits(engine.finish(sample), on_cpu.finish(sample))


def test_what_is_returned_stays_as_it_is(tiny, tensorrt):
    """Though the next batch comes by the same pinned memory."""
    engine = open_engine(as_tensorrt(tiny))
    state, outputs = engine.generate(trajectory([3, 3]))
    first = {"state": state, **outputs}
    kept = {name: values.copy() for name, values in first.items()}
    engine.generate(trajectory([3, 3], seed=1))
    assert_same_bits(first, kept)


# --- what the engine is asked to run ---


def test_states_and_history_go_round_in_buffers(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.captures = False
    engine.generate(trajectory([11, 4, 2]))
    *steps, (last, finish) = engine.asked
    assert ([graph for graph, _ in steps], last) == (["step"] * 11, "finish")
    for (_, before), (_, after) in itertools.pairwise(steps):
        assert after["sample"].address == before["sample_next"].address
        assert [after[f"history_{k}"].address for k in (1, 2, 3)] == [
            before[name].address for name in ("prediction", "history_1", "history_2")
        ]
    for _, tensors in steps:
        read = {name: array.address for name, array in tensors.items() if name not in ("sample_next", "prediction")}
        assert len(set(read.values())) == len(read)
        assert not {tensors["sample_next"].address, tensors["prediction"].address} & set(read.values())
    assert finish["sample"].address == steps[-1][1]["sample_next"].address


def test_a_batch_is_padded_to_its_bucket(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.captures = False
    for count, bucket in ((1, 1), (2, 2), (3, 4), (5, 6), (6, 6)):
        engine.asked.clear()
        state, outputs = engine.generate(trajectory([3] * count))
        assert {array.shape[0] for _, tensors in engine.asked for array in tensors.values()} == {bucket}
        assert (
            len(state) == len(outputs["mask"]) == len(engine.outputs["image"].shape[:1] and outputs["image"]) == count
        )


def test_padding_is_zero_and_stays_as_it_is(tiny, cuda):
    seen = []

    class Looking(RecordingEngine):
        captures = False

        def enqueue(self, graph, tensors):
            if graph == "step":
                cuda.enqueue(
                    lambda: seen.append({n: cuda.array(t.address, t.shape, t.dtype).copy() for n, t in tensors.items()})
                )

    Looking(tiny).generate(trajectory([2, 2, 1], stochastic=True))
    still = np.eye(len(COLUMNS), dtype=np.float32)[COLUMNS.index("a")]
    assert len(seen) == 2
    for row, tensors in enumerate(seen):
        assert np.array_equal(tensors["coeffs"][3], still)
        assert not tensors["noise"][3].any()
        assert tensors["noise"][:2].any(axis=(1, 2, 3)).all()
        assert tensors["noise"][2].any() == (row == 0)
    assert not seen[0]["sample"][3].any()
    assert not any(seen[0][f"history_{k}"].any() for k in (1, 2, 3))


def test_a_condition_that_is_missing_is_said(tmp_path, cuda):
    """And not taken from the batch before."""
    engine = RecordingEngine(load_bundle(write_tiny_bundle(tmp_path, max_batch=MAX_BATCH, **LATENT)))
    with pytest.raises(EngineError, match="this model draws under a condition, and none was given"):
        engine.generate(trajectory([1], shape=LATENT["sample_shape"]))


def test_a_batch_that_no_bucket_holds_is_refused(tiny, cuda):
    with pytest.raises(EngineError, match="a batch of 7; the engines of this bundle take at most 6"):
        RecordingEngine(tiny).generate(trajectory([1] * 7))


# --- what the driver is asked to do ---


def test_batches_come_and_go_by_pinned_memory_that_is_made_once(tmp_path, cuda):
    engine = RecordingEngine(load_bundle(write_tiny_bundle(tmp_path, max_batch=MAX_BATCH, **LATENT)))
    pinned = len(cuda.named("cuMemAllocHost"))
    conditions = np.zeros((2, 1, 64, 64), np.uint8)
    for seed in range(2):
        engine.generate(trajectory([3, 3], seed=seed, condition=conditions, shape=LATENT["sample_shape"]))
    sent = [call[2] for call in cuda.named("cuMemcpyHtoDAsync")]
    fetched = [call[1] for call in cuda.named("cuMemcpyDtoHAsync")]
    assert (len(sent), len(fetched)) == (2 * 3, 2 * 2)  # start, condition, coefficients; state, image
    assert all(cuda.is_pinned(address) for address in (*sent, *fetched))
    assert len(set(fetched)) == 2
    assert len(cuda.named("cuMemAllocHost")) == pinned


def test_a_trajectory_is_one_upload_one_launch_and_one_wait(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([20, 20]))
    cuda.calls.clear()
    engine.generate(trajectory([20, 7], seed=1))
    assert [name for name, *_ in cuda.calls] == [
        "cuCtxSetCurrent",
        *["cuMemsetD8Async"] * 5,  # the first state and the history
        "cuMemcpyHtoDAsync",  # the start
        "cuEventSynchronize",  # long passed: the coefficients of the trajectory before
        "cuMemcpyHtoDAsync",  # all coefficients
        "cuEventRecord",
        "cuGraphLaunch",
        *["cuMemcpyDtoHAsync"] * 3,  # the last state, mask and image
        "cuStreamSynchronize",
    ]
    (launch,) = cuda.named("cuGraphLaunch")
    assert launch[1:] == (1000 + 1, FakeCuda.STREAM)


def test_coefficients_of_a_long_trajectory_are_uploaded_once(tiny, cuda):
    """More rows than a graph has: those of the next graph move to where it reads them, on the GPU."""
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([600, 270]))
    cuda.calls.clear()
    engine.generate(trajectory([600, 270], seed=1))
    begun, table, *after = [call for call in cuda.calls if call[0].startswith(("cuMemcpy", "cuGraphLaunch"))]
    assert [call[3] for call in (begun, table)] == [2 * 2048, 600 * 256]
    front = table[1]
    assert after[:5] == [
        ("cuGraphLaunch", 1001, FakeCuda.STREAM),
        ("cuMemcpyDtoDAsync", front, front + 256 * 256, 256 * 256, FakeCuda.STREAM),
        ("cuGraphLaunch", 1001, FakeCuda.STREAM),
        ("cuMemcpyDtoDAsync", front, front + 512 * 256, 88 * 256, FakeCuda.STREAM),
        ("cuGraphLaunch", 1002, FakeCuda.STREAM),
    ]
    assert [name for name, *_ in after[5:]] == ["cuMemcpyDtoHAsync"] * 3
    assert [call[0] for call in cuda.named("cuEventSynchronize", "cuStreamSynchronize")] == [
        "cuEventSynchronize",  # before the first launch, for the trajectory before
        "cuStreamSynchronize",  # for the outputs
    ]


@pytest.mark.parametrize("rows", [20, 250, 256])
def test_usual_trajectories_are_one_graph(tiny, cuda, rows):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([rows]))
    assert len(cuda.named("cuGraphLaunch")) == 1


def test_there_is_room_for_the_longest_table(tmp_path, cuda):
    """Two rows for each of 1000 steps, of a flow."""
    engine = RecordingEngine(load_bundle(write_tiny_bundle(tmp_path, max_batch=2, schedule=FLOW)))
    engine.generate(trajectory([2000, 2000]))
    with pytest.raises(EngineError, match=r"a trajectory of 2001 rows; this bundle.s solvers have 2000"):
        engine.generate(trajectory([2001]))


def test_a_capture_holds_every_row_and_the_finish(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([5]))
    assert [graph for graph, _ in engine.asked] == ["step", "finish", *["step"] * 5, "finish"]
    begin, end = (
        next(k for k, call in enumerate(cuda.calls) if call[0] == f"cuStream{what}Capture") for what in ("Begin", "End")
    )
    assert end == begin + 1  # nothing but the engine's own work


def test_noise_is_sent_in_bounded_parts(tiny, cuda, monkeypatch):
    monkeypatch.setattr(gpu, "NOISE_BYTES", 8 * 4 * 2048)  # 8 rows of 4 samples
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([19, 19, 19, 19], stochastic=True))
    assert len(cuda.named("cuGraphInstantiate")) == 2  # 8 rows, and 3 rows with the finish
    assert [call[1] for call in cuda.named("cuGraphLaunch")] == [1001, 1001, 1002]
    assert max(call[3] for call in cuda.named("cuMemcpyHtoDAsync")) == 8 * 4 * 2048
    steps = [tensors for graph, tensors in engine.asked if graph == "step"]
    assert {tensors["noise"].address for tensors in steps[1:9]} == {
        steps[0]["noise"].address + row * 4 * 2048 for row in range(8)
    }


def test_few_graphs_are_kept(tiny, cuda, monkeypatch):
    monkeypatch.setattr(gpu, "KEPT_ROWS", 9)
    engine = RecordingEngine(tiny)
    for rows in (3, 4, 3, 5):
        engine.generate(trajectory([rows]))
    assert sorted(cuda.graphs) == [1001, 1003]  # of 3 and 5 rows: that of 4 was the one least lately used
    engine.generate(trajectory([3]))
    assert len(cuda.named("cuGraphInstantiate")) == 3
    engine.generate(trajectory([4]))
    assert len(cuda.named("cuGraphInstantiate")) == 4


def test_an_engine_gives_everything_back(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([3], stochastic=True))
    kept = engine.outputs["image"]
    del engine
    assert list(cuda._memory) == [kept.address]
    assert not cuda.graphs
    del kept
    assert not cuda._memory


# --- arrays ---


def test_arrays_say_where_they_are(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([3, 3, 3]))
    image = engine.outputs["image"]
    assert image.__cuda_array_interface__ == {
        "shape": (3, 1, 16, 16),
        "typestr": "<f4",
        "data": (image.address, False),
        "strides": None,
        "stream": None,
        "version": 3,
    }
    assert image.__dlpack_device__() == (2, 0)


def test_the_readme_shows_how_others_use_them(tiny, cuda, onnxruntime_gpu, monkeypatch):
    """Its example runs on stand-ins that read the memory where the array says it is."""

    class GPUArray:
        def __init__(self, shape, dtype, allocator=None, base=None, gpudata=None, strides=None, order="C"):
            assert base is not None  # keeps the memory
            self.values = cuda.array(gpudata, shape, dtype)

    def asarray(array):
        interface = array.__cuda_array_interface__
        return cuda.array(interface["data"][0], interface["shape"], interface["typestr"])

    stubs = {
        "torch": {"from_dlpack": lambda array: array.__dlpack_device__()},
        "cupy": {"asarray": asarray},
        "pycuda": {},
        "pycuda.autoprimaryctx": {},
        "pycuda.gpuarray": {"GPUArray": GPUArray},
    }
    for name, content in stubs.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("serving.bundle.bundle_folder", lambda repository, name: tiny.folder)
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "pycuda" in block)
    found = {}
    exec(example, found)
    (samples,) = found["samples"]
    assert found["tensor"] == (2, 0)
    assert samples["image"].any()
    for values in (found["array"], found["gpu_array"].values):
        np.testing.assert_array_equal(values, samples["image"])


# --- what goes wrong ---


def test_without_cuda_python(monkeypatch):
    for module in ("cuda", "cuda.bindings"):  # another test may have imported them
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match="pip install cuda-bindings cuda-core"):
        Device()


@pytest.mark.parametrize(
    ("function", "code", "number", "words"),
    [
        ("cuInit", CUresult.CUDA_ERROR_NO_DEVICE, 0, "no NVIDIA driver that works.*the driver sees no GPU"),
        ("", None, 3, "there is no GPU 3; this machine has 1"),
    ],
)
def test_without_a_gpu(cuda, function, code, number, words):
    cuda.refuses[function] = code
    with pytest.raises(EngineError, match=words):
        Device(number)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("cuMemAlloc", r"GPU 0: it is out of memory; .* \(cuMemAlloc\)"),
        ("cuMemAllocHost", r"GPU 0: it is out of memory; .* \(cuMemAllocHost\)"),
        ("cuGraphInstantiate", r"GPU 0: it is out of memory; .* \(cuGraphInstantiate\)"),
        ("cuMemcpyHtoDAsync", r"GPU 0: it is out of memory; .* \(cuMemcpyHtoDAsync\)"),
    ],
)
def test_every_refusal_of_the_driver_is_an_error(tiny, cuda, function, words):
    cuda.refuses[function] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(EngineError, match=words):
        RecordingEngine(tiny).generate(trajectory([3]))


@pytest.mark.parametrize("what", ["run", "captured run"])
def test_a_run_that_fails_does_not_spoil_the_next(tiny, tensorrt, what):
    engine = open_engine(as_tensorrt(tiny))
    expected = engine.generate(trajectory([2]))
    tensorrt.refuses = what
    with pytest.raises(EngineError, match=f"TensorRT cannot run the step plan: no {what} today"):
        engine.generate(trajectory([3]))
    tensorrt.refuses = ""
    engine.generate(trajectory([3]))
    assert np.array_equal(engine.generate(trajectory([2]))[0], expected[0])


def test_out_of_memory_is_said_in_plain_words(tiny, tensorrt, onnxruntime_gpu, monkeypatch):
    words = r"the GPU is out of memory; end what else uses it, or build the bundle with a smaller --max-batch \({}\)"
    engine = open_engine(as_tensorrt(tiny))
    tensorrt.refuses, tensorrt.says = "run", "Error Code 2: OutOfMemory"
    with pytest.raises(EngineError, match=words.format("Error Code 2: OutOfMemory")):
        engine.generate(trajectory([3]))

    def fail(*_):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 9")

    engine = open_engine(tiny)
    monkeypatch.setattr(FakeCudaSession, "run_with_iobinding", fail)
    with pytest.raises(EngineError, match=words.format("Failed to allocate .* of size 9")):
        engine.generate(trajectory([3]))


def test_a_plan_that_does_not_load_is_named(tiny, tensorrt):
    tensorrt.refuses = "deserialize"
    with pytest.raises(EngineError, match=r"TensorRT cannot load .*finish\.onnx: no deserialize today"):
        open_engine(as_tensorrt(tiny))


def test_a_plan_with_other_batches_than_the_manifest_says_is_refused(tiny, tensorrt):
    with pytest.raises(EngineError, match=r"TensorRT cannot give sample the shape \(3, 2, 16, 16\)"):
        open_engine(as_tensorrt(tiny, buckets=[1, 3, 6]))


def test_without_tensorrt(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tiny needs TensorRT: pip install tensorrt==11\.4\.0\.106"):
        open_engine(as_tensorrt(tiny))


REBUILD = r"build them here with: python -m export build --model tiny --target tensorrt --precision fp32 --max-batch 6"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            {"tensorrt": "10.13.0.35"},
            rf"of TensorRT 10\.13\.0\.35, and here is 11\.4\.0\.106: pip install tensorrt==10\.13\.0\.35, or {REBUILD}",
        ),
        ({"gpu": "NVIDIA H100"}, rf"for NVIDIA H100 .*, and here is NVIDIA H200 \(9\.0\): {REBUILD}"),
        (
            {"gpu": "NVIDIA L4", "compute_capability": "8.9", "hardware_compatibility": "same_compute_capability"},
            rf"for NVIDIA L4 \(compute capability 8\.9, .*\), and here is NVIDIA H200 \(9\.0\): {REBUILD}",
        ),
    ],
)
def test_a_plan_for_something_else_says_so(tiny, tensorrt, target, words):
    with pytest.raises(EngineError, match=words):
        open_engine(as_tensorrt(tiny, **target))


def test_the_command_that_rebuilds_makes_a_bundle_like_the_one_there_is(tiny, tensorrt):
    (tiny.folder / "parity.json").write_text(json.dumps({"checkpoint": "/runs/my pig"}))
    target = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "hardware_compatibility": "same_compute_capability"}
    bundle = as_tensorrt(tiny, fused=False, opset=20, **target)
    manifest = dataclasses.replace(bundle.manifest, model="pig", precision="fp16")
    bundle = dataclasses.replace(bundle, manifest=manifest)
    with pytest.raises(EngineError) as caught:
        open_engine(bundle)
    _, command = str(caught.value).split("build them here with: python -m export build ")
    context = build_command.make_context("build", shlex.split(command))
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    assert given == {
        "model": "pig",
        "target": "tensorrt",
        "precision": "fp16",
        "max_batch": 6,
        "opset": 20,
        "hardware_compatibility": "same_compute_capability",
        "fused": False,
        "checkpoints": (Path("/runs/my pig"),),
    }


def test_the_command_that_rebuilds_names_a_repository_that_is_not_the_checkouts(tmp_path, monkeypatch):
    elsewhere = load_bundle(write_tiny_bundle(bundle_folder(tmp_path / "my models", "tiny")))
    assert f"--repository '{tmp_path}/my models'" in rebuild(as_tensorrt(elsewhere))
    monkeypatch.setattr("serving.engines.compatibility.REPOSITORY", tmp_path / "my models")
    assert "--repository" not in rebuild(as_tensorrt(elsewhere))
    in_no_repository = load_bundle(write_tiny_bundle(tmp_path / "alone"))
    assert "--repository" not in rebuild(as_tensorrt(in_no_repository))


@pytest.mark.parametrize("kind", ["ampere_plus", "same_compute_capability"])
def test_a_plan_for_many_gpus_runs_on_another(tiny, tensorrt, kind):
    assert open_engine(as_tensorrt(tiny, gpu="NVIDIA H100", hardware_compatibility=kind))


def test_a_plan_for_many_gpus_does_not_run_on_an_older_one(tiny, tensorrt, cuda):
    cuda.capability = (7, 5)
    with pytest.raises(EngineError, match="hardware compatibility ampere_plus"):
        open_engine(as_tensorrt(tiny, hardware_compatibility="ampere_plus"))


# --- which engine ---


def test_onnx_graphs_run_on_the_cpu_where_there_is_no_gpu(tiny, onnxruntime_gpu, cuda, caplog):
    cuda.refuses["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    with caplog.at_level(logging.WARNING):
        assert type(open_engine(tiny)) is OnnxRuntimeEngine
    assert "tiny runs on the CPU: no NVIDIA driver that works" in caplog.text


def test_onnx_graphs_run_on_the_cpu_where_the_provider_does_not_load(tiny, onnxruntime_gpu, monkeypatch, caplog):
    monkeypatch.setattr(FakeCudaSession, "has_cuda", False)
    assert type(open_engine(tiny)) is OnnxRuntimeEngine
    assert "CUDA provider does not load" in caplog.text


def test_a_gpu_that_is_asked_for_and_missing_is_said(tiny, caplog):
    assert type(open_engine(tiny)) is OnnxRuntimeEngine
    assert not caplog.text
    assert type(open_engine(tiny, 0)) is OnnxRuntimeEngine
    assert "tiny runs on the CPU: this ONNX Runtime has no CUDA provider" in caplog.text


def test_tf32_is_used_where_the_bundle_says_so(tiny, onnxruntime_gpu):
    for precision, expected in (("fp32", 0), ("tf32", 1)):
        manifest = dataclasses.replace(tiny.manifest, precision=precision)
        engine = open_engine(dataclasses.replace(tiny, manifest=manifest))
        options = [session._given["CUDAExecutionProvider"] for session in engine._sessions.values()]
        assert [given["use_tf32"] for given in options] == [expected] * 2


@pytest.fixture
def instance(monkeypatch):
    """Starts a Triton instance of a bundle."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("unused"))
    from serving.triton import model as model_file

    def start(bundle, kind, device="0"):
        monkeypatch.setattr(model_file.BundleModel, "_folder", lambda _: bundle.folder)
        monkeypatch.setattr(model_file, "load_bundle", lambda _: bundle)
        model = model_file.BundleModel()
        model.initialize({"model_instance_kind": kind, "model_instance_device_id": device})
        return model.sampler._engine

    return start


def test_a_triton_instance_runs_on_its_gpu(tiny, instance, monkeypatch):
    opened = []
    monkeypatch.setattr("serving.triton.model.open_engine", lambda *given: opened.append(given))
    monkeypatch.setattr("serving.triton.model.Sampler", lambda bundle, engine: SimpleNamespace(_engine=engine))
    instance(tiny, "GPU", "1")
    assert opened == [(tiny, 1)]


def test_a_triton_instance_on_the_cpu_leaves_the_gpu_alone(tiny, instance, onnxruntime_gpu, cuda):
    assert type(instance(tiny, "GPU")) is OnnxRuntimeCudaEngine
    cuda.calls.clear()
    assert type(instance(tiny, "CPU")) is OnnxRuntimeEngine
    assert not cuda.calls


def test_a_triton_instance_on_the_cpu_refuses_plans(tiny, instance, tensorrt):
    with pytest.raises(EngineError, match=r"tiny is a TensorRT bundle, and cannot run on the CPU: .*--target onnx"):
        instance(as_tensorrt(tiny), "CPU")
