"""The tables of dm-GAN's paper, and ours beside them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_families import FIELDS, SIZE, tiny_family

from benchmarks.__main__ import main
from benchmarks.dmgan import paper, runs
from benchmarks.dmgan.features import pyramid_bands
from benchmarks.dmgan.tables import psnr
from benchmarks.evaluation.distances import frechet
from training.__main__ import main as fit_main
from training.checkpoint import CheckpointError, find_checkpoint, read_config, save_checkpoint
from training.data import DataError
from training.data.phantom import Phantoms
from training.models import load_family


def test_the_arithmetic_is_the_tables_and_not_the_texts() -> None:
    means = {name: sum(values) / 5 for name, values in paper.PSNR.items()}
    assert f"{paper.decrease('dm-GAN'):.2f}" == "55.94"
    assert f"{100 * (1 - paper.FID['dm-GAN'] / paper.FID['mGANprior_bridge']):.2f}" == "9.92"
    gains = [means["dm-GAN"] - mean for name, mean in means.items() if name != "dm-GAN"]
    assert (f"{min(gains):.2f}", f"{max(gains):.2f}") == ("1.31", "2.84")
    assert paper.speedup("dm-GAN") == 1.375


def test_measures_of_known_pictures() -> None:
    black, grey = torch.zeros(2, 1, 16, 16), torch.full((2, 1, 16, 16), 0.1)
    assert psnr(grey, black) == pytest.approx([20.0, 20.0], rel=1e-5)
    features = np.random.default_rng(0).normal(size=(50, 3))
    assert frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet(features, features + np.array([3, 0, 4])) == pytest.approx(25)
    pictures = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)
    assert (pyramid_bands(smooth)[:, 2] < pyramid_bands(pictures)[:, 2]).all(), "the finest band is the third number"


def test_the_time_of_a_training_is_read_from_its_log(tmp_path: Path) -> None:
    assert runs.seconds_in(tmp_path) is None
    (tmp_path / "log.csv").write_text("step,samples_per_second\n10,2.0\n30,4.0\n")
    assert runs.seconds_in(tmp_path) is None
    folder = tmp_path / "checkpoints" / "00000030"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 1, "model": "pggan", "preset": {"batch": 4}}))
    assert runs.seconds_in(tmp_path) == pytest.approx(10 * 4 / 2 + 20 * 4 / 4)


class TestCommand:
    @pytest.fixture
    def tiny(self, monkeypatch):
        for name in ("pggan", "dcgan", "cyclegan", "dmgan_image"):
            presets = load_family(name).presets
            monkeypatch.setitem(presets, "small", presets["small"].replaced({**FIELDS[name], "batch": 2}))
        monkeypatch.setattr(runs, "PHANTOMS", 4)

    def test_all_tables(self, tiny, tmp_path: Path) -> None:
        asked = ["dmgan", "--data", "phantom:12", "--out", str(tmp_path / "runs"), "--steps", "2", "--seeds", "2",
                 "--sites", "1,2,99", "--private", "epsilon=1", "--json", str(tmp_path / "figures.json")]  # fmt: skip
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 0, result.output
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert (figures["learnt"], figures["held_out"]) == (12, 12)
        assert [len(figures["sites"][count]) for count in ("1", "2")] == [2, 2]
        assert figures["sites"]["99"].startswith("not run: --sites is 99; of the 12 patients")
        assert len(figures["sites"]["2, private"][0]["psnr"]) == 12
        assert figures["sites"]["1"][0]["psnr"] != figures["sites"]["1"][1]["psnr"], "two seeds are two runs"
        assert {"mGANprior of phantoms", "mGANprior of the data", "DCGAN", "CycleGAN"} == figures["rows"].keys()
        assert str(tmp_path) not in json.dumps(figures)
        priors, refined = (
            read_config(find_checkpoint(tmp_path / "runs" / run))
            for run in ("pggan of the data", "dm-GAN of 2 sites, seed 1")
        )
        assert (priors["data"], refined["data"], refined["seed"], refined["sites"]) == (*["phantom:12"] * 2, 1, 2)
        (ancestor,) = refined["ancestors"]
        assert (ancestor["digest"], ancestor["data"]) == (refined["learnt_through"], "phantom:12")
        assert figures["rows"]["DCGAN"]["steps"] == figures["sites"]["2"][0]["steps"] == 2
        for told in (
            "theirs: mGANprior_bird",
            "ours: mGANprior of the data",
            "theirs: dm-GAN",
            "other data, not to be",
        ):
            assert told in " ".join(result.output.split())
        kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("model.safetensors")}
        again = CliRunner().invoke(main, asked)
        assert again.exit_code == 0, again.output
        assert {file: file.stat().st_mtime_ns for file in kept} == kept, "what is there is not trained again"
        other = CliRunner().invoke(main, [word if word != "2" else "3" for word in asked])
        assert "holds another training, or one that is not through: name another --out" in other.output

    def test_what_learnt_other_pictures_or_under_other_terms_is_not_taken(self, tiny, tmp_path: Path) -> None:
        plan = runs.Plan("phantom:4", tmp_path, "small", 2, False, None, {}, {}, lambda _: None)
        one, other = (Phantoms(count, SIZE) for count in (4, 5))
        found = partial(runs.trained, runs.untrained("dcgan", {"steps": [2]}, "small"), out=tmp_path / "run", plan=plan)
        _, seconds = found(one, private=None)
        assert found(one, private=None)[1] == seconds
        with pytest.raises(CheckpointError, match=r"run holds a training of \{'private': None\}, and wanted is one of"):
            found(one, private={"epsilon": 1})
        with pytest.raises(CheckpointError, match="'learnt_sha256'"):
            found(other, private=None)

    def test_a_film_that_is_missing_makes_no_other_split(self, tiny, monkeypatch) -> None:
        def missing(_data: str, _size: int, split: str, *_: object, **__: object) -> Phantoms:
            if split == "validation":
                raise DataError("mias: not every file can be used")
            return Phantoms(4, SIZE)

        monkeypatch.setattr(runs, "open_dataset", missing)
        plan = runs.Plan("mias", Path(), "small", 2, False, None, {}, {}, lambda _: None)
        with pytest.raises(DataError, match="not every file can be used"):
            runs.split(plan)

    def test_what_has_learnt_the_pictures_that_are_held_out_is_refused(self, tiny, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        for k in range(10):
            pixels = np.random.default_rng(k).integers(0, 256, (40, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"A_000{k}_1.LEFT_CC.png")
        fitted = ["fit", "--model", "pggan", "--data", str(tmp_path), "--steps", "3", "--out", str(tmp_path / "all")]
        assert CliRunner().invoke(fit_main, fitted).exit_code == 0
        asked = ["dmgan", "--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--steps", "2", "--seeds", "1",
                 "--sites", "1", "--steps-of", "pggan=3"]  # fmt: skip
        result = CliRunner().invoke(main, [*asked, "--prior", str(tmp_path / "all")])
        assert result.exit_code == 1
        assert "all learnt all pictures of the data, those that are held out" in " ".join(result.output.split())
        result = CliRunner().invoke(main, [*asked, "--json", str(tmp_path / "figures.json")])
        assert result.exit_code == 0, result.output
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert (figures["learnt"], figures["held_out"]) == (8, 2)
        assert (figures["rows"]["mGANprior of the data"]["steps"], figures["sites"]["1"][0]["steps"]) == (3, 2)

    @pytest.mark.parametrize("option", ["--prior=", "--other-prior=elsewhere="])
    def test_a_half_trained_prior_is_no_prior(self, tiny, option: str, tmp_path: Path) -> None:
        half = tiny_family("pggan", steps=[8])
        config = {"preset_name": "small", "step": 4, "phase": "adversarial"}
        save_checkpoint(tmp_path / "half", half, half.state_dict(), config)
        asked = ["dmgan", "--data", "phantom:12", "--out", str(tmp_path / "runs"), "--steps", "2"]
        asked.append(f"{option}{tmp_path / 'half'}")
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 1
        assert "was trained to step 4 of 8, in phase adversarial and has grown to stage 0 of 3" in result.output

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--sites", "1,none"], "'1,none' is no list of numbers such as 1,2,10"),
            (["--other-prior", "here"], "'here' must be NAME=DIR"),
            (["--steps-of", "pig=4"], "'pig=4' must be MODEL=STEPS, of pggan, dcgan, cyclegan, dmgan_image, 2 steps"),
            (["--private", "volume=1"], "--private volume is unknown"),
        ],
    )
    def test_what_cannot_be(self, more: list[str], message: str, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["dmgan", "--data", "phantom:20", "--out", str(tmp_path), *more])
        assert result.exit_code != 0
        assert message in result.output
