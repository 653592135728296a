"""Many arrays lie in a file: the same values, and no memory of their own."""

import os
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch

from training.data.problems import DataError
from training.data.spooled import Spooled

ROWS = np.arange(5 * 6, dtype=np.float32).reshape(5, 2, 3)


def spooled(in_memory: int) -> Spooled:
    rows = Spooled(in_memory)
    for row in ROWS:
        rows.append(row.copy())
    return rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("in_memory", [10**6, 24 * 5, 24 * 3, 0])
def test_values_and_order_are_the_same_wherever_they_lie(in_memory):
    rows = spooled(in_memory)
    np.testing.assert_array_equal(np.stack(rows), ROWS)
    for row in rows:
        row *= 2
    rows.append(ROWS[0])
    np.testing.assert_array_equal(np.stack(rows), [*(2 * ROWS), ROWS[0]])
    tensors = [torch.from_numpy(row) for row in rows]
    del rows
    np.testing.assert_array_equal(torch.stack(tensors)[:5], 2 * ROWS)


def test_the_file_has_no_name(tmp_path):
    rows = spooled(0)
    assert len(rows) == 5
    assert [*tmp_path.rglob("*")] == [tmp_path / "medgen"]


def test_a_disk_without_room_is_named(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free=2**28))
    with pytest.raises(DataError, match=r"medgen has no room for pair 1.*XDG_CACHE_HOME"):
        spooled(0)


def test_memory_stays_flat():
    """Of 200 MB that were read through, next to nothing is the process's own."""
    code = """
import numpy as np
from training.data.spooled import Spooled
own = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
rows, before = Spooled(2**20), own()
for _ in range(100):
    rows.append(np.ones((512, 1024), np.float32))
for row in rows:
    row -= 1
print(own() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert int(grown.stdout) < 20 * 2**20
