"""The GPU engines on a GPU that is ordinary memory: what they ask of the driver, and that the samples are the CPU's."""

import dataclasses
import functools
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
from tiny import DESCENT, FLOW, write_tiny_bundle

from export.__main__ import build_command
from serving.bundle import Condition, buckets, bundle_folder, load_bundle
from serving.engines import EngineError, Trajectory, gpu, open_engine
from serving.engines.compatibility import rebuild
from serving.engines.device import DeadGpuError, Device
from serving.engines.gpu import GpuEngine
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from serving.engines.tensorrt import TensorRTEngine
from serving.sampling.loop import Loop
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.scheduler import Cost
from serving.sampling.solvers import COLUMNS, HISTORY, solvers_for
from serving.sampling.step_cost import measure_cost

SHAPE = (2, 16, 16)
MASK = Condition("mask", (1, 16, 16), classes=4)
INVERSION = {"schedule": DESCENT, "condition": Condition("photo", (1, 16, 16), low=0.0, high=3.0), "noise_channels": 1}
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
        self.prepare()
        self.opened, self.asked = self.asked, []

    def enqueue(self, graph, tensors):
        self.asked.append((graph, tensors))

    def graph(self, bucket, rows, finishes):
        """The number by which the driver knows it."""
        return self._graphs[gpu.Segment(bucket, rows, finishes)].__self__._handle


class UncapturedEngine(RecordingEngine):
    captures = False


# --- samples ---


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one.keys() - {"provenance"}:
        assert (one[name].dtype, one[name].tobytes()) == (two[name].dtype, two[name].tobytes()), name


@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": FLOW}, {"condition": MASK, "sample_shape": (1, 16, 16)}, LATENT, {"schedule": None}, INVERSION],
    ids=["diffusion", "flow", "conditional", "latent", "no steps", "inversion"],
)
@pytest.mark.parametrize("target", ["tensorrt", "onnx"])
def test_samples_are_those_of_the_cpu(target, options, tmp_path, cuda, tensorrt, onnxruntime_gpu):
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
            condition = random.integers(4, size=(count, *asks.shape)).astype(asks.dtype) if asks else None
            asked = {"solver": random.choice(solvers).item(), "steps": int(random.integers(1, 30))} if solvers else {}
            requests.append(parse_request(manifest, seeds, asked, condition))
        for one, two in zip(on_cpu.sample(requests), on_gpu.sample(requests), strict=True):
            assert_same_bits(one, two)


@pytest.mark.parametrize("lengths", [[1], [4], [270, 3], [5, 5, 5], [600, 256, 9, 1, 1]])
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


# --- requests that wait for each other ---


@pytest.mark.parametrize(
    "options",
    [{}, {"condition": MASK, "sample_shape": (1, 16, 16)}, {"schedule": None}],
    ids=["diffusion", "conditional", "no steps"],
)
def test_requests_in_flight_run_whole_trajectories(options, tmp_path, tensorrt):
    """They are captured, and single steps are not; whoever comes meanwhile has a trajectory of the next batch."""
    bundle = load_bundle(write_tiny_bundle(tmp_path, max_batch=MAX_BATCH, **options))
    engine, asks = open_engine(as_tensorrt(bundle)), bundle.manifest.condition
    cost = measure_cost(engine, bundle.manifest)
    assert (sorted(cost.seconds), cost.padded) == ([1, 2, 4, 6], True)
    full = Cost(dict.fromkeys(engine.buckets, 1.0), padded=True)
    loop = Loop(bundle, engine, full)
    engine.step = None
    answers, requests = {}, []
    for number, (seeds, solver, steps) in enumerate([([1, 2], "ddim", 3), ([3], "ddpm", 9), ([4, 5, 6, 7], "ddim", 2)]):
        how = {} if bundle.manifest.schedule is None else {"solver": solver, "steps": steps}
        masks = np.full((len(seeds), *asks.shape), number, np.uint8) if asks else None
        requests.append(parse_request(bundle.manifest, np.array(seeds)[:, None], how, masks))
        loop.submit(requests[-1], functools.partial(answers.__setitem__, number))
    loop.turn()
    assert len(answers) == 2
    loop.turn()
    if bundle.manifest.schedule is not None:
        assert (loop.counts.launches, loop.counts.row_steps) == (2, 2 * 3 + 9 + 4 * 2)
    expected = Sampler(bundle, OnnxRuntimeEngine(bundle)).sample(requests)
    for number, alone in enumerate(expected):
        assert_same_bits(answers[number], alone)
        assert answers[number]["provenance"].tolist() == alone["provenance"].tolist()
    assert loop.rows_in_flight == loop.rows_waiting == 0
    assert loop.network_seconds > 0


