"""What samples take is known before they are drawn."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serving.bundle import Output
from serving.sample_set import Samples
from serving.writers.nifti import Nifti
from serving.writers.sample_folder import write_samples
from serving.writers.space import SpaceError, check_space, space_for

SHAPES = {"mask": (np.dtype(np.uint8), (1, 48, 64)), "image": (np.dtype(np.float32), (1, 48, 64))}


def test_it_is_no_less_than_what_they_then_take(tmp_path: Path) -> None:
    """Of noise, which nothing compresses."""
    random, count = np.random.default_rng(0), 8
    arrays = {name: random.integers(0, 2, (count, *shape)).astype(kind) for name, (kind, shape) in SHAPES.items()}
    arrays["image"] = random.random(arrays["image"].shape, np.float32)
    outputs = tuple(Output(name, str(kind), shape, 0, 1) for name, (kind, shape) in SHAPES.items())
    provenance = [
        {"model": "m", "bundle": "b" * 64, "seed": seed, "solver": "ddim", "steps": 4} for seed in range(count)
    ]
    for layouts in ([], [Nifti()]):
        write_samples(Samples(arrays, provenance, outputs), tmp_path, replace=True, layouts=layouts)
        files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "sheet.png"]
        taken = sum(file.stat().st_blocks * 512 for file in files)
        assert taken <= space_for(SHAPES, count, layouts).disk < 2.5 * taken
    assert sum(values.nbytes for values in arrays.values()) < space_for(SHAPES, count).memory


@pytest.mark.parametrize("free", [{"disk": 10**6}, {"memory": 10**6}])
def test_too_little_room_is_said_with_what_is_needed_and_what_is_there(
    tmp_path: Path, free: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free.get("disk", 10**15)))
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {free.get('memory', 10**15) // 1024} kB\n")
    monkeypatch.setattr("serving.writers.space.MEMINFO", tmp_path / "meminfo")
    check_space(tmp_path / "a" / "b", space_for(SHAPES, 10))
    where = f"on disk at {tmp_path}" if "disk" in free else "of memory"
    needed = r"take up to [\d.]+ GB on disk and [\d.]+ MB of memory"
    with pytest.raises(SpaceError, match=rf"{needed}, and (1.0 MB|999.4 kB) are free {where}: "):
        check_space(tmp_path / "a" / "b", space_for(SHAPES, 10**5))


def test_where_nobody_says_how_much_memory_is_free_only_the_disk_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.writers.space.MEMINFO", tmp_path / "none")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**18))
    check_space(tmp_path, space_for(SHAPES, 10**9))
