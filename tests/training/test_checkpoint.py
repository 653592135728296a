import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import BASELINES, STEPPING
from tiny_pig import tiny_pig

from serving.bundle import file_digest
from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    pack,
    read_config,
    save_checkpoint,
    shipped_checkpoint,
    unfinished,
)

CONFIG = {"preset_name": "small", "data": "phantom", "seed": 3, "step": 7}
TRAINING = {"step": 7, "weights": {"w": torch.ones(2)}}


def save(folder: Path) -> Path:
    pig = tiny_pig()
    save_checkpoint(folder, pig, pig.state_dict(), CONFIG, TRAINING)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "run" / "checkpoints" / "00000007")


def edit_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class TestLoad:
    def test_what_was_saved_comes_back(self, saved):
        family, config = load_checkpoint(saved)
        pig = tiny_pig()
        assert family.preset == pig.preset
        assert not family.training
        assert family.state_dict().keys() == pig.state_dict().keys()
        for name, tensor in pig.state_dict().items():
            assert torch.equal(family.state_dict()[name], tensor)
        assert config.items() >= {"model": "pig", **CONFIG}.items()

    def test_the_digest_is_that_of_the_weights_file(self, saved):
        expected = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
        assert load_checkpoint(saved)[1]["digest"] == expected

    def test_a_run_folder_means_its_newest_checkpoint(self, saved):
        newer = save(saved.with_name("00000012"))
        assert find_checkpoint(saved.parents[1]) == newer
        assert find_checkpoint(saved) == saved

    def test_one_that_is_being_written_is_none(self, tmp_path):
        left_over = save(tmp_path / "run" / "checkpoints" / "writing")
        left_over.rename(left_over.with_name(".00000012.writing"))
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*run"):
            find_checkpoint(tmp_path / "run")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", b"{"),
            ("config.json", b"\xff\xfe"),
            ("config.json", b"[]"),
            ("config.json", b'{"format": 99}'),
            ("config.json", b'{"format": 1, "preset": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
            ("config.json", b'{"format": 1, "model": "pig", "preset": []}'),
            ("config.json", b'{"format": 1}'),
            ("model.safetensors", None),
            ("model.safetensors", b""),
            ("model.safetensors", b"junk" * 99),
        ],
    )
    def test_a_broken_file_is_named(self, saved, name, content):
        (saved / name).unlink() if content is None else (saved / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(saved)

    def test_a_cut_weights_file_is_named(self, saved):
        weights = saved / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
            load_checkpoint(saved)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"model": "gan"}, "model 'gan' is unknown"),
            ({"preset": {"depth": 3}}, "preset field 'depth' is unknown"),
            ({"preset": {"norm_groups": 3}}, "preset field 'norm_groups' is 3"),
        ],
    )
    def test_a_config_that_describes_no_model_is_named(self, saved, fields, message):
        edit_config(saved, **fields)
        with pytest.raises(CheckpointError, match=rf"config\.json describes no model that medgen has: .*{message}"):
            load_checkpoint(saved)

    def test_weights_of_another_model_are_named(self, saved):
        preset = dataclasses.asdict(tiny_pig(layers=2).preset)
        edit_config(saved, preset=preset)
        with pytest.raises(CheckpointError, match=r"model\.safetensors does not hold the weights .* config\.json"):
            load_checkpoint(saved)


class TestSave:
    def test_it_replaces_a_checkpoint(self, saved):
        pig = tiny_pig(layers=2)
        save_checkpoint(saved, pig, pig.state_dict(), CONFIG)
        assert load_checkpoint(saved)[0].preset == pig.preset
        assert not (saved / "training.pt").exists()

    @pytest.mark.parametrize("writer", ["save_file", "torch.save"])
    def test_one_that_fails_leaves_what_was_there_and_nothing_else(self, saved, monkeypatch, writer):
        def full(_content: object, file: Path) -> None:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(file))

        monkeypatch.setattr(f"training.checkpoint.{writer}", full)
        before = contents(saved)
        with pytest.raises(CheckpointError, match=r"00000007 cannot be written: .*No space left"):
            save(saved)
        assert contents(saved) == before
        with pytest.raises(CheckpointError, match=r"00000012 cannot be written"):
            save(saved.with_name("00000012"))
        assert list(saved.parent.iterdir()) == [saved]

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match=r"file/00000007 cannot be written"):
            save(tmp_path / "file" / "00000007")


