"""PGGAN's networks, how they grow, and genforce's layout of their weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_families import random_batch, tiny_family
from torch import Tensor

from training.models.pggan import LUMA, Pggan
from training.progressive import Discriminator, Generator, doubled, halved, minibatch_deviation

WIDTHS = (12, 12, 8, 8)
LATENT = 8
FADED_IN = 1 - 2**-24  # as near to 1 as makes the networks blend, and not leave the stage before out


def latents(count: int = 3) -> Tensor:
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(1))


def pictures(stage: int, count: int = 4) -> Tensor:
    return torch.randn(count, 1, 4 << stage, 4 << stage, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(3)
    return Generator(LATENT, WIDTHS).requires_grad_(False)


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(4)
    return Discriminator(WIDTHS, group=4).requires_grad_(False)


class TestGrowing:
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_a_stage_that_is_faded_in_is_the_next_network(self, generator, discriminator, stage):
        """With FADED_IN both ways are taken; what is left of the old one is less than rounding."""
        assert_close(generator(latents(), stage, FADED_IN), generator(latents(), stage))
        seen = pictures(stage)
        assert_close(discriminator(seen, stage, FADED_IN), discriminator(seen, stage))
        assert not torch.allclose(generator(latents(), stage, 0.5), generator(latents(), stage), atol=1e-2)

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_one_that_is_not_is_the_network_before(self, generator, discriminator, stage):
        assert_close(generator(latents(), stage, 0.0), doubled(generator(latents(), stage - 1)))
        seen = pictures(stage)
        assert_close(discriminator(seen, stage, 0.0), discriminator(halved(seen), stage - 1))

    def test_a_stage_is_a_smaller_network_with_its_weights(self, generator, discriminator):
        small, judge = Generator(LATENT, WIDTHS[:3]), Discriminator(WIDTHS[:3], group=4)
        small.load_state_dict({name: generator.state_dict()[name] for name in small.state_dict()})
        assert torch.equal(small(latents()), generator(latents(), 2))
        with torch.no_grad():
            for name, weight in judge.named_parameters():  # whose names count from the largest size down
                kind, number = name[:5], int(name[5:].split(".")[0])
                number += 1 if kind == "input" else 2
                weight.copy_(discriminator.get_parameter(f"{kind}{number}.{name.split('.')[1]}"))
        assert torch.equal(judge(pictures(2)), discriminator(pictures(2), 2))

    def test_it_is_cut_at_any_layer(self, generator):
        for layers in range(1, generator.layers + 1):
            assert torch.equal(generator.tail(generator.head(latents(), layers), layers), generator(latents()))

    def test_the_stages_share_out_the_steps(self):
        family = tiny_family("pggan", steps=[80])  # 8 units
        found = []
        for _ in range(80):
            found.append(family.position)
            family.advance("adversarial")
        assert [stage for stage, _ in found].count(0) == pytest.approx(10, abs=1)
        assert [[stage for stage, _ in found].count(stage) for stage in (1, 2)] == pytest.approx([20, 20], abs=1)
        fades = [fade for stage, fade in found if stage == 2]
        assert fades[:10] == pytest.approx([k / 10 for k in range(10)], abs=0.11)
        assert {*fades[11:]} == {1.0}
        assert family.position == (3, 1.0)
        assert found[-19:] == [(3, 1.0)] * 19

    def test_data_are_shown_as_pictures_are_drawn(self):
        family = tiny_family("pggan")
        family.grown = 3.5 / 8  # half-way into 16 x 16
        assert family.position == (2, 0.5)
        batch = random_batch(4)
        shown = F.avg_pool2d(batch["image"], 2)
        assert torch.allclose(family.real(batch), (shown + doubled(halved(shown))) / 2, atol=1e-6)
        assert family.drawn(torch.randn(2, LATENT, 1, 1)).shape == (2, 1, 16, 16)
        assert family.finish(torch.randn(2, LATENT, 1, 1))[0].shape == (2, 1, 32, 32)


class TestDeviation:
    def test_that_of_equal_samples_is_zero(self):
        same = pictures(1, 1).expand(4, 3, -1, -1)
        added = minibatch_deviation(same, 4)[:, -1]
        assert added.max() <= 1.01e-4, "the square root's slope is kept finite by 1e-8 below it"

    def test_that_of_others_is_numpys(self):
        features = torch.randn(6, 3, 4, 4)
        added = minibatch_deviation(features, 2)
        assert torch.equal(added[:, :-1], features)
        for first in range(3):  # with the one three further on
            pair = features[[first, first + 3]].numpy()
            expected = pair.std(axis=0).mean()
            assert added[[first, first + 3], -1].numpy() == pytest.approx(expected, rel=1e-4)

    def test_the_group_is_the_largest_that_divides(self):
        assert minibatch_deviation(torch.randn(6, 1, 4, 4), 4)[:, -1].flatten(1).unique().numel() == 2
        assert minibatch_deviation(torch.randn(1, 1, 4, 4), 4)[:, -1].max() <= 1.01e-4


class TestGenforce:
    """A random model of the layout that genforce publishes: names, shapes, scale, and colours."""

    LAYERS = {"layer0": (LATENT, 12, 4)} | {
        f"layer{number}": (*shape, 3)
        for number, shape in enumerate([(12, 12), (12, 12), (12, 12), (12, 8), (8, 8), (8, 8), (8, 8)], 1)
    }

    def published(self, colours: int = 1) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(5)
        shapes = {name: (out, below, size, size) for name, (below, out, size) in self.LAYERS.items()}
        shapes |= {f"output{stage}": (colours, width, 1, 1) for stage, width in enumerate(WIDTHS)}
        state = {f"{name}.weight": torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        state |= {f"{name}.bias": torch.randn(shape[0], generator=draw) / 5 for name, shape in shapes.items()}
        return {"lod": torch.zeros(()), **state}

    def drawn_by_hand(self, state: dict[str, Tensor], z: Tensor) -> Tensor:
        def norm(x: Tensor) -> Tensor:
            return x / (x.pow(2).mean(dim=1, keepdim=True) + 1e-8).sqrt()

        def layer(x: Tensor, name: str, gain: float, padding: int) -> Tensor:
            weight = state[f"{name}.weight"]
            return F.conv2d(x, weight * gain / math.sqrt(weight[0].numel()), state[f"{name}.bias"], padding=padding)

        x = norm(z)[:, :, None, None]
        for number in range(8):
            x = norm(x)
            if number in (2, 4, 6):
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.leaky_relu(layer(x, f"layer{number}", math.sqrt(2), 3 if number == 0 else 1), 0.2)
        return layer(norm(x), "output3", 1.0, 0)

    def loaded(self, content: Any, file: Path) -> tuple[Pggan, str]:
        torch.save(content, file)
        family = tiny_family("pggan")
        return family, family.load_published(file)

    @pytest.mark.parametrize("colours", [1, 3])
    def test_it_draws_what_its_weights_say(self, tmp_path, colours):
        state = self.published(colours)
        family, said = self.loaded(state, tmp_path / "pggan.pth")
        assert "weights of generator; fully grown" in said
        assert family.position == (3, 1.0)
        z = latents().double()  # pixel norms make rounding large where all features are small
        expected = self.drawn_by_hand({name: weight.double() for name, weight in state.items()}, z)
        if colours == 3:
            expected = torch.tensordot(torch.tensor(LUMA).double(), expected, dims=([0], [1]))[:, None]
        assert_close(family.double().drawn(z[:, :, None, None]), expected)

    def test_the_average_is_taken_before_the_other_and_the_discriminator_too(self, tmp_path):
        state, judge = self.published(3), Discriminator(WIDTHS, channels=3, group=4)
        zeros = {name: torch.zeros_like(weight) for name, weight in state.items()}
        content = {"generator": zeros, "generator_smooth": state, "discriminator": judge.state_dict()}
        family, said = self.loaded(content, tmp_path / "pggan.pth")
        assert "generator_smooth and discriminator" in said
        assert family.drawn(latents()[:, :, None, None]).abs().max() > 0.1
        seen = pictures(3)
        assert_close(family.judged(seen), judge(seen.expand(-1, 3, -1, -1)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lod": torch.tensor(1.5)}, "has the lod 1.5; only what is fully grown"),
            ({"layer3.weight": torch.zeros(2, 2, 3, 3)}, r"layer3.weight of \(2, 2, 3, 3\); .* \(12, 12, 3, 3\)"),
            ({"layer9.bias": torch.zeros(2)}, r"layer9.bias of \(2,\); the preset's networks have None"),
            ({"layer3.weight": 1}, "is no state dict of tensors"),
            ({"layer3.bias": torch.full((12,), math.nan)}, "layer3.bias holds NaN or infinity"),
        ],
    )
    def test_what_does_not_fit_is_named_and_nothing_taken(self, tmp_path, change, message):
        torch.save(self.published() | change, tmp_path / "pggan.pth")
        family = tiny_family("pggan")
        before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            family.load_published(tmp_path / "pggan.pth")
        assert all(torch.equal(tensor, before[name]) for name, tensor in family.state_dict().items())

    def test_code_in_it_is_not_run(self, tmp_path):
        torch.save({"generator": Evil(tmp_path / "ran")}, tmp_path / "pggan.pth")
        with pytest.raises(ValueError, match=r"pggan.pth cannot be read: it holds more than tensors") as caught:
            tiny_family("pggan").load_published(tmp_path / "pggan.pth")
        assert "weights_only" not in str(caught.value), "torch's own words advise to run it"
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut short"])
    def test_what_is_broken_is_said_in_a_line(self, tmp_path, content):
        (tmp_path / "pggan.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"pggan.pth cannot be read: [^\n]+$"):
            tiny_family("pggan").load_published(tmp_path / "pggan.pth")

    def test_other_families_know_none(self, tmp_path):
        (tmp_path / "a.pth").touch()
        with pytest.raises(ValueError, match=r"a.pth is no checkpoint folder, and dcgan knows no published weights"):
            tiny_family("dcgan").load_published(tmp_path / "a.pth")


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
