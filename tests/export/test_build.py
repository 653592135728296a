import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from tiny import contents
from tiny_pig import FIELDS, SIZE, tiny_pig

from export import BuildError, ToleranceError
from export.__main__ import main
from export.build import build, check_outputs
from export.graphs import check_size
from export.options import Options, Tolerance
from export.parity import measure_parity
from serving import folders
from serving.bundle import Bundle, bundle_folder, load_bundle
from serving.client import LocalClient
from serving.engines import open_engine
from serving.engines.onnxruntime import OnnxRuntimeEngine, machine
from serving.repository import prepare_repository
from serving.sampling.solvers import COLUMNS
from serving.triton.served_models import find_models
from training.checkpoint import save_checkpoint

STEPS = FIELDS["default_steps"]
ROOT = Path(__file__).resolve().parents[2]
EXPORTED_BEFORE = """
import sys
import onnx
import export.build
from export.__main__ import main
step, finish, *arguments = sys.argv[1:]
export.build.step_graph = lambda *_: onnx.load(step)
export.build.finish_graph = lambda *_: onnx.load(finish)
main(arguments)
"""


@pytest.fixture
def exported(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes a while, and gives what it gave before."""
    monkeypatch.setattr("export.build.step_graph", lambda *_: onnx.load(built.engine_path("step")))
    monkeypatch.setattr("export.build.finish_graph", lambda *_: onnx.load(built.engine_path("finish")))


@pytest.fixture
def repository(built: Bundle, tmp_path: Path) -> Path:
    """A repository that holds a good bundle."""
    return shutil.copytree(built.folder.parents[2], tmp_path / "repository")


class TestBundle:
    def test_holds_the_graphs_the_manifest_and_the_parity_figures(self, built):
        assert contents(built.folder).keys() == {
            "SHA256SUMS",
            "manifest.json",
            "parity.json",
            "README.md",
            "step.onnx",
            "finish.onnx",
        }
        manifest = built.manifest
        assert (manifest.model, manifest.preset, manifest.sample_shape) == ("pig", "small", (2, SIZE, SIZE))
        assert [output.name for output in manifest.outputs] == ["mask", "image"]
        seen = {"rows_are_independent": True, "seen_on": machine()}
        assert manifest.target == {"name": "onnx", "opset": 18, "fused": True, **seen}
        assert manifest.checkpoint["step"] == 7
        assert manifest.tools["torch"] == torch.__version__

    def test_the_graphs_take_any_batch(self, built):
        step = onnx.load(built.engine_path("step"))
        assert [node.name for node in step.graph.input] == [
            *("sample", "history_1", "history_2", "history_3", "noise", "coeffs")
        ]
        assert [node.name for node in step.graph.output] == ["sample_next", "prediction"]
        for node in [*step.graph.input, *step.graph.output, *onnx.load(built.engine_path("finish")).graph.input]:
            assert node.type.tensor_type.shape.dim[0].dim_param
            assert node.type.tensor_type.elem_type == onnx.TensorProto.FLOAT

    def test_the_repository_can_be_served(self, built):
        folder = built.folder.parents[1]
        for name in ("config.pbtxt", "1/model.py"):
            assert (folder / name).read_bytes() == (ROOT / "model_repository" / "pig" / name).read_bytes()
        assert not list(folder.glob("1/.bundle.*"))

    def test_the_graphs_say_nothing_of_where_they_were_made(self, built):
        for name in ("step", "finish"):
            content = built.engine_path(name).read_bytes()
            assert b".py" not in content
            assert str(ROOT).encode() not in content


class TestParity:
    def test_every_row_is_compared_and_close(self, built):
        figures = json.loads((built.folder / "parity.json").read_text())
        assert [(t["solver"], t["steps"]) for t in figures["trajectories"]] == [("unipc", STEPS), ("ddpm", STEPS)]
        for trajectory in figures["trajectories"]:
            assert [row["row"] for row in trajectory["rows"]] == list(range(STEPS))
            assert max(row["sample_next"] for row in trajectory["rows"]) <= figures["step"]["sample_next"] < 1e-4
        assert figures["end_to_end"].keys() == {"state", "mask", "image"}
        assert 0 < figures["random"]["sample_next"] < 1e-4
        assert built.manifest.parity["step"] == figures["step"]

    @pytest.mark.parametrize("tensor", ["guider.conv_in.bias", "generator.conv_out.weight"])
    def test_other_weights_are_noticed(self, built, tensor):
        pig = tiny_pig()
        with torch.no_grad():
            pig.get_parameter(tensor).add_(1e-3)
        figures = measure_parity(pig, OnnxRuntimeEngine(built))
        assert figures["step"]["prediction"] > 1e-4
        assert figures["random"]["sample_next"] > 1e-6
        assert figures["end_to_end"]["state"] > 1e-4

    def test_nan_is_infinitely_far(self, built):
        pig = tiny_pig()
        with torch.no_grad():
            pig.generator.conv_out.bias.fill_(torch.nan)
        assert measure_parity(pig, OnnxRuntimeEngine(built))["end_to_end"]["image"] == float("inf")


class TestFailures:
    """One clear line, exit code not 0, and the old bundle untouched."""

    def run(self, *arguments: object) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code not in (0, None)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert len(result.stderr.strip().splitlines()[-1:]) == 1
        assert "Traceback" not in result.output
        return result.stderr.strip().splitlines()[-1]

    def test_missing_checkpoint(self, repository, tmp_path):
        before = contents(repository)
        line = self.run("build", "--model", "pig", "--checkpoint", tmp_path / "none", "--repository", repository)
        assert "none" in line
        assert "no checkpoint" in line
        assert contents(repository) == before

    def test_unknown_model(self):
        line = self.run("build", "--model", "pug")
        assert "'pug'" in line
        assert "'pig'" in line

    @pytest.mark.parametrize("option", ["--tolerance", "--end-to-end-tolerance"])
    def test_missed_tolerance(self, exported, repository, checkpoint, option):
        before = contents(repository)
        line = self.run(
            *("build", "--model", "pig", "--checkpoint", checkpoint, "--repository", repository, option, "1e-12")
        )
        assert "differs from PyTorch by" in line
        assert "tolerance 1.00e-12" in line
        assert contents(repository) == before

    def test_missed_tolerance_leaves_no_bundle(self, exported, checkpoint, tmp_path):
        with pytest.raises(BuildError, match="differs from PyTorch"):
            build("pig", checkpoint, tmp_path, Options(tolerance=Tolerance(1e-12, 1e-3)))
        assert not bundle_folder(tmp_path, "pig").exists()
        assert {file.name for file in (tmp_path / "pig" / "1").iterdir()} == {"model.py"}

    def test_each_batch_that_a_gpu_pads_to_is_compared(self, exported, checkpoint, tmp_path, monkeypatch):
        class Padding(OnnxRuntimeEngine):
            buckets = (1, 2, 4)

            def generate(self, trajectory):
                state, outputs = super().generate(trajectory)
                if (
                    len(state) == 4 and trajectory.coeffs[:, :, COLUMNS.index("s")].any()
                ):  # of a solver that draws noise
                    outputs["image"] = outputs["image"] + np.float32(0.5)
                return state, outputs

        monkeypatch.setattr("export.build.open_built", Padding)
        with pytest.raises(ToleranceError, match=r"onnx: image differs from ONNX Runtime by 5\.00e-01"):
            build("pig", checkpoint, tmp_path, Options(max_batch=4))

    @pytest.mark.parametrize("changed", [{"dtype": "int64"}, {"shape": (1, SIZE, SIZE + 1)}])
    def test_outputs_of_other_types_or_shapes_than_the_family_says(self, built, changed):
        graph = onnx.load(built.engine_path("finish"))
        mask, *others = built.manifest.outputs
        manifest = dataclasses.replace(built.manifest, outputs=(dataclasses.replace(mask, **changed), *others))
        check_outputs(graph, built.manifest)
        with pytest.raises(
            BuildError, match=rf"pig's finish gives mask as uint8 \[1, {SIZE}, {SIZE}\] of each sample, and"
        ):
            check_outputs(graph, manifest)

    def test_more_weights_than_a_graph_holds(self, monkeypatch):
        pig = tiny_pig()
        size = sum(weight.nbytes for weight in pig.parameters())
        monkeypatch.setattr("export.graphs.LARGEST", size // 2)
        check_size(pig, "pig", "fp16")
        with pytest.raises(
            BuildError, match=r"pig has .* GiB of weights, and .* holds 2: --precision fp16 halves them"
        ):
            check_size(pig, "pig", "fp32")
        monkeypatch.setattr("export.graphs.LARGEST", size // 3)
        with pytest.raises(BuildError, match=r"pig has .* GiB of weights, and a graph of ONNX holds 2$"):
            check_size(pig, "pig", "fp16")

    def test_full_disk(self, repository, built, checkpoint):
        """A file-size limit fails a write in the middle, as a full disk does."""
        before = contents(repository)
        graphs = [str(built.engine_path(name)) for name in ("step", "finish")]
        command = [sys.executable, "-c", EXPORTED_BEFORE, *graphs]
        command += ["build", "--model", "pig", "--checkpoint", str(checkpoint), "--target", "onnx"]
        limit = 20_000

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        result = subprocess.run(
            [*command, "--repository", str(repository)],
            cwd=ROOT,
            preexec_fn=limited,
            env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert "a file of the bundle cannot be written: File too large" in result.stderr.strip().splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert contents(repository) == before

    def test_checkpoint_of_another_model_or_digest(self, built, tmp_path):
        pig = tiny_pig()
        weights = {name: tensor + 1 for name, tensor in pig.state_dict().items()}
        save_checkpoint(tmp_path / "other", pig, weights, {"preset_name": "small"})
        line = self.run("verify", built.folder, "--checkpoint", tmp_path / "other")
        assert "digests differ" in line

    def test_corrupt_bundle(self, repository):
        folder = bundle_folder(repository, "pig")
        graph = bytearray((folder / "step.onnx").read_bytes())
        graph[len(graph) // 2] ^= 1
        (folder / "step.onnx").write_bytes(graph)
        for command in ("inspect", "verify"):
            assert "step.onnx" in self.run(command, folder)


class TestRepository:
    @pytest.mark.parametrize("name", ["config.pbtxt", "1/model.py"])
    def test_a_file_that_a_full_disk_cut_short_is_written_again(self, tmp_path, name):
        prepare_repository(tmp_path, "pig")
        whole = contents(tmp_path)
        for length in (0, 9):
            (tmp_path / "pig" / name).write_bytes(whole[f"pig/{name}"][:length])
            prepare_repository(tmp_path, "pig")
            assert contents(tmp_path) == whole
        (tmp_path / "pig" / name).unlink()
        prepare_repository(tmp_path, "pig")
        assert contents(tmp_path) == whole

    def test_what_the_user_changed_stays(self, tmp_path):
        prepare_repository(tmp_path, "pig")
        config = tmp_path / "pig" / "config.pbtxt"
        config.write_text(config.read_text() + "# mine")
        before = contents(tmp_path)
        prepare_repository(tmp_path, "pig")
        assert contents(tmp_path) == before

    def test_a_full_disk_leaves_no_part_of_it(self, tmp_path, monkeypatch):
        copy = shutil.copyfile

        def full(source: Path, target: Path) -> None:
            if target.name == "model.py":
                target.touch()
                raise OSError(28, "No space left on device", str(target))
            copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            prepare_repository(tmp_path, "pig")
        assert not list(tmp_path.iterdir())


class TestCutShort:
    def run(self, repository: Path, checkpoint: Path) -> Result:
        arguments = ["build", "--model", "pig", "--checkpoint", str(checkpoint), "--repository", str(repository)]
        return CliRunner().invoke(main, [*arguments, "--max-batch", "3"])

    def test_sigterm_leaves_the_old_bundle_and_nothing_else(self, exported, repository, checkpoint, monkeypatch):
        before, handler = contents(repository), signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr("export.build.measure_parity", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert self.run(repository, checkpoint).exit_code == 128 + signal.SIGTERM
        assert contents(repository) == before
        assert signal.getsignal(signal.SIGTERM) == handler

    def test_what_a_killed_build_left_is_cleared_away(self, exported, repository, checkpoint):
        left_over = bundle_folder(repository, "pig").with_name(".bundle.new")
        left_over.mkdir()
        (left_over / "step.onnx").write_bytes(b"half")
        assert self.run(repository, checkpoint).exit_code == 0
        assert {file.name for file in left_over.parent.iterdir()} == {"bundle", "model.py"}

    def test_two_builds_of_a_model_do_not_mix(self, exported, repository, checkpoint, monkeypatch):
        refused = []

        def meanwhile(*arguments: object) -> object:
            refused.append(self.run(repository, checkpoint).stderr)
            return measure_parity(*arguments)

        monkeypatch.setattr("export.build.measure_parity", meanwhile)
        assert self.run(repository, checkpoint).exit_code == 0
        assert "another process is at work in " in refused[0]
        assert load_bundle(bundle_folder(repository, "pig")).manifest.max_batch == 3

    def test_a_bundle_that_was_to_be_replaced_when_the_builder_was_killed_is_put_right(self, repository, monkeypatch):
        bundle = bundle_folder(repository, "pig")
        before = load_bundle(bundle).digest

        def killed(place: Path, _: int) -> None:
            if place.exists():
                place.rename(place.with_name(".bundle.old"))
            raise KeyboardInterrupt

        for step in ("_forward", "_back"):
            monkeypatch.setattr(folders, step, killed)
        with pytest.raises(KeyboardInterrupt), folders.replacing(bundle) as (new,):
            shutil.copytree(bundle, new, dirs_exist_ok=True)
        monkeypatch.undo()
        assert not bundle.exists()
        assert find_models(repository) == (["pig"], {})
        assert load_bundle(bundle).digest == before
        assert {file.name for file in bundle.parent.iterdir()} == {"bundle", "model.py"}

    def test_an_error_without_words_of_the_system_has_its_own(self, repository, checkpoint, monkeypatch):
        def failing(*_: object) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("export.build.step_graph", failing)
        line = self.run(repository, checkpoint).stderr.strip().splitlines()[-1]
        assert line == "Error: a file of the bundle cannot be written: the disk is gone"


class TestUnfinished:
    SO_FAR = "step 3 of 7, in phase guider"

    @pytest.fixture
    def halfway(self, tmp_path: Path) -> Path:
        pig = tiny_pig(steps=[4, 3])
        config = {"preset_name": "small", "phase": "guider", "step": 3}
        save_checkpoint(tmp_path / "halfway", pig, pig.state_dict(), config)
        return tmp_path / "halfway"

    def test_it_is_refused_unless_that_is_wanted_and_then_said_everywhere(self, exported, halfway, tmp_path):
        repository = tmp_path / "repository"
        arguments = ["build", "--model", "pig", "--checkpoint", str(halfway), "--repository", str(repository)]
        refused = CliRunner().invoke(main, arguments)
        assert refused.exit_code == 1
        assert f"{halfway} was trained to {self.SO_FAR}; go on with fit --resume, or" in refused.stderr
        assert not repository.exists()
        built = CliRunner().invoke(main, [*arguments, "--unfinished"])
        assert built.exit_code == 0, built.output
        checkpoint = load_bundle(bundle_folder(repository, "pig")).manifest.checkpoint
        assert checkpoint.items() >= {"phase": "guider", "step": 3, "steps": {"guider": 4, "generator": 3}}.items()
        for command in (["list"], ["inspect", "pig"]):
            said = CliRunner().invoke(main, [*command, "--repository", str(repository)]).stdout
            assert f"trained to {self.SO_FAR}" in said
        samples = LocalClient(repository).sample("pig", seeds=[1], steps=2)
        assert samples.provenance[0]["unfinished"] == self.SO_FAR


def test_the_checkpoint_that_is_named_is_the_one_that_was_built(exported, built, tmp_path, monkeypatch):
    """A training that goes on may write another meanwhile."""
    pig, run = tiny_pig(), tmp_path / "run"

    def reach(step):
        config = {"preset_name": "small", "phase": pig.phases[-1], "step": step}
        save_checkpoint(run / "checkpoints" / f"{step:08d}", pig, pig.state_dict(), config)

    def exporting(*_):
        reach(sum(pig.preset.steps) + 1)
        return onnx.load(built.engine_path("step"))

    monkeypatch.setattr("export.build.step_graph", exporting)
    reach(sum(pig.preset.steps))
    bundle = build("pig", run, tmp_path / "repository")
    parity = json.loads((bundle.folder / "parity.json").read_text())
    assert (
        Path(parity["checkpoint"]).name == f"{bundle.manifest.checkpoint['step']:08d}" == f"{sum(pig.preset.steps):08d}"
    )


class TestCommands:
    def run(self, *arguments: object) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    @pytest.mark.parametrize("value", ["inf", "nan"])
    def test_limits_are_numbers(self, value):
        result = CliRunner().invoke(main, ["build", "--model", "pig", "--tolerance", value])
        assert result.exit_code == 2
        assert f"Invalid value for '--tolerance': {value} is no finite number." in result.stderr

    def test_limits_are_also_those_of_a_gradient_and_a_loss(self, monkeypatch):
        seen = []
        monkeypatch.setattr("export.build.build", lambda *given: seen.append(given[3]))
        given = ["--target", "onnx", "--tolerance", "0.25", "--end-to-end-tolerance", "0.5"]
        CliRunner().invoke(main, ["build", "--model", "pig", *given])
        (options,) = seen
        assert options.tolerance == Tolerance(step=0.25, end_to_end=0.5, gradient=0.25, loss=0.5)

    def test_list(self, built, tmp_path):
        assert built.digest[:12] in self.run("list", "--repository", built.folder.parents[2])
        nothing = self.run("list", "--repository", tmp_path)
        assert "not built" in nothing
        shipped = "a checkpoint of cmr_ddpm_image, cmr_flow_image, cmr_ldm_image, cmr_mask, pig, which medgen export"
        assert shipped in " ".join(nothing.split())
        for line in self.run("list", "--repository", built.folder.parents[2]).splitlines():
            assert len(line) <= 80, line
            assert "…" not in line

    def test_inspect(self, built):
        printed = self.run("inspect", built.folder)
        assert built.digest in printed
        assert f"unipc, {STEPS} steps" in printed
        assert "trained      7 steps" in printed
        assert f"onnx (opset 18, fused, rows_are_independent, seen_on {machine()}), fp32, batch up to 16" in printed
        assert re.search(r"^finish.onnx  [\d.,]+ (kB|bytes): ", printed, re.MULTILINE)
        assert self.run("inspect", "pig", "--repository", built.folder.parents[2]) == printed

    def test_verify(self, built, checkpoint):
        assert "digests and graphs are good" in self.run("verify", built.folder)
        assert "end to end" in self.run("verify", built.folder, "--checkpoint", checkpoint)

    def test_tf32_on_a_cpu_says_what_was_compared(self, exported, checkpoint, tmp_path):
        options = ("--repository", tmp_path, "--max-batch", 1, "--precision", "tf32")
        printed = self.run("build", "--model", "pig", "--checkpoint", checkpoint, *options)
        assert "these differences are those of float32" in printed
        assert "these differences are those of float32" in self.run("inspect", "pig", *options[:2])

    def test_a_pipe_gets_a_line_now_and_then(self, exported, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr("serving.progress.SECONDS", 0)
        options = ("--checkpoint", checkpoint, "--repository", tmp_path, "--max-batch", 1)
        result = CliRunner().invoke(main, ["build", "--model", "pig", *map(str, options)], catch_exceptions=False)
        assert "exporting the step graph" in result.stderr.splitlines()
        assert "exporting" not in result.stdout

    def test_a_new_build_replaces_the_bundle(self, exported, repository, checkpoint):
        self.run(*("build", "--model", "pig", "--checkpoint", checkpoint, "--repository", repository, "--max-batch", 3))
        bundle = load_bundle(bundle_folder(repository, "pig"))
        assert bundle.manifest.max_batch == 3
        assert open_engine(bundle)

    def test_who_has_read_enough_of_it_is_no_error(self, built):
        """The pipe is closed before anything is written to it."""
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as closed:
            command = [sys.executable, "-m", "export", "inspect", str(built.folder)]
            result = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
        assert result.stderr == ""
