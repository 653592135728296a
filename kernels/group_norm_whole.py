"""GroupNorm and SiLU of groups that one program holds in its registers."""

from typing import Any, no_type_check

from kernels.group_norm_sizes import TACTICS, power_of_two, strides, tiles_of, warps
from kernels.language import jit, tl
from kernels.ptx import CompiledKernel, compile_kernel
from kernels.tensorrt_aot import ahead_of_time, capability, element_type, fixed_sizes


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


def constants_of(channels: int, groups: int, pixels: int, eps: float, steps: dict[str, int]) -> dict[str, Any]:
    blocks = {"CHANNEL_BLOCK": power_of_two(channels // groups), "PIXEL_BLOCK": power_of_two(pixels)}
    return {"CHANNELS": channels, "GROUPS": groups, "PIXELS": pixels, "EPS": eps, **steps, **blocks}


def compiled(dtype: str, constants: dict[str, Any], tactic: int, capability: int) -> CompiledKernel:
    block = constants["CHANNEL_BLOCK"] * constants["PIXEL_BLOCK"]
    pointers = dict.fromkeys(group_norm_silu_kernel.arg_names[:5], dtype)
    return compile_kernel(group_norm_silu_kernel, pointers, constants, capability, num_warps=warps(block, tactic))


def register_plugin() -> None:
    import tensorrt.plugin as trtp

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
        types = ", ".join(["FP32|FP16|BF16"] * 5)
        return [trtp.AutoTuneCombination(types, "LINEAR", TACTICS)]

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
        constants = constants_of(channels, groups, height * width, eps, steps)
        kernel = compiled(element_type(x), constants, tactic, capability())
        return ahead_of_time(kernel, groups, x.shape_expr[0])
