import json
from pathlib import Path

import pytest

from training.data.listing import NAME, check_same_files, digest, list_files, write_listing
from training.data.problems import DataError


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    for number in range(8):
        file = folder / "images" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(number + 1))
    return folder


def listed(folder: Path) -> dict[str, list[int]]:
    return list_files(folder, folder.rglob("*.png"))


def test_the_digest_depends_on_names_sizes_and_times_alone(data):
    before = listed(data)
    assert before["images/2.png"][0] == 3
    assert digest(dict(reversed(before.items()))) == digest(before)
    assert digest({name.replace("2", "9"): entry for name, entry in before.items()}) != digest(before)
    (data / "images" / "2.png").touch()
    assert digest(listed(data)) != digest(before)


def test_the_same_files_pass(data, tmp_path):
    write_listing(tmp_path / "run", listed(data))
    check_same_files(tmp_path / "run", digest(listed(data)), listed(data))
    check_same_files(tmp_path / "run", None, {})  # of a run that kept none
    assert [file.name for file in (tmp_path / "run").iterdir()] == [NAME]


def test_what_changed_is_named(data, tmp_path):
    before = listed(data)
    write_listing(tmp_path / "run", before)
    (data / "images" / "0.png").unlink()
    (data / "images" / "new.png").touch()
    for number in range(1, 8):
        (data / "images" / f"{number}.png").write_bytes(b"another")
    with pytest.raises(DataError) as caught:
        check_same_files(tmp_path / "run", digest(before), listed(data))
    assert "but 1 gone: images/0.png; 1 new: images/new.png; 7 changed: images/1.png, images/2.png" in str(caught.value)
    assert "images/5.png and 2 more. Put them back, or begin a new run from these weights: --init" in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"a": [1, 1]})])
def test_a_listing_that_is_not_the_runs_own_is_not_believed(data, tmp_path, content):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / NAME).write_text(content)
    with pytest.raises(DataError, match=r"they are not the files that it was begun with \(data\.json, which"):
        check_same_files(tmp_path / "run", "another", listed(data))
