"""GroupNorm and SiLU in one operator, with what the time embedding adds before the norm or scales after it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import group_norm_apply, group_norm_statistics, group_norm_whole
from kernels.group_norm_apply import group_norm_apply_kernel
from kernels.group_norm_sizes import strides, tiles_of, warps
from kernels.group_norm_statistics import group_norm_statistics_kernel
from kernels.group_norm_whole import group_norm_silu_kernel
from kernels.torch_operator import define_operator


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
            of_statistics = group_norm_statistics.constants_of(channels, pixels, tiles, steps)
            of_apply = group_norm_apply.constants_of(channels, groups, pixels, tiles, eps, steps)
            grid, num_warps = (tiles, channels, batch), warps(of_apply["BLOCK"])
            group_norm_statistics_kernel[grid](*inputs[:2], statistics, **of_statistics, num_warps=num_warps)
            group_norm_apply_kernel[grid](*inputs, statistics, y, **of_apply, num_warps=num_warps)
        else:
            constants = group_norm_whole.constants_of(channels, groups, pixels, eps, steps)
            num_warps = warps(constants["CHANNEL_BLOCK"] * constants["PIXEL_BLOCK"])
            group_norm_silu_kernel[(groups, batch)](*inputs, y, **constants, num_warps=num_warps)
    return y


def fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


group_norm_silu_op = define_operator("group_norm_silu", reference, fake, launch)

ONNX_FUNCTION = """
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
"""

# The same for engines that keep a map's channels in blocks: the map is never reshaped, for which they would take it out
# of them, and groups are formed of [B, C, 1, 1] alone. The variance of a group is that within its channels and that of
# their means; a channel's is taken about its mean, so that no digits are lost where the mean is large.
ONNX_FUNCTION_BY_CHANNEL = """
GroupNormSilu <groups: int = 1, eps: float = 1e-5> (x, embedding, gain, offset) => (y)
{
  axes = Constant <value_ints: ints = [2, 3]> ()
  wide = Cast <to: int = 1> (x)
  mean_of_map = ReduceMean (wide, axes)
  centred = Sub (wide, mean_of_map)
  square = Mul (centred, centred)
  variance_of_map = ReduceMean (square, axes)

  zero = Constant <value_ints: ints = [0]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  one = Constant <value_ints: ints = [1]> ()
  number = Constant <value_int: int = @groups> ()
  number_list = Reshape (number, rest)
  by_group = Concat <axis: int = 0> (zero, number_list, rest, one)
  channels = Constant <value_ints: ints = [2]> ()

  embedding_wide = Cast <to: int = 1> (embedding)
  embedding_map = Unsqueeze (embedding_wide, axes)
  mean_of_channel = Add (mean_of_map, embedding_map)
  means = Reshape (mean_of_channel, by_group)
  mean = ReduceMean (means, channels)
  distance = Sub (means, mean)
  distance_square = Mul (distance, distance)
  variances = Reshape (variance_of_map, by_group)
  moment = Add (variances, distance_square)
  variance = ReduceMean (moment, channels)
  eps = Constant <value_float: float = @eps> ()
  safe = Add (variance, eps)
  deviation = Sqrt (safe)

  gain_wide = Cast <to: int = 1> (gain)
  gain_map = Unsqueeze (gain_wide, axes)
  gains = Reshape (gain_map, by_group)
  factors = Div (gains, deviation)
  offset_wide = Cast <to: int = 1> (offset)
  offset_map = Unsqueeze (offset_wide, axes)
  offsets = Reshape (offset_map, by_group)
  moved = Mul (distance, factors)
  shifts = Add (moved, offsets)
  shape = Shape (mean_of_channel)
  factor = Reshape (factors, shape)
  shift = Reshape (shifts, shape)

  scaled = Mul (centred, factor)
  shifted = Add (scaled, shift)
  gate = Sigmoid (shifted)
  activated = Mul (shifted, gate)
  y = CastLike (activated, x)
}
"""


def to_onnx(medgen: Any, x: Any, embedding: Any, gain: Any, offset: Any, groups: int, eps: float) -> Any:
    return medgen.GroupNormSilu(x, embedding, gain, offset, groups=groups, eps=eps)
