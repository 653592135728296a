"""The example for Ray, with a Ray that starts what it is given in this process."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "serving" / "deploy" / "draw_on_ray.py"


class InThisProcess(ModuleType):
    """``ray``, as far as the example needs it; a task's result is the task."""

    def remote(self, function):
        function.options = lambda **options: self.asked.append(options) or function
        function.remote = function
        return function

    def wait(self, left):
        return left[:1], left[1:]

    def get(self, done):
        return done


@pytest.fixture
def example(monkeypatch):
    ray = InThisProcess("ray")
    ray.asked = []
    monkeypatch.setitem(sys.modules, "ray", ray)
    spec = importlib.util.spec_from_file_location("draw_on_ray", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ray = ray
    return module


def test_every_shard_is_drawn_by_the_command_of_the_workers_environment(example, monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        return subprocess.CompletedProcess(command, 0, f"shard {command[3]}\n", "")

    monkeypatch.setattr(example.subprocess, "run", run)
    result = CliRunner().invoke(example.main, ["--shards", "2", "--cpus", "2", "--", "--model", "pig"])
    medgen = Path(sys.executable).with_name("medgen")
    assert started == [[medgen, "draw", "--shard", f"{shard}/2", "--model", "pig"] for shard in range(2)]
    assert result.output == "shard 0/2\nshard 1/2\n"
    assert example.ray.asked == [{"num_cpus": 2.0, "num_gpus": 0.0, "max_retries": 3}]


def test_what_a_shard_says_when_it_fails_is_the_error(example, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Error: no bundle of pig\n")
    monkeypatch.setattr(example.subprocess, "run", lambda *_, **__: failed)
    result = CliRunner().invoke(example.main, ["--shards", "1", "--", "--model", "pig"])
    assert isinstance(result.exception, RuntimeError)
    assert str(result.exception) == "shard 0/1: Error: no bundle of pig"
