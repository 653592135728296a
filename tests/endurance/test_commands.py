"""Builder, trainer and client, killed at random moments: nothing is half-written, and each goes on or begins again.

Seconds in CI. MEDGEN_ENDURANCE=long kills each 100 times, or as often as six minutes allow, and prints its figures:

    MEDGEN_ENDURANCE=long python -m pytest tests/endurance/test_commands.py -s
"""

import json
import random
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from endurance import LONG, repetitions
from live import Live
from PIL import Image
from tiny import contents
from tiny_pig import SET_OPTIONS
from warm import Commands

from serving.bundle import bundle_folder, load_bundle
from serving.client import LocalClient
from serving.folders import recover
from serving.writers.sample_folder import PROVENANCE
from training.checkpoint import load_checkpoint
from training.fit import load_training_state

KILLS = 100 if LONG else 4
FIT = ["fit", "--model", "pig", "--data", "phantom", *SET_OPTIONS, "--steps", 4, "--batch", 2, "--seed", 5]
FIT += ["--log-every", 1, "--checkpoint-every", 1]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        commands = Commands(tmp_path_factory.mktemp("commands") / "log")
        commands.run("export", "--help")  # all is imported
    return commands


@pytest.fixture(scope="module")
def trained(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbed, and how many seconds it took."""
    out, began = tmp_path_factory.mktemp("trained") / "run", time.monotonic()
    commands.run("training", *FIT, "--out", out)
    return out, time.monotonic() - began


def kill(process: BaseProcess, seconds: float, journal: Path | None = None) -> bool:
    """So many seconds after it has begun, or has written a journal; False if it had ended before."""
    while journal is not None and not journal.exists() and process.is_alive():
        time.sleep(0.0002)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9)
    return process.exitcode != 0


def moment(dice: random.Random, seconds: float, place: Path) -> tuple[float, Path | None]:
    """Any of its life, or, as often, one in which what it has made is about to go to its place."""
    if dice.random() < 0.5:
        return dice.uniform(0, seconds), None
    return dice.uniform(0, 0.004), place.with_name(f".{place.name}.journal")


def test_a_builder_leaves_the_old_bundle_or_the_new_one(
    commands: Commands, trained: tuple[Path, float], tmp_path: Path
) -> None:
    dice, outcomes = random.Random("builder"), Counter[str]()
    repository, graphs = tmp_path / "repository", tmp_path / "graphs"
    bundle = bundle_folder(repository, "pig")
    build = ["build", "--model", "pig", "--target", "onnx", "--checkpoint", trained[0], "--repository", repository]
    build += ["--max-batch"]
    commands.run("export", *build, 1)
    bundle.rename(graphs)
    began = time.monotonic()
    commands.run("export", *build, 2, graphs=graphs)
    seconds = time.monotonic() - began
    before = 2
    for number in repetitions(KILLS):
        builder = commands.start("export", *build, 3 + number, graphs=graphs)
        was_killed = kill(builder, *moment(dice, seconds, bundle))
        after = load_bundle(bundle).manifest.max_batch
        assert after in (before, 3 + number)
        assert was_killed or after == 3 + number
        left = {file.name for file in bundle.parent.iterdir()}
        assert left <= {"bundle", "model.py", ".bundle.new", ".bundle.lock"}
        outcomes["not killed" if not was_killed else "old" if after == before else "new"] += 1
        before = after
    commands.run("export", *build, 2, graphs=graphs)
    assert load_bundle(bundle).manifest.max_batch == 2
    assert {file.name for file in bundle.parent.iterdir()} == {"bundle", "model.py"}
    print(f"{outcomes.total()} builders, each with a kill within {seconds:.1f} s or at the end: {dict(outcomes)}")


def test_a_trainer_goes_on_to_the_same_bits(commands: Commands, trained: tuple[Path, float], tmp_path: Path) -> None:
    dice, outcomes = random.Random("trainer"), Counter[str]()
    undisturbed, seconds = trained
    expected = contents(undisturbed)
    runs = 0

    def check_end(out: Path) -> None:
        assert contents(out).keys() == expected.keys()
        logs = [
            [line.rpartition(",")[0] for line in (run / "log.csv").read_text().splitlines()]
            for run in (out, undisturbed)
        ]
        assert logs[0] == logs[1]
        for file, content in contents(out).items():
            assert content == expected[file] or file.endswith(("log.csv", "training.pt")), file

    out, resume = tmp_path / "0", []
    for _ in repetitions(KILLS):
        was_killed = kill(commands.start("training", *FIT, "--out", out, *resume), dice.uniform(0, seconds))
        found = sorted(out.glob("checkpoints/[0-9]*"))
        for folder in found:
            assert load_training_state(folder)["step"] == load_checkpoint(folder)[1]["step"] == int(folder.name)
        outcomes[f"at checkpoint {int(found[-1].name) if found else 0}" if was_killed else "not killed"] += 1
        resume = ["--resume"] if found else []
        if not was_killed:
            check_end(out)
            runs += 1
            out, resume = tmp_path / f"{runs}", []
    commands.run("training", *FIT, "--out", out, *resume)
    check_end(out)
    print(f"{outcomes.total()} trainers, each with a kill within {seconds:.1f} s, of {runs + 1} runs: {dict(outcomes)}")


def check_samples(folder: Path) -> int:
    """How many a folder holds, which are whole."""
    record = json.loads((folder / PROVENANCE).read_text())
    with np.load(folder / "pairs.npz") as pairs:
        assert [sample["seed"] for sample in record["samples"]] == pairs["seed"].tolist()
    for name in record["files"]:
        for kind in ("masks", "images", "overlays"):
            with Image.open(folder / kind / f"{name}.png") as picture:
                picture.load()
    return len(record["files"])


def test_a_client_leaves_the_old_samples_or_the_new_ones(commands: Commands, live: Live, tmp_path: Path) -> None:
    dice, outcomes = random.Random("client"), Counter[str]()
    group, out = live.tritonserver(), tmp_path / "samples"
    sample = ["sample", "--model", "tiny", "--url", live.url("grpc"), "--out", out, "--force", "--count"]
    commands.run("serving", *sample, 20)
    began = time.monotonic()
    commands.run("serving", *sample, 20)
    seconds = time.monotonic() - began
    before = 20
    for number in repetitions(KILLS):
        count = 21 + number % 20
        client = commands.start("serving", *sample, count)
        was_killed = kill(client, *moment(dice, seconds, out))
        recover(out)
        after = check_samples(out)
        assert after in (before, count)
        assert was_killed or after == count
        outcomes["not killed" if not was_killed else "old" if after == before else "new"] += 1
        before = after
    commands.run("serving", *sample, 20)
    assert check_samples(out) == 20
    assert [file.name for file in tmp_path.iterdir()] == ["samples"]
    assert live.tritonserver() == group, live.said()
    with live.client("grpc") as client:
        expected = LocalClient(live.repository).sample("tiny", 2, seed=7).arrays["image"]
        np.testing.assert_array_equal(client.sample("tiny", 2, seed=7).arrays["image"], expected)
    print(f"{outcomes.total()} clients, each with a kill within {seconds:.1f} s or at the end: {dict(outcomes)}")
