import pytest
from tiny_samples import HEART, pairs

from serving.sample_set import Samples


@pytest.fixture
def breast() -> Samples:
    return pairs("pig", "MG", ("background", "lesion"), None)


@pytest.fixture
def heart() -> Samples:
    return pairs("cmr_flow", "MR", HEART, (1.25, 1.5))


@pytest.fixture
def unnamed() -> Samples:
    return pairs("other", None, ("background", "a class of ours", "another"), None)
