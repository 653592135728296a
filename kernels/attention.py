"""Self-attention over packed queries, keys and values, without the matrix of scores in memory."""

from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.language import jit, tl
from kernels.ptx import CompiledKernel, compile_kernel
from kernels.tensorrt_aot import ahead_of_time, capability, element_type, fixed_sizes
from kernels.torch_operator import define_operator

Tiling = tuple[int, int, int, int]

# Queries and keys of a tile, warps and pipeline stages that fit in a plain launch's shared memory on every GPU, by the
# bytes of an element and the greatest head dimension. The last of a row makes many small programs.
TILINGS = {
    (2, 64): ((64, 64, 4, 2), (128, 32, 8, 2), (64, 32, 4, 2), (16, 64, 1, 2)),
    (2, 128): ((32, 64, 4, 1), (32, 32, 4, 2), (16, 32, 2, 2)),
    (4, 32): ((64, 32, 4, 1), (32, 32, 4, 2), (16, 32, 1, 1)),
    (4, 64): ((64, 16, 4, 1), (32, 32, 4, 1), (16, 32, 2, 1)),
    (4, 128): ((32, 16, 4, 1), (32, 32, 4, 1), (16, 16, 2, 1)),
}
FULL = 132  # programs below which a large GPU is not filled


def is_fastest(itemsize: int, length: int, head_dim: int) -> bool:
    """Whether this kernel is what runs in PyTorch for elements of so many bytes, and in TensorRT without its own.

    Where it beat PyTorch's scaled_dot_product_attention on an H200 (README.md): heads of 32 or less, of 16-bit
    elements up to a length of 256. With heads of 128, and at a length of 1024 in 16 bits, it lost; heads between 32
    and 128 were not measured. TensorRT's own attention was not measured beside it, and is used where TensorRT
    has it (``has_native_kernel``).
    """
    return head_dim <= 32 and (itemsize == 4 or length <= 256)


