"""Triton kernels compiled ahead of time, without a GPU, to PTX that a launcher other than Triton's own can start."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# By compute capability, the PTX that drivers from CUDA 12.8 on accept, or the first that knows the GPU; Triton's own
# choice may be newer than the driver. What is not here ends the process inside the compiler, or spills registers.
PTX_VERSIONS = {80: 87, 86: 87, 87: 87, 89: 87, 90: 87, 100: 87, 103: 88, 120: 87, 121: 88}
SHARED_MEMORY = 48 * 1024  # bytes a block gets without asking the driver for more, which TensorRT does not do
HIDDEN = 2  # pointers to scratch memory that Triton appends to a kernel's parameters
ELEMENTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel to be started in blocks of (threads, 1, 1), given the pointers in `parameters`, in that order."""

    name: str
    ptx: str
    parameters: tuple[str, ...]
    threads: int
    shared_memory: int


def check_capability(capability: int) -> None:
    """Raise ValueError for a compute capability that the kernels are not compiled for."""
    if capability not in PTX_VERSIONS:
        known = ", ".join(f"{number // 10}.{number % 10}" for number in PTX_VERSIONS)
        number = f"{capability // 10}.{capability % 10}"
        raise ValueError(f"the fused operators are not compiled for compute capability {number}; they are for {known}")


def compile_kernel(
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int,
    num_stages: int = 1,
) -> CompiledKernel:
    """Compile `kernel` (a Triton function) for GPUs of a compute capability, such as 90.

    pointers: each pointer's element type ("float32", "float16" or "bfloat16"); the memory is taken to be aligned to 16
    bytes. constants: every other parameter. Raises ValueError for a capability that ``check_capability`` refuses, and
    for a kernel that needs scratch memory, a cluster, or more shared memory than a plain launch gives.
    """
    check_capability(capability)
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    if missing := set(names) - set(pointers) - set(constants):
        raise ValueError(f"kernel {kernel.__name__} needs {', '.join(sorted(missing))}")
    source = ASTSource(
        fn=kernel,
        signature={name: "*" + ELEMENTS[pointers[name]] if name in pointers else "constexpr" for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    options = {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "ptx_version": PTX_VERSIONS[capability],
        "enable_fp_fusion": True,
    }
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
        raise ValueError(f"kernel {metadata.name} needs scratch memory or a cluster; a plain launch gives neither")
    if metadata.shared > SHARED_MEMORY:
        raise ValueError(f"kernel {metadata.name} needs {metadata.shared} bytes of shared memory, over {SHARED_MEMORY}")
    return CompiledKernel(
        name=metadata.name,
        ptx=without_hidden_parameters(compiled.asm["ptx"]),
        parameters=tuple(name for name in names if name in pointers),
        threads=32 * metadata.num_warps,
        shared_memory=metadata.shared,
    )


def without_hidden_parameters(ptx: str) -> str:
    """The PTX without the scratch pointers at the end of its parameter list. Raises ValueError if they are used."""
    entry = re.search(r"\.entry \w+\((.*?)\n\)", ptx, re.DOTALL)
    if entry is None:
        raise ValueError("the PTX has no entry point")
    parameters = entry[1].split(",")
    rest = ptx[entry.end() :]
    for parameter in parameters[-HIDDEN:]:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", rest):
            raise ValueError(f"the PTX uses its hidden parameter {name}")
    return ptx[: entry.start(1)] + ",".join(parameters[:-HIDDEN]) + ptx[entry.end(1) :]