def test_requests_in_flight_fail_alone_on_a_gpu(tiny, tensorrt):
    engine = open_engine(as_tensorrt(tiny))
    loop, answers, generate = Loop(tiny, engine, Cost({6: 1.0}, padded=True)), {}, engine.generate

    def cannot_do_three(trajectory):
        if max(trajectory.lengths) == 3:
            raise EngineError("three is too much")
        return generate(trajectory)

    engine.generate = cannot_do_three
    for steps in (2, 3):
        request = parse_request(tiny.manifest, np.array([[1]]), {"solver": "ddim", "steps": steps})
        loop.submit(request, functools.partial(answers.__setitem__, steps))
    loop.turn()
    assert isinstance(answers[2], dict)
    assert str(answers[3]) == "three is too much"
    assert (loop.counts.left, loop.counts.failed) == (1, 1)


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
    engine = UncapturedEngine(tiny)
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
    engine = UncapturedEngine(tiny)
    for count, bucket in ((1, 1), (2, 2), (3, 4), (5, 6), (6, 6)):
        engine.asked.clear()
        state, outputs = engine.generate(trajectory([3] * count))
        assert {array.shape[0] for _, tensors in engine.asked for array in tensors.values()} == {bucket}
        assert (
            len(state) == len(outputs["mask"]) == len(engine.outputs["image"].shape[:1] and outputs["image"]) == count
        )


def test_padding_is_zero_and_stays_as_it_is(tiny, cuda):
    seen = []

    class Looking(UncapturedEngine):
        def enqueue(self, graph, tensors):
            if graph == "step":
                cuda.enqueue(
                    lambda: seen.append({n: cuda.array(t.address, t.shape, t.dtype).copy() for n, t in tensors.items()})
                )

    engine = Looking(tiny)
    seen.clear()
    engine.generate(trajectory([2, 2, 1], stochastic=True))
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
    cuda.calls.clear()
    conditions = np.zeros((2, 1, 64, 64), np.uint8)
    for seed in range(2):
        engine.generate(trajectory([3, 3], seed=seed, condition=conditions, shape=LATENT["sample_shape"]))
    sent = [call[2] for call in cuda.named("cuMemcpyHtoDAsync")]
    fetched = [call[1] for call in cuda.named("cuMemcpyDtoHAsync")]
    assert (len(sent), len(fetched)) == (2 * 3, 2 * 2)  # start, condition, coefficients; state, image
    assert all(cuda.is_pinned(address) for address in (*sent, *fetched))
    assert len(set(fetched)) == 2
    assert not cuda.named("cuMemAllocHost")


def test_a_trajectory_goes_up_once_and_is_waited_for_once(tiny, cuda):
    """Four rows are one graph, which the coefficients of the next four move to on the GPU."""
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([20, 20]))
    cuda.calls.clear()
    engine.generate(trajectory([10, 7], seed=1))
    begun, table, *after = [call for call in cuda.calls if call[0].startswith(("cuMemcpy", "cuGraphLaunch"))]
    assert [call[3] for call in (begun, table)] == [2 * 2048, 10 * 256]
    four_rows, the_rest = (engine.graph(2, rows, finishes) for rows, finishes in ((4, False), (2, True)))
    assert after[:5] == [
        ("cuGraphLaunch", four_rows, FakeCuda.STREAM),
        ("cuMemcpyDtoDAsync", table[1], table[1] + 4 * 256, 4 * 256, FakeCuda.STREAM),
        ("cuGraphLaunch", four_rows, FakeCuda.STREAM),
        ("cuMemcpyDtoDAsync", table[1], table[1] + 8 * 256, 2 * 256, FakeCuda.STREAM),
        ("cuGraphLaunch", the_rest, FakeCuda.STREAM),
    ]
    assert [name for name, *_ in after[5:]] == ["cuMemcpyDtoHAsync"] * 3  # the last state, mask and image
    assert [call[0] for call in cuda.named("cuEventSynchronize", "cuStreamSynchronize")] == [
        "cuEventSynchronize",  # before the first launch: the coefficients of the trajectory before
        "cuStreamSynchronize",  # for the outputs
    ]


