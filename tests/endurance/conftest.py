from collections.abc import Iterator

import pytest
from live import Live, add_gated_model, add_model, running


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    repository = tmp_path_factory.mktemp("endured")
    add_model(repository, "tiny")
    add_gated_model(repository, "busy", queue=8)
    with running(repository) as server:
        yield server
