"""What a server says of its models, to those who ask before they choose."""

import pytest
from live import CONDITION, PICTURE, Live

from serving.bundle import bundle_folder, load_bundle
from serving.client import SamplingError
from serving.sampling.ways import ways_of

PROTOCOLS = ("grpc", "http")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_models_are_named(live: Live, protocol: str) -> None:
    with live.client(protocol) as client:
        names = client.models()
    assert {"tiny", "tiny_picture", "cmr_flow", "cmr_mask"} <= {*names}
    assert names == sorted(names)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("model", "condition"), [("tiny", None), ("tiny_conditional", CONDITION), ("tiny_picture", PICTURE)]
)
def test_what_a_model_says_is_what_its_manifest_has(live: Live, protocol: str, model: str, condition: object) -> None:
    manifest = load_bundle(bundle_folder(live.repository, model)).manifest
    with live.client(protocol) as client:
        described = client.describe(model)
        assert client.condition(model) == condition
    assert described.stages == {model: ways_of(manifest)}
    assert described.condition == condition


def test_a_chain_says_it_of_each_stage(live: Live) -> None:
    with live.client("grpc") as client:
        described = client.describe("cmr_flow")
    assert list(described.stages) == ["cmr_mask", "cmr_flow_image"]
    assert "euler" in described.stages["cmr_flow_image"].solvers
    assert "euler" not in described.stages["cmr_mask"].solvers
    assert described.condition is None


def test_what_it_says_beside_the_samples_is_not_kept_with_them(live: Live) -> None:
    with live.client("grpc") as client:
        (facts,) = client.sample("tiny", 1).provenance
        assert facts.keys() == {"model", "bundle", "seed", "solver", "steps"}
        with pytest.raises(SamplingError, match="no model 'nothing' is served"):
            client.describe("nothing")
