"""Pictures found again through a generator."""

import numpy as np
import pytest
import torch
from tiny_families import PRIOR, random_batch, tiny_family
from torch import Tensor

from serving.sampling.noise import START, draw_starts
from serving.sampling.solvers import solver_table
from training.checkpoint import CheckpointError, load_model, save_checkpoint
from training.descent import DESCENT
from training.models.mganprior import MGanPrior, MGanPriorPreset
from training.models.pggan import Pggan
from training.vgg import Vgg16Features


def inversion(**fields: object) -> MGanPrior:
    family = tiny_family("mganprior", **fields)
    assert isinstance(family, MGanPrior)
    return family.requires_grad_(False)


def start(family: MGanPrior, count: int) -> Tensor:
    return torch.from_numpy(draw_starts(range(count), family.name, family.sample_shape, family.noise_channels))


def scaled(family: MGanPrior, count: int) -> Tensor:
    """Pictures of codes that nobody knows, in [-1, 1]: the generator's last layer is brought to that."""
    with torch.no_grad():
        latents = torch.randn(count, family.preset.prior.latent, generator=torch.Generator().manual_seed(5))
        largest = family.generator(latents).abs().max()
        last = family.generator.get_submodule(f"output{family.generator.stages - 1}")
        last.weight /= largest
        last.bias /= largest
        return family.generator(latents)


def test_a_picture_of_the_priors_own_is_found_again():
    """With the preset's own codes, solver and steps; its layer 4 of 10 is here, where there are 8, the fifth.

    This prior has weights that nobody trained. At layer 4 one of these three pictures stays at 27 dB.
    """
    default = MGanPrior.presets["small"]
    assert isinstance(default, MGanPriorPreset)
    family = inversion(codes=default.codes, layer=5)
    pictures = scaled(family, 3)
    found, psnr = family.sample([start(family, 3)], default.default_solver, default.default_steps, pictures)
    assert (psnr > 35).all(), psnr
    assert found.shape == (3, 1, 32, 32)
    assert ((found - (pictures / 2 + 0.5)).abs().mean() < 0.02).all()
    _, begun = family.sample([start(family, 3)], "heavy_ball", 1, pictures)
    assert (psnr > begun + 10).all()


def test_one_code_without_weights_is_plain_inversion():
    """By hand: one latent, torch.optim.SGD on the mean squared error of what the generator draws."""
    family = inversion(codes=1, layer=2, learn_weights=False)
    picture = scaled(family, 1)
    noise = start(family, 1)
    assert family.sample_shape == (PRIOR.latent, 1, 1)
    latent = noise.flatten(1).clone().requires_grad_(True)
    optimiser = torch.optim.SGD([latent], lr=1.0)
    for _ in range(20):
        optimiser.zero_grad()
        (family.generator(latent) - picture).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        expected = (family.generator(latent) / 2 + 0.5).clamp(0, 1)
    found, _ = family.sample([noise], "gd", 20, picture)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_one_code_with_weights_of_one_draws_what_the_generator_does():
    family = inversion(codes=1, layer=4)
    noise = start(family, 2)
    latents = noise[:, : family.noise_channels].flatten(1)
    torch.testing.assert_close(family.render(noise), family.generator(latents), rtol=0, atol=1e-5)


def test_weights_begin_as_the_mean_of_the_codes():
    family = inversion(codes=3, layer=4)
    noise = start(family, 2)
    assert not noise[:, family.noise_channels :].any()
    latents = noise[:, : family.noise_channels].reshape(-1, PRIOR.latent)
    mean = family.generator.head(latents, 4).unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(family.render(noise), family.generator.tail(mean, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"learn_weights": False}])
def test_the_gradient_is_that_of_differences_and_of_autograd(fields):
    family = inversion(**fields).double()
    state = start(family, 2).double() + 0.1
    picture = random_batch(2)["image"].double()
    gradient = family.gradient(state, picture)
    sought = state.clone().requires_grad_(True)
    family.losses(sought, picture).sum().backward()
    torch.testing.assert_close(gradient, sought.grad, rtol=1e-10, atol=1e-14)
    for channel in range(0, state.shape[1], 7):
        step = torch.zeros_like(state)
        step[1, channel] = 1e-6
        difference = (family.losses(state + step, picture) - family.losses(state - step, picture))[1] / 2e-6
        assert float(gradient[1, channel]) == pytest.approx(float(difference), rel=1e-5, abs=1e-10)


def test_where_t_is_1_each_block_goes_its_own_length():
    family = inversion(codes=3)
    state, picture = start(family, 2), random_batch(2)["image"]
    coeffs = torch.zeros(2, 12)
    coeffs[0, 0] = 1
    gradient, out = family.gradient(state, picture), family.network(state, coeffs, picture)
    torch.testing.assert_close(out[1], gradient[1], rtol=0, atol=0)
    codes, weights = out[0].split([family.noise_channels, state.shape[1] - family.noise_channels])
    assert codes.square().mean().sqrt() == pytest.approx(1, rel=1e-4)
    assert weights.square().mean().sqrt() == pytest.approx(3**-0.5, rel=1e-4)
    thousandth = type(family).losses
    family.losses = lambda *given: thousandth(family, *given) / 1000
    torch.testing.assert_close(family.network(state, coeffs, picture)[0], out[0], rtol=1e-4, atol=1e-5)