@pytest.mark.parametrize("options", [{}, {"schedule": FLOW}, {"schedule": None}], ids=["", "flow", "no steps"])
def test_no_request_waits_for_a_capture(tmp_path, cuda, options):
    """Whatever number of steps it asks for: an opened engine has all graphs that it will ever have."""
    engine = RecordingEngine(load_bundle(write_tiny_bundle(tmp_path, max_batch=MAX_BATCH, **options)))
    kinds = 1 if engine._longest == 0 else gpu.ROUND + 1
    assert len(cuda.named("cuGraphInstantiate")) == kinds * len(buckets(MAX_BATCH))
    cuda.calls.clear()
    engine.asked.clear()
    for rows in range(10, 31) if engine._longest else [0]:
        for count in (1, 6):
            engine.generate(trajectory([rows] * count, stochastic=count == 6))
    assert not engine.asked
    assert not cuda.named("cuStreamBeginCapture", "cuGraphInstantiate", "cuMemAlloc", "cuMemAllocHost")


def test_there_is_room_for_the_longest_table(tmp_path, cuda):
    """Two rows for each of 1000 steps, of a flow."""
    engine = RecordingEngine(load_bundle(write_tiny_bundle(tmp_path, max_batch=2, schedule=FLOW)))
    engine.generate(trajectory([2000, 2000]))
    with pytest.raises(EngineError, match=r"a trajectory of 2001 rows; this bundle.s solvers have 2000"):
        engine.generate(trajectory([2001]))


def test_captures_hold_the_rows_and_the_finish_and_nothing_else(tiny, cuda):
    engine = RecordingEngine(tiny)
    step, finish = ["step"], ["finish"]
    warm_ups = [*step, *finish] * gpu.WARM_UPS
    of_a_bucket = [*warm_ups, *finish, *step, *finish, *step * 2, *finish, *step * 3, *finish, *step * 4]
    assert [graph for graph, _ in engine.opened] == of_a_bucket * len(buckets(MAX_BATCH))
    begins, ends = (
        [k for k, call in enumerate(cuda.calls) if call[0] == f"cuStream{what}Capture"] for what in ("Begin", "End")
    )
    assert [end - begin for begin, end in zip(begins, ends, strict=True)] == [1] * 5 * len(buckets(MAX_BATCH))


def test_noise_goes_up_four_rows_at_a_time(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([10] * 4, stochastic=True))
    four_rows, the_rest = (engine.graph(4, rows, finishes) for rows, finishes in ((4, False), (2, True)))
    assert [call[1] for call in cuda.named("cuGraphLaunch")] == [four_rows, four_rows, the_rest]
    assert [call[3] for call in cuda.named("cuMemcpyHtoDAsync")[-3:]] == [rows * 4 * 2048 for rows in (4, 4, 2)]


def test_no_noise_is_left_of_the_batch_before(tiny, tensorrt):
    """Graphs read it whether or not the solver draws any."""
    quiet = trajectory([7, 7])
    engine = open_engine(as_tensorrt(tiny))
    coeffs = quiet.coeffs.copy()
    quiet.coeffs[:, :, COLUMNS.index("s")] = 0
    expected = engine.generate(quiet)[0]
    engine.generate(trajectory([7, 7], stochastic=True))
    assert np.array_equal(engine.generate(dataclasses.replace(quiet, coeffs=coeffs))[0], expected)


