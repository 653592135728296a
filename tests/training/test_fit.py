import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pig import FIELDS, SET_OPTIONS, SIZE, tiny_pig

from training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, pack
from training.data.phantom import Phantoms
from training.fit import Interrupted, Run, Shuffled, fit, load_training_state, seeded
from training.models.pig import Pig

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT_EVERY = 32, 3
OPTIONS = [
    *("fit", "--model", "pig", "--data", "phantom", *SET_OPTIONS),
    *("--steps", str(STEPS), "--batch", "2", "--seed", "5"),
    *("--log-every", "1", "--checkpoint-every", str(CHECKPOINT_EVERY)),
]
ONE_CPU_PROCESS = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "training", *OPTIONS, "--out", str(out), *options]


def log_of(out: Path) -> list[dict[str, str]]:
    file = out / "log.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []


def last_step(out: Path) -> int:
    return max((int(row["step"]) for row in log_of(out)), default=0)


def learned(out: Path) -> list[tuple[str, ...]]:
    """The rows of the log without the speed."""
    return [(row["step"], row["phase"], row["loss"], row["learning_rate"]) for row in log_of(out)]


def signalled(out: Path, number: int, steps: range, *options: str) -> tuple[int, str]:
    """Train up to one of the steps, send the signal a moment later, and return the exit code and what was printed."""
    step = random.choice(steps)
    assert last_step(out) < step
    with subprocess.Popen(
        command(out, *options),
        cwd=ROOT,
        env=ONE_CPU_PROCESS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        while last_step(out) < step and process.poll() is None:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(number)
        printed, _ = process.communicate()
    return process.returncode, f"signal {number} after step {step}: {printed}"


def assert_whole(out: Path) -> None:
    """Every checkpoint that can be found is complete."""
    for folder in (out / "checkpoints").glob("[0-9]*"):
        _, config = load_checkpoint(folder)
        assert load_training_state(folder)["step"] == config["step"] == int(folder.name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "undisturbed"
    subprocess.run(command(out), cwd=ROOT, env=ONE_CPU_PROCESS, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed in the first phase, stopped by Ctrl-C in the last and resumed each time.

    A start takes longer than all steps; tests/endurance kills trainers wherever they are.
    """
    out = tmp_path_factory.mktemp("fit") / "disturbed"
    code, printed = signalled(out, signal.SIGKILL, range(CHECKPOINT_EVERY + 1, 16))
    assert code == -signal.SIGKILL, printed
    assert load_checkpoint(out)[1]["phase"] == "guider"
    assert_whole(out)
    half_written = out / "checkpoints" / ".99999999.writing"
    half_written.mkdir()
    (half_written / "config.json").write_text("{")

    code, printed = signalled(out, signal.SIGINT, range(STEPS + 4, STEPS + 10), "--resume")
    assert code == 130, printed
    assert load_checkpoint(out)[1]["phase"] == "generator"
    step = last_step(out)
    assert f"stopped at step {step} of {2 * STEPS}; go on with --resume" in printed
    assert int(find_checkpoint(out).name) == step
    assert_whole(out)

    subprocess.run(command(out, "--resume"), cwd=ROOT, env=ONE_CPU_PROCESS, check=True, capture_output=True)
    return out


class TestResume:
    def test_the_weights_are_those_of_the_run_that_was_never_stopped_bit_for_bit(self, disturbed, undisturbed):
        ends = [find_checkpoint(out) for out in (disturbed, undisturbed)]
        weights = [(end / "model.safetensors").read_bytes() for end in ends]
        assert weights[0] == weights[1]
        states = [load_training_state(end) for end in ends]
        assert_equal(states[0], states[1])

    def test_the_log_has_each_step_once_and_says_the_same(self, disturbed, undisturbed):
        rows = learned(undisturbed)
        assert [(int(step), phase) for step, phase, *_ in rows] == [
            *((step, "guider") for step in range(1, STEPS + 1)),
            *((step, "generator") for step in range(STEPS + 1, 2 * STEPS + 1)),
        ]
        assert learned(disturbed) == rows

    def test_the_newest_checkpoints_are_kept_and_nothing_else(self, disturbed, undisturbed):
        for out in (disturbed, undisturbed):
            kept = sorted(folder.name for folder in (out / "checkpoints").iterdir())
            assert kept == [f"{step:08d}" for step in (2 * STEPS - 2 * STEPS % CHECKPOINT_EVERY, 2 * STEPS)]
            assert_whole(out)

    def test_a_picture_is_drawn_at_the_end(self, undisturbed):
        (preview,) = (undisturbed / "previews").iterdir()
        assert preview.name == f"{2 * STEPS:08d}.png"

    def test_a_finished_run_stays_as_it_is(self, undisturbed):
        end = find_checkpoint(undisturbed)
        left_by_a_kill = end.with_name(".00000001.old")
        left_by_a_kill.mkdir()
        (left_by_a_kill / "config.json").touch()
        before = end.stat().st_mtime_ns
        run = Run(undisturbed, {})
        assert fit(tiny_pig(steps=[STEPS, STEPS], batch=2), Phantoms(4, SIZE), run, resume=True) == end
        assert end.stat().st_mtime_ns == before
        assert not left_by_a_kill.exists()


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        for item, its_other in zip(one, other, strict=True):
            assert_equal(item, its_other)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


class TestTrainingState:
    def test_a_checkpoint_without_one_is_named(self, undisturbed, tmp_path):
        packed = pack(undisturbed, tmp_path / "packed")
        with pytest.raises(CheckpointError, match=r"packed/training\.pt is missing"):
            load_training_state(packed)

    def test_code_in_it_is_not_run(self, undisturbed, tmp_path):
        folder = pack(undisturbed, tmp_path / "evil")
        torch.save({"step": 1, "weights": Evil(tmp_path / "ran")}, folder / "training.pt")
        with pytest.raises(CheckpointError, match=r"evil/training\.pt is damaged"):
            load_training_state(folder)
        assert not (tmp_path / "ran").exists()
        torch.load(folder / "training.pt", weights_only=False)
        assert (tmp_path / "ran").exists(), "the test's own trap does not work"

    @pytest.mark.parametrize("size", [0, 10, 5000])
    def test_a_cut_one_is_named(self, undisturbed, tmp_path, size):
        folder = pack(undisturbed, tmp_path / "cut")
        whole = (find_checkpoint(undisturbed) / "training.pt").read_bytes()
        (folder / "training.pt").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut/training\.pt is damaged"):
            load_training_state(folder)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


class Fit:
    """Runs in this process, one step a phase unless the fields say otherwise."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(self, family: Pig | None = None, resume: bool = False, **fields: Any) -> Path:
        fields = {"steps": [1, 1], "batch": 2, **fields}
        run = Run(self.out, {"data": "phantom"}, log_every=1, checkpoint_every=1)
        return fit(family or tiny_pig(**fields), Phantoms(4, SIZE), run, resume)


@pytest.fixture
def train(tmp_path: Path) -> Fit:
    return Fit(tmp_path / "run")


class TestPhases:
    def test_each_learns_its_own_network_and_leaves_the_other(self, train):
        start = tiny_pig().state_dict()
        guided, _ = load_checkpoint(train(steps=[2, 1]).with_name("00000002"))
        end, _ = load_checkpoint(train.out)
        for name, tensor in guided.state_dict().items():
            learns = name.startswith("guider")
            assert torch.equal(tensor, start[name]) != learns, name
            assert torch.equal(tensor, end.state_dict()[name]) == learns, name

    def test_they_start_where_the_preset_says(self, train):
        train(steps=[1, 3])
        assert [row["phase"] for row in log_of(train.out)] == ["guider", "generator", "generator", "generator"]

    @pytest.mark.parametrize("steps", [[3], [3, 3, 3]])
    def test_a_preset_without_steps_for_each_is_refused_before_training(self, train, steps):
        with pytest.raises(ValueError, match=r"'steps' is .* one number for each .* guider and generator"):
            train(steps=steps)
        assert not train.out.exists()

    def test_a_run_is_not_begun_over_another(self, train):
        end = train()
        with pytest.raises(CheckpointError, match="run already holds a run; go on with it"):
            train()
        assert find_checkpoint(train.out) == end

    def test_nothing_to_resume_is_named(self, train):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .*run"):
            train(resume=True)


class TestNotFinite:
    """Training stops with the last good checkpoint when something is no number any more."""

    def poisoned(self, poison: Any, at: int) -> Pig:
        pig = tiny_pig(steps=[4, 4], batch=2)
        loss, calls = pig.loss, iter(range(99))
        pig.loss = lambda *inputs: loss(*inputs) + (poison(pig) if next(calls) == at else 0)
        return pig

    def test_a_loss(self, train):
        with pytest.raises(FloatingPointError, match="loss of phase generator is nan at step 6"):
            train(self.poisoned(lambda _: torch.nan, at=5))
        assert find_checkpoint(train.out).name == "00000005"
        assert_whole(train.out)
        assert [row["step"] for row in log_of(train.out)] == ["1", "2", "3", "4", "5"]

    def test_a_gradient(self, train):
        def with_infinite_slope(pig: Pig) -> torch.Tensor:
            (weight, *_) = pig.guider.parameters()
            return (weight - weight.detach()).abs().sum().sqrt()

        with pytest.raises(FloatingPointError, match="a weight of phase guider is not finite at step 3"):
            train(self.poisoned(with_infinite_slope, at=2))
        assert find_checkpoint(train.out).name == "00000002"
        family, _ = load_checkpoint(train.out)
        assert all(tensor.isfinite().all() for tensor in family.state_dict().values())


class TestInterrupt:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_is_heeded_once_and_the_handlers_are_put_back(self, train, number):
        before = signal.getsignal(number)
        pig = tiny_pig(steps=[4, 4], batch=2)
        loss = pig.loss

        def signalling(*inputs: Any) -> torch.Tensor:
            signal.raise_signal(number)
            assert signal.getsignal(number) == before
            return loss(*inputs)

        pig.loss = signalling
        with pytest.raises(Interrupted, match="stopped at step 1 of 8"):
            train(pig)
        assert signal.getsignal(number) == before
        assert find_checkpoint(train.out).name == "00000001"

    @pytest.mark.parametrize(
        ("steps", "step", "message"),
        [([1, 1], 2, "stopped after all 2 steps; they are saved"), ([1, 4], 3, "stopped at step 3 of 5; go on")],
        ids=["the last", "one in between, at a step that is not saved"],
    )
    def test_it_is_heeded_while_a_picture_is_drawn(self, train, monkeypatch, steps, step, message):
        monkeypatch.setattr("training.fit.LONG", 0)
        pig = tiny_pig(steps=steps, batch=2, default_steps=9)
        denoise, rows = pig.step, iter(range(99))

        def signalling(*inputs: Any) -> Any:
            if next(rows) == 2:
                signal.raise_signal(signal.SIGTERM)
            return denoise(*inputs)

        pig.step = signalling
        run = Run(train.out, {}, log_every=1, checkpoint_every=99, preview_every=3)
        with pytest.raises(Interrupted, match=message):
            fit(pig, Phantoms(4, SIZE), run)
        assert next(rows) == 3
        assert find_checkpoint(train.out).name == f"{step:08d}"
        assert not (train.out / "previews").exists()

    def test_a_last_picture_that_is_missing_is_drawn_when_the_run_goes_on(self, train):
        train()
        (drawn,) = (train.out / "previews").iterdir()
        content = drawn.read_bytes()
        drawn.rename(drawn.with_name(".writing.png"))  # as a kill leaves it
        train(resume=True)
        assert {file.name: file.read_bytes() for file in (train.out / "previews").iterdir()} == {drawn.name: content}

    def test_how_long_a_picture_takes_is_said_if_it_is_long(self, train, monkeypatch, capsys):
        train()
        assert "drawing" not in capsys.readouterr().out
        monkeypatch.setattr("training.fit.LONG", 0)
        train.out = train.out.with_name("slow")
        train()
        said = capsys.readouterr().out
        assert f"previews/00000002.png: {FIELDS['default_steps']} steps, about 1 min; Ctrl-C ends" in said


def test_a_pipe_gets_a_line_now_and_then_that_says_how_long_it_will_take(train, monkeypatch, capsys):
    train()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("serving.progress.SECONDS", 0)
    train.out = train.out.with_name("slow")
    train(steps=[2, 2])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"step 3 of 4, generator loss [\d.]+, 0:00:\d\d to go", lines[2])


class TestFolder:
    def test_a_second_run_in_it_is_refused_and_the_first_goes_on(self, train):
        pig = tiny_pig(steps=[1, 1], batch=2)
        loss = pig.loss

        def intruding(*inputs: Any) -> torch.Tensor:
            for resume in (False, True):
                with pytest.raises(
                    CheckpointError, match=r"run is the folder of a run that is under way|no checkpoint"
                ):
                    Fit(train.out)(resume=resume)
            return loss(*inputs)

        pig.loss = intruding
        assert train(pig).name == "00000002"
        assert not (train.out / ".lock").exists()

    @pytest.mark.parametrize("spoilt", [b"\0" * 4096, b"3,gener", b"3,generator,nought,1e-3,5.0\n4,x"])
    def test_a_log_that_a_crash_has_spoilt_is_named_and_mended(self, train, capsys, spoilt):
        train(steps=[1, 1])
        log = train.out / "log.csv"
        rows = learned(train.out)
        log.write_bytes(whole := log.read_bytes() + spoilt)
        fields = {"steps": [1, 3], "batch": 2}
        fit(tiny_pig(**fields), Phantoms(4, SIZE), Run(train.out, {}, log_every=1), resume=True)
        assert f"{log}: line 4 is damaged; the rows before it are kept" in capsys.readouterr().out
        assert learned(train.out)[:2] == rows
        assert [row["step"] for row in log_of(train.out)] == ["1", "2", "3", "4"]
        assert log.with_name("log.csv.damaged").read_bytes() == whole


class TestOrder:
    def batches(self, count: int, length: int = 7, **fields: int) -> list[list[int]]:
        given = {"batch": 3, "seed": 1, "step": 0, "rank": 0, "world": 1, **fields}
        return list(islice(Shuffled(length, **given), count))

    def test_an_epoch_holds_each_sample_once_in_an_order_of_its_own(self):
        drawn = [index for batch in self.batches(7) for index in batch]
        epochs = [drawn[:7], drawn[7:14], drawn[14:]]
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]

    def test_it_goes_on_where_it_was(self):
        assert self.batches(4, step=5) == self.batches(9)[5:]

    def test_processes_share_it_out(self):
        ranks = [self.batches(5, batch=2, rank=rank, world=2) for rank in range(2)]
        assert [a + b for a, b in zip(*ranks, strict=True)] == self.batches(5, batch=4)

    def test_a_batch_may_be_larger_than_the_data(self):
        (batch,) = self.batches(1, length=2, batch=5)
        assert sorted(batch[:2]) == sorted(batch[2:4]) == [0, 1]

    def test_the_seed_decides(self):
        assert self.batches(9) != self.batches(9, seed=2)

    def test_every_step_and_process_has_random_numbers_of_its_own(self):
        numbers = [(seed, step, rank) for seed in range(3) for step in range(100) for rank in range(4)]
        drawn = {torch.randint(2**62, (), generator=seeded(*each)).item() for each in numbers}
        assert len(drawn) == len(numbers)


class TestAccelerate:
    def test_two_processes_learn_together(self, tmp_path):
        out = tmp_path / "run"
        launch = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"),
            *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "training"),
        ]
        predicts = ["--set", 'schedule={"prediction": "epsilon"}']  # what is soonest learnt
        learning = [
            *predicts,
            "--set",
            "learning_rate=3e-3",
            "--steps",
            "30",
            "--log-every",
            "3",
            "--checkpoint-every",
            "99",
        ]
        finished = subprocess.run(
            [*launch, *command(out, *learning)[3:]], cwd=ROOT, env=ONE_CPU_PROCESS, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        assert len(re.findall("is ready", finished.stdout)) == 1
        rows = log_of(out)
        assert [int(row["step"]) for row in rows] == list(range(3, 61, 3))
        assert load_checkpoint(out)[1]["step"] == 60
        losses = [float(row["loss"]) for row in rows]
        for first, *_, second_last, last in (losses[:10], losses[10:]):
            assert first > 1.5 * (second_last + last) / 2
