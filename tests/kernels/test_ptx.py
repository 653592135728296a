"""The kernels compiled for GPUs that are not here: the PTX assembles, and takes what its launcher passes."""

import math
import re
import subprocess
from pathlib import Path

import pytest
import triton
from tensorrt_bindings_alone import ptx_parameters
from triton import language as tl

from kernels import attention, group_norm_apply, group_norm_statistics, group_norm_whole, solver_step
from kernels.group_norm_sizes import strides
from kernels.ptx import SHARED_MEMORY, compile_kernel, without_hidden_parameters

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 89, 90, 100)
TABLES = strides((1, 1), (3, 64), (3, 64))


def compiled_kernels():
    """Every kernel in its types, and the tactics that need most of a GPU."""
    yield "solver_step", lambda gpu: solver_step.compiled("float16", 2 * 512 * 512, 1.0, 2048, gpu)
    yield "solver_step odd", lambda gpu: solver_step.compiled("float32", 442, math.inf, 1024, gpu)
    for dtype, head_dim, tactic in (
        ("float16", 8, 0),
        ("bfloat16", 64, 1),
        ("float16", 128, 0),
        ("float16", 128, 2),
        ("float32", 64, 0),
        ("float32", 128, 1),
    ):
        tiling = attention.tilings(4 if dtype == "float32" else 2, head_dim)[tactic]
        yield (
            f"attention {dtype} {head_dim} {tiling}",
            lambda gpu, a=(dtype, 200, 2, head_dim, 0.3, tiling): attention.compiled(*a, gpu),
        )
    whole = group_norm_whole.constants_of(64, 32, 4096, 1e-5, TABLES)
    yield "group norm, whole, bfloat16", lambda gpu: group_norm_whole.compiled("bfloat16", whole, 2, gpu)
    odd = group_norm_whole.constants_of(96, 32, 8000, 1e-5, TABLES)  # rounded up to 4 x 8,192
    yield "group norm, whole, odd", lambda gpu: group_norm_whole.compiled("float32", odd, 1, gpu)
    parts = group_norm_statistics.constants_of(64, 90000, 12, TABLES)
    yield "group norm, statistics, float16", lambda gpu: group_norm_statistics.compiled("float16", parts, 1, gpu)
    last = group_norm_apply.constants_of(64, 32, 90000, 12, 1e-5, TABLES)
    yield "group norm, apply, float32", lambda gpu: group_norm_apply.compiled("float32", last, 1, gpu)


KERNELS = dict(compiled_kernels())


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_ptx(name, capability, tmp_path):
    kernel = KERNELS[name](capability)

    assert ptx_parameters(kernel.ptx) == [".u64"] * len(kernel.parameters)
    assert "scratch" not in kernel.ptx
    assert ".cluster" not in kernel.ptx
    assert re.search(r"^\.version (.*)$", kernel.ptx, re.MULTILINE)[1] == "8.7"  # for drivers from CUDA 12.8 on
    assert re.search(r"^\.target sm_(\d+)a?$", kernel.ptx, re.MULTILINE)[1] == str(capability)
    assert kernel.shared_memory <= SHARED_MEMORY

    cubin = assemble(kernel.ptx, tmp_path)
    entry = run("cuobjdump", "-elf", cubin)
    assert entry.count("EIATTR_KPARAM_INFO") == len(kernel.parameters)
    assert re.search(r"STACK:(\d+)", run("cuobjdump", "-res-usage", cubin))[1] == "0"  # no register is spilled


@pytest.mark.parametrize(("capability", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_attention_uses_the_matrix_units(capability, instruction, tmp_path):
    cubin = assemble(KERNELS["attention bfloat16 64 (128, 32, 8, 2)"](capability).ptx, tmp_path)
    assert instruction in run("cuobjdump", "-sass", cubin)


@pytest.mark.parametrize("capability", [103, 121])
def test_newer_gpus_get_the_first_ptx_that_knows_them(capability):
    assert ".version 8.8" in KERNELS["solver_step"](capability).ptx


@pytest.mark.parametrize("capability", [70, 75, 130])
def test_gpus_that_the_compiler_would_end_the_process_for_are_refused(capability):
    with pytest.raises(
        ValueError, match=rf"not compiled for compute capability {capability / 10:.1f}; they are for 8.0"
    ):
        KERNELS["solver_step"](capability)


def test_memory_is_read_sixteen_bytes_at_a_time():
    loads = re.findall(r"ld\.global\.v(\d)\.b(\d+)", KERNELS["solver_step"](90).ptx)
    assert loads
    assert {int(count) * int(bits) for count, bits in loads} == {128}


def test_a_kernel_that_needs_scratch_memory_is_refused():
    parameters = ",\n".join(f"\t.param .u64 f_param_{i}" for i in range(3))
    ptx = f".visible .entry f(\n{parameters}\n)\n{{ [f_param_2] }}"
    with pytest.raises(ValueError, match="hidden parameter f_param_2"):
        without_hidden_parameters(ptx)
    assert ptx_parameters(without_hidden_parameters(ptx.replace("[f_param_2]", ""))) == [".u64"]


def test_a_kernel_that_needs_too_much_shared_memory_is_refused():
    tiling = (128, 128, 8, 3)
    with pytest.raises(ValueError, match=r"needs \d+ bytes of shared memory"):
        attention.compiled("float16", 256, 1, 128, 1.0, tiling, 90)


def test_a_constant_left_out_is_an_error():
    @triton.jit
    def copy(x, y, size: tl.constexpr):
        tl.store(y + tl.arange(0, size), tl.load(x + tl.arange(0, size)))

    with pytest.raises(ValueError, match="copy needs size"):
        compile_kernel(copy, {"x": "float32", "y": "float32"}, {}, 90, num_warps=1)


def assemble(ptx, folder):
    source, cubin = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    target = re.search(r"^\.target (\w+)$", ptx, re.MULTILINE)[1]
    run("ptxas", f"-arch={target}", source, "-o", cubin)
    return cubin


def run(tool, *arguments):
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