def test_an_engine_gives_everything_back(tiny, cuda):
    engine = RecordingEngine(tiny)
    engine.generate(trajectory([3], stochastic=True))
    kept = engine.outputs["image"]
    del engine
    assert list(cuda._memory) == [kept.address]
    assert not cuda.graphs
    assert not cuda.named("cuStreamDestroy")
    del kept
    assert not cuda._memory
    assert cuda.named("cuStreamDestroy") == [("cuStreamDestroy", FakeCuda.STREAM)]


def test_sessions_are_gone_before_the_stream_that_they_work_on(tiny, cuda, onnxruntime_gpu, monkeypatch):
    monkeypatch.setattr(FakeCudaSession, "__del__", lambda _: cuda.calls.append(("session closed",)), raising=False)
    engine = open_engine(tiny)
    del engine
    assert [name for name, *_ in cuda.named("session closed", "cuStreamDestroy")] == ["session closed"] * 2 + [
        "cuStreamDestroy"
    ]


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
    readme = (Path(__file__).parents[3] / "serving" / "engines" / "README.md").read_text()
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
        ("cuGraphLaunch", r"GPU 0: it is out of memory; .* \(cuGraphLaunch\)"),
        ("cuMemcpyHtoDAsync", r"GPU 0: it is out of memory; .* \(cuMemcpyHtoDAsync\)"),
    ],
)
def test_every_refusal_of_the_driver_is_an_error(tiny, cuda, function, words):
    engine = RecordingEngine(tiny)
    cuda.refuses[function] = CUresult.CUDA_ERROR_OUT_OF_MEMORY

    def open_and_draw():
        engine.generate(trajectory([5]))
        RecordingEngine(tiny)

    with pytest.raises(EngineError, match=words):
        open_and_draw()


