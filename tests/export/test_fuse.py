"""The fused operators are found in networks of other people's making, which then compute the same."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import UNet2DModel
from monai.networks.nets import DiffusionModelUNet
from tiny_pig import tiny_pig
from torch import nn
from torch.nn import functional as F

from export.fuse import fuse
from export.graphs import Step
from kernels.onnx_functions import add_functions, translations

SHAPES = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})


class Diffusers(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=16,
            in_channels=2,
            out_channels=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **options,
        )

    def forward(self, x, t):
        return self.unet(x, t).sample


def monai():
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=2,
        out_channels=1,
        channels=(8, 16),
        attention_levels=(False, True),
        num_res_blocks=1,
        num_head_channels=8,
        norm_num_groups=4,
    )


NETWORKS = {
    "diffusers": Diffusers,
    "diffusers, otherwise": lambda: without_bias(Diffusers(resnet_time_scale_shift="scale_shift")),
    "monai": monai,
}


def without_bias(network):
    for module in network.modules():
        for name in ("to_q", "to_k", "to_v"):
            if hasattr(module, name):
                getattr(module, name).bias = None
    return network


@pytest.fixture(scope="module")
def networks():
    """Built once, with no weight left at the zero that some are born with."""
    torch.manual_seed(0)
    built = {name: build().eval() for name, build in NETWORKS.items()}
    for network in built.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    return built


@pytest.fixture(scope="module")
def fused(networks):
    return {name: fuse(network, inputs(2), SHAPES) for name, network in networks.items()}


def inputs(batch):
    return torch.randn(batch, 2, 16, 16), torch.rand(batch) * 1000


@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_and_attention_is_found(networks, fused, name):
    module, counts = fused[name]
    assert counts == {"group_norm_silu": 17, "attention": 4}
    operators = Counter(str(node.target) for node in module.graph.nodes)
    norms = sum(isinstance(part, nn.GroupNorm) for part in networks[name].modules())
    assert operators["aten.group_norm.default"] == norms - 17  # those before attention, which no SiLU follows
    assert not {name for name in operators if "scaled_dot" in name or "softmax" in name}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_network_computes_the_same(networks, fused, name, batch):
    arguments = inputs(batch)
    expected = networks[name](*arguments)
    torch.testing.assert_close(fused[name][0](*arguments), expected, atol=1e-5, rtol=1e-5)


def test_the_network_itself_is_unchanged(networks, fused):
    assert "packed_weight_0" in dict(fused["diffusers"][0].named_parameters())
    assert not [name for name, _ in networks["diffusers"].named_parameters() if "packed" in name]


@pytest.mark.parametrize("name", ["diffusers, otherwise", "monai"])
def test_onnx_runtime_computes_the_same(networks, fused, name):
    program = torch.onnx.export(
        fused[name][0],
        inputs(2),
        dynamo=True,
        opset_version=18,
        dynamic_shapes=SHAPES,
        custom_translation_table=translations(),
        verbose=False,
    )
    model = program.model_proto
    counts = add_functions(model)
    assert counts == {
        "GroupNormSilu": fused[name][1]["group_norm_silu"],
        "PackedAttention": fused[name][1]["attention"],
    }
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    arguments = inputs(3)
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), arguments, strict=True)}
    expected = networks[name](*arguments).detach().numpy()
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_family_step():
    family = tiny_pig()
    state = [torch.randn(2, *family.sample_shape) for _ in range(5)]
    arguments = (*state, torch.rand(2, 12))
    shapes = (tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments),)
    step, counts = fuse(Step(family), arguments, shapes)
    assert counts["attention"] > 0
    for found, expected in zip(step(*arguments), Step(family)(*arguments), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_functions_are_found_as_modules_are():
    class Functions(nn.Module):
        def forward(self, x, weight, bias):
            short = F.silu(torch.group_norm(x, 2, weight, bias))
            return short + F.silu(F.group_norm(x, 4, weight, bias, eps=0.1), inplace=True)

    inputs = torch.randn(2, 16, 3, 3), torch.rand(16), torch.rand(16)
    module, counts = fuse(Functions(), inputs, None)
    assert counts == {"group_norm_silu": 2, "attention": 0}
    torch.testing.assert_close(module(*inputs), Functions()(*inputs), atol=1e-5, rtol=1e-5)


class Other(nn.Module):
    """What looks alike, but is not what the operators compute."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 16)
        self.plain = nn.GroupNorm(2, 16, affine=False)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        normal = self.norm(x)
        used_twice = F.silu(normal) + normal
        without_weights = F.silu(self.plain(x))
        volume = F.silu(self.norm(x[..., None]))[..., 0]
        tokens = x.flatten(2).transpose(1, 2)
        small_heads = self.attend(tokens, tokens, heads=4)
        across = self.attend(tokens, tokens * 2, heads=2)
        causal = self.attend(tokens, tokens, heads=2, is_causal=True)
        return used_twice + without_weights + volume, small_heads + across + causal

    def attend(self, queries, keys, heads, **options):
        q, k, v = self.q(queries), self.k(keys), self.v(keys)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def test_other_forms_stay_as_they_are():
    torch.manual_seed(0)
    other, x = Other().eval(), torch.randn(2, 16, 3, 3)
    module, counts = fuse(other, (x,), ({0: torch.export.Dim.DYNAMIC},))
    assert counts == {"group_norm_silu": 0, "attention": 0}
    for found, expected in zip(module(x), other(x), strict=True):
        torch.testing.assert_close(found, expected)
