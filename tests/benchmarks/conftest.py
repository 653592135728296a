import pytest
from tiny_pig import tiny_pig

from benchmarks.latency.command import make_case
from benchmarks.latency.rows import Case
from export.build import build
from training.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two samples of an untrained tiny PIG, built."""
    folder = tmp_path_factory.mktemp("latency")
    pig = tiny_pig(size=16)
    save_checkpoint(folder / "checkpoint", pig, pig.state_dict(), {"preset_name": "small", "step": 7})
    bundle = build("pig", folder / "checkpoint", folder / "repository")
    return make_case(bundle, folder / "checkpoint", folder / "repository", steps=3, batch=2, solver="ddim")
