"""Of groups too large for one program, the second pass: the norm by the tiles' statistics, and SiLU."""

from typing import Any, no_type_check

from kernels.group_norm_sizes import TACTICS, power_of_two, strides, warps
from kernels.language import jit, tl
from kernels.ptx import CompiledKernel, compile_kernel
from kernels.tensorrt_aot import ahead_of_time, capability, element_type, fixed_sizes


@jit
@no_type_check
def group_norm_apply_kernel(
    x,
    embedding,
    gain,
    offset,
    statistics,
    y,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,
    TILES: tl.constexpr,
    EPS: tl.constexpr,
    EMBEDDING_ROW: tl.constexpr,
    EMBEDDING_COLUMN: tl.constexpr,
    GAIN_ROW: tl.constexpr,
    OFFSET_ROW: tl.constexpr,
    PARTS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Backwards through memory: what the statistics read last is still in the cache.
    tile = TILES - 1 - tl.program_id(0)
    channel = CHANNELS - 1 - tl.program_id(1)
    row = tl.num_programs(2) - 1 - tl.program_id(2)
    LENGTH: tl.constexpr = PIXELS // TILES
    PARTS: tl.constexpr = CHANNELS // GROUPS * TILES

    # Mean and variance of equal parts to those of their union (Chan et al. 1979).
    part = tl.arange(0, PARTS_BLOCK)
    of_group = part < PARTS
    group = channel // (CHANNELS // GROUPS)
    parts = statistics + ((row.to(tl.int64) * GROUPS + group) * PARTS + part) * 2
    means = tl.load(parts, mask=of_group, other=0.0)
    mean = tl.sum(means, 0) / PARTS
    spread = tl.where(of_group, means - mean, 0.0)
    variance = tl.sum(tl.load(parts + 1, mask=of_group, other=0.0) + spread * spread, 0) / PARTS

    index = ((row.to(tl.int64) * CHANNELS + channel) * TILES + tile) * LENGTH + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < LENGTH
    value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(embedding + row * EMBEDDING_ROW + channel * EMBEDDING_COLUMN).to(tl.float32)
    weight = tl.load(gain + row * GAIN_ROW + channel).to(tl.float32) * tl.rsqrt(variance + EPS)
    bias = tl.load(offset + row * OFFSET_ROW + channel).to(tl.float32)
    value = (value - mean) * weight + bias
    tl.store(y + index, value * tl.sigmoid(value), mask=inside)


def constants_of(
    channels: int, groups: int, pixels: int, tiles: int, eps: float, steps: dict[str, int]
) -> dict[str, Any]:
    blocks = {"PARTS_BLOCK": power_of_two(channels // groups * tiles), "BLOCK": power_of_two(pixels // tiles)}
    return {"CHANNELS": channels, "GROUPS": groups, "PIXELS": pixels, "TILES": tiles, "EPS": eps, **steps, **blocks}


def compiled(dtype: str, constants: dict[str, Any], tactic: int, capability: int) -> CompiledKernel:
    pointers = dict.fromkeys(group_norm_apply_kernel.arg_names[:6], dtype) | {"statistics": "float32"}
    return compile_kernel(
        group_norm_apply_kernel, pointers, constants, capability, num_warps=warps(constants["BLOCK"], tactic)
    )


ONNX_FUNCTION = """
GroupNormSiluApply <groups: int = 1, eps: float = 1e-5> (x, embedding, gain, offset, statistics) => (y)
{
  axes = Constant <value_ints: ints = [2, 3]> ()
  wide = Cast <to: int = 1> (x)
  embedding_wide = Cast <to: int = 1> (embedding)
  embedding_map = Unsqueeze (embedding_wide, axes)
  value = Add (wide, embedding_map)
  zero = Constant <value_ints: ints = [0]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  two = Constant <value_ints: ints = [2]> ()
  one = Constant <value_ints: ints = [1]> ()
  number = Constant <value_int: int = @groups> ()
  number_list = Reshape (number, rest)
  parts_of_group = Concat <axis: int = 0> (zero, number_list, rest, two)
  parts = Reshape (statistics, parts_of_group)
  means, variances = Split <axis: int = 3, num_outputs: int = 2> (parts)
  mean = ReduceMean (means, two)
  spread = Sub (means, mean)
  square = Mul (spread, spread)
  moment = Add (variances, square)
  variance = ReduceMean (moment, two)
  eps = Constant <value_float: float = @eps> ()
  safe = Add (variance, eps)
  deviation = Sqrt (safe)
  by_group = Concat <axis: int = 0> (zero, number_list, rest, one)
  grouped = Reshape (value, by_group)
  centred = Sub (grouped, mean)
  normal_grouped = Div (centred, deviation)
  shape = Shape (value)
  normal = Reshape (normal_grouped, shape)
  gain_wide = Cast <to: int = 1> (gain)
  gain_map = Unsqueeze (gain_wide, axes)
  scaled = Mul (normal, gain_map)
  offset_wide = Cast <to: int = 1> (offset)
  offset_map = Unsqueeze (offset_wide, axes)
  shifted = Add (scaled, offset_map)
  gate = Sigmoid (shifted)
  activated = Mul (shifted, gate)
  y = CastLike (activated, x)
}
"""


def register_plugin() -> None:
    import tensorrt.plugin as trtp

    @trtp.register("medgen::GroupNormSiluApply")
    def describe(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        statistics: trtp.TensorDesc,
        groups: int,
        eps: float,
    ) -> trtp.TensorDesc:
        return x.like()

    @trtp.autotune("medgen::GroupNormSiluApply")
    def choices(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        statistics: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        types = ["FP32|FP16|BF16"] * 4 + ["FP32", "FP32|FP16|BF16"]
        return [trtp.AutoTuneCombination(", ".join(types), "LINEAR", TACTICS)]

    @trtp.aot_impl("medgen::GroupNormSiluApply")
    def implement(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        statistics: trtp.TensorDesc,
        groups: int,
        eps: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        channels, height, width = fixed_sizes(x)
        tiles = fixed_sizes(statistics)[1]
        steps = strides(embedding.shape, gain.shape, offset.shape)
        constants = constants_of(channels, groups, height * width, tiles, eps, steps)
        kernel = compiled(element_type(x), constants, tactic, capability())
        return ahead_of_time(kernel, tiles, channels, x.shape_expr[0])
