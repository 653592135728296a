"""The engine of TensorRT for RTX on the fake GPU: samples, kernels that stay and are kept, and where it is refused."""

import logging
import sys

import numpy as np
import pytest
from fake_cuda import FakeCuda, installed
from fake_engines import FakeRtx, as_tensorrt
from real_tensorrt_rtx import real_tensorrt_rtx
from tiny import write_tiny_bundle

from serving.bundle import buckets, load_bundle
from serving.engines import EngineError, open_engine, open_on_cpu
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler

MAX_BATCH = 6


@pytest.fixture
def cuda():
    with installed(FakeCuda((8, 9), "NVIDIA RTX 6000 Ada Generation")) as fake:
        yield fake


@pytest.fixture
def rtx(cuda, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake = FakeRtx(cuda, list(buckets(MAX_BATCH)))
    fake.__name__ = "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def bundle(tmp_path):
    plain = load_bundle(write_tiny_bundle(tmp_path / "bundle", max_batch=MAX_BATCH))
    rtx = {"name": "tensorrt-rtx", "tensorrt_rtx": FakeRtx.__version__, "compute_capabilities": ["8.6", "8.9"]}
    return as_tensorrt(plain, **rtx)


def samples(bundle, engine, count):
    request = parse_request(bundle.manifest, np.arange(count)[:, None], {"steps": 7, "solver": "ddpm"})
    return Sampler(bundle, engine).sample([request])[0]


@pytest.mark.parametrize("count", [1, 3, 6])
def test_samples_are_those_of_the_cpu(bundle, rtx, cuda, count):
    drawn = samples(bundle, open_engine(bundle), count)
    expected = samples(bundle, OnnxRuntimeEngine(bundle), count)
    assert cuda.named("cuGraphLaunch")
    assert all(np.array_equal(drawn[name], expected[name]) for name in ("mask", "image"))


def test_kernels_do_not_change_half_way(bundle, rtx):
    open_engine(bundle)
    assert len(rtx.configurations) == 2  # of step and finish
    for configuration in rtx.configurations:
        assert configuration.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert configuration.cuda_graph_strategy == "disabled"
        assert configuration.cache is configuration


def test_kernels_are_kept_by_plan_and_gpu(bundle, rtx, cuda, tmp_path):
    open_engine(bundle)
    files = sorted((tmp_path / "cache" / "medgen").iterdir())
    assert [file.read_bytes()[32:] for file in files] == [b"kernels"] * 2  # after their digests
    assert all(file.name.startswith("nvidia-rtx-6000-ada-generation-") for file in files)
    assert [configuration.found for configuration in rtx.configurations] == [None] * 2
    open_engine(bundle)
    assert [configuration.found for configuration in rtx.configurations[2:]] == [b"kernels"] * 2
    files[0].write_bytes(b"damaged")
    open_engine(bundle)
    assert sorted(configuration.found or b"" for configuration in rtx.configurations[4:]) == [b"", b"kernels"]
    assert files[0].read_bytes()[32:] == b"kernels"


def test_a_cache_folder_that_cannot_be_written_costs_nothing(bundle, rtx, tmp_path):
    (tmp_path / "cache").write_text("a file")
    open_engine(bundle)


def test_another_gpu_is_refused_with_both_named(bundle, rtx, cuda):
    cuda.name, cuda.capability = "NVIDIA H200", (9, 0)
    words = (
        r"of compute capability 8\.6, 8\.9, and here is NVIDIA H200 \(9\.0\): build the bundle with --target tensorrt"
    )
    with pytest.raises(EngineError, match=words):
        open_engine(bundle)


def test_another_version_is_refused_with_both_named(bundle, rtx, monkeypatch):
    monkeypatch.setattr(FakeRtx, "__version__", "1.8.0.1")
    words = (
        r"of TensorRT for RTX 1\.7\.1\.116, and here is 1\.8\.0\.1: pip install tensorrt-rtx==1\.7\.1\.116, or .*-rtx"
    )
    with pytest.raises(EngineError, match=words):
        open_engine(bundle)


def test_without_it_the_package_is_named(bundle, cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"needs TensorRT for RTX: pip install tensorrt-rtx==1\.7\.1\.116"):
        open_engine(bundle)


@pytest.mark.parametrize(
    ("refused", "words"),
    [("captured run", "cannot run the finish plan"), ("capture", "cannot have the finish plan captured")],
)
def test_what_cannot_be_captured_is_started_step_by_step(bundle, rtx, cuda, caplog, refused, words):
    rtx.refuses = refused
    with caplog.at_level(logging.WARNING):
        drawn = samples(bundle, open_engine(bundle), 3)
    assert np.array_equal(drawn["image"], samples(bundle, OnnxRuntimeEngine(bundle), 3)["image"])
    assert f"TensorRT for RTX {words}: no {refused} today" in caplog.text
    assert not cuda.named("cuGraphLaunch")


def test_a_driver_that_is_too_old_is_named_before_it_is_asked_for_anything(bundle, rtx, cuda):
    cuda.cuda_version = 12080
    rtx.Runtime = None
    words = r"tensorrt_rtx 1\.7\.1\.116 here is for CUDA 13, and NVIDIA's driver \(.*\) has CUDA 12\.8: update"
    with pytest.raises(EngineError, match=words):
        open_engine(bundle)


def test_the_cpu_refuses_plans(bundle):
    with pytest.raises(EngineError, match="is a TensorRT bundle, and cannot run on the CPU"):
        open_on_cpu(bundle)


def test_the_real_bindings_have_what_is_asked_of_them():
    real = real_tensorrt_rtx()
    for kind, names in {
        real.ICudaEngine: ("create_runtime_config", "create_execution_context", "device_memory_size_v2"),
        real.IRuntimeConfig: (
            "set_execution_context_allocation_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
            "cuda_graph_strategy",
            "create_runtime_cache",
            "set_runtime_cache",
        ),
        real.IRuntimeCache: ("serialize", "deserialize"),
        real.IExecutionContext: (
            "set_device_memory",
            "set_optimization_profile_async",
            "set_input_shape",
            "set_tensor_address",
            "is_stream_capturable",
            "execute_async_v3",
        ),
        real.DynamicShapesKernelSpecializationStrategy: ("EAGER",),
        real.CudaGraphStrategy: ("DISABLED",),
        real.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
        real.TensorIOMode: ("INPUT",),
    }.items():
        assert [name for name in names if not hasattr(kind, name)] == []
