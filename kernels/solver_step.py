"""The sampler's arithmetic: one row of a solver's table applied to one row of the batch, in one pass over memory."""

import math
from typing import Any, no_type_check

import torch
from torch import Tensor

from kernels.language import jit, tl
from kernels.ptx import CompiledKernel, compile_kernel
from kernels.tensorrt_aot import ahead_of_time, capability, element_type, fixed_sizes
from kernels.torch_operator import define_operator

BLOCKS = (1024, 2048)  # elements a program takes


def solver_step(
    sample: Tensor,
    out: Tensor,
    history_1: Tensor,
    history_2: Tensor,
    history_3: Tensor,
    noise: Tensor,
    coeffs: Tensor,
    clip: float,
) -> tuple[Tensor, Tensor]:
    """Apply one row of a linear solver's table to every sample of a batch.

    x0 = clip(p*x + q*out); prediction = m*x0 + n*out;
    x_next = a*x + b*x0 + c*out + d1*h1 + d2*h2 + d3*h3 + s*noise.

    sample, history_1, history_2, history_3, noise: float32 [B, C, H, W]. out: the same shape, float32, float16 or
    bfloat16. coeffs: float32 [B, 12], the columns t, p, q, a, b, c, s, m, n, d1, d2, d3 (t belongs to the network and
    is not read). clip: bound of |x0|, `math.inf` for none. Returns (x_next, prediction), float32 [B, C, H, W].

    A history or noise whose coefficient is 0 is not read: whatever it holds, infinite or not a number, does not count.
    """
    return solver_step_op(sample, out, history_1, history_2, history_3, noise, coeffs, clip)


def reference(
    sample: Tensor,
    out: Tensor,
    history_1: Tensor,
    history_2: Tensor,
    history_3: Tensor,
    noise: Tensor,
    coeffs: Tensor,
    clip: float,
) -> tuple[Tensor, Tensor]:
    _, p, q, a, b, c, s, m, n, d1, d2, d3 = (column[:, None, None, None] for column in coeffs.unbind(1))
    out = out.to(sample.dtype)
    x0 = p * sample + q * out
    if clip != math.inf:
        x0 = x0.clamp(-clip, clip)
    history = _term(d1, history_1) + _term(d2, history_2) + _term(d3, history_3)
    sample_next, prediction = a * sample + b * x0 + c * out + history + _term(s, noise), m * x0 + n * out
    return sample_next.contiguous(), prediction.contiguous()


def _term(coefficient: Tensor, tensor: Tensor) -> Tensor:
    return coefficient * torch.where(coefficient == 0, 0, tensor)


