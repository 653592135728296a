"""Students: of teachers whose steps can be joined exactly, of every family, and from the command to the bundle."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_families import STEPPING, classes_of, random_batch, tiny_family
from tiny_pig import SIZE
from torch import Tensor, nn

from export import BuildError
from export.build import build, describe
from export.card import model_card
from export.options import DEFAULTS
from export.report import facts_of
from serving.bundle import MANIFEST, BundleError, Manifest
from serving.client import LocalClient, SamplingError
from serving.sampling.solvers import Schedule
from training.__main__ import main
from training.checkpoint import find_checkpoint, load_checkpoint, pack, save_checkpoint, unfinished
from training.denoiser import Denoiser
from training.distill import SUBSTEPS, plan, student_of
from training.family import Batch, Family, Preset
from training.noising import levels

T = 64
SCHEDULES = {
    "v": Schedule("linear", T, 1e-3, 0.2, "v"),
    "epsilon": Schedule("linear", T, 1e-3, 0.2, "epsilon"),
    "velocity": Schedule("flow", T, 0.0, 0.0, "velocity"),
}
SPREAD = 0.5  # the deviation of the toy's data


class Scaled(nn.Module):
    """What it predicts is its input times a number of its own for each timestep, to a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4 * T))

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        return self.weight[(4 * t).round().long()].view(-1, 1, 1, 1) * state


class Toy(Denoiser):
    """One pixel; the best denoiser of normal data is linear, and so is what its steps do together."""

    name = "toy"

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.sample_shape = (1, 1, 1)
        self.denoiser = Scaled()

    def data(self, batch: Batch) -> Tensor:
        return batch["image"]

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (sample,)


def preset_of(schedule: Schedule, clip: float | None = None) -> Preset:
    solver = "euler" if schedule.process == "flow" else "ddim"
    return Preset(1, schedule, clip, solver, 4, 64, (1,), 1e-3, "constant", 0.0, 0.0)


def toy(schedule: Schedule, spread: float = SPREAD) -> Toy:
    """The posterior mean of normal data, as the schedule's prediction."""
    made = Toy(preset_of(schedule))
    for place in range(4 * (T - 1) + 1):
        t = torch.tensor([place / 4])
        alpha, sigma = (each.item() for each in levels(schedule, t if schedule.process == "flow" else t.long()))
        x0 = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        noise = sigma / (alpha**2 * spread**2 + sigma**2)
        out = {"v": alpha * noise - sigma * x0, "epsilon": noise, "velocity": x0 - noise}[schedule.prediction]
        made.denoiser.weight.data[place] = out
    return made


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_student_of_a_linear_teacher_becomes_it(schedule: Schedule) -> None:
    teacher = toy(schedule)
    planned = plan(teacher, {"digest": "0" * 64}, 4)
    assert (planned.teacher_steps, planned.substeps) == (4 * SUBSTEPS, SUBSTEPS)
    student = student_of(teacher, planned, 1, {})
    noise = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1)

    def apart() -> float:
        (wanted,) = teacher.sample([noise], planned.solver, planned.teacher_steps)
        (found,) = student.sample([noise], planned.solver, planned.steps)
        return float((found - wanted).abs().max())

    assert apart() > 0.02
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.trainable("distillation").parameters(), 0.05)
    schedule_of_rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 400)
    for _ in range(400):
        image = SPREAD * torch.randn(64, 1, 1, 1, generator=generator)
        loss = student.loss("distillation", {"image": image}, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule_of_rates.step()
    assert loss < 1e-6
    assert apart() < 1e-3


def test_a_student_of_an_exact_teacher_has_nothing_to_learn() -> None:
    """Of data that are all 0, every step of DDIM, however long, is exact."""
    teacher = toy(SCHEDULES["v"], spread=0.0)
    student = student_of(teacher, plan(teacher, {"digest": "0" * 64}, 4), 1, {})
    loss = student.loss("distillation", {"image": torch.zeros(64, 1, 1, 1)}, torch.Generator().manual_seed(1))
    assert loss < 1e-10


@pytest.mark.parametrize("name", ["v", "velocity"])
def test_the_target_is_clipped_where_drawing_clips(name: str) -> None:
    """Of data beyond what the preset clips at: euler draws them as they are, and ddim cuts them."""
    losses = []
    for clip in (None, 0.5):
        teacher = toy(SCHEDULES[name], spread=2.0)
        teacher.preset = replace(teacher.preset, clip=clip)
        student = student_of(teacher, plan(teacher, {"digest": "0" * 64}, 4), 1, {})
        image = 2 * torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(2))
        losses.append(student.loss("distillation", {"image": image}, torch.Generator().manual_seed(1)).item())
    assert (losses[0] == losses[1]) == (name == "velocity")


