"""GroupNorm and SiLU in one operator, with what the time embedding adds before the norm or scales after it."""

from collections.abc import Iterable
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.language import jit, tl
from kernels.operators import define_operator
from kernels.plugin import ahead_of_time, element_type, fixed_sizes
from kernels.ptx import CompiledKernel, compile_kernel

WHOLE = 32768  # elements of a group that one program holds in registers; larger groups are cut into tiles
TILE = 8192
TACTICS = (1, 2)  # elements a thread takes, in units of 16


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    embedding: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """SiLU(GroupNorm(x + embedding) * (1 + scale) + shift), the norm in float32.

    x: [B, C, H, W], float32, float16 or bfloat16, C a multiple of `groups`. weight, bias: [C]. embedding, scale, shift:
    [B, C] or [1, C], or None. Returns [B, C, H, W] of x's dtype. GroupNorm as in Wu and He 2018, equation 1.
    """
    gain, offset = weight[None], bias[None]
    if scale is not None:
        gain, offset = gain * (1 + scale), offset * (1 + scale)
    if shift is not None:
        offset = offset + shift
    if embedding is None:
        embedding = x.new_zeros(1, 1)
    return group_norm_silu_op(x, embedding, gain, offset, groups, eps)


def reference(x: Tensor, embedding: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> Tensor:
    """embedding: [B or 1, C or 1]; gain and offset, which hold the norm's weight and bias: [B or 1, C]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    added, gain, offset = (table.to(wide)[:, :, None, None] for table in (embedding, gain, offset))
    return F.silu(F.group_norm(x.to(wide) + added, groups, eps=eps) * gain + offset).to(x.dtype).contiguous()


def tiles_of(channels: int, groups: int, pixels: int) -> int:
    """Tiles that a channel is cut into so that a group's work is shared out, or 0 where one program takes a group."""
    if channels // groups * pixels <= WHOLE:
        return 0
    return next(tiles for tiles in range(-(-pixels // TILE), pixels + 1) if pixels % tiles == 0)


@jit
@no_type_check
def group_norm_silu_kernel(
    x,
    embedding,
    gain,
    offset,
    y,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,
    EPS: tl.constexpr,
    EMBEDDING_ROW: tl.constexpr,
    EMBEDDING_COLUMN: tl.constexpr,
    GAIN_ROW: tl.constexpr,
    OFFSET_ROW: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
):
    row = tl.program_id(1)
    channel = tl.arange(0, CHANNEL_BLOCK)
    pixel = tl.arange(0, PIXEL_BLOCK)
    of_group = channel < CHANNELS // GROUPS
    inside = of_group[:, None] & (pixel < PIXELS)[None, :]
    channel += tl.program_id(0) * (CHANNELS // GROUPS)
    index = (row.to(tl.int64) * CHANNELS + channel)[:, None] * PIXELS + pixel[None, :]

    added = tl.load(embedding + row * EMBEDDING_ROW + channel * EMBEDDING_COLUMN, mask=of_group, other=0.0)
    value = tl.load(x + index, mask=inside, other=0.0).to(tl.float32) + added.to(tl.float32)[:, None]
    ELEMENTS: tl.constexpr = CHANNELS // GROUPS * PIXELS
    mean = tl.sum(tl.sum(tl.where(inside, value, 0.0), 1), 0) / ELEMENTS
    value = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(tl.sum(value * value, 1), 0) / ELEMENTS

    weight = tl.load(gain + row * GAIN_ROW + channel, mask=of_group, other=0.0).to(tl.float32)
    bias = tl.load(offset + row * OFFSET_ROW + channel, mask=of_group, other=0.0).to(tl.float32)
    value = value * (weight * tl.rsqrt(variance + EPS))[:, None] + bias[:, None]
    tl.store(y + index, value * tl.sigmoid(value), mask=inside)


@jit
@no_type_check
def statistics_kernel(
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


@jit
@no_type_check
def apply_kernel(
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


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def warps(elements: int, tactic: int = TACTICS[0]) -> int:
    return min(32, max(2, elements // (32 * 16))) // tactic


def strides(embedding: Iterable[int], gain: Iterable[int], offset: Iterable[int]) -> dict[str, int]:
    """From the shapes of three tables: 0 along an axis of one element, which serves every row or channel."""
    (rows, columns), (gain_rows, channels), (offset_rows, _) = embedding, gain, offset
    return {
        "EMBEDDING_ROW": columns if rows != 1 else 0,
        "EMBEDDING_COLUMN": int(columns != 1),
        "GAIN_ROW": channels if gain_rows != 1 else 0,
        "OFFSET_ROW": channels if offset_rows != 1 else 0,
    }


def whole_constants(channels: int, groups: int, pixels: int, eps: float, steps: dict[str, int]) -> dict[str, Any]:
    blocks = {"CHANNEL_BLOCK": power_of_two(channels // groups), "PIXEL_BLOCK": power_of_two(pixels)}
    return {"CHANNELS": channels, "GROUPS": groups, "PIXELS": pixels, "EPS": eps, **steps, **blocks}


def statistics_constants(channels: int, pixels: int, tiles: int, steps: dict[str, int]) -> dict[str, Any]:
    of_embedding = {name: steps[name] for name in ("EMBEDDING_ROW", "EMBEDDING_COLUMN")}
    block = power_of_two(pixels // tiles)
    return {"CHANNELS": channels, "PIXELS": pixels, "TILES": tiles, **of_embedding, "BLOCK": block}


def apply_constants(
    channels: int, groups: int, pixels: int, tiles: int, eps: float, steps: dict[str, int]
) -> dict[str, Any]:
    blocks = {"PARTS_BLOCK": power_of_two(channels // groups * tiles), "BLOCK": power_of_two(pixels // tiles)}
    return {"CHANNELS": channels, "GROUPS": groups, "PIXELS": pixels, "TILES": tiles, "EPS": eps, **steps, **blocks}


def launch(x: Tensor, embedding: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> Tensor:
    batch, channels, height, width = x.shape
    pixels = height * width
    inputs = [tensor.contiguous() for tensor in (x, embedding, gain, offset)]
    y = torch.empty_like(inputs[0])
    steps = strides(embedding.shape, gain.shape, offset.shape)
    tiles = tiles_of(channels, groups, pixels)
    with torch.cuda.device_of(x):
        if tiles:
            statistics = x.new_empty(batch, channels, tiles, 2, dtype=torch.float32)
            of_statistics = statistics_constants(channels, pixels, tiles, steps)
            of_apply = apply_constants(channels, groups, pixels, tiles, eps, steps)
            grid, num_warps = (tiles, channels, batch), warps(of_apply["BLOCK"])
            statistics_kernel[grid](*inputs[:2], statistics, **of_statistics, num_warps=num_warps)
            apply_kernel[grid](*inputs, statistics, y, **of_apply, num_warps=num_warps)
        else:
            constants = whole_constants(channels, groups, pixels, eps, steps)
            num_warps = warps(constants["CHANNEL_BLOCK"] * constants["PIXEL_BLOCK"])
            group_norm_silu_kernel[(groups, batch)](*inputs, y, **constants, num_warps=num_warps)
    return y


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], tactic: int, capability: int) -> CompiledKernel:
    pointers = {name: dtype for name in kernel.arg_names if name not in constants}
    if "statistics" in pointers:
        pointers["statistics"] = "float32"
    elements = constants.get("BLOCK") or constants["CHANNEL_BLOCK"] * constants["PIXEL_BLOCK"]
    return compile_kernel(kernel, pointers, constants, capability, num_warps=warps(elements, tactic))


def fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


group_norm_silu_op = define_operator("group_norm_silu", reference, fake, launch)

ONNX_FUNCTIONS = (
    """
GroupNormSilu <groups: int = 1, eps: float = 1e-5> (x, embedding, gain, offset) => (y)
{
  axes = Constant <value_ints: ints = [2, 3]> ()
  wide = Cast <to: int = 1> (x)
  embedding_wide = Cast <to: int = 1> (embedding)
  embedding_map = Unsqueeze (embedding_wide, axes)
  value = Add (wide, embedding_map)
  zero = Constant <value_ints: ints = [0]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  number = Constant <value_int: int = @groups> ()
  number_list = Reshape (number, rest)
  by_group = Concat <axis: int = 0> (zero, number_list, rest)
  grouped = Reshape (value, by_group)
  one = Constant <value_float: float = 1.0> ()
  ones = Expand (one, number_list)
  none = Constant <value_float: float = 0.0> ()
  nones = Expand (none, number_list)
  normal_grouped = InstanceNormalization <epsilon: float = @eps> (grouped, ones, nones)
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
""",
)


def to_onnx(medgen: Any, x: Any, embedding: Any, gain: Any, offset: Any, groups: int, eps: float) -> Any:
    return medgen.GroupNormSilu(x, embedding, gain, offset, groups=groups, eps=eps)


def register_plugins(capability: int) -> None:
    import tensorrt as trt
    import tensorrt.plugin as trtp

    def same_types(count: int) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(", ".join(["FP32|FP16|BF16"] * count), "LINEAR", TACTICS)]

    @trtp.register("medgen::GroupNormSilu")
    def describe(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        groups: int,
        eps: float,
    ) -> trtp.TensorDesc:
        return x.like()

    @trtp.autotune("medgen::GroupNormSilu")
    def choices(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return same_types(5)

    @trtp.aot_impl("medgen::GroupNormSilu")
    def implement(
        x: trtp.TensorDesc,
        embedding: trtp.TensorDesc,
        gain: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        groups: int,
        eps: float,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        channels, height, width = fixed_sizes(x)
        if tiles_of(channels, groups, height * width):
            raise ValueError(f"a group of {channels // groups * height * width} elements must be split before parsing")
        steps = strides(embedding.shape, gain.shape, offset.shape)
        constants = whole_constants(channels, groups, height * width, eps, steps)
        kernel = compiled(group_norm_silu_kernel, element_type(x), constants, tactic, capability)
        return ahead_of_time(kernel, groups, x.shape_expr[0])

    @trtp.register("medgen::GroupNormStatistics")
    def describe_statistics(x: trtp.TensorDesc, embedding: trtp.TensorDesc, tiles: int) -> trtp.TensorDesc:
        return trtp.from_shape_expr((x.shape_expr[0], x.shape_expr[1], tiles, 2), trt.DataType.FLOAT)

    @trtp.autotune("medgen::GroupNormStatistics")
    def choices_statistics(
        x: trtp.TensorDesc, embedding: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32|FP16|BF16, FP32|FP16|BF16, FP32", "LINEAR", TACTICS)]

    @trtp.aot_impl("medgen::GroupNormStatistics")
    def implement_statistics(
        x: trtp.TensorDesc, embedding: trtp.TensorDesc, tiles: int, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        channels, height, width = fixed_sizes(x)
        steps = strides(embedding.shape, (1, channels), (1, channels))
        constants = statistics_constants(channels, height * width, tiles, steps)
        kernel = compiled(statistics_kernel, element_type(x), constants, tactic, capability)
        return ahead_of_time(kernel, tiles, channels, x.shape_expr[0])

    @trtp.register("medgen::GroupNormSiluApply")
    def describe_apply(
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
    def choices_apply(
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
    def implement_apply(
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
        constants = apply_constants(channels, groups, height * width, tiles, eps, steps)
        kernel = compiled(apply_kernel, element_type(x), constants, tactic, capability)
        return ahead_of_time(kernel, tiles, channels, x.shape_expr[0])
