"""The gradient of a loss as a graph: that of autograd, that of differences, and for any number of rows."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export import BuildError
from export.gradients import checked_gradient, gradient_graph
from export.simplify import simplify
from training.descent import Descent


class Network(nn.Module):
    """Every operator that has a way back of its own, and norms as those of generators."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.last = nn.Conv2d(8, 2, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for weight in self.parameters():
                nn.init.normal_(weight, std=0.4)

    def losses(self, state: Tensor, target: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(F.interpolate(state, scale_factor=2.0)), 0.2)
        x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
        x = F.max_pool2d(F.relu(self.strided(x)) + x[..., ::2, ::2], 2)
        x = torch.tanh(self.grouped(x))
        return (self.last(F.interpolate(x, scale_factor=4, mode="nearest")) - target).square().mean((1, 2, 3))


@pytest.fixture(scope="module")
def network() -> Network:
    return Network().double().requires_grad_(False)


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, 3, 8, 8), (rows, 2, 16, 16)
    state, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return state, target


@pytest.fixture(scope="module")
def graph(network: Network) -> torch.fx.GraphModule:
    return gradient_graph(network.losses, *inputs(2))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_it_is_that_of_autograd(network, graph, rows):
    state, target = inputs(rows, seed=rows)
    sought = state.clone().requires_grad_(True)
    network.losses(sought, target).sum().backward()
    torch.testing.assert_close(graph(state, target), sought.grad, rtol=1e-10, atol=1e-12)


def test_it_is_that_of_differences(network, graph):
    state, target = inputs(2, seed=7)
    gradient, random = graph(state, target), np.random.default_rng(0)
    for _ in range(20):
        place = tuple(int(random.integers(size)) for size in state.shape)
        step = torch.zeros_like(state)
        step[place] = 1e-6
        difference = (network.losses(state + step, target) - network.losses(state - step, target)).sum() / 2e-6
        assert float(gradient[place]) == pytest.approx(float(difference), rel=1e-5, abs=1e-8)


def test_a_row_has_no_part_in_anothers(graph):
    state, target = inputs(3)
    others = state.clone()
    others[1:] += 1
    torch.testing.assert_close(graph(state, target)[0], graph(others, target)[0], rtol=0, atol=0)


def test_it_has_no_operator_that_goes_backwards_and_no_work_that_is_always_the_same(graph):
    operators = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in operators if "backward" in name or "index" in name]
    assert not [name for name in operators if "flip" in name or "transpose" in name], "kernels are turned round once"
    assert not [name for name in operators if "pow" in name]


def test_onnx_takes_it(network, graph):
    single = gradient_graph(Network().requires_grad_(False).losses, *(values.float() for values in inputs(2)))
    example = tuple(values.float() for values in inputs(3))
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * 2
    model = torch.onnx.export(single, example, dynamo=True, dynamic_shapes=dynamic, verbose=False).model_proto
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "ConvTranspose", "Resize", "AveragePool"} <= kinds
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    "enlarged",
    [
        lambda x: F.interpolate(x, scale_factor=(2.0, 2.0)),
        lambda x: F.interpolate(x[:, 0], scale_factor=2.0),
        lambda x: F.interpolate(x, scale_factor=1.5),
    ],
)
def test_other_ways_to_enlarge_are_left_to_pytorch(enlarged):
    def losses(x: Tensor) -> Tensor:
        return enlarged(x).square().flatten(1).sum(1)

    state, _ = inputs(2)
    sought = state.clone().requires_grad_(True)
    losses(sought).sum().backward()
    torch.testing.assert_close(gradient_graph(losses, state)(state), sought.grad, rtol=1e-10, atol=1e-12)


def test_simplifying_changes_nothing_but_the_rounding():
    def norm(x: Tensor) -> Tensor:
        return (-(x / x.square().sum(1, keepdim=True).sqrt()) * 3).pow(2).sum((1, 2, 3))

    plain = gradient_graph(norm, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    simplify(plain)  # once more: there is nothing left to do
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    norm(x).sum().backward()
    torch.testing.assert_close(plain(x.detach()), x.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: F.max_pool2d(x, 3, stride=2).sum((1, 2, 3)), "a maximum over windows that overlap"),
        (lambda x: F.conv_transpose2d(x, torch.ones(3, 3, 2, 2)).sum((1, 2, 3)), "a transposed convolution"),
        (lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1)).sum((1, 2, 3)), "cannot be exported"),
    ],
)
def test_what_has_no_known_way_back_is_refused(loss, message):
    with pytest.raises(BuildError, match=message):
        gradient_graph(loss, torch.randn(2, 3, 8, 8))


class Sharpest(Descent):
    """Looks for what has the greatest maxima."""

    def losses(self, state: Tensor, condition: Tensor | None = None) -> Tensor:
        return F.max_pool2d(F.conv2d(state, self.kernel), 2).square().sum((1, 2, 3))

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)))


def test_what_was_compared_in_float64_is_float32_throughout():
    family, state = Sharpest(), torch.randn(2, 1, 10, 10)
    graph = checked_gradient(family, state)
    assert not [node for node in graph.graph.nodes if "float64" in f"{node.args} {node.kwargs}"]
    assert graph(state).dtype == torch.float32
    torch.testing.assert_close(graph(state), family.gradient(state))