@pytest.mark.parametrize("refused", ["captured run", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_cannot_be_captured_is_started_step_by_step(tiny, tensorrt, cuda, refused, caplog):
    expected = open_engine(as_tensorrt(tiny)).generate(trajectory([6, 2], stochastic=True))[0]
    cuda.refuses[refused] = CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    tensorrt.refuses = refused
    cuda.calls.clear()
    engine = open_engine(as_tensorrt(tiny))
    for _ in range(2):
        assert np.array_equal(engine.generate(trajectory([6, 2], stochastic=True))[0], expected)
    assert not cuda.named("cuGraphLaunch")
    assert len(cuda.named("cuStreamBeginCapture")) == 1
    (said,) = caplog.messages
    assert "tiny: the host starts every step, as they cannot be captured as a CUDA graph: " in said


@pytest.mark.parametrize(
    ("captured", "words"), [("refused", "out of memory"), ("calls the host", "the work calls the host")]
)
def test_what_onnx_runtime_cannot_have_captured_is_started_step_by_step(
    tiny, onnxruntime_gpu, cuda, monkeypatch, captured, words, caplog
):
    """Though CUDA's runtime keeps the error, and ONNX Runtime takes it for one of its next run."""
    expected = open_engine(tiny).generate(trajectory([6, 2], stochastic=True))[0]
    assert cuda.named("cuGraphLaunch")
    monkeypatch.setattr(FakeCudaSession, "captured", captured)
    cuda.calls.clear()
    engine = open_engine(tiny)
    for _ in range(2):
        assert np.array_equal(engine.generate(trajectory([6, 2], stochastic=True))[0], expected)
    assert not cuda.named("cuGraphLaunch", "cuGraphInstantiate")
    assert len(cuda.named("cuStreamBeginCapture")) == 1
    (said,) = caplog.messages
    assert words in said


def test_a_run_that_fails_does_not_spoil_the_next(tiny, tensorrt):
    engine = open_engine(as_tensorrt(tiny))
    engine._graphs.clear()  # what is captured does not ask TensorRT again
    expected = engine.generate(trajectory([2]))
    tensorrt.refuses = "run"
    with pytest.raises(EngineError, match="TensorRT cannot run the step plan: no run today"):
        engine.generate(trajectory([3]))
    tensorrt.refuses = ""
    engine.generate(trajectory([3]))
    assert np.array_equal(engine.generate(trajectory([2]))[0], expected[0])


def test_an_error_of_before_is_not_quoted(tiny, tensorrt):
    engine = open_engine(as_tensorrt(tiny))
    engine._graphs.clear()
    tensorrt.refuses, tensorrt.says = "run", "myelin is unhappy"
    for said in ("myelin is unhappy", "it does not say why"):
        with pytest.raises(EngineError, match=f"TensorRT cannot run the step plan: {said}"):
            engine.generate(trajectory([3]))
        tensorrt.says = None


@pytest.mark.parametrize("code", ["ILLEGAL_ADDRESS", "ECC_UNCORRECTABLE", "UNKNOWN"])
def test_the_gpus_end_is_told_from_other_failures(tiny, cuda, code):
    """Whoever finds it out: ours, or a runtime that has but words for it."""

    class Failing(UncapturedEngine):
        fails = False

        def enqueue(self, graph, tensors):
            if self.fails:
                raise EngineError("CUDA failure 700")

    code = CUresult[f"CUDA_ERROR_{code}"]
    engine = Failing(tiny)
    engine.fails = True
    with pytest.raises(EngineError, match="CUDA failure 700") as caught:
        engine.generate(trajectory([1]))
    assert not isinstance(caught.value, DeadGpuError)
    cuda.refuses["cuCtxSynchronize"] = code
    with pytest.raises(DeadGpuError, match="this process cannot use the GPU any more") as caught:
        engine.generate(trajectory([1]))
    assert str(caught.value.__context__) == "CUDA failure 700"
    engine.fails = False
    cuda.refuses["cuStreamSynchronize"] = code
    with pytest.raises(DeadGpuError):
        engine.generate(trajectory([1]))


def test_out_of_memory_is_said_in_plain_words(tiny, tensorrt, onnxruntime_gpu, monkeypatch):
    words = r"the GPU is out of memory; end what else uses it, or build the bundle with a smaller --max-batch \({}\)"
    engine = open_engine(as_tensorrt(tiny))
    engine._graphs.clear()
    tensorrt.refuses, tensorrt.says = "run", "Error Code 2: OutOfMemory"
    with pytest.raises(EngineError, match=words.format("Error Code 2: OutOfMemory")):
        engine.generate(trajectory([3]))
    tensorrt.says = ""

    def fail(*_):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 9")

    engine = open_engine(tiny)
    engine._graphs.clear()
    monkeypatch.setattr(FakeCudaSession, "run_with_iobinding", fail)
    with pytest.raises(EngineError, match=words.format("Failed to allocate .* of size 9")):
        engine.generate(trajectory([3]))


def test_a_driver_that_is_too_old_is_named_before_tensorrt_ends_the_process(tiny, tensorrt, cuda):
    cuda.cuda_version = 12080
    tensorrt.Runtime = None
    words = r"tensorrt 11\.4\.0\.106 here is for CUDA 13, and NVIDIA's driver \(.*\) has CUDA 12\.8: update the driver"
    with pytest.raises(EngineError, match=words):
        open_engine(as_tensorrt(tiny))


def test_a_tensorrt_of_no_known_cuda_is_taken_to_fit(tiny, tensorrt, cuda, monkeypatch):
    cuda.cuda_version = 12080
    monkeypatch.setattr("serving.engines.cuda_version.distributions", lambda: [])
    assert open_engine(as_tensorrt(tiny))


def test_a_tensorrt_that_does_not_start_says_why(tiny, tensorrt):
    tensorrt.starts = False
    with pytest.raises(EngineError, match="TensorRT cannot start: CUDA initialization failure with error: 35"):
        open_engine(as_tensorrt(tiny))


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


REBUILD = r"build them here with: medgen export build --model tiny --target tensorrt --precision fp32 --max-batch 6"


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
    _, command = str(caught.value).split("build them here with: medgen export build ")
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


def test_the_command_that_rebuilds_makes_the_same_of_the_same_checkpoint(tiny):
    bundle = as_tensorrt(tiny)
    made = {"prior": "pggan", "chosen": {"layer": 4, "vgg16": "my vgg.pth"}, "unfinished": "step 3", "license": "mit"}
    manifest = dataclasses.replace(bundle.manifest, checkpoint=made)
    words = shlex.split(rebuild(dataclasses.replace(bundle, manifest=manifest)))
    chosen = ["--set", "layer=4", "--set", 'vgg16="my vgg.pth"', "--unfinished", "--license", "mit"]
    assert words[words.index("--preset") :] == ["--preset", bundle.manifest.preset, *chosen]


def test_the_command_that_rebuilds_is_there_wherever_the_bundle_is(tiny):
    for folder in ("/bundle", "/models/tiny"):
        assert "medgen export build --model tiny" in rebuild(
            dataclasses.replace(as_tensorrt(tiny), folder=Path(folder))
        )


def test_the_command_that_rebuilds_times_again_what_was_timed(tiny):
    timed = {"fused": False, "opset": 18, "seconds_a_step": {"fused": 2.0, "plain": 1.0}}
    assert not {"--no-fuse", "--opset"} & set(rebuild(as_tensorrt(tiny, **timed)).split())
    assert "--target tensorrt-rtx" in rebuild(as_tensorrt(tiny, name="tensorrt-rtx"))


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
    """Starts a Triton instance of a bundle, whose requests do not join a loop."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("unused"))
    config = json.dumps({"parameters": {"batching": {"string_value": "static"}}})
    from serving.triton import model as model_file

    def start(bundle, kind, device="0"):
        monkeypatch.setattr(model_file.BundleModel, "_folder", lambda _: bundle.folder)
        monkeypatch.setattr(model_file, "load_bundle", lambda _: bundle)
        model = model_file.BundleModel()
        given = {"model_instance_kind": kind, "model_instance_device_id": device, "model_config": config}
        model.initialize(given)
        return model

    return start


def test_a_triton_instance_runs_on_its_gpu(tiny, instance, monkeypatch):
    opened = []
    monkeypatch.setattr("serving.triton.model.open_engine", lambda *given: opened.append(given))
    monkeypatch.setattr("serving.triton.model.Sampler", lambda bundle, engine: SimpleNamespace(_engine=engine))
    instance(tiny, "GPU", "1")
    assert opened == [(tiny, 1)]


def test_a_triton_instance_ends_when_its_gpu_takes_no_work_any_more(tiny, instance, onnxruntime_gpu, monkeypatch):
    """Else it would be ready and answer every request with the same error; Triton starts another in its place."""

    class Ended(BaseException):
        pass

    def end(status):
        raise Ended(status)

    monkeypatch.setattr("os._exit", end)
    model = instance(tiny, "GPU")
    said = []
    monkeypatch.setattr(
        sys.modules["serving.triton.model"].pb, "Logger", SimpleNamespace(log_error=said.append), raising=False
    )

    def fail(*_):
        raise DeadGpuError("GPU 0: a kernel crashed")

    monkeypatch.setattr(model.sampler, "sample", fail)
    with pytest.raises(Ended, match="1"):
        model._sampled([None, None])
    assert "GPU 0: a kernel crashed" in said[0]


def test_a_triton_instance_on_the_cpu_leaves_the_gpu_alone(tiny, instance, onnxruntime_gpu, cuda):
    assert type(instance(tiny, "GPU").sampler._engine) is OnnxRuntimeCudaEngine
    cuda.calls.clear()
    assert type(instance(tiny, "CPU").sampler._engine) is OnnxRuntimeEngine
    assert not cuda.calls


def test_a_triton_instance_on_the_cpu_refuses_plans(tiny, instance, tensorrt):
    with pytest.raises(EngineError, match=r"tiny is a TensorRT bundle, and cannot run on the CPU: .*--target onnx"):
        instance(as_tensorrt(tiny), "CPU")
