"""Bundles in object storage. What fsspec keeps in memory, or on a disk, stands for buckets."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result
from tiny import write_tiny_bundle

from serving.__main__ import main
from serving.bundle import MANIFEST, SUMS, BundleError, bundle_folder, load_bundle, seal
from serving.folders import PATIENCE, locked, replacing
from serving.repository import prepare_repository
from serving.store import StoreError, complete_chains, pull, push


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed")
    write_tiny_bundle(bundle_folder(folder, "pig"), model="pig")
    return folder


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}/bundles"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def stored(address: str) -> dict[str, bytes]:
    system = fsspec.filesystem("memory")
    return {path: system.cat_file(path) for path in system.find(address)}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_is_pulled_is_what_was_pushed(repository: Path, tmp_path: Path) -> None:
    pushed = run("push", "pig", f"file://{tmp_path}/bucket/", "--repository", repository)
    assert pushed.exit_code == 0, pushed.output
    address = pushed.output.strip()
    digest = load_bundle(bundle_folder(repository, "pig")).digest
    assert address == f"file://{tmp_path}/bucket/pig/{digest}"
    pulled = run("pull", address, "--repository", tmp_path / "models")
    assert pulled.exit_code == 0, pulled.output
    assert digest in pulled.output
    assert contents(bundle_folder(tmp_path / "models", "pig")) == contents(bundle_folder(repository, "pig"))
    assert {"pig/config.pbtxt", "pig/1/model.py"} <= contents(tmp_path / "models").keys()


def test_a_changed_byte_of_any_file_is_refused(repository: Path, bucket: str, tmp_path: Path) -> None:
    address = push(repository, "pig", bucket)
    here = bundle_folder(tmp_path, "pig")
    write_tiny_bundle(here, model="pig", max_batch=4)
    before = contents(here)
    system = fsspec.filesystem("memory")
    names = contents(bundle_folder(repository, "pig"))
    assert len(names) > 3
    for name, content in names.items():
        for wrong in (bytes([content[0] ^ 1]) + content[1:], content[:-1]):
            system.pipe_file(f"{address}/{name}", wrong)
            with pytest.raises(
                (StoreError, BundleError),
                match="SHA256SUMS|not the file" if name == SUMS else f"{address}.*{name} is not the",
            ):
                pull(address, tmp_path)
        system.rm_file(f"{address}/{name}")
        with pytest.raises((StoreError, BundleError), match=name):
            pull(address, tmp_path)
        assert contents(here) == before
        system.pipe_file(f"{address}/{name}", content)
    pull(address, tmp_path)
    assert contents(here) == names
    assert not list(here.parent.glob(".bundle*"))


def test_another_bundle_under_the_digest_is_refused(repository: Path, bucket: str, tmp_path: Path) -> None:
    address = push(repository, "pig", bucket)
    other = write_tiny_bundle(bundle_folder(tmp_path / "other", "pig"), model="pig", max_batch=4)
    system = fsspec.filesystem("memory")
    for name, content in contents(other).items():
        system.pipe_file(f"{address}/{name}", content)
    with pytest.raises(StoreError, match=rf"{MANIFEST} is not the one that was pushed"):
        pull(address, tmp_path / "models")


def test_a_file_outside_the_bundle_is_not_written(repository: Path, bucket: str, tmp_path: Path) -> None:
    address = push(repository, "pig", bucket)
    system = fsspec.filesystem("memory")
    sums = system.cat_file(f"{address}/{SUMS}")
    for name in ("..", ".", "../x", "/x"):
        system.pipe_file(f"{address}/{SUMS}", sums + f"{'0' * 64}  {name}\n".encode())
        with pytest.raises((StoreError, BundleError)):
            pull(address, tmp_path)
    assert not (bundle_folder(tmp_path, "pig").parent / "x").exists()


def test_a_push_that_was_cut_short_is_no_bundle_until_it_is_done_again(
    repository: Path, bucket: str, tmp_path: Path
) -> None:
    address = push(repository, "pig", bucket)
    system = fsspec.filesystem("memory")
    sums = system.cat_file(f"{address}/{SUMS}")
    for left in (None, sums[:70]):
        system.rm_file(f"{address}/{SUMS}")
        if left:
            system.pipe_file(f"{address}/{SUMS}", left)
        system.pipe_file(f"{address}/step.onnx", b"half")
        with pytest.raises((StoreError, BundleError), match=SUMS):
            pull(address, tmp_path)
        assert push(repository, "pig", bucket) == address
        pull(address, tmp_path)


def test_a_good_one_is_not_touched_by_a_second_push(repository: Path, tmp_path: Path) -> None:
    address = push(repository, "pig", f"file://{tmp_path}/bucket")
    folder = Path(address.removeprefix("file://"))
    (folder / "step.onnx").write_bytes(b"half")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert push(repository, "pig", f"file://{tmp_path}/bucket") == address
    assert {name for name, time in before.items() if (folder / name).stat().st_mtime_ns != time} == {"step.onnx"}
    assert contents(folder) == contents(bundle_folder(repository, "pig"))


def test_other_papers_of_the_same_engines_are_kept(repository: Path, bucket: str, tmp_path: Path) -> None:
    address = push(repository, "pig", bucket)
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    (bundle_folder(tmp_path, "pig") / "README.md").write_text("Mine.\n")
    seal(bundle_folder(tmp_path, "pig"))
    before = stored(address)
    with pytest.raises(StoreError, match="it is kept"):
        push(tmp_path, "pig", bucket)
    assert stored(address) == before


def test_a_damaged_bundle_is_not_pushed(repository: Path, bucket: str, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    with (bundle_folder(tmp_path, "pig") / "step.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="is not the file that was built"):
        push(tmp_path, "pig", bucket)
    assert not fsspec.filesystem("memory").exists(bucket)


def test_a_chain_comes_with_its_last_stage(repository: Path, tmp_path: Path) -> None:
    for stage in ("cmr_mask", "cmr_flow_image"):
        assert complete_chains(tmp_path, stage) == []
        write_tiny_bundle(bundle_folder(tmp_path, stage), model=stage)
    assert complete_chains(tmp_path, "cmr_flow_image") == ["cmr_flow"]
    with pytest.raises(StoreError, match="cmr_flow is a chain: push cmr_mask, cmr_flow_image"):
        push(tmp_path, "cmr_flow", "memory://nowhere")


def test_who_adds_a_chain_waits_for_another_who_does(tmp_path: Path) -> None:
    for stage in ("cmr_mask", "cmr_flow_image"):
        write_tiny_bundle(bundle_folder(tmp_path, stage), model=stage)
    with ThreadPoolExecutor(1) as thread:
        with locked(tmp_path / ".cmr_flow.lock"):
            added = thread.submit(complete_chains, tmp_path, "cmr_mask")
            with pytest.raises(TimeoutError):
                added.result(0.2)
        assert added.result(PATIENCE) == ["cmr_flow"]


def test_a_folder_that_another_makes_meanwhile_keeps_what_is_in_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def slow(place: Path) -> Iterator[list[Path]]:
        shutil.copytree(repository / "pig", place)
        with replacing(place) as new:
            yield new

    monkeypatch.setattr("serving.repository.replacing", slow)
    prepare_repository(tmp_path, "pig")
    assert contents(bundle_folder(tmp_path, "pig")) == contents(bundle_folder(repository, "pig"))


def test_a_store_that_does_not_answer_is_not_said_to_be_empty(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fails)
    with pytest.raises(StoreError, match="ConnectionError: no route to host"):
        pull(f"{bucket}/pig/{'0' * 64}", tmp_path)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://bucket/pig", "does not end in /MODEL/DIGEST"),
        (f"memory://bucket/pig/{'A' * 64}", "does not end in /MODEL/DIGEST"),
        (f"memory://bucket/../{'0' * 64}", "does not end in /MODEL/DIGEST"),
        (f"memory://bucket/pig/{'0' * 64}", "holds no bundle"),
        (f"nonsense://bucket/pig/{'0' * 64}", "Protocol not known: nonsense"),
        pytest.param(
            f"s3://bucket/pig/{'0' * 64}",
            "Install s3fs",
            marks=pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed, and would ask"),
        ),
    ],
)
def test_what_is_wrong_with_an_address_is_said(tmp_path: Path, address: str, said: str) -> None:
    refused = run("pull", address, "--repository", tmp_path)
    assert refused.exit_code == 1
    assert said in refused.output
    assert "Traceback" not in refused.output
    assert not list(tmp_path.iterdir())
