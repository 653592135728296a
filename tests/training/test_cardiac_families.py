"""The cardiac families: what they are told, what they are made of, and what they say of themselves."""

import pytest
import torch
from tiny_families import SIZE, random_batch, random_condition, random_state, tiny_family
from torch import Tensor

from training.cardiac_families import CLASSES
from training.data.classes import HEART
from training.data.dataset import LoadedPairs
from training.models import load_family
from training.painters import one_hot, without_classes
from training.unets import placed

PAINTERS = ("cmr_ddpm_image", "cmr_ldm_image", "cmr_flow_image")


def millions(module: torch.nn.Module) -> float:
    return round(sum(weight.numel() for weight in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cmr_mask", {"denoiser": 63.15}),
        ("cmr_ddpm_image", {"denoiser": 113.67}),
        ("cmr_ldm_image", {"denoiser": 82.83, "autoencoder": 20.97}),
        ("cmr_flow_image", {"denoiser.unet": 63.09, "denoiser.control": 30.12}),
    ],
)
def test_paper_is_as_large_as_it_says(name, parts):
    family = load_family(name)
    preset = family.presets["paper"]
    with torch.device("meta"):
        model = family(preset)
    assert {part: millions(model.get_submodule(part)) for part in parts} == parts
    expected = ("midpoint", 50) if name == "cmr_flow_image" else ("ddpm", 1000)
    assert (preset.default_solver, preset.default_steps) == expected
    assert preset.size == 128
    if name == "cmr_ldm_image":
        assert model.sample_shape == (4, 16, 16)


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_image_models_take_what_the_mask_model_draws(preset):
    def model(name: str):
        family = load_family(name)
        with torch.device("meta"):
            return family(family.presets[preset])

    (mask,) = model("cmr_mask").outputs
    assert mask.labels == ("background", "LV", "MYO", "RV")
    assert mask.spacing == (160 / mask.shape[-1],) * 2
    for painter in map(model, PAINTERS):
        assert (painter.condition.name, painter.condition.shape) == (mask.name, mask.shape)
        assert (painter.condition.labels, painter.condition.spacing) == (mask.labels, mask.spacing)
        assert painter.condition.classes == len(mask.labels)
        assert [(output.name, output.spacing) for output in painter.outputs] == [("image", mask.spacing)]


def test_one_hot():
    mask = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)[None, None]
    assert torch.equal(one_hot(mask, CLASSES).argmax(1, keepdim=True), mask)
    assert torch.equal(one_hot(mask, CLASSES).sum(1), torch.ones(1, 2, 2))
    assert one_hot(mask, CLASSES, torch.float64).dtype == torch.float64


class TestMaskDropout:
    masks = torch.arange(CLASSES, dtype=torch.uint8).repeat(4000, 4).view(4000, 1, 4, CLASSES)

    def dropped(self, share: float) -> Tensor:
        return without_classes(self.masks, CLASSES, share, torch.Generator().manual_seed(0))

    def test_classes_of_a_sample_go_whole_and_one_by_one(self):
        left = one_hot(self.dropped(0.3), CLASSES).flatten(2).sum(2)[:, 1:]
        assert set(left.unique().tolist()) == {0, 4}
        gone = (left == 0).float()
        assert torch.allclose(gone.mean(0), torch.tensor(0.3), atol=0.03)
        assert (torch.corrcoef(gone.T) - torch.eye(3)).abs().max() < 0.06

    def test_none_and_all(self):
        assert torch.equal(self.dropped(0.0), self.masks)
        assert not self.dropped(1.0).any()

    @pytest.mark.parametrize("name", PAINTERS)
    def test_training_sees_such_masks_and_sampling_whole_ones(self, name):
        batch = random_batch(4, classes=CLASSES)
        whole, none = tiny_family(name, mask_dropout=0.0), tiny_family(name, mask_dropout=1.0)
        seen = [family.training_condition(batch, torch.Generator().manual_seed(0))[0] for family in (whole, none)]
        assert torch.equal(seen[0], batch["mask"])
        assert not seen[1].any()
        state, condition = random_state(whole, 2), random_condition(whole, 2)
        with torch.no_grad():
            assert torch.equal(*(f.sample([state], f.preset.default_solver, 2, *condition)[0] for f in (whole, none)))

    @pytest.mark.parametrize("name", PAINTERS)
    def test_a_share_that_is_none_is_refused(self, name):
        with pytest.raises(ValueError, match=r"'mask_dropout' is 1\.5; it must be from 0 to 1"):
            tiny_family(name, mask_dropout=1.5)


def test_the_controlnet_begins_as_the_unets_encoder():
    family = load_family("cmr_flow_image")
    network = family(family.presets["small"]).denoiser
    unet, control = network.unet.state_dict(), network.control.state_dict()
    shared = unet.keys() & control.keys()
    assert len(shared) > 100
    assert all(torch.equal(unet[name], control[name]) for name in shared)