def test_heavy_ball_is_polyaks():
    table = solver_table("heavy_ball", DESCENT, 12)
    x, before = np.float64(3.0), np.float64(3.0)
    ours, history = x, np.zeros(3)
    for row in table:
        t, p, q, a, b, c, s, m, n, d1, d2, d3 = row
        assert (t, q, b, s, n, d2, d3) == (1, 0, 0, 0, 0, 0, 0)
        x, before = x + c * 2 * x + (a - 1) * (x - before), x
        out = 2 * ours
        ours, history[0] = a * ours + c * out + d1 * history[0], m * p * ours
        assert ours == pytest.approx(x, rel=1e-12)
    assert table[0, 3] == 1, "nothing to go on with yet"
    assert 0 > table[-1, 5] > table[0, 5] / 10


def test_gd_is_sgds():
    table = solver_table("gd", DESCENT, 5)
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=1.0)
    ours = 2.0
    for row in table:
        optimiser.zero_grad()
        (0.1 * weight.square()).sum().backward()
        optimiser.step()
        ours = row[3] * ours + row[5] * 0.2 * ours
        assert ours == pytest.approx(weight.item(), rel=1e-12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "checkpoint"
    prior = tiny_family("pggan")
    assert isinstance(prior, Pggan)
    prior.grown = 1.0
    save_checkpoint(folder, prior, prior.state_dict(), {"preset_name": "small", "phase": "adversarial", "step": 3})
    return folder


def test_it_is_made_of_a_prior(checkpoint):
    family, config = load_model("mganprior", checkpoint, chosen={"codes": 2, "layer": 3})
    prior, _ = load_model("pggan", checkpoint)
    assert isinstance(family, MGanPrior)
    assert isinstance(prior, Pggan)
    assert (family.preset.size, family.preset.prior, family.preset.codes) == (32, PRIOR, 2)
    latents = torch.randn(2, PRIOR.latent)
    torch.testing.assert_close(family.generator(latents), prior.generator(latents), rtol=0, atol=0)
    assert (config["prior"], config["preset_name"]) == ("pggan", "small")
    assert config["unfinished"].startswith("step 3 of")
    assert "without VGG16" in family.facts["loss"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "large"}, "preset is 'large'; mganprior has paper, small"),
        (
            {"chosen": {"size": 64}},
            "preset field 'size' cannot be chosen when mganprior is built; those that can: codes",
        ),
        ({"chosen": {"layer": 9}}, "preset field 'layer' is 9; the prior has the layers 1 to 8"),
        ({"chosen": {"codes": 0}}, "preset field 'codes' is 0; it must be at least 1"),
        ({"chosen": {"vgg16": "nowhere.pth"}}, "nowhere.pth cannot be read: No such file"),
        ({"model": "dcgan"}, "holds a pggan; --model is dcgan"),
        ({"model": "pggan", "preset": "small"}, "preset 'small' cannot be chosen: .* has that of its pggan"),
    ],
)
def test_what_it_cannot_be_made_with_is_said(checkpoint, asked, message):
    with pytest.raises(CheckpointError, match=message):
        load_model(asked.pop("model", "mganprior"), checkpoint, **asked)


@pytest.mark.parametrize(("grown", "position"), [(0.3, "stage 1 of 3, faded in to 1;"), (0.7, "stage 3 of 3, .* 0.6;")])
def test_a_prior_that_still_grows_is_refused(tmp_path, grown, position):
    """It draws with its first layers, an inversion would with those that have not learnt yet."""
    prior = tiny_family("pggan")
    assert isinstance(prior, Pggan)
    prior.grown = grown
    save_checkpoint(tmp_path / "checkpoint", prior, prior.state_dict(), {"preset_name": "small"})
    with pytest.raises(CheckpointError, match=f"the pggan has grown to {position}.* so it must be fully grown"):
        load_model("mganprior", tmp_path / "checkpoint")


def test_vgg16_makes_the_loss_perceptual(checkpoint, tmp_path):
    torch.manual_seed(1)
    weights = {f"{name}": value for name, value in Vgg16Features().state_dict().items()}
    torch.save({**weights, "classifier.0.weight": torch.zeros(2)}, tmp_path / "vgg16.pth")
    chosen = {"codes": 2, "vgg16": str(tmp_path / "vgg16.pth"), "perceptual": 0.5}
    family, _ = load_model("mganprior", checkpoint, chosen=chosen)
    plain, _ = load_model("mganprior", checkpoint, chosen={"codes": 2})
    state, picture = start(family, 2), random_batch(2)["image"]
    seen = Vgg16Features()
    seen.load_state_dict(weights)
    with torch.no_grad():
        difference = (seen(family.render(state)) - seen(picture)).abs().mean((1, 2, 3))
        expected = plain.losses(state, picture) + 0.5 * difference
        torch.testing.assert_close(family.losses(state, picture), expected)
    assert difference.min() > 0
    assert "0.5 x VGG16's mean difference (weights " in family.facts["loss"]
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "vgg16.pth")
    wanted = (
        r"vgg16.pth holds no weights of torchvision's vgg16: it has features.0.weight of \(2,\), not \(64, 3, 3, 3\)"
    )
    with pytest.raises(CheckpointError, match=wanted):
        load_model("mganprior", checkpoint, chosen=chosen)


def test_vgg16_is_laid_out_as_torchvisions():
    names = {name: tuple(weight.shape) for name, weight in Vgg16Features().state_dict().items() if "weight" in name}
    assert list(names) == [f"features.{place}.weight" for place in (0, 2, 5, 7, 10, 12, 14)]
    assert [shape[0] for shape in names.values()] == [64, 64, 128, 128, 256, 256, 256]
    assert START == 0