@jit
@no_type_check
def solver_step_kernel(
    sample,
    out,
    history_1,
    history_2,
    history_3,
    noise,
    coeffs,
    sample_next,
    prediction,
    ELEMENTS: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < ELEMENTS
    row = tl.program_id(1)
    index = row.to(tl.int64) * ELEMENTS + offset
    coeffs += row * 12
    p, q, a, b = tl.load(coeffs + 1), tl.load(coeffs + 2), tl.load(coeffs + 3), tl.load(coeffs + 4)
    c, s, m, n = tl.load(coeffs + 5), tl.load(coeffs + 6), tl.load(coeffs + 7), tl.load(coeffs + 8)
    d1, d2, d3 = tl.load(coeffs + 9), tl.load(coeffs + 10), tl.load(coeffs + 11)

    x = tl.load(sample + index, mask=inside, other=0.0)
    o = tl.load(out + index, mask=inside, other=0.0).to(tl.float32)
    # What the solver does not use (a coefficient of 0) is not read: DDIM moves four tensors instead of eight.
    h1 = tl.load(history_1 + index, mask=offset < tl.where(d1 != 0, ELEMENTS, 0), other=0.0)
    h2 = tl.load(history_2 + index, mask=offset < tl.where(d2 != 0, ELEMENTS, 0), other=0.0)
    h3 = tl.load(history_3 + index, mask=offset < tl.where(d3 != 0, ELEMENTS, 0), other=0.0)
    z = tl.load(noise + index, mask=offset < tl.where(s != 0, ELEMENTS, 0), other=0.0)

    x0 = p * x + q * o
    if CLIP != float("inf"):
        x0 = tl.clamp(x0, -CLIP, CLIP, propagate_nan=tl.PropagateNan.ALL)
    history = d1 * h1 + d2 * h2 + d3 * h3
    tl.store(sample_next + index, a * x + b * x0 + c * o + history + s * z, mask=inside)
    tl.store(prediction + index, m * x0 + n * o, mask=inside)


def launch(*arguments: Any, block: int = BLOCKS[0]) -> tuple[Tensor, Tensor]:
    *inputs, clip = arguments
    inputs = [tensor.contiguous() for tensor in inputs]
    sample_next, prediction = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    elements = inputs[0][0].numel()
    grid = (-(-elements // block), len(inputs[0]))
    with torch.cuda.device_of(sample_next):
        solver_step_kernel[grid](*inputs, sample_next, prediction, ELEMENTS=elements, CLIP=clip, BLOCK=block)
    return sample_next, prediction


def compiled(out_type: str, elements: int, clip: float, block: int, capability: int) -> CompiledKernel:
    pointers = dict.fromkeys(solver_step_kernel.arg_names[:9], "float32") | {"out": out_type}
    constants = {"ELEMENTS": elements, "CLIP": clip, "BLOCK": block}
    return compile_kernel(solver_step_kernel, pointers, constants, capability, num_warps=4)


def fake(sample: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return sample.new_empty(sample.shape), sample.new_empty(sample.shape)


solver_step_op = define_operator("solver_step", reference, fake, launch)

ONNX_FUNCTION = """
SolverStep <clip: float = 1.0>
(sample, out, history_1, history_2, history_3, noise, coeffs) => (sample_next, prediction)
{
  axes = Constant <value_ints: ints = [2, 3]> ()
  table = Unsqueeze (coeffs, axes)
  t, p, q, a, b, c, s, m, n, d1, d2, d3 = Split <axis: int = 1, num_outputs: int = 12> (table)
  o = CastLike (out, sample)
  px = Mul (p, sample)
  qo = Mul (q, o)
  estimate = Add (px, qo)
  high = Constant <value_float: float = @clip> ()
  low = Neg (high)
  x0 = Clip (estimate, low, high)
  ax = Mul (a, sample)
  bx = Mul (b, x0)
  co = Mul (c, o)
  axbx = Add (ax, bx)
  current = Add (axbx, co)
  zero = Constant <value_float: float = 0.0> ()
  no_h1 = Equal (d1, zero)
  read_h1 = Where (no_h1, zero, history_1)
  h1 = Mul (d1, read_h1)
  no_h2 = Equal (d2, zero)
  read_h2 = Where (no_h2, zero, history_2)
  h2 = Mul (d2, read_h2)
  no_h3 = Equal (d3, zero)
  read_h3 = Where (no_h3, zero, history_3)
  h3 = Mul (d3, read_h3)
  h12 = Add (h1, h2)
  history = Add (h12, h3)
  deterministic = Add (current, history)
  no_noise = Equal (s, zero)
  read_noise = Where (no_noise, zero, noise)
  z = Mul (s, read_noise)
  sample_next = Add (deterministic, z)
  mx = Mul (m, x0)
  no = Mul (n, o)
  prediction = Add (mx, no)
}
"""


def to_onnx(medgen: Any, *arguments: Any) -> Any:
    return medgen.SolverStep(*arguments[:-1], clip=arguments[-1])


def register_plugin() -> None:
    import tensorrt.plugin as trtp

    @trtp.register("medgen::SolverStep")
    def describe(
        sample: trtp.TensorDesc,
        out: trtp.TensorDesc,
        history_1: trtp.TensorDesc,
        history_2: trtp.TensorDesc,
        history_3: trtp.TensorDesc,
        noise: trtp.TensorDesc,
        coeffs: trtp.TensorDesc,
        clip: float,
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        return sample.like(), sample.like()

    @trtp.autotune("medgen::SolverStep")
    def choices(
        sample: trtp.TensorDesc,
        out: trtp.TensorDesc,
        history_1: trtp.TensorDesc,
        history_2: trtp.TensorDesc,
        history_3: trtp.TensorDesc,
        noise: trtp.TensorDesc,
        coeffs: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32, FP32*FP16*BF16" + ", FP32" * 7, "LINEAR", BLOCKS)]

    @trtp.aot_impl("medgen::SolverStep")
    def implement(
        sample: trtp.TensorDesc,
        out: trtp.TensorDesc,
        history_1: trtp.TensorDesc,
        history_2: trtp.TensorDesc,
        history_3: trtp.TensorDesc,
        noise: trtp.TensorDesc,
        coeffs: trtp.TensorDesc,
        clip: float,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        elements = math.prod(fixed_sizes(sample))
        kernel = compiled(element_type(out), elements, clip, tactic, capability())
        return ahead_of_time(kernel, -(-elements // tactic), sample.shape_expr[0])
