import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from tiny_families import FAMILIES, set_options, tiny_family
from tiny_pig import SET_OPTIONS, SIZE, tiny_pig

from serving.bundle import file_digest
from training.__main__ import main
from training.checkpoint import find_checkpoint, load_checkpoint
from training.data.classes import HEART
from training.data.dataset import LoadedPairs
from training.models import family_names
from training.models.pig import PRESETS

FIT = ["fit", "--model", "pig", "--data", "phantom:4", *SET_OPTIONS, "--steps", "1", "--batch", "2"]


def train(*options: str) -> Result:
    return CliRunner().invoke(main, options)


def the_line(result: Result) -> str:
    """The one line an error is: printed, with an exit code that says so, and no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code != 0
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    result = train(*FIT, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"00000002 is ready: medgen export build --model pig --checkpoint {out}\n"), (
        result.output
    )
    return out


class TestFit:
    def test_the_options_reach_the_checkpoint(self, run):
        family, config = load_checkpoint(run)
        assert family.preset == tiny_pig(steps=[1, 1], batch=2).preset
        assert config.items() >= {"preset_name": "small", "data": "phantom:4", "seed": 0, "step": 2}.items()

    def test_an_unknown_model_is_told_the_known_ones(self, tmp_path):
        line = the_line(train("fit", "--model", "gan", "--data", "phantom", "--out", str(tmp_path / "run")))
        assert "'gan'" in line
        assert all(name in line for name in family_names())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--preset", "huge"], "--preset is 'huge'; pig has paper, small"),
            (["--set", "depth=3"], "preset field 'depth' is unknown; there are size, "),
            (["--set", "size"], "'size' is no FIELD=VALUE"),
            (["--set", "size=wide"], "preset field 'size' is 'wide'; it must be int, like "),
            (["--set", "size=33"], "preset field 'size' is 33; these widths halve it 1 times"),
            (["--set", "attention=[2]"], "preset field 'attention' is (2,); the levels are (0, 1)"),
            (["--set", "layers=0"], "preset field 'layers' is 0; it must be at least 1"),
            (["--set", "norm_groups=3"], "preset field 'norm_groups' is 3; it must divide each of the widths (8, 16)"),
            (["--set", "clip=-1.0"], "preset field 'clip' is -1.0; it must be above 0, or null for none"),
            (["--set", "ema_decay=7.0"], "preset field 'ema_decay' is 7.0; it must be at least 0 and below 1"),
            (["--set", "learning_rate=-1.0"], "preset field 'learning_rate' is -1.0; it must be at least 0"),
            (["--set", "lr_schedule=foo"], "preset field 'lr_schedule' is 'foo'; allowed are constant, "),
            (["--set", "default_solver=euler"], "euler"),
            (["--data", "nowhere"], "'nowhere' is no folder"),
            (["--data", "phantom:0"], "COUNT must be 1 or more"),
            (["--steps", "0"], "'--steps': 0"),
            (["--seed", "-1"], "'--seed': -1"),
        ],
    )
    def test_a_wrong_option_is_named_and_nothing_begun(self, tmp_path, options, message):
        line = the_line(train(*FIT, "--out", str(tmp_path / "run"), *options))
        assert message in line
        assert not (tmp_path / "run").exists()

    def test_it_starts_from_the_weights_of_a_checkpoint(self, run, tmp_path):
        result = train(*FIT, "--out", str(tmp_path), "--init", str(run), "--set", "learning_rate=0", "--seed", "9")
        assert result.exit_code == 0, result.output
        (start, config), (end, its_config) = load_checkpoint(run), load_checkpoint(tmp_path)
        assert its_config["init"] == config["digest"]
        (before,) = its_config["ancestors"]
        assert [before[key] for key in ("digest", "data")] == [config["digest"], config["data"]]
        assert all(torch.equal(tensor, end.state_dict()[name]) for name, tensor in start.state_dict().items())
        assert "and goes on with" not in result.output

    def test_a_start_under_another_schedule_is_said(self, run, tmp_path):
        schedule = json.dumps({**load_checkpoint(run)[1]["preset"]["schedule"], "beta_end": 0.01})
        result = train(*FIT, "--out", str(tmp_path), "--init", str(run), "--set", f"schedule={schedule}")
        assert result.exit_code == 0, result.output
        line = " ".join(result.output.split())
        assert f"{run} learnt with schedule {{" in line
        assert "'beta_end': 0.01" in line.partition("and goes on with")[2]

    def test_it_starts_from_weights_that_others_published(self, tmp_path):
        theirs = tiny_family("pggan").generator.state_dict()
        torch.save({"lod": torch.zeros(()), **theirs}, tmp_path / "pggan.pth")
        fit = ["fit", "--model", "pggan", "--data", "phantom:4", *set_options("pggan"), "--steps", "1", "--batch", "2"]
        learn_nothing = ["--set", "learning_rate=0", "--seed", "9", "--out", str(tmp_path / "run")]
        result = train(*fit, *learn_nothing, "--init", str(tmp_path / "pggan.pth"))
        assert result.exit_code == 0, result.output
        assert f"{tmp_path / 'pggan.pth'}: weights of generator; fully grown" in result.output
        (family, config) = load_checkpoint(tmp_path / "run")
        assert config["init"] == file_digest(tmp_path / "pggan.pth")
        assert config["ancestors"] == [{"digest": config["init"]}], "what they learnt is not known"
        assert all(torch.equal(weight, family.generator.state_dict()[name]) for name, weight in theirs.items())

    def test_it_learns_from_two_kinds_of_images(self, tmp_path):
        for kind in ("trainA", "trainB"):
            (tmp_path / kind).mkdir()
            for number in range(2):
                Image.fromarray(np.eye(8, dtype=np.uint8) * (99 + number)).save(tmp_path / kind / f"{number}.png")
        fit = ["fit", "--model", "cyclegan", *set_options("cyclegan"), "--steps", "1", "--out", str(tmp_path / "run")]
        result = train(*fit, "--data", str(tmp_path))
        assert result.exit_code == 0, result.output
        assert "trainB: 2 images" in result.output
        assert load_checkpoint(tmp_path / "run")[1]["data_summary"]["kinds"]["trainA"]["pairs"] == 2
        assert {*json.loads((tmp_path / "run" / "data.json").read_text())} >= {"trainA/0.png", "trainB/1.png"}
        assert "holds no data set of two kinds" in the_line(train(*fit, "--data", str(tmp_path / "trainA")))

    def test_it_does_not_start_from_other_networks(self, run, tmp_path):
        line = the_line(train(*FIT, "--out", str(tmp_path), "--init", str(run), "--set", "layers=2"))
        assert f"--init is {run}, a pig of other networks than this preset's" in line

    @pytest.mark.parametrize(("field", "then", "now"), [("head_dim", 8, 16), ("norm_groups", 4, 8)])
    def test_nor_from_such_as_compute_something_else_with_the_same_weights(self, run, tmp_path, field, then, now):
        line = the_line(train(*FIT, "--out", str(tmp_path), "--init", str(run), "--set", f"{field}={now}"))
        assert f"--init is {run}, whose {field} is {then}; this preset's is {now}" in line

    @pytest.mark.parametrize("model", [name for name in FAMILIES if name.startswith("cmr")])
    def test_masks_of_other_classes_are_refused(self, model, tmp_path):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / name / "a.png")
        line = the_line(train("fit", "--model", model, "--data", str(tmp_path), "--out", str(tmp_path / "run")))
        assert f"--data {tmp_path} has masks of the classes background, lesion" in line
        assert f"{model} learns background, LV, MYO, RV" in line
        assert not (tmp_path / "run").exists()

    def test_so_are_hearts_for_a_model_of_lesions(self, tmp_path, monkeypatch):
        hearts = LoadedPairs(["a"], [np.zeros((SIZE, SIZE), np.float32)], [np.full((SIZE, SIZE), 3, np.uint8)], HEART)
        monkeypatch.setattr("training.data.open_dataset", lambda *_, **__: hearts)
        line = the_line(train(*FIT, "--out", str(tmp_path / "run")))
        assert "has masks of the classes background, LV, MYO, RV; pig learns background, lesion" in line

    def test_an_existing_run_is_left_alone(self, run):
        before = find_checkpoint(run).stat().st_mtime_ns
        assert "already holds a run; go on with it (--resume)" in the_line(train(*FIT, "--out", str(run)))
        assert find_checkpoint(run).stat().st_mtime_ns == before

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        assert "file/run" in the_line(train(*FIT, "--out", str(tmp_path / "file" / "run")))

    def test_so_is_one_whose_disk_is_full(self, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("training.fit.save_preview", full)
        line = the_line(train(*FIT, "--out", str(tmp_path / "run")))
        assert f"{tmp_path / 'run'} cannot be written: No space left on device" in line


class TestResume:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--set", "lesion_weight=false"], "its lesion_weight is True, not False"),
            (["--set", 'schedule={"beta_end": 0.03}'], "its beta_end is 0.02, not 0.03"),
            (["--steps", "2"], "its steps is [1, 1], not [2, 2]"),
            (["--batch", "4"], "its batch is 2, not 4"),
            (["--seed", "1"], "its seed is 0, not 1"),
            (["--data", "phantom:5"], "its data is phantom:4, not phantom:5"),
            (["--preset", "paper"], "its preset_name is small, not paper"),
            (["--precision", "bf16"], "its precision is no, not bf16"),
        ],
    )
    def test_a_changed_option_is_named(self, run, options, message):
        assert message in the_line(train(*FIT, "--out", str(run), "--resume", *options))

    def test_another_start_is_named(self, run):
        assert "its init is None, not " in the_line(train(*FIT, "--out", str(run), "--resume", "--init", str(run)))

    def test_another_number_of_processes_is_named(self, run, tmp_path):
        shutil.copytree(run, tmp_path / "run")
        file = find_checkpoint(tmp_path / "run") / "config.json"
        config = json.loads(file.read_text())
        assert config["processes"] == 1
        file.write_text(json.dumps({**config, "processes": 4}))
        assert "its processes is 4, not 1" in the_line(train(*FIT, "--out", str(tmp_path / "run"), "--resume"))

    def test_nothing_to_resume_is_named(self, tmp_path):
        assert f"no checkpoint in {tmp_path}" in the_line(train(*FIT, "--out", str(tmp_path), "--resume"))

    def test_a_finished_run_is_ready(self, run):
        result = train(*FIT, "--out", str(run), "--resume")
        assert result.exit_code == 0
        assert "00000002 is ready" in result.output


class TestData:
    """What is said of a data set, kept of it, and compared when a run goes on."""

    @pytest.fixture
    def data(self, tmp_path) -> Path:
        for part in ("images", "masks"):
            (tmp_path / "data" / part).mkdir(parents=True)
        for number in range(3):
            self.write(tmp_path / "data", number)
        return tmp_path / "data"

    def write(self, data: Path, number: int, grey: int = 200) -> None:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:3, :3] = 1
        Image.fromarray(mask * grey).save(data / "images" / f"{number}.png")
        Image.fromarray(mask).save(data / "masks" / f"{number}.png")

    def fit(self, data: Path, *options: str) -> Result:
        return train(*FIT, "--data", str(data), "--out", str(data.parent / "run"), *options)

    def test_it_is_printed_and_kept(self, data):
        (data / "masks" / "2.png").unlink()
        result = self.fit(data, "--skip-bad")
        assert result.exit_code == 0, result.output
        assert "data: 2 pairs\n  layout pairs, white 8 bits 255" in result.output
        summary = load_checkpoint(data.parent / "run")[1]["data_summary"]
        assert (summary["pairs"], summary["left_out"], summary["warnings"]) == (2, 1, [])

    def test_what_is_odd_is_a_warning(self, data):
        for number in range(3):
            Image.fromarray(np.ones((SIZE, SIZE), np.uint8)).save(data / "masks" / f"{number}.png")
        result = self.fit(data)
        warning = "more than half is lesion in 3 of 3 masks, 100 % at most; are they inverted? 0, 1, 2"
        assert f"  Warning: {warning}\n" in result.output
        assert load_checkpoint(data.parent / "run")[1]["data_summary"]["warnings"] == [warning]

    def test_a_run_goes_on_with_the_same_files_alone(self, data):
        assert self.fit(data).exit_code == 0
        assert self.fit(data, "--resume").exit_code == 0
        self.write(data, 1, grey=100)
        assert "but 2 changed: images/1.png, masks/1.png. Put them" in the_line(self.fit(data, "--resume"))
        for part in ("images", "masks"):
            (data / part / "2.png").unlink()
        line = the_line(self.fit(data, "--resume"))
        assert "but 2 gone: images/2.png, masks/2.png; 2 changed: images/1.png, masks/1.png" in line

    def test_a_run_that_kept_no_list_of_its_files_says_so(self, data):
        assert self.fit(data).exit_code == 0
        for config in (data.parent / "run" / "checkpoints").glob("*/config.json"):
            config.write_text(config.read_text().replace('"data_digest"', '"another"'))
        assert "whether they have changed is not known" in self.fit(data, "--resume").output


class TestPack:
    def test_it_tells_the_size(self, run, tmp_path):
        result = train("pack", str(run), str(tmp_path / "packed"))
        assert result.exit_code == 0
        assert re.fullmatch(rf"{tmp_path / 'packed'}: \d+\.\d kB\n", result.output)
        assert load_checkpoint(tmp_path / "packed")[1]["step"] == 2

    def test_nothing_to_pack_is_named(self, tmp_path):
        assert f"no checkpoint in {tmp_path}" in the_line(train("pack", str(tmp_path), str(tmp_path / "packed")))


class TestReplaced:
    preset = PRESETS["paper"]

    def test_fields_change_as_json_gives_them(self):
        fields = {
            "size": SIZE,
            "clip": 2,
            "widths": [32, 64, 96],
            "attention": [1],
            "head_dim": 32,
            "antithetic": False,
        }
        changed = self.preset.replaced(json.loads(json.dumps({**fields, "schedule": {"prediction": "v"}})))
        assert (changed.size, changed.clip, changed.antithetic) == (SIZE, 2, False)
        assert (changed.widths, changed.attention) == ((32, 64, 96), (1,))
        assert changed.schedule.prediction == "v"
        assert changed.schedule.beta_end == self.preset.schedule.beta_end
        assert changed.replaced({"clip": None}).clip is None
        assert changed.replaced(vars(self.preset)) == self.preset

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"depth": 3}, "preset field 'depth' is unknown; there are size, schedule,"),
            ({"size": 32.5}, "preset field 'size' is 32.5; it must be int, like 512"),
            ({"size": "32"}, "preset field 'size' is '32'; it must be int, like 512"),
            ({"size": None}, "preset field 'size' is None; it must be int, like 512"),
            ({"size": True}, "preset field 'size' is True; it must be int, like 512"),
            ({"size": 0}, "preset field 'size' is 0; it must be at least 1"),
            ({"batch": 0}, "preset field 'batch' is 0; it must be at least 1"),
            ({"steps": 5}, "preset field 'steps' is 5; it must be tuple[int, ...], like "),
            ({"steps": [5, 0]}, "preset field 'steps' is 0; it must be at least 1"),
            ({"clip": "none"}, "preset field 'clip' is 'none'; it must be float | None, like None"),
            (
                {"widths": [8, "16"]},
                "preset field 'widths' is [8, '16']; it must be tuple[int, ...], like (32, ",
            ),
            ({"antithetic": 1}, "preset field 'antithetic' is 1; it must be bool, like True"),
            ({"binarise_guide": "often"}, "preset field 'binarise_guide' is 'often'; it must be Literal['never', "),
            ({"schedule": 3}, "preset field 'schedule' is 3; it must be "),
            ({"schedule": {"beta": 3}}, "schedule field 'beta' is unknown; there are kind, "),
            ({"schedule": {"beta_end": "3"}}, "schedule field 'beta_end' is '3'; it must be float, like 0.02"),
            ({"schedule": {"beta_end": 3}}, "beta_end"),
            ({"learning_rate": float("nan")}, "preset field 'learning_rate' is nan; it must be float, like 0.0002"),
            ({"default_steps": 5000}, "5000"),
        ],
    )
    def test_what_does_not_fit_is_named(self, fields, message):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared as it stands
            self.preset.replaced(fields)
        assert message in str(error.value)
