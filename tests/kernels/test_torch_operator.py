"""The operators as PyTorch sees them, on a CPU."""

import math
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from kernels.attention import attention, attention_op
from kernels.group_norm_silu import group_norm_silu, group_norm_silu_op
from kernels.group_norm_sizes import tiles_of
from kernels.solver_step import solver_step, solver_step_op


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=GENERATOR).requires_grad_()


GENERATOR = torch.Generator().manual_seed(0)


def solver_inputs(**options):
    return (*(random(2, 2, 3, 4, **options) for _ in range(6)), random(2, 12, **options))


OPERATORS = {
    "solver_step": (solver_step_op, lambda **o: (*solver_inputs(**o), 0.5)),
    "solver_step without clip": (solver_step_op, lambda **o: (*solver_inputs(**o), math.inf)),
    "attention": (attention_op, lambda **o: (random(2, 5, 3, 2, 8, **o), 0.3)),
    "group_norm_silu": (
        group_norm_silu_op,
        lambda **o: (random(2, 4, 3, 5, **o), random(2, 4, **o), random(1, 4, **o), random(2, 4, **o), 2, 1e-5),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    operator, arguments = OPERATORS[name]
    results = torch.library.opcheck(operator, arguments(dtype=torch.float32))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["solver_step", "group_norm_silu"])
def test_outputs_are_contiguous_as_the_fake_says(name):
    operator, arguments = OPERATORS[name]
    values = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments()]
    inputs = [in_channels_last(value) for value in values]
    with FakeTensorMode() as mode:
        traced = operator(*(mode.from_tensor(i) if isinstance(i, torch.Tensor) else i for i in inputs))
    for result in (operator(*inputs), traced):
        for output in result if isinstance(result, tuple) else (result,):
            assert output.is_contiguous()


def in_channels_last(value):
    image = isinstance(value, torch.Tensor) and value.ndim == 4
    return value.to(memory_format=torch.channels_last) if image else value


@pytest.mark.parametrize("name", OPERATORS)
def test_gradient(name):
    operator, arguments = OPERATORS[name]
    *tensors, last = arguments()
    assert torch.autograd.gradcheck(lambda *t: operator(*t, last), tensors)


def test_only_what_is_wanted_gets_a_gradient():
    qkv = random(1, 4, 3, 1, 8)
    x, gain = torch.randn(2, 4, 3, 5), torch.ones(1, 4, requires_grad=True)
    group_norm_silu_op(x, torch.zeros(1, 1), gain, torch.zeros(1, 4), 2, 1e-5).sum().backward()
    attention(qkv).sum().backward()
    assert x.grad is None
    assert gain.grad is not None
    assert qkv.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_silu_is_what_pytorch_does(dtype):
    x, embedding, scale, shift = (random(*shape, dtype=dtype) for shape in ((2, 6, 4, 4), *[(2, 6)] * 3))
    weight, bias = random(6, dtype=dtype), random(6, dtype=dtype)
    normal = F.group_norm(x.float() + embedding.float()[:, :, None, None], 3, weight.float(), bias.float(), 1e-3)
    expected = F.silu(normal * (1 + scale.float()[:, :, None, None]) + shift.float()[:, :, None, None])
    found = group_norm_silu(x, 3, weight, bias, 1e-3, embedding=embedding, scale=scale, shift=shift)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0.02)


def test_solver_step_takes_a_half_precision_network():
    tensors = [tensor.detach().float() for tensor in solver_inputs()]
    tensors[1] = tensors[1].half()
    found = solver_step(*tensors, 1.0)
    tensors[1] = tensors[1].float()
    for value, expected in zip(found, solver_step(*tensors, 1.0), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)


def test_large_groups_are_cut_into_equal_tiles():
    assert tiles_of(64, 32, 128 * 128) == 0
    assert tiles_of(96, 32, 104 * 104) == 2  # 32,448 elements, which a program would hold as 4 x 16,384
    assert tiles_of(32, 32, 512 * 512) == 32
    assert tiles_of(32, 32, 300 * 300) == 12
    for pixels in (300 * 300, 509 * 509, 129 * 257):
        assert pixels % tiles_of(64, 32, pixels) == 0


def test_the_operators_need_none_of_the_tools():
    program = (
        "import sys; sys.modules |= dict.fromkeys(['triton', 'tensorrt', 'onnx', 'onnxscript'])\n"
        "import torch\n"
        "from kernels import attention, group_norm_silu, solver_step, tensorrt_plugins, ptx\n"
        "print(attention.attention(torch.ones(1, 2, 3, 1, 8)).sum().item())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "16.0\n", run.stderr
