"""Of groups too large for one program, the first pass: the mean and variance of every tile of a channel."""

from typing import Any, no_type_check

from kernels.group_norm_sizes import TACTICS, power_of_two, strides, warps
from kernels.language import jit, tl
from kernels.ptx import CompiledKernel, compile_kernel
from kernels.tensorrt_aot import ahead_of_time, capability, element_type, fixed_sizes


@jit
@no_type_check
def group_norm_statistics_kernel(
    x,
    embedding,
    statistics,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    TILES: tl.constexpr,
    EMBEDDING_ROW: tl.constexpr,
    EMBEDDING_COLUMN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile, channel, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    LENGTH: tl.constexpr = PIXELS // TILES
    place = (row.to(tl.int64) * CHANNELS + channel) * TILES + tile
    offset = tl.arange(0, BLOCK)
    inside = offset < LENGTH
    value = tl.load(x + place * LENGTH + offset, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(embedding + row * EMBEDDING_ROW + channel * EMBEDDING_COLUMN).to(tl.float32)
    mean = tl.sum(tl.where(inside, value, 0.0), 0) / LENGTH
    value = tl.where(inside, value - mean, 0.0)
    tl.store(statistics + place * 2, mean)
    tl.store(statistics + place * 2 + 1, tl.sum(value * value, 0) / LENGTH)


def constants_of(channels: int, pixels: int, tiles: int, steps: dict[str, int]) -> dict[str, Any]:
    of_embedding = {name: steps[name] for name in ("EMBEDDING_ROW", "EMBEDDING_COLUMN")}
    block = power_of_two(pixels // tiles)
    return {"CHANNELS": channels, "PIXELS": pixels, "TILES": tiles, **of_embedding, "BLOCK": block}


def compiled(dtype: str, constants: dict[str, Any], tactic: int, capability: int) -> CompiledKernel:
    pointers = {"x": dtype, "embedding": dtype, "statistics": "float32"}
    return compile_kernel(
        group_norm_statistics_kernel, pointers, constants, capability, num_warps=warps(constants["BLOCK"], tactic)
    )


ONNX_FUNCTION = """
GroupNormStatistics <tiles: int = 1> (x, embedding) => (statistics)
{
  axes = Constant <value_ints: ints = [2, 3]> ()
  wide = Cast <to: int = 1> (x)
  embedding_wide = Cast <to: int = 1> (embedding)
  embedding_map = Unsqueeze (embedding_wide, axes)
  value = Add (wide, embedding_map)
  same = Constant <value_ints: ints = [0, 0]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  number = Constant <value_int: int = @tiles> ()
  number_list = Reshape (number, rest)
  by_tile = Concat <axis: int = 0> (same, number_list, rest)
  tile = Reshape (value, by_tile)
  last = Constant <value_ints: ints = [3]> ()
  mean = ReduceMean (tile, last)
  spread = Sub (tile, mean)
  square = Mul (spread, spread)
  variance = ReduceMean (square, last)
  statistics = Concat <axis: int = 3> (mean, variance)
}
"""


def register_plugin() -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    @trtp.register("medgen::GroupNormStatistics")
    def describe(x: trtp.TensorDesc, embedding: trtp.TensorDesc, tiles: int) -> trtp.TensorDesc:
        return trtp.from_shape_expr((x.shape_expr[0], x.shape_expr[1], tiles, 2), trt.DataType.FLOAT)

    @trtp.autotune("medgen::GroupNormStatistics")
    def choices(
        x: trtp.TensorDesc, embedding: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32|FP16|BF16, FP32|FP16|BF16, FP32", "LINEAR", TACTICS)]

    @trtp.aot_impl("medgen::GroupNormStatistics")
    def implement(
        x: trtp.TensorDesc, embedding: trtp.TensorDesc, tiles: int, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        channels, height, width = fixed_sizes(x)
        steps = strides(embedding.shape, (1, channels), (1, channels))
        constants = constants_of(channels, height * width, tiles, steps)
        kernel = compiled(element_type(x), constants, tactic, capability())
        return ahead_of_time(kernel, tiles, channels, x.shape_expr[0])
