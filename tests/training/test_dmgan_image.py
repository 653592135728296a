"""A second generator on what a prior made of pictures."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny import contents
from tiny_families import ONE_PASS, random_batch, set_options, tiny_family
from torch import Tensor

from serving.folders import locked
from training.__main__ import main
from training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from training.federated.panel import Verdict
from training.federated.runs import end, free_port, open_site_data, prepared
from training.federated.terms import Terms
from training.models.mganprior import NOTICE
from training.reconstructions import Pairs, read_pairs, reconstructions
from training.vgg import Vgg16Features


class Told:
    """A panel that says what it was told to, and remembers what it was asked."""

    def __init__(self, gradient: float = 0.0, deceiving: float = 0.5) -> None:
        self.gradient, self.deceiving, self.asked = gradient, deceiving, []

    def judge(self, step: int, drawn: Tensor, condition: Tensor) -> Verdict:
        self.asked.append((step, drawn, condition))
        return Verdict(torch.full_like(drawn, self.gradient), self.deceiving, 0.7, 3)

    def save(self, step: int) -> None:
        self.asked.append(step)


def loss_of(family, seed: int = 0):
    return family.refine(random_batch(4), torch.Generator().manual_seed(seed))


def test_its_gradient_is_the_panels_and_that_of_l1():
    family = tiny_family("dmgan_image", l1=0.0)
    family.panel = Told(gradient=1.0)
    loss, measures = loss_of(family)
    assert loss.item() == pytest.approx(0.5)
    assert (measures["discriminator"].item(), measures["sites"].item()) == pytest.approx((0.7, 3))
    loss.backward()
    found = [weight.grad.clone() for weight in family.generator.parameters()]
    family.zero_grad()
    family.generator(random_batch(4)["condition"]).sum().backward()
    for gradient, weight in zip(found, family.generator.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad)
    (step, drawn, condition), *_ = family.panel.asked
    assert step == 0
    assert not drawn.requires_grad
    assert torch.equal(condition, random_batch(4)["condition"])
    both = tiny_family("dmgan_image", l1=10.0)
    both.panel = Told()
    loss, measures = loss_of(both)
    assert loss.item() == pytest.approx(0.5 + 10 * measures["l1"].item())


def test_no_site_is_asked_of_pictures_that_are_none():
    family = tiny_family("dmgan_image")
    family.panel = Told()
    torch.nn.init.constant_(next(family.generator.parameters()), float("nan"))
    with pytest.raises(FloatingPointError, match="the generator draws NaN or infinity at step 0; the last checkpoint"):
        loss_of(family)
    assert not family.panel.asked


def test_dropout_is_on_while_it_learns_and_draws_from_the_runs_generator_alone():
    family = tiny_family("dmgan_image").train()
    family.panel = Told()
    for seed in (1, 1, 2):
        loss_of(family, seed)
        torch.rand(5)  # what others draw does not matter
    one, same, other = (drawn for _, drawn, _ in family.panel.asked)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_dropout_is_off_when_it_draws():
    family = tiny_family("dmgan_image")
    condition = (random_batch(3)["condition"] + 1) / 2
    state = torch.zeros(3, *family.sample_shape)
    (one,), (other,) = (family.finish(state, condition) for _ in range(2))
    assert torch.equal(one, other)
    assert 0 <= one.min() < one.max() <= 1
    assert family.notices == (NOTICE,)
    assert family.noise_channels == 0


def test_the_perceptual_term_is_of_four_blocks(tmp_path: Path):
    network = Vgg16Features(blocks=4)
    torch.save(network.state_dict(), tmp_path / "vgg16.pth")
    family = tiny_family("dmgan_image", l1=0.0, perceptual=2.0, vgg16=str(tmp_path / "vgg16.pth"))
    family.panel = Told(deceiving=0.0)
    batch = random_batch(2)
    drawn = family.generator(batch["condition"])
    stages = list(zip(network.stages(drawn), network.stages(batch["image"]), strict=True))
    assert [one.shape[1] for one, _ in stages] == [64, 128, 256, 512]
    expected = sum((one - other).square().mean() for one, other in stages)
    loss, _ = family.refine(batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-5)
    assert not any("vgg" in name for name in family.state_dict())
    assert "2 x VGG16" in family.facts["loss"]
    assert "VGG16 was not given" in tiny_family("dmgan_image").facts["loss"]


def test_who_draws_needs_no_vgg16(tmp_path: Path):
    family = tiny_family("dmgan_image", vgg16=str(tmp_path / "gone.pth"))
    condition = (random_batch(2)["condition"] + 1) / 2
    assert family.finish(torch.zeros(2, *family.sample_shape), condition)[0].shape == condition.shape
    assert "1 x VGG16" in family.facts["loss"]
    with pytest.raises(ValueError, match=r"gone.pth cannot be read"):
        family.vgg16()


PRESET = tiny_family("dmgan_image").preset


@pytest.fixture(
    params=[
        ({"step": 4, "phase": "adversarial"}, 0.5, "was trained to step 4 of 8, in phase adversarial and has grown to "
                                                   "stage 2 of 3, faded in to 1"),
        ({"step": 7, "phase": "adversarial"}, 0.9, "was trained to step 7 of 8, in phase adversarial"),
        ({}, 0.7, "has grown to stage 3 of 3, faded in to 0.6"),  # of before its training was written down
        ({}, 0.0, "has grown to stage 0 of 3, faded in to 1"),
    ]
)  # fmt: skip
def half_trained(request, tmp_path: Path) -> tuple[Path, str]:
    """A prior that is not whole, and what is to be said of it."""
    config, grown, position = request.param
    prior = tiny_family("pggan", steps=[8])
    prior.grown = grown
    save_checkpoint(tmp_path / "half", prior, prior.state_dict(), {"preset_name": "small", **config})
    return tmp_path / "half", position


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": 1.0}, "preset field 'dropout' is 1.0; it must be at least 0 and below 1"),
        ({"l1": -1.0}, "preset field 'l1' is -1.0; it must be at least 0"),
        ({"objective": "wasserstein"}, "sites have non_saturating or least_squares"),
        ({"site_weights": "loud"}, "preset field 'site_weights' is 'loud'; it must be"),
    ],
)
def test_what_a_preset_cannot_say(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny_family("dmgan_image", **fields)


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def prior(cls, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("prior")
        options = [
            word for name, value in ONE_PASS["pggan"].items() for word in ("--set", f"{name}={json.dumps(value)}")
        ]
        fitted = [
            "fit",
            "--model",
            "pggan",
            "--data",
            "phantom:8",
            "--steps",
            "2",
            "--batch",
            "2",
            "--out",
            str(folder),
        ]
        assert CliRunner().invoke(main, [*fitted, *options]).exit_code == 0
        return folder

    def fit(self, out: Path, *more: str):
        asked = ["fit", "--model", "dmgan_image", "--data", "phantom:10", "--steps", "2", "--out", str(out), *more]
        return CliRunner().invoke(main, [*asked, *set_options("dmgan_image")])

    def test_one_site_here(self, prior: Path, tmp_path: Path):
        result = self.fit(tmp_path / "run", "--prior", str(prior))
        assert result.exit_code == 0, result.output
        assert "10 reconstructions of 3 codes, 3 steps" in result.output
        _, config = load_checkpoint(tmp_path / "run")
        prior_model, trained = load_checkpoint(prior)
        assert load_checkpoint(tmp_path / "run")[1]["ancestors"][0]["digest"] == trained["digest"]
        assert config["learnt_through"] == trained["digest"]
        assert (config["sites"], config["elsewhere"], config["private"]) == (None, False, {})
        assert (tmp_path / "run" / "sites" / "here" / "00000002.pt").is_file()
        pairs = read_pairs(tmp_path / "run" / "pairs.safetensors")
        assert pairs is not None
        assert torch.equal(reconstructions(prior_model, pairs.images, 3, 4, 3), pairs.conditions)
        assert not torch.equal(pairs.images, pairs.conditions)

    def test_two_simulated_sites(self, prior: Path, tmp_path: Path):
        result = self.fit(tmp_path / "run", "--prior", str(prior), "--sites", "2", "--private", "epsilon=1")
        assert result.exit_code == 0, result.output
        assert "2 sites of 4 pictures, by patients; the sizes of breasts are not known" in result.output
        log = (tmp_path / "run" / "sites" / "site-01" / "log.txt").read_text()
        (said,) = (line for line in log.splitlines() if line.startswith("--private: an answer's epsilon is "))
        assert float(said.split()[5].rstrip(",")) > 40, "what the values are costs more than which they are"
        assert said in result.output
        assert find_checkpoint(tmp_path / "run").name == "00000002"
        row = (tmp_path / "run" / "log.csv").read_text().splitlines()[-1].split(",")
        assert row[5] == "-1.000000", "sites that add noise do not say what their discriminators lose"
        bare = self.fit(tmp_path / "run", "--prior", str(prior), "--sites", "2", "--resume")
        assert "--resume goes on with the run as it was: its epsilon is 1" in bare.output

    def test_a_folder_that_is_taken_is_told_before_anything_is_written_there(self, prior: Path, tmp_path: Path):
        (tmp_path / "run" / "checkpoints" / "00000002").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "00000002" / "config.json").write_text("{}")
        before = contents(tmp_path / "run")
        assert "run already holds a run" in self.fit(tmp_path / "run", "--prior", str(prior)).output
        assert contents(tmp_path / "run") == before
        (tmp_path / "other").mkdir()
        with locked(tmp_path / "other" / ".lock"):
            before = contents(tmp_path / "other")
            said = self.fit(tmp_path / "other", "--prior", str(prior)).output
            assert "other is the folder of a run that is under way" in said
            assert contents(tmp_path / "other") == before

    def test_a_run_of_fewer_sites_is_another_run_unless_they_are_real(self, prior: Path, tmp_path: Path):
        asked = ("--prior", str(prior), "--sites")
        assert self.fit(tmp_path / "run", *asked, "2").exit_code == 0
        fewer = self.fit(tmp_path / "run", *asked, "1", "--resume")
        assert fewer.exit_code == 1
        assert "--resume goes on with the run as it was: its sites is 2, not 1" in fewer.output
        address, names = f"localhost:{free_port()}", ["north", "south"]
        batch = random_batch(4)
        share = Pairs(batch["image"], batch["condition"])
        processes = prepared(tmp_path / "sites", names, [share, share], "key", address, {})
        for process in processes:
            process.start()
        real = ("--listen", address, "--certificate", str(tmp_path / "sites" / "kits" / "server"))
        both = self.fit(tmp_path / "real", *asked, "2", *real)
        end(processes)
        assert both.exit_code == 0, both.output
        log = (tmp_path / "real" / "sites" / "log.txt").read_text()
        assert {line.split()[2] for line in log.splitlines() if line.endswith("is there")} == {*names}
        elsewhere = ("--listen", f"localhost:{free_port()}", *real[2:])
        one = self.fit(tmp_path / "real", *asked, "1", *elsewhere, "--resume")
        assert one.exit_code == 0, one.output
        assert "sites: 1 from here on; it was 2" in one.output

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ((), "dmgan_image learns from what pggan draws: name a checkpoint with --prior"),
            (("--prior", "PRIOR", "--private", "epsilon=1"), "are of sites: say how many with --sites"),
            (("--prior", "PRIOR", "--sites", "2", "--listen", "localhost:1"), "--listen and --certificate go together"),
            (("--prior", "PRIOR", "--sites", "9"), "--sites is 9; of the 10 patients 2 are the server's own"),
            (("--prior", "PRIOR", "--sites", "2", "--private", "volume=1"), "--private volume is unknown"),
            (
                ("--prior", "PRIOR", "--sites", "2", "--private", "epsilon=0"),
                "epsilon is 0; it must be a number above 0",
            ),
            (("--prior", "PRIOR", "--set", "size=64"), "the prior draws 32 x 32 pixels; the run has 64: --set size=32"),
        ],
    )
    def test_what_cannot_be(self, prior: Path, tmp_path: Path, more: tuple, message: str):
        asked = [str(prior) if word == "PRIOR" else word for word in more]
        result = self.fit(tmp_path / "run", *asked) if "size=64" not in more else CliRunner().invoke(
            main, ["fit", "--model", "dmgan_image", "--data", "phantom:4", "--out", str(tmp_path / "run"), *asked]
        )  # fmt: skip
        assert result.exit_code == 1
        assert message in result.output

    def test_a_half_trained_prior_is_no_prior(self, half_trained: tuple[Path, str], tmp_path: Path):
        folder, position = half_trained
        message = (
            f"--prior {folder} {position}; dmgan_image learns through one whose training is through and which is fully "
            "grown, to stage 3 of 3, faded in to 1: go on with it with fit --resume"
        )
        result = self.fit(tmp_path / "run", "--prior", str(folder), "--sites", "2")
        assert result.exit_code == 1
        assert message in result.output
        assert not (tmp_path / "run").exists()
        with pytest.raises(CheckpointError, match=re.escape(message)):
            open_site_data("phantom:4", folder, tmp_path, False, print)(Terms("dmgan_image", PRESET, 0, "digest"))

    def test_others_have_no_sites(self, tmp_path: Path):
        asked = ["fit", "--model", "dcgan", "--data", "phantom:4", "--out", str(tmp_path / "run"), "--sites", "2"]
        assert (
            "--prior and --sites are for models that learn through another one"
            in CliRunner().invoke(main, asked).output
        )
