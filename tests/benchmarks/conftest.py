from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from exported_once import exported_once, folder_of_run
from tiny_families import tiny_family

from benchmarks.latency.contenders import Case
from benchmarks.latency.workload import make_case
from export.build import build
from export.chain import find_chains
from serving.bundle import TEMPLATES
from serving.repository import prepare_repository
from training.checkpoint import save_checkpoint

CHAINS, _ = find_chains(TEMPLATES)


@pytest.fixture(scope="module", autouse=True)
def _exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with exported_once(folder_of_run(tmp_path_factory)):
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A repository with the bundles of a model or chain that is asked for, of untrained tiny families."""
    folder = tmp_path_factory.mktemp("latency")
    repository = folder / "repository"

    def build_model(name: str) -> Path:
        for stage in [stage.model for stage in CHAINS[name].stages] if name in CHAINS else [name]:
            checkpoint = folder / stage
            if not checkpoint.exists():
                family = tiny_family(stage)
                save_checkpoint(checkpoint, family, family.state_dict(), {"preset_name": "small", "step": 7})
                build(stage, checkpoint, repository)
        prepare_repository(repository, name)
        return repository

    return build_model


@pytest.fixture(scope="session")
def case_of(built: Callable[[str], Path]) -> Callable[..., Case]:
    """Two samples of a model or chain, on one thread: more wait for one another where other tests run."""

    def make(model: str, solver: str = "ddim", **parameters: str | int) -> Case:
        asked = {"steps": 3, "solver": solver, **parameters}
        return replace(make_case(model, [], built(model), batch=2, parameters=asked), threads=1)

    return make
