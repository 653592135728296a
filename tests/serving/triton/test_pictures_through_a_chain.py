"""The chain `dmgan`, of real networks: pictures go through an inversion and a generator, here and in Triton."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from live import Live, running
from numpy.typing import NDArray
from PIL import Image
from tiny_families import SIZE, tiny_family

from export.chain import build_chain, find_chain
from export.options import Options
from serving.__main__ import main
from serving.client import LocalClient
from serving.picture_files import Pictures
from serving.sample_set import Samples
from training.checkpoint import load_checkpoint, save_checkpoint
from training.models.mganprior import NOTICE

CHAIN, STAGES = "dmgan", ("mganprior", "dmgan_image")
MAX_BATCH = 4
WAYS = ("grpc", "http")
NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the chain, whose second stage learnt through the first one's prior."""
    home = tmp_path_factory.mktemp("chain")
    prior, refined = tiny_family("pggan"), tiny_family("dmgan_image")
    prior.grown = 1.0
    save_checkpoint(home / "prior", prior, prior.state_dict(), {"preset_name": "small"})
    through = {"preset_name": "small", "learnt_through": load_checkpoint(home / "prior")[1]["digest"]}
    save_checkpoint(home / "refined", refined, refined.state_dict(), through)
    repository = home / "repository"
    chain = find_chain(repository, CHAIN)
    assert chain is not None
    assert tuple(stage.model for stage in chain.stages) == STAGES
    options = Options(max_batch=MAX_BATCH, chosen={"codes": 3, "default_steps": 6})
    build_chain(chain, [home / "prior", home / "refined"], repository, options)
    with running(repository) as live:
        yield live


@pytest.fixture(scope="module")
def given() -> NDArray[np.float32]:
    """Coarse pictures [6, 1, SIZE, SIZE] in -1 to 1, all different."""
    coarse = np.random.default_rng(5).uniform(-1, 1, (len(NAMES), 1, SIZE // 8, SIZE // 8))
    return np.kron(coarse, np.ones((8, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(given: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, (picture,) in zip(NAMES, given, strict=True):
        Image.fromarray(((picture + 1) / 2 * 255).astype(np.uint8)).save(folder / name)
    return folder


def assert_same(samples: Samples, others: Samples) -> None:
    assert list(samples.arrays) == list(others.arrays) == ["image", "reconstruction", "psnr", "result"]
    assert samples.given == others.given == ("image",)
    assert samples.outputs == others.outputs
    assert samples.provenance == others.provenance
    for name, values in samples.arrays.items():
        assert values.dtype == others.arrays[name].dtype
        np.testing.assert_array_equal(values.view(np.uint8), others.arrays[name].view(np.uint8), name)


def test_all_ways_to_sample_write_the_same_files(served: Live, folder: Path, tmp_path: Path) -> None:
    asked = ["sample", "--model", CHAIN, "--condition", folder, "--seed", 7, "--steps", 9, "--solver", "heavy_ball"]
    ways = {
        "local": ["--local", "--repository", served.repository],
        "grpc": ["--url", served.url("grpc")],
        "http": ["--protocol", "http", "--url", served.url("http")],
    }
    written: dict[str, dict[Path, bytes]] = {}
    for way, where in ways.items():
        result = CliRunner().invoke(main, [str(word) for word in [*asked, *where, "--out", tmp_path / way]])
        assert result.exit_code == 0, result.output
        files = (file for file in (tmp_path / way).rglob("*") if file.is_file())
        written[way] = {file.relative_to(tmp_path / way): file.read_bytes() for file in files}
    assert written["local"].keys() == written["grpc"].keys() == written["http"].keys()
    for file, content in written["local"].items():
        assert written["grpc"][file] == written["http"][file] == content, file
    with np.load(tmp_path / "grpc" / "pairs.npz") as pairs:
        read = np.stack([np.asarray(Image.open(folder / name)) for name in NAMES])
        np.testing.assert_array_equal(np.rint((pairs["image"][:, 0] + 1) / 2 * 255), read)
        sent = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pairs["image"]]
        between = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pairs["reconstruction"]]
    record = json.loads((tmp_path / "grpc" / "provenance.json").read_text())
    for row, (facts, name) in enumerate(zip(record["samples"], NAMES, strict=True)):
        assert (facts["seed"], facts["condition_file"]) == (7 + row, name)
        found, refined = facts["stages"]
        assert (found["model"], refined["model"]) == STAGES
        assert (found["solver"], found["steps"]) == ("heavy_ball", 9)
        assert "steps" not in refined or refined["steps"] == 0
        assert (found["condition_sha256"], refined["condition_sha256"]) == (sent[row], between[row])
        assert found["notices"] == refined["notices"] == [NOTICE]


def test_a_sample_is_the_same_whoever_shares_its_batch(served: Live, given: NDArray[np.float32]) -> None:
    dice = np.random.default_rng(11)

    def question() -> tuple[list[int], list[int], dict[str, Any]]:
        rows = int(dice.integers(1, 2 * MAX_BATCH))
        how = {"steps": int(dice.choice([1, 3, 8])), "solver": str(dice.choice(["heavy_ball", "gd"]))}
        return dice.integers(0, 4, rows).tolist(), dice.integers(0, len(NAMES), rows).tolist(), how

    asked = [question() for _ in range(24)]

    def pictures(chosen: list[int]) -> Pictures:
        return Pictures(given[chosen], tuple(NAMES[number] for number in chosen))

    def ask(number: int) -> Samples:
        seeds, chosen, how = asked[number]
        with served.client(WAYS[number % 2]) as client:
            return client.sample(CHAIN, seeds=seeds, condition=pictures(chosen), **how)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(ask, range(len(asked))))
    local = LocalClient(served.repository)
    for (seeds, chosen, how), samples in zip(asked, answers, strict=True):
        assert_same(samples, local.sample(CHAIN, seeds=seeds, condition=pictures(chosen), **how))
        np.testing.assert_array_equal(samples.arrays["image"], given[chosen])
    one, other_seed, other_picture = (
        local.sample(CHAIN, seeds=[seed], condition=pictures([number])).arrays["result"]
        for seed, number in ((1, 0), (2, 0), (1, 1))
    )
    assert not np.array_equal(one, other_seed)
    assert not np.array_equal(one, other_picture)
