"""The client library against the live server and in process; what the server itself promises is in test_server."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from live import CONDITION, LABEL, MAX_BATCH, NOTICE, PICTURE, Live, free_ports
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.bundle import Output, bundle_folder, load_bundle
from serving.client import CONFIG_SECONDS, Client, LocalClient, SampleClient, SamplingError, _Call
from serving.condition_files import Masks
from serving.labels import Labels

MASKS = np.zeros((1, 1, 16, 16), np.uint8)


def picture(value: float) -> np.ndarray:
    """One in range, but for a pixel."""
    pixels = np.zeros((1, 1, 16, 16), np.float32)
    pixels[0, 0, 3, 4] = value
    return pixels


MASKS_WANTED = r"it must be an array of uint8 or float32 \[N, C, H, W\]"


@pytest.fixture(params=["local", "grpc", "http"])
def client(request: pytest.FixtureRequest, live: Live) -> Iterator[Client]:
    with LocalClient(live.repository) if request.param == "local" else live.client(request.param) as client:
        yield client


@pytest.mark.parametrize("model", ["tiny", "cmr_flow", "cmr_ldm"])
@pytest.mark.parametrize("count", [1, MAX_BATCH, MAX_BATCH + 1, 7 * MAX_BATCH + 3])
def test_any_count_in_the_order_of_the_seeds(live: Live, client: Client, count: int, model: str) -> None:
    done = []
    samples = client.sample(model, count, seed=100, steps=3, progress=lambda *counts: done.append(counts))
    assert samples.seeds == list(range(100, 100 + count))
    assert len(samples) == count
    assert done == sorted(done)
    assert done[-1] == (count, count)
    assert samples.arrays["mask"].shape == samples.arrays["image"].shape == (count, 1, 16, 16)
    assert (samples.arrays["mask"].dtype, samples.arrays["image"].dtype) == (np.uint8, np.float32)
    last = client.sample(model, seeds=[99 + count], steps=3)
    for name, values in last.arrays.items():
        np.testing.assert_array_equal(samples.arrays[name][-1], values[0])


def test_provenance_and_outputs_are_those_of_the_bundle(live: Live, client: Client) -> None:
    bundle = load_bundle(bundle_folder(live.repository, "tiny"))
    samples = client.sample("tiny", seeds=[2**63 - 1, 4], solver="ddim")
    facts = {"model": "tiny", "bundle": bundle.digest, "solver": "ddim", "steps": bundle.manifest.default_steps}
    assert samples.provenance == [{**facts, "seed": 2**63 - 1}, {**facts, "seed": 4}]
    assert samples.outputs == bundle.manifest.outputs
    assert samples.outputs[0] == Output("mask", "uint8", (1, 16, 16), 0, 1, ("background", "lesion"))


def test_a_chain_says_what_each_of_its_stages_did(live: Live, client: Client) -> None:
    samples = client.sample("cmr_flow", seeds=[5, 2**40], steps=2, solver="midpoint", mask_steps=7, mask_solver="ddim")
    mask, image = (load_bundle(bundle_folder(live.repository, f"cmr_{name}")) for name in ("mask", "flow_image"))
    stages = [
        {"model": "cmr_mask", "bundle": mask.digest, "solver": "ddim", "steps": 7},
        {"model": "cmr_flow_image", "bundle": image.digest, "solver": "midpoint", "steps": 2},
    ]
    for row, seed in enumerate((5, 2**40)):
        drawn_under = {"condition_sha256": hashlib.sha256(samples.arrays["mask"][row].tobytes()).hexdigest()}
        of_stages = [{**facts, "seed": seed} for facts in (stages[0], {**stages[1], **drawn_under})]
        assert samples.provenance[row] == {"model": "cmr_flow", "seed": seed, "stages": of_stages}
    assert samples.outputs == (*mask.manifest.outputs, *image.manifest.outputs)
    assert list(samples.arrays) == ["mask", "image"]


@pytest.mark.parametrize("chain", ["cmr_flow", "cmr_ldm"])
def test_a_chain_draws_what_its_stages_draw_one_by_one(client: Client, chain: str) -> None:
    both = client.sample(chain, 7, steps=4, mask_steps=3)
    masks = client.sample("cmr_mask", 7, steps=3).arrays["mask"]
    assert len(np.unique(masks)) == 4, "masks that are all alike would show nothing"
    assert len({mask.tobytes() for mask in masks}) == 7
    under_them = client.sample(f"{chain}_image", 7, steps=4, condition=masks)
    for name, values in both.arrays.items():
        np.testing.assert_array_equal(under_them.arrays[name], values)
    under_others = client.sample(f"{chain}_image", 7, steps=4, condition=masks[::-1])
    assert (under_others.arrays["image"] != both.arrays["image"]).mean() > 0.1


def test_a_condition_comes_back_with_the_samples(client: Client) -> None:
    masks = np.random.default_rng(4).integers(0, 3, (2, *CONDITION.shape), np.uint8)
    samples = client.sample("tiny_conditional", 2, condition=masks)
    assert [output.name for output in samples.outputs] == list(samples.arrays) == ["anatomy", "image"]
    assert samples.outputs[0] == Output(
        "anatomy", "uint8", CONDITION.shape, 0, CONDITION.classes - 1, CONDITION.labels, CONDITION.spacing
    )
    np.testing.assert_array_equal(samples.arrays["anatomy"], masks)


def test_masks_whose_classes_are_the_models(client: Client) -> None:
    masks = np.random.default_rng(4).integers(0, 3, (2, *CONDITION.shape), np.uint8)
    named = client.sample("tiny_conditional", 2, condition=Masks(masks, CONDITION.labels, CONDITION.spacing))
    bare = client.sample("tiny_conditional", 2, condition=masks)
    for name, values in named.arrays.items():
        np.testing.assert_array_equal(values, bare.arrays[name])


@pytest.mark.parametrize("seeds", [np.array([4, 2, 4], np.uint8), range(4, 1, -1), [np.int64(4), 2, 4]])
def test_seeds_in_arrays_and_ranges_and_more_than_once(client: Client, seeds: object) -> None:
    samples = client.sample("tiny", seeds=seeds, steps=np.int64(2))
    assert samples.seeds == list(map(int, seeds))
    assert len(set(samples.names)) == 3
    assert {facts["steps"] for facts in samples.provenance} == {2}
    (two,) = client.sample("tiny", seeds=[4], steps=2).arrays["image"]
    np.testing.assert_array_equal(samples.arrays["image"][0], two)


@pytest.mark.parametrize("model", ["tiny", "tiny_conditional", "cmr_flow"])
def test_shapes_are_those_of_the_arrays(client: Client, model: str) -> None:
    condition = np.zeros((1, *CONDITION.shape), np.uint8) if model == "tiny_conditional" else None
    arrays = client.sample(model, 1, condition=condition).arrays
    said = {name: array for name, array in client.shapes(model).items() if name in arrays}
    assert said == {name: (values.dtype, values.shape[1:]) for name, values in arrays.items()}


def test_a_chain_draws_under_the_pictures_that_a_client_gives(client: Client) -> None:
    assert client.picture("tiny_through") == replace(PICTURE, name="scan")
    count = MAX_BATCH + 3
    pixels = np.random.default_rng(4).uniform(-1, 3, (count, *PICTURE.shape)).astype(np.float32)
    samples = client.sample("tiny_through", count, steps=3, solver="ddim", condition=pixels)
    assert list(samples.arrays) == [output.name for output in samples.outputs] == ["scan", "mask", "image"]
    np.testing.assert_array_equal(samples.arrays["scan"], pixels)
    masks = client.sample("tiny_found", count, steps=3, solver="ddim", condition=pixels).arrays["mask"]
    assert len({mask.tobytes() for mask in masks}) == count
    np.testing.assert_array_equal(samples.arrays["mask"], masks)
    (first, second) = samples.provenance[-1]["stages"]
    assert (first["steps"], first["solver"], second["steps"], second["solver"]) == (3, "ddim", 0, None)
    assert first["condition_sha256"] == hashlib.sha256(pixels[-1].tobytes()).hexdigest()
    assert second["condition_sha256"] == hashlib.sha256(masks[-1].tobytes()).hexdigest()
    last = client.sample("tiny_through", seeds=[count - 1], mask_steps=3, mask_solver="ddim", condition=pixels[-1:])
    np.testing.assert_array_equal(last.arrays["image"][0], samples.arrays["image"][-1])
    said = {name: array for name, array in client.shapes("tiny_through").items() if name in samples.arrays}
    assert said == {name: (values.dtype, values.shape[1:]) for name, values in samples.arrays.items()}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"^scan is missing; tiny_through needs it as float32 of shape \[1, 1, 16, 16\]"),
        ({"condition": MASKS}, r"^scan is uint8; it must be float32 of shape \[1, 1, 16, 16\]"),
        ({"condition": picture(9.0)}, "row 0 holds 9.0; allowed are values from -1 to 3"),
        ({"condition": picture(0.0), "steps": 1001}, "^mask_steps is 1001; it must be from 1 to 1000$"),
        ({"condition": picture(0.0), "solver": "magic"}, "^mask_solver is 'magic'; allowed for tiny_found are ddpm"),
    ],
)  # fmt: skip
def test_what_a_chain_under_pictures_cannot_do(client: Client, asked: dict, message: str) -> None:
    with pytest.raises(SamplingError, match=message) as error:
        client.sample("tiny_through", 1, **asked)
    assert error.value.status == 400


def test_each_sample_has_its_condition(live: Live, client: Client) -> None:
    count = 2 * MAX_BATCH + 1
    masks = np.random.default_rng(3).integers(0, CONDITION.classes, (count, *CONDITION.shape), np.uint8)
    together = client.sample("tiny_conditional", count, steps=3, condition=masks)
    for row in (0, MAX_BATCH, count - 1):
        alone = client.sample("tiny_conditional", seeds=[row], steps=3, condition=masks[row : row + 1])
        np.testing.assert_array_equal(together.arrays["image"][row], alone.arrays["image"][0])


def test_more_labels_than_samples_are_refused(client: Client) -> None:
    with pytest.raises(SamplingError, match="2 values of label were given for 1 samples"):
        client.sample("tiny_label", 1, steps=3, label=[2, 1])


def test_labels_are_drawn_under_by_index_and_by_name(client: Client) -> None:
    assert client.label("tiny_label") == LABEL
    assert client.label("tiny") is client.label("tiny_conditional") is client.label("cmr_flow") is None
    count = MAX_BATCH + 3
    samples = client.sample("tiny_label", count, steps=3, label=[2, "normal"])
    assert samples.arrays["label"][:, 0].tolist() == ([2, 0] * count)[:count]
    assert samples.outputs[0] == LABEL.as_output()
    assert samples.given == ("label",)
    said = [(facts["label"], facts["label_name"]) for facts in samples.provenance]
    assert said[:2] == [(2, "malignant"), (0, "normal")]
    for row, label in {0: "malignant", 1: 0, count - 1: samples.provenance[-1]["label"]}.items():
        (alone,) = client.sample("tiny_label", seeds=[row], steps=3, label=label).arrays["image"]
        np.testing.assert_array_equal(samples.arrays["image"][row], alone)
    (other,) = client.sample("tiny_label", 1, steps=3, label="benign").arrays["image"]
    assert np.abs(other - samples.arrays["image"][0]).max() > 1e-3
    (given,) = client.sample("tiny_label", 1, steps=3, condition=Labels(np.array([[1]]))).arrays["image"]
    np.testing.assert_array_equal(given, other)


def test_pictures_are_drawn_under_and_kept(live: Live, client: Client) -> None:
    assert client.picture("tiny_picture") == PICTURE
    assert client.picture("tiny") is client.picture("tiny_conditional") is client.picture("cmr_flow") is None
    pixels = np.random.default_rng(3).uniform(-1, 3, (MAX_BATCH + 2, *PICTURE.shape)).astype(np.float32)
    samples = client.sample("tiny_picture", len(pixels), condition=pixels)
    np.testing.assert_array_equal(samples.arrays["photo"], pixels)
    assert samples.outputs[0] == Output("photo", "float32", PICTURE.shape, -1, 3)
    assert samples.provenance[-1]["condition_sha256"] == hashlib.sha256(pixels[-1].tobytes()).hexdigest()
    assert samples.provenance[-1]["notices"] == [NOTICE]
    assert (samples.provenance[0]["solver"], samples.provenance[0]["steps"]) == (None, 0)
    (alone,) = client.sample("tiny_picture", seeds=[9], condition=pixels[-1:]).arrays["image"]
    np.testing.assert_array_equal(samples.arrays["image"][-1], alone)


@pytest.mark.parametrize(
    ("asked", "message", "status"),
    [
        ({"count": 0}, "count is 0; it must be at least 1", 400),
        ({}, "either count or seeds", 400),
        ({"count": 1, "seeds": [1]}, "either count or seeds", 400),
        ({"seeds": []}, "seeds is empty", 400),
        ({"seeds": [1, -4]}, "seed is -4; it must be from 0 to", 400),
        ({"count": 2, "seed": 2**63 - 1}, "seed is 9223372036854775808; it must be from 0 to", 400),
        ({"count": 1, "steps": 1001}, "steps is 1001; it must be from 1 to 1000", 400),
        ({"count": 1, "solver": "magic"}, "solver is 'magic'; allowed for tiny are ddpm", 400),
        ({"count": 1, "condition": np.zeros((1, 1, 16, 16), np.uint8)}, "tiny takes none", 400),
        ({"count": 1, "mask_steps": 3}, "mask_steps is 3, but tiny is no chain, and has no mask stage", 400),
        (
            {"model": "cmr_mask", "count": 1, "mask_solver": "ddim"},
            "mask_solver is 'ddim', but cmr_mask is no chain",
            400,
        ),
        (
            {"model": "cmr_flow_image", "count": 1, "mask_steps": 3, "condition": np.zeros((1, 1, 16, 16), np.uint8)},
            "mask_steps is 3, but cmr_flow_image is no chain",
            400,
        ),
        ({"model": "nobody", "count": 1}, "no model 'nobody' (is served at|in) .*", 404),
        *(
            ({"model": model, "count": 1}, f"model is {re.escape(repr(model))}; it must be the name of a model", 404)
            for model in ("../tiny", "tiny/1", "ti\0ny", "\udcff", "", ".", 3, None)
        ),
        ({"seeds": [1.5]}, r"seeds\[0\] is 1.5, a float; it must be an integer from 0 to", 400),
        ({"seeds": [True]}, r"seeds\[0\] is True, a bool; it must be an integer", 400),
        ({"seeds": np.ones(2)}, r"seeds is float64 \[2\]; it must be an array \[N\] of integers", 400),
        ({"count": 1, "steps": 2.5}, "steps is 2.5, a float; it must be an integer from 1 to", 400),
        ({"count": 1, "steps": True}, "steps is True, a bool; it must be an integer from 1 to", 400),
        ({"count": 1, "steps": "8"}, "steps is '8', a str; it must be an integer from 1 to", 400),
        ({"count": 1, "steps": 2**63}, "steps is 9223372036854775808; it must be from 1 to", 400),
        ({"count": 1, "steps": 10**5000}, "steps is an integer of 16610 bits; it must be from 1 to", 400),
        ({"count": 1, "solver": 3}, "solver is 3; it must be the name of a solver", 400),
        ({"count": 1, "solver": "\udcff"}, r"solver is '\\udcff'; it must be the name of a solver", 400),
        (
            {"model": "cmr_flow", "count": 1, "condition": np.zeros((1, 1, 16, 16), np.uint8)},
            "cmr_flow takes none",
            400,
        ),
        ({"model": "cmr_flow", "count": 9, "solver": "midpoint"}, "allowed for cmr_mask are ddpm.*; mask_solver", 400),
        ({"model": "cmr_flow", "count": 9, "solver": "ddim"}, "allowed for cmr_flow_image are .*euler, midpoint", 400),
        ({"model": "cmr_flow", "count": 9, "mask_steps": 1001}, "^mask_steps is 1001; it must be from 1 to 1000$", 400),
        (
            {"model": "tiny_conditional", "count": 1},
            r"^anatomy is missing; tiny_conditional needs it as uint8 of shape \[1, 1, 16, 16\]: .*--condition$",
            400,
        ),
        *(
            ({"model": "tiny_conditional", "count": 1, "condition": Masks(MASKS, *others)}, f"^{message}$", 400)
            for others, message in [
                (
                    (("background", "LV", "MYO", "RV"), CONDITION.spacing),
                    r"the masks are uint8 \[1, 16, 16\] of 4 classes \(background, LV, MYO, RV\), 2.0 x 2.5 mm; "
                    r"tiny_conditional needs uint8 \[1, 16, 16\] of 4 classes \(air, skin, fat, bone\), 2.0 x 2.5 mm",
                ),
                ((("air", "skin"), CONDITION.spacing), r".* of 2 classes \(air, skin\), .*"),
                (((*CONDITION.labels[:2], "bone", "fat"), CONDITION.spacing), r".*\(air, skin, bone, fat\), .*"),
                ((CONDITION.labels,), r".*\(air, skin, fat, bone\), pixels of unknown size; .*"),
                ((CONDITION.labels, (1.0, 2.5)), r".*, 1.0 x 2.5 mm; .*, 2.0 x 2.5 mm"),
            ]
        ),
        (
            {"model": "tiny_conditional", "count": 9, "condition": np.zeros((8, 1, 16, 16), np.uint8)},
            "anatomy has",
            400,
        ),
        *(
            (
                {"model": "tiny_conditional", "count": 1, "condition": masks},
                f"condition is {found}; {MASKS_WANTED}",
                400,
            )
            for masks, found in [
                ([[[[0] * 16] * 16]], "a list"),
                ("masks.npy", "a str"),
                (np.zeros((1, 1, 16, 16)), r"float64 \[1, 1, 16, 16\]"),
                (np.full((1, 1, 16, 16), None), r"object \[1, 1, 16, 16\]"),
                (np.uint8(3), "a uint8"),
                (np.array(3, np.uint8), r"uint8 \[\]"),
            ]
        ),
        (
            {"model": "tiny_conditional", "count": 1, "condition": np.zeros((1, 16, 16), np.uint8)},
            "anatomy.*shape|shape.*anatomy",
            400,
        ),
        ({"model": "tiny_conditional", "count": 1, "condition": np.full((1, 1, 16, 16), 4, np.uint8)}, "class 4", 400),
        (
            {"model": "tiny_conditional", "count": 1, "condition": np.zeros((1, 1, 16, 16), np.float32)},
            "anatomy is float32; it must be uint8",
            400,
        ),
        (
            {"model": "tiny_picture", "count": 1, "steps": 3, "condition": picture(0.5)},
            "steps is 3; tiny_picture draws in one pass, and takes no steps",
            400,
        ),
        *(
            ({"model": "tiny_label", "count": 2, **given}, message, 400)
            for given, message in [
                ({}, r"label is missing; tiny_label needs it as int64 of shape \[2, 1\]: .*--label$"),
                ({"label": 3}, r"label is 3; allowed are 0 \(normal\), 1 \(benign\), 2 \(malignant\)"),
                ({"label": -1}, "label is -1; allowed are 0"),
                ({"label": True}, "label is True; allowed are 0"),
                ({"label": "dense"}, "label is 'dense'; allowed are 0"),
                ({"label": []}, "label has no entry"),
                ({"label": 0, "condition": MASKS}, "a condition and a label were given"),
                ({"condition": MASKS}, "label is uint8; it must be int64"),
                ({"condition": Labels(np.array([[1], [7]]))}, "label holds class 7; allowed are 0 to 2"),
                ({"condition": Labels(np.array([[1], [-7]]))}, "label holds class -7; allowed are 0 to 2"),
                ({"condition": Labels(np.array([1, 2]))}, r"label has shape \[2\]"),
                ({"label": 0, "mask_steps": 3}, "tiny_label is no chain"),
            ]
        ),
        ({"count": 1, "label": 0}, r"label is \[0\]; tiny takes none", 400),
        *(
            ({"model": "tiny_picture", "count": 1, "condition": values}, message, 400)
            for values, message in [
                (None, r"photo is missing; tiny_picture needs it as float32 of shape \[1, 1, 16, 16\]"),
                (np.zeros((1, 1, 16, 16), np.uint8), "photo is uint8; it must be float32"),
                (np.zeros((1, 1, 16, 8), np.float32), r"photo has shape \[1, 1, 16, 8\]; it must be float32"),
                (picture(np.nan), "photo: row 0 holds nan; allowed are values from -1 to 3"),
                (picture(3.5), "photo: row 0 holds 3.5; allowed are values from -1 to 3"),
            ]
        ),
    ],
)
def test_one_error_says_what_is_wrong(client: Client, asked: dict[str, object], message: str, status: int) -> None:
    with pytest.raises(SamplingError, match=message) as error:
        client.sample(**{"model": "tiny", **asked})
    assert error.value.status == status


def test_close_leaves_no_connection_open() -> None:
    """Neither one that was left for another, nor one that is opened meanwhile."""
    client = SampleClient(f"127.0.0.1:{free_ports(1)[0]}")
    client.has_answered, connections = True, [client.connection]
    assert client.moves_on(connections[0])
    connections.append(client.connection)
    client.close()
    client.has_answered = True
    assert client.moves_on(connections[1])
    connections.append(client.connection)
    assert len({*connections}) == 3
    for connection in connections:
        with pytest.raises(ValueError, match="closed channel"):
            connection.is_server_live()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_failure_of_the_model_is_a_500(live: Live, protocol: str) -> None:
    with live.client(protocol) as client:
        with pytest.raises(SamplingError, match="RuntimeError: thirteen is too much") as error:
            client.sample("tiny_gated", 40)
        assert error.value.status == 500
        assert len(client.sample("tiny_gated", 10)) == 10


@pytest.mark.parametrize(("protocol", "spoken", "other"), [("grpc", "gRPC", "http"), ("http", "HTTP", "grpc")])
def test_the_port_of_the_other_protocol(live: Live, protocol: str, spoken: str, other: str) -> None:
    url = live.url(other)
    with SampleClient(url, protocol) as client:
        with pytest.raises(SamplingError, match=f"what listens at {url} does not answer by {spoken}") as error:
            client.sample("tiny", 1)
        assert error.value.status == 502


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_model_that_is_not_served_is_told_which_are(live: Live, protocol: str) -> None:
    said = r"no model 'pgi' is served at \S+; served are .*cmr_flow, .*tiny, "
    with live.client(protocol) as client, pytest.raises(SamplingError, match=said):
        client.sample("pgi", 1)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_nobody_listens(protocol: str) -> None:
    port = free_ports(1)[0]
    with SampleClient(f"127.0.0.1:{port}", protocol, timeout=5) as client:
        with pytest.raises(SamplingError, match=f"no server answers at 127.0.0.1:{port}.*medgen up") as error:
            client.sample("tiny", 1)
        assert error.value.status == 502
        with pytest.raises(SamplingError, match="not ready to serve tiny after"):
            client.wait_until_ready("tiny", timeout=0.3)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_model_that_takes_too_long(live: Live, protocol: str) -> None:
    with live.closed("tiny_gated"), live.client(protocol, timeout=0.5) as client:
        with pytest.raises(SamplingError, match="did not answer within") as error:
            client.sample("tiny_gated", 1)
        assert error.value.status == 504


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_wait_until_ready(live: Live, protocol: str) -> None:
    with live.client(protocol) as client:
        client.wait_until_ready("tiny", timeout=5)
        with pytest.raises(SamplingError, match="not ready to serve nobody"):
            client.wait_until_ready("nobody", timeout=0.3)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_url_as_the_server_prints_it(live: Live, protocol: str) -> None:
    with SampleClient(f"{protocol}://{live.url(protocol)}/", protocol) as client:
        assert len(client.sample("tiny", 1)) == 1


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_what_is_no_time_limit(timeout: float) -> None:
    with pytest.raises(SamplingError, match=f"timeout is {timeout}; it must be above 0 seconds"):
        SampleClient(timeout=timeout)


def test_what_is_no_url_or_protocol() -> None:
    with pytest.raises(SamplingError, match="protocol is 'ftp'; allowed are grpc and http"):
        SampleClient(protocol="ftp")
    for url in ("https://localhost:8000", "localhost", "localhost:http", ":8000", "localhost:99999", "localhost:0"):
        with pytest.raises(SamplingError, match=f"url is '{url}'; it must be HOST:PORT, with a port from 1 to 65535"):
            SampleClient(url, "http")


def test_a_model_s_configuration_is_asked_for_once_a_second(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with live.client("grpc") as client:
        asked, now, ask = [], [100.0], client._asked_config
        monkeypatch.setattr(client, "_asked_config", lambda model: asked.append(model) or ask(model))
        monkeypatch.setattr("serving.client.time.monotonic", lambda: now[0])
        for _ in range(3):
            client.sample("tiny", seeds=[1], steps=1)
        assert asked == ["tiny"]
        now[0] += CONFIG_SECONDS
        client.sample("tiny", seeds=[1], steps=1)
        assert asked == ["tiny", "tiny"]
        now[0] += CONFIG_SECONDS
        with pytest.raises(SamplingError, match="no model 'other'"):
            client.sample("other", seeds=[1], steps=1)


def test_a_model_that_was_loaded_anew_with_other_outputs_is_no_sample(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live.client("grpc") as client:
        config = client._asked_config("tiny")
        config.output.add().CopyFrom(config.output[0])
        config.output[-1].name = "lungs"
        monkeypatch.setattr(client, "_asked_config", lambda model: config)
        with pytest.raises(SamplingError, match="tiny was loaded anew meanwhile and draws something else: ask again"):
            client.sample("tiny", seeds=[1], steps=1)


@pytest.mark.parametrize(("model", "told"), [("tiny", "provenance"), ("cmr_flow", "mask_provenance")])
@pytest.mark.parametrize("changed", [{"bundle": "c" * 64}, {"outputs": []}])
def test_a_model_that_was_loaded_anew_between_two_requests_is_no_sample(
    live: Live, monkeypatch: pytest.MonkeyPatch, model: str, told: str, changed: dict[str, Any]
) -> None:
    asked = []

    class Other:
        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def as_numpy(self, name: str) -> Any:
            values = self.answer.as_numpy(name)
            if name == told:
                facts = {**json.loads(values[0, 0]), **changed}
                values = np.array([[json.dumps(facts)]] * len(values), object)
            return values

    def second_is_other(call: _Call, answer: Any = _Call.answer) -> Any:
        found = answer(call)
        if hasattr(found, "as_numpy"):  # samples, and no configuration
            asked.append(found)
        return Other(found) if len(asked) == 2 and found is asked[1] else found

    monkeypatch.setattr(_Call, "answer", second_is_other)
    with live.client("grpc") as client:
        with pytest.raises(SamplingError, match=f"{model} was loaded anew meanwhile and draws something else: ask a"):
            client.sample(model, MAX_BATCH + 1, steps=1)
        assert len(client.sample(model, MAX_BATCH + 1, steps=1)) == MAX_BATCH + 1


def test_names_of_classes_are_those_that_a_label_was_looked_up_in(live: Live) -> None:
    with live.client("grpc") as client:
        before = replace(LABEL, labels=(*LABEL.labels[1:], LABEL.labels[0]))
        client._labels["tiny_label"] = before
        with pytest.raises(SamplingError, match="tiny_label was loaded anew meanwhile"):
            client.sample("tiny_label", 1, steps=1, label=before.labels[0])
        samples = client.sample("tiny_label", 1, steps=1, label=before.labels[0])
        assert samples.provenance[0]["label_name"] == before.labels[0]


@pytest.mark.parametrize(("model", "stage"), [("tiny", "tiny"), ("cmr_flow", "cmr_flow_image")])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_model_that_was_loaded_anew_with_smaller_batches_is_asked_for_them(
    live: Live, monkeypatch: pytest.MonkeyPatch, protocol: str, model: str, stage: str
) -> None:
    with live.client(protocol) as client:
        expected = client.sample(model, 2 * MAX_BATCH + 1, steps=1)
        before, ask = [stage, "cmr_mask"] if model != stage else [stage], client._asked_config

        def asked(name: str) -> ModelConfig:
            config = ask(name)
            if name in before:
                before.remove(name)
                config.max_batch_size = 2 * MAX_BATCH
            return config

        client._configs.clear()
        monkeypatch.setattr(client, "_asked_config", asked)
        samples = client.sample(model, 2 * MAX_BATCH + 1, steps=1)
    assert not before
    assert samples.arrays["image"].tobytes() == expected.arrays["image"].tobytes()
