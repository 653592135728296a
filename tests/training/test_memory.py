"""What a step frees is there for the next: nothing of it is asked of the kernel again."""

import subprocess
import sys

import pytest

from training.memory import keep_freed_memory

STEPS = """
import resource, sys
from training.memory import keep_freed_memory
if "keep" in sys.argv: keep_freed_memory()
def step(): held = [bytearray(b"x") * (size << 20) for size in (3, 40, 90)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str) -> int:
    return int(subprocess.run([sys.executable, "-c", STEPS, *words], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone it is known how")
def test_memory_is_kept():
    assert faults("keep") < faults() / 10


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_changed(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("training.memory.ctypes.CDLL", None)
    keep_freed_memory()


def test_nor_is_it_without_glibc(monkeypatch):
    monkeypatch.setattr("training.memory.ctypes.CDLL", lambda _: object())
    keep_freed_memory()