class TestUnfinished:
    @pytest.mark.parametrize(
        ("config", "so_far"),
        [
            ({"phase": "guider", "step": 4}, "step 4 of 10, in phase guider"),
            ({"phase": "generator", "step": 9}, "step 9 of 10, in phase generator"),
            ({"phase": "generator", "step": 10}, None),
            ({"phase": "generator"}, "step 0 of 10, in phase generator"),
            ({"step": 3}, None),
        ],
    )
    def test_it_is_what_is_not_through_all_phases(self, config, so_far):
        assert unfinished(tiny_pig(steps=[4, 6]), config) == so_far


class TestPack:
    def test_it_keeps_the_model_in_float16_and_what_config_says(self, saved, tmp_path):
        out = pack(saved, tmp_path / "packed")
        assert contents(out).keys() == {"config.json", "model.safetensors"}
        assert read_config(out) == {**read_config(saved), "packed_from": file_digest(saved / "model.safetensors")}
        packed = load_file(out / "model.safetensors")
        family, _ = load_checkpoint(out)
        for name, tensor in tiny_pig().state_dict().items():
            assert packed[name].dtype == torch.float16
            assert torch.equal(packed[name], tensor.half())
            assert torch.equal(family.state_dict()[name], tensor.half().float())

    def test_packed_again_it_is_the_same(self, saved, tmp_path):
        first, second = pack(saved.parents[1], tmp_path / "first"), tmp_path / "second"
        assert contents(pack(first, second)) == contents(first) == contents(pack(saved, second))

    def test_weights_that_float16_does_not_hold_are_refused(self, tmp_path):
        pig = tiny_pig()
        weights = pig.state_dict()
        name = next(iter(weights))
        weights[name] = weights[name] * 0 + 1e5
        large = tmp_path / "large"
        save_checkpoint(large, pig, weights, {"preset_name": "small"})
        with pytest.raises(CheckpointError, match=f"{name} has a weight of 100000; float16 ends at 65504"):
            pack(large, tmp_path / "packed")
        assert not (tmp_path / "packed").exists()

    def test_it_does_not_replace_another_folder(self, saved, tmp_path):
        diary = tmp_path / "diary"
        diary.mkdir()
        (diary / "today").write_text("a page")
        with pytest.raises(CheckpointError, match=r"diary is there already and no checkpoint"):
            pack(saved, diary)
        assert contents(diary) == {"today": b"a page"}

    def test_nor_a_checkpoint_that_a_training_may_go_on_from(self, saved, tmp_path):
        run = tmp_path / "run" / "checkpoints" / "00000001"
        save_checkpoint(run, tiny_pig(), tiny_pig().state_dict(), {"preset_name": "small"}, {"step": 1})
        before = contents(run)
        with pytest.raises(CheckpointError, match=r"00000001 is a checkpoint that a training may go on from"):
            pack(saved, run)
        assert contents(run) == before


class TestShipped:
    def test_it_is_found_by_model(self, saved, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
        shipped = pack(saved, tmp_path / "pig-phantom")
        assert shipped_checkpoint("pig") == shipped

    @pytest.mark.parametrize("model", [name for name in STEPPING if name not in BASELINES])
    def test_every_model_of_steps_but_baselines_has_one_that_was_trained_to_its_end(self, model):
        family, config = load_checkpoint(shipped_checkpoint(model))
        assert (config["model"], config["data"]) == (model, "phantom")
        assert (config["phase"], config["step"]) == (family.phases[-1], sum(family.preset.steps))

    def test_a_model_without_one_is_named(self):
        with pytest.raises(CheckpointError, match=r"no checkpoint of gan: .*medgen fit --model gan.*--checkpoint"):
            shipped_checkpoint("gan")