class Shared(nn.Module):
    """One small network for all timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(17, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * torch.exp(-math.log(4 * T) * torch.arange(8) / 8)
        return self.layers(torch.cat([state.flatten(1), waves.sin(), waves.cos()], 1)).view(state.shape)


class SharedToy(Toy):
    def __init__(self, preset: Preset) -> None:
        super().__init__(preset)
        self.denoiser = Shared()


def test_a_student_that_predicts_noise_learns_more_than_its_first_step() -> None:
    """Beside the first row, whose error in the data is that of the noise 1 / alpha times, the others have a say."""
    torch.manual_seed(0)
    teacher = SharedToy(preset_of(Schedule("linear", T, 1e-3, 0.3, "epsilon"), clip=1.0))
    generator = torch.Generator().manual_seed(0)

    def train(model: Family, phase: str, steps: int) -> None:
        model.requires_grad_(True)
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            image = 0.8 * torch.randint(2, (64, 1, 1, 1), generator=generator) * 2 - 0.8
            optimizer.zero_grad()
            model.loss(phase, {"image": image}, generator).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()

    train(teacher, "denoiser", 300)
    planned = plan(teacher, {"digest": "0" * 64}, 4)
    student = student_of(teacher, planned, 1, {})
    noise = torch.linspace(-2, 2, 129).view(-1, 1, 1, 1)

    def apart() -> float:
        with torch.no_grad():
            (wanted,) = teacher.sample([noise], planned.solver, planned.teacher_steps)
            (found,) = student.sample([noise], planned.solver, planned.steps)
        return float((found - wanted).square().mean().sqrt())

    before = apart()
    train(student, "distillation", 300)
    assert apart() < 0.75 * before


@pytest.mark.parametrize("name", STEPPING)
def test_all_networks_of_a_step_learn_through_the_condition(name: str) -> None:
    teacher = tiny_family(name)
    student = student_of(teacher, plan(teacher, {"digest": "0" * 64}, 2), 3, {})
    assert student.state_dict().keys() == teacher.state_dict().keys()
    batch = random_batch(2, classes=classes_of(teacher))
    student.loss("distillation", batch, torch.Generator().manual_seed(0)).backward()
    for network in student.networks().values():
        slopes = [weight.grad for weight in network.parameters()]
        assert all(slope is not None for slope in slopes)
        assert any(slope.any() for slope in slopes if slope is not None)
    assert all(weight.grad is None for weight in teacher.parameters())
    other = {**batch, "mask": batch["mask"].flip(0)}
    losses = [student.loss("distillation", each, torch.Generator().manual_seed(0)).item() for each in (batch, other)]
    assert losses[0] != losses[1]


def test_numbers_that_do_not_go_together_are_refused() -> None:
    pig, known = tiny_family("pig"), {"digest": "0" * 64}
    with pytest.raises(ValueError, match="--steps is 4; it must divide the teacher's 6 steps"):
        plan(pig, known, 4, 6)
    of_eight = {**known, "student": {"solver": "ddim_clipped_trailing", "steps": 8}}
    with pytest.raises(ValueError, match="--steps is 8; it must divide the teacher's 8 steps, and be fewer"):
        plan(pig, of_eight, 8)
    with pytest.raises(ValueError, match="--teacher-steps is 16; the teacher is a student itself, and takes 8 steps"):
        plan(pig, of_eight, 4, 16)
    with pytest.raises(ValueError, match="4 steps of ddim are not at timesteps of 8, and cannot stand for them"):
        plan(pig, {**known, "student": {"solver": "ddim", "steps": 8}}, 4)
    with pytest.raises(ValueError, match="dcgan draws in one pass"):
        plan(tiny_family("dcgan"), known, 4)
    with pytest.raises(ValueError, match="mganprior goes down a loss"):
        plan(tiny_family("mganprior"), known, 4)
    with pytest.raises(ValueError, match="imported learns nothing here, and neither would a student"):
        plan(tiny_family("imported"), known, 4)
    with pytest.raises(ValueError, match="preset field 'size' is the teacher's; of a student these can be set: batch"):
        student_of(pig, plan(pig, known, 4), 1, {"size": 64})


# --- from the command to the bundle ---


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "teacher"
    family = tiny_family("pig")
    config = {"preset_name": "small", "data": "phantom:4", "license": "apache-2.0"}
    save_checkpoint(folder, family, family.state_dict(), config)
    return folder


def distilled(teacher: Path, out: Path, *options: str) -> str:
    asked = ["distill", "--teacher", str(teacher), "--out", str(out), "--set", "batch=2", *options]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def run(teacher: Path) -> Path:
    out = teacher.parent / "run"
    printed = distilled(teacher, out, "--steps", "4", "--updates", "4", "--checkpoint-every", "2")
    assert "4 steps of ddim_clipped_trailing for 16 of the teacher's, in 4 updates on phantom:4" in printed
    return out


def test_a_checkpoint_says_whose_student_it_is(teacher: Path, run: Path) -> None:
    family, config = load_checkpoint(run)
    digest = load_checkpoint(teacher)[1]["digest"]
    learnt = {"teacher_steps": 16, "solver": "ddim_clipped_trailing", "steps": 4}
    assert config["student"] == {"teacher": digest, **learnt, "line": [digest]}
    assert (family.preset.default_solver, family.preset.default_steps) == ("ddim_clipped_trailing", 4)
    assert (type(family).__name__, config["license"], config["phase"]) == ("Pig", "apache-2.0", "distillation")
    assert unfinished(family, config) is None
    half_way, config = load_checkpoint(run / "checkpoints" / "00000002")
    assert unfinished(half_way, config) == "step 2 of 4, in phase distillation"
    with pytest.raises(BuildError, match="in phase distillation; go on with distill --resume, or build it as it is"):
        build("pig", run / "checkpoints" / "00000002", teacher.parent / "repository")
    asked = ["distill", "--teacher", str(run / "checkpoints" / "00000002"), "--steps", "2", "--out", str(teacher / "x")]
    assert "in phase distillation; go on with distill --resume first" in CliRunner().invoke(main, asked).output


def test_a_student_has_seen_what_its_teachers_learnt(teacher: Path, tmp_path: Path) -> None:
    family, known = load_checkpoint(teacher)
    origin = {"format": "diffusers", "sha256": {}, "options": {}}
    known |= {"data": "/data/mini-mias", "data_digest": "d" * 64, "data_summary": {"pairs": 9}, "imported": origin}
    save_checkpoint(tmp_path / "patients", family, family.state_dict(), known)
    asked = ("--steps", "4", "--updates", "1", "--data", "phantom:4")
    distilled(tmp_path / "patients", tmp_path / "first", *asked)
    distilled(tmp_path / "first", tmp_path / "second", "--steps", "2", "--updates", "1")
    first, second = (load_checkpoint(tmp_path / name)[1] for name in ("first", "second"))
    learnt = {key: known[key] for key in ("digest", "data", "data_digest", "data_summary", "imported")}
    assert first["ancestors"] == [learnt]
    assert [(each["digest"], each["data"]) for each in second["ancestors"]] == [
        (first["digest"], "phantom:4"),
        (known["digest"], "/data/mini-mias"),
    ]
    told = [set(each) for each in described(tmp_path / "second").checkpoint["ancestors"]]
    assert told == [{"digest", "data"}, {"digest", "data", "imported"}], "summaries name files"
    card = model_card(described(tmp_path / "second"))
    assert "- data: `phantom:4`" in card
    assert f"`{known['digest']}`, which learnt `mini-mias`, and were imported from files of diffusers" in card
    assert "no patient" not in card
    distilled(teacher, tmp_path / "harmless", *asked)
    assert "It has seen no patient" in model_card(described(tmp_path / "harmless"))
    older = dict(load_checkpoint(tmp_path / "harmless")[1])
    del older["ancestors"]
    save_checkpoint(tmp_path / "older", family, family.state_dict(), older)
    assert "no patient" not in model_card(described(tmp_path / "older")), "what its teacher learnt is not known"


def described(run: Path) -> Manifest:
    family, config = load_checkpoint(run)
    return describe(family, config, DEFAULTS, {"name": "onnx"})


def test_of_a_teacher_that_draws_noise_it_is_said_what_is_lost(tmp_path: Path) -> None:
    family = tiny_family("cmr_mask", default_solver="ddpm")
    save_checkpoint(tmp_path / "teacher", family, family.state_dict(), {"preset_name": "small", "data": "phantom:4"})
    asked = ("--steps", "2", "--updates", "1")
    printed = distilled(tmp_path / "teacher", tmp_path / "run", *asked)
    assert (
        "cmr_mask draws by ddpm, and what its noise mends on the way is lost to a student: look at 8 steps" in printed
    )
    assert "mends" not in distilled(tmp_path / "run", tmp_path / "second", "--steps", "1", "--updates", "1")


def test_a_resumed_run_is_the_run_that_was_not_stopped(teacher: Path, run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    whole = find_checkpoint(again)
    weights = load_file(whole / "model.safetensors")
    shutil.rmtree(whole)
    distilled(teacher, again, "--steps", "4", "--updates", "4", "--checkpoint-every", "2", "--resume")
    resumed = load_file(find_checkpoint(again) / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.items())


def test_a_run_of_an_older_medgen_goes_on_and_says_more(teacher: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(find_checkpoint(tmp_path / "run"))
    file = find_checkpoint(tmp_path / "run") / "config.json"
    config = json.loads(file.read_text())
    del config["ancestors"], config["student"]["line"]
    file.write_text(json.dumps(config))
    distilled(teacher, tmp_path / "run", "--steps", "4", "--updates", "4", "--checkpoint-every", "2", "--resume")
    before, after = load_checkpoint(run)[1], load_checkpoint(tmp_path / "run")[1]
    assert [after[name] for name in ("ancestors", "student")] == [before[name] for name in ("ancestors", "student")]


def test_other_files_than_the_teacher_learnt_are_refused_unless_they_are_named(teacher: Path, tmp_path: Path) -> None:
    family, known = load_checkpoint(teacher)
    save_checkpoint(tmp_path / "patients", family, family.state_dict(), {**known, "data_digest": "d" * 64})
    asked = ["distill", "--teacher", str(tmp_path / "patients"), "--out", str(tmp_path / "run"), "--steps", "4"]
    result = CliRunner().invoke(main, asked)
    assert "phantom:4 is not what the teacher learnt from: its files are others; name with --data" in result.output
    assert not (tmp_path / "run").exists()


def test_another_teacher_cannot_go_on(teacher: Path, run: Path, tmp_path: Path) -> None:
    family, _ = load_checkpoint(teacher)
    save_checkpoint(
        tmp_path / "other", family, {name: 2 * weight for name, weight in family.state_dict().items()}, {"data": "x"}
    )
    asked = ["distill", "--teacher", str(tmp_path / "other"), "--out", str(run), "--steps", "4", "--updates", "4"]
    result = CliRunner().invoke(main, [*asked, "--set", "batch=2", "--data", "phantom:4", "--resume"])
    assert result.exit_code == 1
    assert "--resume goes on with the run as it was" in result.output


def test_the_line_goes_through_what_was_packed_and_begins_with_an_older_record(teacher: Path, tmp_path: Path) -> None:
    first = {"teacher": "1" * 64, "teacher_steps": 8, "solver": "ddim_clipped_trailing", "steps": 4}
    family, known = load_checkpoint(teacher)
    save_checkpoint(tmp_path / "taught", family, family.state_dict(), {**known, "student": first})
    packed, whole = (load_checkpoint(place) for place in (pack(tmp_path / "taught", tmp_path / "packed"), teacher))
    distilled(tmp_path / "packed", tmp_path / "run", "--steps", "2", "--updates", "1")
    student = load_checkpoint(tmp_path / "run")[1]["student"]
    assert student["line"] == [packed[1]["digest"], whole[1]["digest"], "1" * 64]


def test_a_student_of_a_student_takes_half_its_steps(run: Path, tmp_path: Path) -> None:
    printed = distilled(run, tmp_path / "run", "--steps", "2", "--updates", "1")
    assert "2 steps of ddim_clipped_trailing for 4 of the teacher's" in printed


def test_other_steps_are_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    bundle = build("pig", run, tmp_path)
    student = bundle.manifest.student
    assert student is not None
    assert (student.solver, student.steps) == ("ddim_clipped_trailing", 4)
    assert bundle.manifest.checkpoint["steps"] == {"distillation": 4}
    told = dict(facts_of(bundle))
    assert told["default"] == "ddim_clipped_trailing, 4 steps, and no others"
    assert told["student"].startswith(f"of {student.teacher}, ")
    with LocalClient(tmp_path) as client:
        assert client.sample("pig", 1).arrays["image"].shape == (1, 1, SIZE, SIZE)
        assert client.sample("pig", 1, steps=4, solver="ddim_clipped_trailing").provenance[0]["steps"] == 4
        for asked in ({"steps": 8}, {"solver": "ddim", "steps": 4}):
            with pytest.raises(
                SamplingError, match="distilled to take 4 of ddim_clipped_trailing, and can take no"
            ) as refused:
                client.sample("pig", 1, **asked)
            assert refused.value.status == 400
    fields = json.loads((bundle.folder / MANIFEST).read_text())
    with pytest.raises(BundleError, match="default_solver and default_steps must be"):
        Manifest.from_json(json.dumps({**fields, "default_steps": 8}))
