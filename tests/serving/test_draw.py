"""`draw`: sets of samples that many processes fill, whatever ends them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from live import CHECKOUT, MASK, PATIENCE, Live, add_chains, add_model, eventually, replace_bundle
from tiny import contents

from serving.__main__ import main
from serving.client import LocalClient
from serving.draw import fill
from serving.drawn_set import DrawnSet, Plan, SetError, check_set, common
from serving.writers.layouts import LAYOUTS, make_layout

PLAN = Plan("tiny", 7, 10, 4, {"steps": 2}, None, {"name": "npz"})
ASKED = ["--model", "tiny", "--count", 10, "--seed", 7, "--per-file", 4, "--steps", 2]


class Killed(BaseException):
    """As nothing but a kill ends a process: nobody catches it."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    add_model(folder, "tiny")
    add_model(folder, "other")
    add_chains(folder)
    return folder


@pytest.fixture(scope="module")
def whole(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of PLAN, drawn by one process at once."""
    folder = tmp_path_factory.mktemp("sets") / "whole"
    assert drawn(repository, folder) == (10, 0)
    return folder


def drawn(repository: Path, folder: Path, parts: range = range(3), plan: Plan = PLAN) -> tuple[int, int]:
    drawn_set = DrawnSet(folder, plan, make_layout(plan.layout["name"]))
    with LocalClient(repository) as client:
        return fill(client, drawn_set, parts, None, lambda *_: None)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["draw", *map(str, arguments)])


def test_a_set_holds_what_its_seeds_give(repository: Path, whole: Path) -> None:
    with LocalClient(repository) as client:
        samples = client.sample("tiny", 10, seed=7, steps=2)
    files = [whole / f"part-{part:06d}.npz" for part in range(3)]
    for name in ("mask", "image"):
        np.testing.assert_array_equal(np.concatenate([np.load(file)[name] for file in files]), samples.arrays[name])
    assert [np.load(file)["seed"].tolist() for file in files] == [[7, 8, 9, 10], [11, 12, 13, 14], [15, 16]]
    record = json.loads((whole / "parts" / "000002.json").read_text())
    assert record["samples"] == samples.provenance[8:]
    assert sorted(contents(whole)) == [
        "index.json",
        *(f.name for f in files),
        *(f"parts/00000{k}.json" for k in range(3)),
    ]


def test_no_more_than_a_part_is_in_memory(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    sample = LocalClient.sample

    def noted(self: LocalClient, model: str, **how: Any) -> Any:
        asked.append(len(how["seeds"]))
        return sample(self, model, **how)

    monkeypatch.setattr(LocalClient, "sample", noted)
    drawn(repository, tmp_path / "set")
    assert asked == [1, 4, 4, 2], "one sample says what is drawn, then come the parts"


def test_shards_are_the_whole(repository: Path, whole: Path, tmp_path: Path) -> None:
    for number in (1, 0):
        result = command(
            *ASKED, "--local", "--repository", repository, "--shard", f"{number}/2", "--out", tmp_path / "set"
        )
        assert f"shard {number} of 2 (--shard): " in result.output
    assert contents(tmp_path / "set") == contents(whole) | {
        "index.json": (tmp_path / "set" / "index.json").read_bytes()
    }
    assert check_set(tmp_path / "set").digest == check_set(whole).digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kill_at_any_moment_leaves_what_is_drawn_again_alike(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Before each of the moments in which something is made to last or to be seen."""
    plan = replace(PLAN, count=2, per_file=1, layout={"name": layout})
    drawn(repository, tmp_path / "whole", range(2), plan)
    expected, folder = contents(tmp_path / "whole"), tmp_path / "set"
    moments = 0
    while True:
        left = [moments]

        def killed_later(*paths: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr("serving.drawn_set._flush", killed_later)
            patch.setattr("serving.drawn_set.shutil.rmtree", lambda *_, **__: None)  # nobody clears up after a kill
            try:
                drawn(repository, folder, range(2), plan)
                break
            except Killed:
                moments += 5 if layout == "dicom" else 1
        drawn(repository, folder, range(2), plan)
        found = {name: content for name, content in contents(folder).items() if not name.startswith(".drafts/")}
        assert found == expected
        assert not check_set(folder).problems
        shutil.rmtree(folder)
    assert moments >= 6


def test_kill_9_and_the_same_command_again(repository: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    asked = [*ASKED, "--local", "--repository", repository, "--out", folder]
    process = subprocess.Popen([sys.executable, "-m", "serving", "draw", *map(str, asked)], cwd=CHECKOUT)
    eventually((folder / "parts" / "000000.json").exists, "a part is there", PATIENCE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = command(*asked)
    assert result.exit_code == 0, result.output
    assert check_set(folder).digest == check_set(whole).digest


def test_what_is_there_is_not_drawn_again(repository: Path, tmp_path: Path) -> None:
    drawn(repository, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("part*") if path.is_file()}
    assert drawn(repository, tmp_path / "set") == (0, 10)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("spoilt", ["part-000001.npz", "parts/000001.json"])
@pytest.mark.parametrize("content", [None, b""])
def test_what_a_power_cut_took_is_found_and_drawn_again(
    repository: Path, whole: Path, tmp_path: Path, spoilt: str, content: bytes | None
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    (folder / spoilt).unlink()
    if content is not None:
        (folder / spoilt).write_bytes(content)
    assert check_set(folder).problems
    assert drawn(repository, folder) == (4, 6)
    assert contents(folder) == contents(whole)


def test_check_names_what_is_wrong(whole: Path, tmp_path: Path) -> None:
    assert "10 samples in 3 parts are as they were drawn\nsha256 of all: " in command("--check", whole).output
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    (folder / "part-000009.npz").write_bytes(b"")
    result = command("--check", folder)
    assert result.exit_code == 1
    assert f"{folder / 'part-000009.npz'} is not of the set" in result.output
    changed = bytearray((folder / "part-000001.npz").read_bytes())
    changed[500] ^= 1
    (folder / "part-000001.npz").write_bytes(changed)
    (folder / "parts" / "000002.json").unlink()
    said = command("--check", folder).output
    assert "4 samples in 1 parts are as they were drawn" in said
    assert f"{folder / 'part-000001.npz'} is not the file that was drawn" in said
    assert "part 2 is not there" in said
    assert "sha256 of all" not in said
    assert "has no index.json: it is no set of samples" in command("--check", tmp_path).output


def test_check_reads_what_the_index_says(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "set"))
    index = json.loads((folder / "index.json").read_text())

    def said(**changed: object) -> str:
        (folder / "index.json").write_text(json.dumps({**index, **changed}))
        return command("--check", folder).output

    assert "as they were drawn\nsha256 of all" in said()
    other = {**index["drawn_by"], "bundle": "0" * 64}
    assert f"{folder / 'parts' / '000000.json'} was not drawn by what index.json says" in said(drawn_by=other)
    assert f"{folder / 'dataset.json'} is missing: the same draw writes it" in said(set_files=["dataset.json"])
    assert f"{folder / 'index.json'} is damaged: " in said(plan={"model": "tiny"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", 3], r"its asked is {'steps': 2}, not {'steps': 3}"),
        (["--solver", "ddim"], r"its asked is {'steps': 2}, not"),
        (["--count", 11], "its count is 10, not 11"),
        (["--seed", 8], "its seed is 7, not 8"),
        (["--per-file", 5], "its per_file is 4, not 5"),
        (["--layout", "png"], r"its layout is {'name': 'npz'}, not {'name': 'png'}"),
        (["--model", "other"], "its model is 'tiny', not 'other'"),
    ],
)
def test_other_options_are_refused(repository: Path, whole: Path, options: list[object], said: str) -> None:
    before = contents(whole)
    result = command(*ASKED, *options, "--local", "--repository", repository, "--out", whole)
    assert result.exit_code == 1
    assert f"{whole} was begun with other options: {said}" in result.output
    assert contents(whole) == before


def test_another_bundle_is_refused(tmp_path: Path) -> None:
    add_model(tmp_path / "models", "tiny")
    drawn(tmp_path / "models", tmp_path / "set", range(1))
    replace_bundle(tmp_path / "models", "tiny", max_batch=3)
    with pytest.raises(SetError, match=r"set was drawn by \{'bundle': .*, and what draws now is \{"):
        drawn(tmp_path / "models", tmp_path / "set")
    assert len([*(tmp_path / "set").glob("part-*")]) == 1


def test_a_folder_of_something_else_is_left_alone(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("...")
    result = command(*ASKED, "--local", "--repository", repository, "--out", tmp_path)
    assert f"{tmp_path} holds thesis.txt, and no index.json: choose another folder" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_who_draw_one_part_write_it_once_and_alike(repository: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    drawn(repository, folder, range(0))
    with LocalClient(repository) as client:
        samples = client.sample("tiny", seeds=PLAN.seeds(0), steps=2)
    sets = [DrawnSet(folder, PLAN, make_layout("npz")) for _ in range(2)]
    for one in sets:
        assert one.open()
        one.add(0, samples)
    samples.arrays["image"][0] += 1
    with pytest.raises(SetError, match=r"part 0 of .* was drawn twice at the same time, and not alike"):
        sets[1].add(0, samples)
    assert (folder / "part-000000.npz").read_bytes() == (whole / "part-000000.npz").read_bytes()


@pytest.mark.parametrize("name", ["npz", "webdataset"])
def test_one_whose_draft_is_cleared_away_finds_the_part_of_who_was_first(
    repository: Path, tmp_path: Path, name: str
) -> None:
    plan = replace(PLAN, layout={"name": name})
    drawn(repository, tmp_path / "set", range(0), plan)
    with LocalClient(repository) as client:
        samples = client.sample("tiny", seeds=PLAN.seeds(0), steps=2)
    first, second = (DrawnSet(tmp_path / "set", plan, make_layout(name)) for _ in range(2))
    assert first.open()
    assert second.open()
    layout = second._layout
    write = layout.write

    def while_another_is_done(*given: Any) -> None:
        write(*given)
        first.add(0, samples)

    layout.write = while_another_is_done  # type: ignore[method-assign]  # of this one alone
    second.add(0, samples)
    assert first.has(0)
    assert not (tmp_path / "set" / ".drafts").exists()


def test_a_part_that_is_put_there_while_another_process_looks_stays(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(repository, tmp_path / "set", range(0))
    drawn_set = DrawnSet(tmp_path / "set", PLAN, make_layout("npz"))
    assert drawn_set.open()

    def too_early(record: Path) -> dict[str, Any]:
        monkeypatch.undo()
        drawn(repository, tmp_path / "set", range(1))
        raise FileNotFoundError(record)

    monkeypatch.setattr("serving.drawn_set.read_record", too_early)
    assert not drawn_set.has(0)
    assert drawn_set.has(0)


def test_a_chain_and_masks_of_others(repository: Path, tmp_path: Path) -> None:
    chain = ["--model", "cmr_flow", "--count", 5, "--per-file", 2, "--local", "--repository", repository]
    assert command(*chain, "--out", tmp_path / "chain").exit_code == 0
    sampled = ["sample", "--model", "cmr_flow", "--count", 5, "--local", "--repository", repository]
    assert CliRunner().invoke(main, [*map(str, sampled), "--out", str(tmp_path / "samples")]).exit_code == 0
    masks = tmp_path / "samples" / "pairs.npz"
    again = ["--model", "cmr_flow_image", "--per-file", 2, "--local", "--repository", repository]
    assert command(*again, "--condition", masks, "--out", tmp_path / "again").exit_code == 0
    for part in range(3):
        one, other = (np.load(tmp_path / name / f"part-{part:06d}.npz") for name in ("chain", "again"))
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["mask"], other["mask"])
    np.save(tmp_path / "others.npy", np.zeros((5, *MASK.shape), np.uint8))
    other = command(*again, "--condition", tmp_path / "others.npy", "--out", tmp_path / "again").output
    assert "its condition is '" in other


def test_a_server_draws_the_same(live: Live, whole: Path, tmp_path: Path) -> None:
    result = command(*ASKED, "--url", live.url("grpc"), "--out", tmp_path / "set")
    assert result.exit_code == 0, result.output
    assert check_set(tmp_path / "set").digest == check_set(whole).digest


def test_what_is_not_of_a_set_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "set")
    (tmp_path / "set" / "notes").mkdir()
    (tmp_path / "set" / "notes" / "mine.txt").write_text("...")
    assert check_set(tmp_path / "set").problems == (f"{tmp_path / 'set' / 'notes' / 'mine.txt'} is not of the set",)
    part = tmp_path / "set" / "part-000001.npz"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    (problem,) = check_set(tmp_path / "set").problems
    assert problem == f"{part} is not the file that was drawn: remove it, and the same draw makes it again"


def test_slurm_says_which_shard(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ID": 1, "MIN": 0, "MAX": 2, "COUNT": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    result = command(*ASKED, "--local", "--repository", repository, "--out", tmp_path / "set")
    assert "shard 1 of 3 (SLURM_ARRAY_TASK_ID): 1 of 3 parts\n" in result.output
    assert [path.name for path in (tmp_path / "set").glob("part-*")] == ["part-000001.npz"]
    assert os.listdir(tmp_path / "set" / "parts") == ["000001.json"]


def test_what_is_a_samples_own_is_not_what_drew_it() -> None:
    drew = {"model": "found", "bundle": "b", "steps": 4}
    own = [
        {"seed": k, "condition_sha256": str(k), "condition_file": f"{k}.png", "numbers": {"psnr": k}} for k in (1, 2)
    ]
    assert common([{**drew, **each} for each in own]) == drew
    assert common([{"model": "chain", "seed": k, "stages": [{**drew, **own[k - 1]}]} for k in (1, 2)]) == {
        "model": "chain",
        "stages": [drew],
    }
    with pytest.raises(SetError, match="others with them by"):
        common([drew, {**drew, "steps": 5}])
