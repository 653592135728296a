"""Which files a data set was read from, so that a run that goes on can tell whether they are the same."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.data.problems import DataError, some

NAME = "data.json"  # in a run folder
Listing = Mapping[str, list[int]]  # a file's path in the data set -> its size in bytes, its time of change in ns


def list_files(folder: Path, paths: Iterable[Path]) -> dict[str, list[int]]:
    """The files' names, sizes and times as they are now."""
    found = {path: path.stat() for path in sorted(set(paths))}
    return {path.relative_to(folder).as_posix(): [stat.st_size, stat.st_mtime_ns] for path, stat in found.items()}


def digest(files: Listing) -> str:
    """The sha256 of a listing, whatever the order of its files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write_listing(run: Path, files: Listing) -> None:
    """Keep a listing in a run folder."""
    run.mkdir(parents=True, exist_ok=True)
    aside = run / f".{NAME}.writing"
    aside.write_text(json.dumps(files, indent=0) + "\n")
    aside.replace(run / NAME)


def check_same_files(run: Path, then: str | None, now: Listing) -> None:
    """Compare what a run was begun with to what is there now.

    Args:
        run: the run folder.
        then: the digest that the run's checkpoint has; None of a run that kept none, which passes.
        now: what is there.

    Raises:
        DataError: files are gone, new, or of another size or time; the message says which.
    """
    if then is None or then == digest(now):
        return
    try:
        before = json.loads((run / NAME).read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict) or digest(before) != then:
        what = f"they are not the files that it was begun with ({NAME}, which would say more, is missing or changed)"
    else:
        groups = {
            "gone": before.keys() - now.keys(),
            "new": now.keys() - before.keys(),
            "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
        }
        what = "; ".join(f"{len(names)} {how}: {some(sorted(names))}" for how, names in groups.items() if names)
    raise DataError(
        f"--resume goes on with the data as they were when the run began, but {what}. "
        f"Put them back, or begin a new run from these weights: --init {run}"
    )
