"""Folders that are replaced whole, one or several together, whatever ends the process that does it.

A new folder is written beside its place, as .NAME.new. When all are complete, a .NAME.journal beside each place says
which folders belong together: from then on ``recover`` can finish what a kill cut short, and before that nothing has
been touched. Where the file system can exchange two folders (Linux: ext4, XFS, Btrfs, tmpfs), no place is empty at any
moment either.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
PATIENCE = 10.0  # seconds; folders change places in milliseconds


class Busy(Exception):  # noqa: N818 - the name says it
    """Another process is at work in the same place; the message names it."""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Inside, this process alone holds the file, which is there no longer than it is held; a kill lets go of it.

    Raises Busy if another process holds it, OSError if it cannot be written.
    """
    while True:
        with file.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another process is at work in {file.parent}: {file.name} is locked") from None
            if _inode(file) != os.fstat(stream.fileno()).st_ino:  # who held it has just removed it
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def check_place(place: Path) -> None:
    """Raises OSError if no folder can be put there, Busy if another process is at it; leaves nothing behind."""
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        _make(place.parent)
        with locked(_beside(place, "lock")):
            longest = _beside(place, "journal.new")
            longest.touch()
            longest.unlink()
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def replacing(*places: Path, lasting: bool = True) -> Iterator[list[Path]]:
    """An empty folder for each place: all go there together if the block ends well, and vanish if it does not.

    lasting: a power cut afterwards takes nothing away; that costs a moment for each file.

    Raises Busy if another process is replacing one of them, OSError if one cannot be written; then all places are as
    they were.
    """
    for place in places:
        _make(place.parent)
        recover(place)
    with ExitStack() as locks:
        for place in places:
            locks.enter_context(locked(_beside(place, "lock")))
            if _beside(place, "journal").exists():
                raise Busy(f"another process was replacing {place} and has just been killed; try again")
        try:
            _clear(places)
            new = [_beside(place, "new") for place in places]
            for folder in new:
                folder.mkdir()
            yield new
            _put_in_place(places, lasting)
        finally:
            if not any(_beside(place, "journal").exists() for place in places):
                _clear(places)


def recover(place: Path) -> None:
    """Finish what a process that was killed had begun in this place: quick where there is nothing.

    Raises OSError if it cannot be finished here, Busy if another process has been at it for long.
    """
    journal = _beside(place, "journal")
    deadline = time.monotonic() + PATIENCE
    while journal.exists():
        try:
            _finish(journal)
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _finish(journal: Path) -> None:
    with ExitStack() as locks:
        try:
            inodes = {journal.parent / place: inode for place, inode in json.loads(journal.read_text()).items()}
        except FileNotFoundError:
            return  # somebody else has finished it
        except (ValueError, AttributeError):  # a file system lost it
            inodes = {}
            remove(journal)
        for place in inodes:
            locks.enter_context(locked(_beside(place, "lock")))
        if not journal.exists():
            return
        if all(_beside(place, "journal").exists() for place in inodes):  # if not, nothing is begun, or all is done
            for place, inode in inodes.items():
                _forward(place, inode)
        _forget([*inodes])
        _clear([*inodes])


def _put_in_place(places: Sequence[Path], lasting: bool) -> None:
    inodes = {}
    for place in places:
        new = _beside(place, "new")
        if lasting:
            _flush(new, *new.rglob("*"))
        inodes[place] = new.stat().st_ino
    try:
        for place in places:
            paths = {os.path.relpath(other, place.parent): inode for other, inode in inodes.items()}
            writing = _beside(place, "journal.new")
            writing.write_text(json.dumps(paths))
            _flush(writing)
            writing.replace(_beside(place, "journal"))
            _flush(place.parent)
        for place, inode in inodes.items():
            _forward(place, inode)
            _flush(place.parent)
    except BaseException:
        for place, inode in inodes.items():
            _back(place, inode)
        _forget(places)
        raise
    _forget(places)


def _forward(place: Path, inode: int) -> None:
    """The new folder, which has this inode, goes to its place, if it is not there yet.

    Folders that were copied from elsewhere have other inodes: then what is in its place stays, and is only put there
    if nothing is.
    """
    new, old = _beside(place, "new"), _beside(place, "old")
    if _inode(new) == inode and _is_there(place) and not _exchanged(new, place):
        place.rename(old)
    if not _is_there(place) and (whole := next(filter(_is_there, (new, old)), None)):
        whole.rename(place)


def _back(place: Path, inode: int) -> None:
    """The old folder is in its place again, if there was one."""
    new, old = _beside(place, "new"), _beside(place, "old")
    if _inode(place) == inode and not (_is_there(new) and _exchanged(new, place)):
        place.rename(new)
    if _is_there(old) and not _is_there(place):
        old.rename(place)


def _exchanged(one: Path, other: Path) -> bool:
    """Two folders change places at once; False, and nothing done, where the file system cannot do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _forget(places: Sequence[Path]) -> None:
    for place in places:
        _beside(place, "journal").unlink(missing_ok=True)


def _clear(places: Sequence[Path]) -> None:
    for place in places:
        for what in ("new", "old", "journal.new"):
            remove(_beside(place, what))


def remove(path: Path) -> None:
    """Whatever it is; nothing if it is not there or cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif _is_there(path):
        path.unlink(missing_ok=True)


def _flush(*paths: Path) -> None:
    """To the disk: of a folder, the names in it."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{what}")


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None
