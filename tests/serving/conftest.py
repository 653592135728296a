from collections.abc import Iterator

import pytest
from live import (
    CONDITION,
    LABEL,
    Live,
    add_chain_of_one,
    add_chain_under_pictures,
    add_chains,
    add_gated_model,
    add_model,
    add_picture_model,
    running,
)

from serving.client import LocalClient


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The server's links go where the tests' files go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests: tiny, tiny_conditional, tiny_label, tiny_picture, two gated models, and chains."""
    repository = tmp_path_factory.mktemp("repository")
    add_model(repository, "tiny")
    add_model(repository, "tiny_conditional", sample_shape=(1, 16, 16), condition=CONDITION)
    add_model(repository, "tiny_label", sample_shape=(1, 16, 16), condition=LABEL)
    add_picture_model(repository, "tiny_picture")
    add_gated_model(repository, "tiny_gated", queue=128)
    add_gated_model(repository, "tiny_busy", queue=2)
    add_chain_of_one(repository, "tiny_busy_chain", "tiny_busy")
    add_chains(repository)
    add_chain_under_pictures(repository, "tiny_through")
    with running(repository) as server:
        yield server


@pytest.fixture(scope="session")
def local(live: Live) -> LocalClient:
    """The same models in this process."""
    return LocalClient(live.repository)