def test_the_largest_channel_is_the_class():
    family = tiny_family("cmr_mask")
    masks = random_batch(3, classes=CLASSES)["mask"]
    assert torch.equal(family.finish(family.data({"mask": masks}) * 0.1)[0], masks)


class TestLatents:
    def dataset(self) -> LoadedPairs:
        batch = random_batch(9, classes=CLASSES)
        return LoadedPairs("abcdefghi", list(batch["image"][:, 0].numpy()), list(batch["mask"][:, 0].numpy()), HEART)

    def test_they_are_scaled_to_a_deviation_of_1_when_their_phase_begins(self):
        family, dataset = tiny_family("cmr_ldm_image"), self.dataset()
        before = family.latent_std.item()
        family.begin("autoencoder", dataset)
        assert family.latent_std == before
        family.begin("denoiser", dataset)
        batch = {"image": torch.stack([dataset[k]["image"] for k in range(len(dataset))])}
        assert family.data(batch).std().item() == pytest.approx(1)
        assert "latent_std" in family.state_dict()

    def test_finish_decodes_them_as_they_are(self):
        family, dataset = tiny_family("cmr_ldm_image"), self.dataset()
        family.begin("denoiser", dataset)
        image = dataset[0]["image"][None]
        with torch.no_grad():
            (drawn,) = family.finish(family.data({"image": image}))
            expected = (family.autoencoder(image).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)

    def test_codes_that_no_latent_has_begin_again_as_latents(self):
        family = tiny_family("cmr_ldm_image").train()
        book = family.autoencoder.quantize.embedding.weight
        with torch.no_grad():
            book[:] = 100.0 + torch.arange(len(book)).view(-1, 1)
        dataset = self.dataset()
        batch = {"image": torch.stack([dataset[k]["image"] for k in range(len(dataset))])}
        codes = [len(family.encoded(batch["image"]).flatten(2).transpose(1, 2).flatten(0, 1).unique(dim=0))]
        for seed in range(200):
            family.loss("autoencoder", batch, torch.Generator().manual_seed(seed))
        codes.append(len(family.encoded(batch["image"]).flatten(2).transpose(1, 2).flatten(0, 1).unique(dim=0)))
        assert codes[0] == 1
        assert codes[1] > len(book) / 2

    def test_no_code_begins_again_outside_training(self):
        family, before = tiny_family("cmr_ldm_image"), tiny_family("cmr_ldm_image").state_dict()
        for seed in range(200):
            family.loss("autoencoder", random_batch(2), torch.Generator().manual_seed(seed))
        assert all(torch.equal(tensor, before[name]) for name, tensor in family.state_dict().items())

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"widths": []}, r"'widths' is \(\); it must have at least one width"),
            ({"autoencoder_widths": []}, r"'autoencoder_widths' is \(\); it must have at least one width"),
            ({"size": 34}, "'size' is 34"),
            ({"autoencoder_widths": [8, 14]}, r"'norm_groups' is 4; it must divide \(8, 14\)"),
            ({"codes": 0}, "'codes' is 0; it must be at least 1"),
            ({"head_dim": 5}, "'head_dim' is 5"),
            ({"attention": [], "head_dim": 32}, "'head_dim' is 32; .* the levels with attention, 16"),  # the deepest
        ],
    )
    def test_networks_that_cannot_be_are_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_family("cmr_ldm_image", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control_channels": 0}, "'control_channels' is 0; it must be at least 1"),
        ({"transformer_layers": -1}, "'transformer_layers' is -1; it must be at least 0"),
        ({"attention": [0, 1]}, "transformers need levels of one and the same width"),
    ],
)
def test_a_flow_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_family("cmr_flow_image", **fields)


@pytest.mark.parametrize("name", ["cmr_mask", "cmr_flow_image"])
def test_coordinates_tell_one_place_from_another(name):
    state = torch.zeros(1, 3, SIZE, SIZE)
    rows, columns = placed(state)[0, 3:]
    assert torch.equal(rows[:, 0], torch.linspace(-1, 1, SIZE))
    assert torch.equal(rows.T, columns)
    with_them, without = tiny_family(name), tiny_family(name, coordinates=False)
    weights = [next(family.denoiser.unet.parameters()).shape[1] for family in (with_them, without)]
    assert weights[0] == weights[1] + 2


def test_a_mask_s_timesteps_are_where_it_is_told():
    for fields, at, share in (({"focus": 0.0}, 0.5, 0.42), ({"focus": 1.0, "focus_at": 0.3}, 0.3, 0.88)):
        t = tiny_family("cmr_mask", **fields).timesteps(20_000, torch.Generator().manual_seed(0))
        assert ((t / 999 - at).abs() < 0.21).float().mean().item() == pytest.approx(share, abs=0.02)
    for focus in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"preset field 'focus' is {focus}; it must be from 0 to 1"):
            tiny_family("cmr_mask", focus=focus)
    for at in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"preset field 'focus_at' is {at}; it must be between 0 and 1"):
            tiny_family("cmr_mask", focus_at=at)
