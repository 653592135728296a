from collections.abc import Iterator
from pathlib import Path

import pytest
from exported_once import exported_once, folder_of_run
from tiny_pig import tiny_pig

from export.build import build
from serving.bundle import Bundle
from training.checkpoint import save_checkpoint


@pytest.fixture(scope="module", autouse=True)
def _exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with exported_once(folder_of_run(tmp_path_factory)):
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny PIG."""
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    pig = tiny_pig()
    save_checkpoint(folder, pig, pig.state_dict(), {"preset_name": "small", "step": 7})
    return folder


@pytest.fixture(scope="session")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle, in a repository of its own."""
    with exported_once(folder_of_run(tmp_path_factory)):  # which is made before what a module has
        return build("pig", checkpoint, tmp_path_factory.mktemp("repository"))