def attention(qkv: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v for every head.

    qkv: [B, N, 3, H, D] as one linear layer gives it, float32, float16 or bfloat16; D a multiple of 8 up to 128.
    scale: 1/sqrt(D) if None. Returns [B, N, H, D] of the same dtype. Vaswani et al. 2017, equation 1, computed in tiles
    with float32 sums as in FlashAttention-2 (Dao 2023, algorithm 1).
    """
    return attention_op(qkv, qkv.shape[-1] ** -0.5 if scale is None else scale)


def reference(qkv: Tensor, scale: float) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()


@jit
@no_type_check
def attention_kernel(
    qkv,
    output,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    head, row = tl.program_id(1), tl.program_id(2)
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    column = tl.arange(0, WIDTH)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = (query < LENGTH)[:, None] & (column < HEAD_DIM)[None, :]
    qkv += row.to(tl.int64) * LENGTH * STRIDE + head * HEAD_DIM
    q = tl.load(qkv + query[:, None] * STRIDE + column[None, :], mask=inside, other=0.0)

    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    result = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, LENGTH, KEYS):
        key = start + tl.arange(0, KEYS)
        present = (key < LENGTH)[:, None] & (column < HEAD_DIM)[None, :]
        place = qkv + key[:, None] * STRIDE + column[None, :]
        k = tl.load(place + HEADS * HEAD_DIM, mask=present, other=0.0)
        v = tl.load(place + 2 * HEADS * HEAD_DIM, mask=present, other=0.0)
        # Three tf32 products come close to one in float32 and run on the matrix units; 16-bit products ignore this.
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * (SCALE * 1.4426950408889634)
        if LENGTH % KEYS != 0:
            scores = tl.where((key < LENGTH)[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weights, 1)
        result = tl.dot(weights.to(v.dtype), v, result * fade[:, None], input_precision="tf32x3")
        highest = higher
    row_of_output = (row.to(tl.int64) * LENGTH + query) * (HEADS * HEAD_DIM) + head * HEAD_DIM
    tl.store(output + row_of_output[:, None] + column[None, :], result / total[:, None], mask=inside)


def width_of(head_dim: int) -> int:
    """Columns of a tile: a power of two, and at least the 16 that a matrix product takes."""
    if head_dim % 8 or not 8 <= head_dim <= 128:
        raise ValueError(f"head dimension {head_dim} is not a multiple of 8 from 8 to 128")
    return max(16, 1 << (head_dim - 1).bit_length())


def tilings(itemsize: int, head_dim: int) -> tuple[Tiling, ...]:
    return next(found for (size, limit), found in TILINGS.items() if size == itemsize and head_dim <= limit)


def default_tiling(itemsize: int, head_dim: int, length: int, programs: int) -> Tiling:
    if programs < FULL:
        return tilings(itemsize, head_dim)[-1]
    if itemsize == 4:
        return tilings(itemsize, head_dim)[0]
    return (64, 64, 4, 2) if length < 1024 else (128, 64, 8, 2)  # Triton's own launch gives more shared memory


def fastest(qkv: Tensor, scale: float) -> Tensor:
    best = launch if is_fastest(qkv.itemsize, qkv.shape[1], qkv.shape[4]) else reference
    return best(qkv, scale)


def launch(qkv: Tensor, scale: float, tiling: Tiling | None = None) -> Tensor:
    batch, length, _, heads, head_dim = qkv.shape
    width = width_of(head_dim)
    if tiling is None:
        tiling = default_tiling(qkv.itemsize, head_dim, length, programs=batch * heads * -(-length // 64))
    queries, keys, warps, stages = tiling
    output = qkv.new_empty(batch, length, heads, head_dim)
    with torch.cuda.device_of(qkv):
        attention_kernel[(-(-length // queries), heads, batch)](
            qkv.contiguous(), output, length, heads, head_dim, scale, width, queries, keys,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return output


def compiled(
    dtype: str, length: int, heads: int, head_dim: int, scale: float, tiling: Tiling, capability: int
) -> CompiledKernel:
    queries, keys, warps, stages = tiling
    constants = {
        "LENGTH": length,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "SCALE": scale,
        "WIDTH": width_of(head_dim),
        "QUERIES": queries,
        "KEYS": keys,
    }
    return compile_kernel(attention_kernel, {"qkv": dtype, "output": dtype}, constants, capability, warps, stages)


def fake(qkv: Tensor, scale: float) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:])


attention_op = define_operator("attention", reference, fake, fastest)

# Named apart from ONNX's own Attention: a parser goes by an operator's name and forgets its domain.
ONNX_FUNCTION = """
PackedAttention <scale: float = 1.0> (qkv) => (output)
{
  heads_first = Transpose <perm: ints = [2, 0, 3, 1, 4]> (qkv)
  first = Constant <value_int: int = 0> ()
  second = Constant <value_int: int = 1> ()
  third = Constant <value_int: int = 2> ()
  q = Gather <axis: int = 0> (heads_first, first)
  k = Gather <axis: int = 0> (heads_first, second)
  v = Gather <axis: int = 0> (heads_first, third)
  kt = Transpose <perm: ints = [0, 1, 3, 2]> (k)
  products = MatMul (q, kt)
  products_wide = Cast <to: int = 1> (products)
  factor = Constant <value_float: float = @scale> ()
  scores = Mul (products_wide, factor)
  weights_wide = Softmax <axis: int = -1> (scores)
  weights = CastLike (weights_wide, qkv)
  sums = MatMul (weights, v)
  output = Transpose <perm: ints = [0, 2, 1, 3]> (sums)
}
"""

# The same by ONNX's own operator, which TensorRT has as one layer: see `has_native_kernel`.
NATIVE_OPSET = 23
NATIVE_ONNX_FUNCTION = """
PackedAttention <scale: float = 1.0> (qkv) => (output)
{
  heads_first = Transpose <perm: ints = [2, 0, 3, 1, 4]> (qkv)
  first = Constant <value_int: int = 0> ()
  second = Constant <value_int: int = 1> ()
  third = Constant <value_int: int = 2> ()
  q = Gather <axis: int = 0> (heads_first, first)
  k = Gather <axis: int = 0> (heads_first, second)
  v = Gather <axis: int = 0> (heads_first, third)
  sums = Attention <scale: float = @scale> (q, k, v)
  output = Transpose <perm: ints = [0, 2, 1, 3]> (sums)
}
"""


def has_native_kernel(itemsize: int, head_dim: int) -> bool:
    """Whether TensorRT builds ONNX's Attention; in float32, or with heads of 8, it has no kernel and gives up."""
    return itemsize == 2 and head_dim >= 16


def to_onnx(medgen: Any, qkv: Any, scale: float) -> Any:
    return medgen.PackedAttention(qkv, scale=scale)


def register_plugin() -> None:
    import tensorrt.plugin as trtp

    @trtp.register("medgen::PackedAttention")
    def describe(qkv: trtp.TensorDesc, scale: float) -> trtp.TensorDesc:
        batch, length, _, heads, head_dim = qkv.shape_expr
        return trtp.from_shape_expr((batch, length, heads, head_dim), qkv.dtype)

    @trtp.autotune("medgen::PackedAttention")
    def choices(qkv: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]) -> list[trtp.AutoTuneCombination]:
        _, _, _, head_dim = fixed_sizes(qkv)
        wide, narrow = len(tilings(4, head_dim)), len(tilings(2, head_dim))
        return [
            trtp.AutoTuneCombination("FP32, FP32", "LINEAR", range(1, wide + 1)),
            trtp.AutoTuneCombination("FP16|BF16, FP16|BF16", "LINEAR", range(1, narrow + 1)),
        ]

    @trtp.aot_impl("medgen::PackedAttention")
    def implement(
        qkv: trtp.TensorDesc, scale: float, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        length, _, heads, head_dim = fixed_sizes(qkv)
        dtype = element_type(qkv)
        tiling = tilings(4 if dtype == "float32" else 2, head_dim)[tactic - 1]
        kernel = compiled(dtype, length, heads, head_dim, scale, tiling, capability())
        return ahead_of_time(kernel, -(-length // tiling[0]), heads, qkv.shape_expr[0])
