import errno
import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tiny import contents

from serving import folders
from serving.folders import Busy, locked, recover, replacing


@pytest.fixture(params=["exchange", "two renames"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that can exchange two folders, as this one, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    return request.param


def write(text: str, *places: Path) -> None:
    with replacing(*places) as new:
        for folder in new:
            (folder / "file").write_text(text)
            (folder / text).touch()


def held(*places: Path) -> list[str | None]:
    """What each place holds, which is whole."""
    found = []
    for place in places:
        text = (place / "file").read_text() if place.exists() else None
        assert text is None or contents(place).keys() == {"file", text}
        found.append(text)
    return found


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    return [tmp_path / "one" / "bundle", tmp_path / "two" / "bundle"]


def assert_nothing_else(*places: Path) -> None:
    for place in places:
        assert [file.name for file in place.parent.iterdir()] in ([place.name], [])


@pytest.mark.usefixtures("file_system")
class TestReplacing:
    def test_all_are_replaced_and_nothing_else_is_left(self, places):
        write("old", *places)
        write("new", *places)
        assert held(*places) == ["new", "new"]
        assert_nothing_else(*places)

    def test_an_error_inside_leaves_all_as_they_were(self, places):
        write("old", places[0])
        with pytest.raises(RuntimeError), replacing(*places) as new:  # noqa: PT012
            (new[1] / "file").write_text("new")
            raise RuntimeError
        assert held(*places) == ["old", None]
        assert_nothing_else(*places)

    @pytest.mark.parametrize("there", [True, False])
    def test_so_does_one_at_the_last_place(self, places, monkeypatch, there):
        if there:
            write("old", *places)
        forward = folders._forward

        def failing(place: Path, inode: int) -> None:
            if place == places[1]:
                raise OSError(errno.EACCES, "Permission denied")
            forward(place, inode)

        monkeypatch.setattr(folders, "_forward", failing)
        with pytest.raises(OSError, match="Permission denied"):
            write("new", *places)
        assert held(*places) == (["old", "old"] if there else [None, None])
        assert_nothing_else(*places)

    def test_what_a_kill_left_half_written_is_no_hindrance(self, places):
        left_over = places[0].with_name(".bundle.new")
        left_over.mkdir(parents=True)
        (left_over / "half").touch()
        write("new", *places)
        assert held(*places) == ["new", "new"]

    def test_another_process_is_waited_for_by_nobody(self, places):
        write("old", *places)
        with replacing(places[1]) as (new,):
            with pytest.raises(Busy, match=r"another process is at work in .*two"):
                write("new", *places)
            (new / "file").write_text("other")
            (new / "other").touch()
        assert held(*places) == ["old", "other"]


def killed_at(step: int, way: str, places: list[Path]) -> bool:
    """Replace them in a process that is killed before its given change of the disk; False if it got through."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL)
        return status != 0
    changes = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return counting

    for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    folders._exchanged = counted(folders._exchanged) if way == "exchange" else lambda *_: False
    try:
        write("new", *places)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_the_old_ones_or_the_new_ones(tmp_path, monkeypatch, way):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which may be slow
    outcomes = []
    for step in count(1):
        places = [tmp_path / f"{step}" / name / "bundle" for name in ("one", "two")]
        write("old", *places)
        killed = killed_at(step, way, places)
        if way == "exchange":
            assert None not in held(*places), "at no moment a place is empty"
        recover(places[step % 2])
        one, two = held(*places)
        assert one == two
        outcomes.append(one)
        write("newer", *places)
        assert_nothing_else(*places)
        if not killed:
            break
    assert outcomes == sorted(outcomes, reverse=True)
    assert len(outcomes) > 10
    assert {*outcomes} == {"old", "new"}


def test_a_file_is_held_by_one_at_a_time_and_gone_afterwards(tmp_path):
    file = tmp_path / ".lock"
    with locked(file):
        with pytest.raises(Busy, match=r"\.lock is locked"), locked(file):
            pass
        assert file.exists()
    assert not file.exists()
    with locked(file):
        pass


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("journal", ["", "{", "[]", '{"bundle": 12345}'])
@pytest.mark.parametrize("there", ["bundle", ".bundle.old", ".bundle.new", None])
def test_a_journal_that_was_lost_or_copied_from_elsewhere_does_no_harm(tmp_path, journal, there):
    """Of folders with other inodes; a repository may be copied while it is built."""
    place = tmp_path / "one" / "bundle"
    write("old", place)
    place.with_name(".bundle.journal").write_text(journal)
    if there:
        place.rename(place.with_name(there))
    else:
        shutil.rmtree(place)
    recover(place)
    if there == "bundle" or "12345" in journal:
        assert held(place) == ["old" if there else None]
        assert_nothing_else(place)
    write("new", place)
    assert held(place) == ["new"]
    assert_nothing_else(place)


def test_recovering_where_nothing_may_be_written_says_so(places, monkeypatch):
    write("old", *places)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def denied(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_forward", killed)
        patch.setattr(folders, "_back", killed)
        with pytest.raises(KeyboardInterrupt):
            write("new", *places)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "locked", denied)
        with pytest.raises(PermissionError):
            recover(places[0])
    recover(places[0])
    assert held(*places) == ["new", "new"]
