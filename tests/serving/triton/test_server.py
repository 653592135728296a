"""The live server: what it promises, what it refuses, and that nothing of it stays behind."""

import json
import random
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from live import CHAIN_BATCH, CONDITION, MAX_BATCH, PATIENCE, Live, add_model, eventually, processes, running, start
from numpy.typing import NDArray
from tiny import FLOW, LINEAR
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.client import Client, LocalClient, SamplingError
from serving.labels import Labels
from serving.sample_set import Samples
from serving.sampling.solvers import solvers_for

PROTOCOLS = ("grpc", "http")
DIFFUSIONS, FLOWS = tuple(solvers_for(LINEAR)), tuple(solvers_for(FLOW))
SEEDS = np.arange(2)[:, None]


def anatomy(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, CONDITION.classes, CONDITION.shape, np.uint8)


def ask(client: Client, model: str, seeds: list[int], parameters: dict[str, Any]) -> Samples:
    condition = np.stack([anatomy(seed) for seed in seeds]) if model == "tiny_conditional" else None
    return client.sample(model, seeds=seeds, condition=condition, **parameters)


def assert_same(samples: Samples, row: int, alone: Samples) -> None:
    for name, values in alone.arrays.items():
        assert samples.arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(samples.arrays[name][row].view(np.uint8), values[0].view(np.uint8))
    assert samples.provenance[row] == alone.provenance[0]


class Sort(NamedTuple):
    """What may be asked of a model: the largest batch, solvers, those of a mask stage, and the models that answer."""

    rows: int
    solvers: tuple[str, ...]
    mask_solvers: tuple[str, ...]
    stages: tuple[str, ...]

    def parameters(self, dice: random.Random) -> dict[str, Any]:
        chosen = {"steps": dice.choice([2, 3, 5, 12, 20]), "solver": dice.choice(self.solvers)}
        if self.mask_solvers:
            own = {"mask_steps": dice.choice([1, 4, 9]), "mask_solver": dice.choice(self.mask_solvers)}
            shared = ["mask_steps", *(["mask_solver"] if chosen["solver"] in self.mask_solvers else [])]
            chosen |= {name: value for name, value in own.items() if name not in shared or dice.random() < 0.5}
        return chosen


SORTS = {
    "tiny": Sort(MAX_BATCH, DIFFUSIONS, (), ("tiny",)),
    "tiny_conditional": Sort(MAX_BATCH, DIFFUSIONS, (), ("tiny_conditional",)),
    "cmr_ddpm": Sort(MAX_BATCH, DIFFUSIONS, DIFFUSIONS, ("cmr_mask", "cmr_ddpm_image")),
    "cmr_ldm": Sort(MAX_BATCH, DIFFUSIONS, DIFFUSIONS, ("cmr_mask", "cmr_ldm_image")),
    "cmr_flow": Sort(CHAIN_BATCH, FLOWS, DIFFUSIONS, ("cmr_mask", "cmr_flow_image")),
}


@pytest.mark.parametrize("model", SORTS)
def test_a_sample_is_the_same_whoever_shares_its_batch(live: Live, local: LocalClient, model: str) -> None:
    dice, sort = random.Random(model), SORTS[model]
    asked = [
        ([dice.choice([0, 1, 2, 3, 5, 8, 2**40 + 1, 2**63 - 1]) for _ in range(dice.randint(1, sort.rows - 1))],
         sort.parameters(dice))
        for _ in range(300)
    ]  # fmt: skip
    counted = ("request_success", "medgen_launches_total", "medgen_steps_total")
    before = {(name, stage): live.metric(name, stage) for name in counted for stage in sort.stages}

    def since(name: str, stage: str) -> float:
        return live.metric(name, stage) - before[name, stage]

    def ask_several(several: list[tuple[list[int], dict[str, Any]]]) -> list[Samples]:
        with live.client(dice.choice(PROTOCOLS)) as client:
            return [ask(client, model, *one) for one in several]

    with ThreadPoolExecutor(12) as threads:
        shares = [asked[first::12] for first in range(12)]
        answers = list(threads.map(ask_several, shares))

    alone = cache(lambda seed, parameters: ask(local, model, [seed], dict(parameters)))
    for share, samples_of_share in zip(shares, answers, strict=True):
        for (seeds, parameters), samples in zip(share, samples_of_share, strict=True):
            assert samples.seeds == seeds
            for row, seed in enumerate(seeds):
                assert_same(samples, row, alone(seed, tuple(parameters.items())))
    eventually(
        lambda: all(since("request_success", stage) == len(asked) for stage in sort.stages),
        "Triton has counted all requests",
    )
    eventually(
        lambda: all(live.metric("medgen_rows_in_flight", stage) == 0 for stage in sort.stages), "the figures are told"
    )
    assert all(
        since("medgen_launches_total", stage) < 0.5 * since("medgen_steps_total", stage) for stage in sort.stages
    )


def infer(live: Live, protocol: str, model: str, inputs: dict[str, NDArray[Any]], parameters: dict[str, Any]) -> Any:
    """One request through plain tritonclient."""
    triton = import_module(f"tritonclient.{protocol}")
    with triton.InferenceServerClient(live.url(protocol)) as client:
        tensors = [triton.InferInput(name, x.shape, np_to_triton_dtype(x.dtype)) for name, x in inputs.items()]
        for tensor, values in zip(tensors, inputs.values(), strict=True):
            tensor.set_data_from_numpy(values)
        return client.infer(model, tensors, parameters=parameters)


# name -> inputs, parameters, what the answer must name
BAD = {
    "type of seed": ({"seed": SEEDS.astype(np.int32)}, {}, ["'seed'", "INT32", "INT64"]),
    "fractional seed": ({"seed": SEEDS.astype(np.float32)}, {}, ["'seed'", "FP32", "INT64"]),
    "seed beyond int64": ({"seed": SEEDS.astype(np.uint64) + 2**63}, {}, ["'seed'", "UINT64", "INT64"]),
    "seed without a column": ({"seed": SEEDS[:, 0]}, {}, ["'seed'", "[-1,1]", "[2]"]),
    "seed with two columns": ({"seed": np.repeat(SEEDS, 2, 1)}, {}, ["'seed'", "[-1,1]", "[2,2]"]),
    "no rows": ({"seed": SEEDS[:0]}, {}, ["'seed'", "got 0"]),
    "too many rows": ({"seed": np.arange(MAX_BATCH + 1)[:, None]}, {}, ["batch-size", f"<= {MAX_BATCH}"]),
    "negative seed": ({"seed": SEEDS - 1}, {}, ["seed is -1", f"from 0 to {2**63 - 1}"]),
    "unknown input": ({"seed": SEEDS, "sead": SEEDS}, {}, ["sead"]),
    "no steps": ({"seed": SEEDS}, {"steps": 0}, ["steps is 0", "from 1 to 1000"]),
    "negative steps": ({"seed": SEEDS}, {"steps": -5}, ["steps is -5", "from 1 to 1000"]),
    "a billion steps": ({"seed": SEEDS}, {"steps": 10**9}, ["steps is 1000000000", "from 1 to 1000"]),
    "1e9 steps": ({"seed": SEEDS}, {"steps": 1e9}, ["steps is 1000000000.0", "integer from 1 to 1000"]),
    "steps as text": ({"seed": SEEDS}, {"steps": "20"}, ["steps is '20'", "integer from 1 to 1000"]),
    "steps as truth": ({"seed": SEEDS}, {"steps": True}, ["steps is True", "integer from 1 to 1000"]),
    "unknown solver": ({"seed": SEEDS}, {"solver": "magic"}, ["solver is 'magic'", "ddpm, ddim, dpmpp_2m"]),
    "solver of a flow": ({"seed": SEEDS}, {"solver": "midpoint"}, ["solver is 'midpoint'", "ddpm, ddim, dpmpp_2m"]),
    "solver as a number": ({"seed": SEEDS}, {"solver": 3}, ["solver is 3", "ddpm, ddim, dpmpp_2m"]),
    "unknown parameter": ({"seed": SEEDS}, {"stepps": 20}, ["'stepps'", "20", "allowed are steps"]),
}
MASKS = np.stack([anatomy(0), anatomy(1)])
NAN = np.full(MASKS.shape, np.nan, np.float32)
CONDITIONS = {"tiny_conditional": "anatomy", "cmr_ddpm_image": "mask", "cmr_ldm_image": "mask"}


def bad_condition(name: str) -> dict[str, Any]:
    return {
        "no condition": ({"seed": SEEDS}, {}, [name]),
        "NaN": ({"seed": SEEDS, name: NAN}, {}, [f"'{name}'", "FP32", "UINT8"]),
        "a class too many": ({"seed": SEEDS, name: MASKS + 1}, {}, [f"{name} holds class 4", "0 to 3"]),
        "size": ({"seed": SEEDS, name: MASKS[..., :8]}, {}, [f"'{name}'", "[-1,1,16,16]", "[2,1,16,8]"]),
        "too few": ({"seed": SEEDS, name: MASKS[:1]}, {}, ["batch size does not match"]),
        "bad steps with a good one": ({"seed": SEEDS, name: MASKS}, {"steps": 1001}, ["steps is 1001", "1 to 1000"]),
        "unknown parameter": ({"seed": SEEDS, name: MASKS}, {"stepps": 1}, ["'stepps'", "steps and solver"]),
        "steps of its masks as text": (
            {"seed": SEEDS, name: MASKS},
            {f"{name}_steps": "9"},
            [f"{name}_steps is '9'", "integer from 1 up"],
        ),
    }


BAD_CHAIN = {
    "more rows than the second stage holds": ({"seed": np.arange(6)[:, None]}, {}, ["<= 5", "'cmr_flow_image'"]),
    "mask from the client": ({"seed": SEEDS, "mask": MASKS}, {}, ["mask"]),
    "solver of the second stage": ({"seed": SEEDS}, {"solver": "midpoint"}, ["'midpoint'", "cmr_mask", "mask_solver"]),
    "solver of the first stage": ({"seed": SEEDS}, {"solver": "ddim"}, ["'ddim'", "cmr_flow_image", ", ".join(FLOWS)]),
    "no mask_steps": ({"seed": SEEDS}, {"mask_steps": 0}, ["mask_steps is 0", "from 1 to 1000"]),
    "mask_steps as text": ({"seed": SEEDS}, {"mask_steps": "9"}, ["mask_steps is '9'", "integer from 1 to 1000"]),
    "unknown mask_solver": ({"seed": SEEDS}, {"mask_solver": "euler"}, ["mask_solver is 'euler'", "cmr_mask", "ddim"]),
    "image_steps": ({"seed": SEEDS}, {"image_steps": 4}, ["'image_steps'", "mask_steps and mask_solver"]),
}
PIXELS = np.zeros((2, 1, 16, 16), np.float32)
BAD_PICTURE = {
    "no picture": ({"seed": SEEDS}, {}, ["photo"]),
    "a mask": ({"seed": SEEDS, "photo": MASKS}, {}, ["'photo'", "UINT8", "FP32"]),
    "NaN": ({"seed": SEEDS, "photo": PIXELS + np.float32(np.nan)}, {}, ["photo: row 0 holds nan", "from -1 to 3"]),
    "too bright": ({"seed": SEEDS, "photo": PIXELS + np.float32(4)}, {}, ["photo: row 0 holds 4.0", "from -1 to 3"]),
    "size": ({"seed": SEEDS, "photo": PIXELS[..., :8]}, {}, ["'photo'", "[-1,1,16,16]", "[2,1,16,8]"]),
    "steps": ({"seed": SEEDS, "photo": PIXELS}, {"steps": 4}, ["steps is 4", "one pass, and takes no steps"]),
    "solver": ({"seed": SEEDS, "photo": PIXELS}, {"solver": "ddim"}, ["solver is 'ddim'", "takes no steps"]),
}
LABELS = np.array([[0], [2]])
BAD_LABEL = {
    "no label": ({"seed": SEEDS}, {}, ["label"]),
    "a class too many": ({"seed": SEEDS, "label": LABELS + 1}, {}, ["label holds class 3", "0 to 2"]),
    "below 0": ({"seed": SEEDS, "label": -LABELS}, {}, ["label holds class -2", "0 to 2"]),
    "a float": ({"seed": SEEDS, "label": LABELS.astype(np.float32)}, {}, ["'label'", "FP32", "INT64"]),
    "steps of what draws it": ({"seed": SEEDS, "label": LABELS}, {"label_steps": 4}, ["'label_steps'", "unknown"]),
}
ALL_BAD = [
    pytest.param(model, *case, id=f"{model}: {name}")
    for model, cases in {
        "tiny": BAD,
        "cmr_ddpm": BAD,
        "cmr_ldm": BAD,
        "cmr_flow": BAD_CHAIN,
        **{model: bad_condition(condition) for model, condition in CONDITIONS.items()},
        "tiny_picture": BAD_PICTURE,
        "tiny_label": BAD_LABEL,
    }.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("model", "inputs", "parameters", "named"), ALL_BAD)
def test_bad_input_is_refused_and_does_no_harm(
    live: Live,
    local: LocalClient,
    protocol: str,
    model: str,
    inputs: dict[str, NDArray[Any]],
    parameters: dict[str, Any],
    named: list[str],
) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        infer(live, protocol, model, inputs, parameters)
    assert refusal.value.status() == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    assert [word for word in named if word not in refusal.value.message()] == []
    others = {"tiny_picture": ("photo", PIXELS), "tiny_label": ("label", LABELS)}
    name, under = others.get(model, (CONDITIONS.get(model), MASKS))
    how = {} if model == "tiny_picture" else {"steps": 3}
    result = infer(live, protocol, model, {"seed": SEEDS, **({name: under} if name else {})}, how)
    given = Labels(LABELS) if name == "label" else under if name else None
    expected = local.sample(model, 2, condition=given, **how)
    np.testing.assert_array_equal(result.as_numpy("image"), expected.arrays["image"])


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, "seven", None])
def test_json_that_is_no_int64_is_refused_by_triton_itself(live: Live, local: LocalClient, seed: object) -> None:
    """As a 500 where Triton's parser gives up, but refused, and the next request is served."""

    def post(value: object) -> dict[str, Any]:
        body = {"inputs": [{"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [value]}]}
        url = f"http://{live.url('http')}/v2/models/tiny/infer"
        return json.load(urllib.request.urlopen(url, json.dumps(body).encode(), timeout=PATIENCE))

    with pytest.raises(urllib.error.HTTPError) as refusal:
        post(seed)
    assert refusal.value.code in (400, 500)
    image = next(output["data"] for output in post(7)["outputs"] if output["name"] == "image")
    np.testing.assert_array_equal(np.float32(image), local.sample("tiny", seeds=[7]).arrays["image"].ravel())


def test_parameters_that_are_no_text_are_refused(live: Live) -> None:
    seed = b'{"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [7]}'
    body = b'{"parameters": {"solver": "dd\xc6im"}, "inputs": [' + seed + b"]}"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"http://{live.url('http')}/v2/models/tiny/infer", body, timeout=PATIENCE)
    assert refusal.value.code == 400
    assert b"the parameters cannot be read: 'utf-8' codec can't decode byte 0xc6" in refusal.value.read()


def test_an_id_that_is_no_text_is_none(live: Live) -> None:
    seed = b'{"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [7]}'
    body = b'{"id": "a\xc6b", "inputs": [' + seed + b"]}"
    answer = urllib.request.urlopen(f"http://{live.url('http')}/v2/models/tiny/infer", body, timeout=PATIENCE)
    assert answer.status == 200


def test_each_request_of_a_batch_gets_its_own_answer(live: Live, local: LocalClient) -> None:
    """A bad request and one that fails, in flight with good ones: 400, 500, and samples."""
    model = "tiny_gated"
    asked = {"first": ([1], 4), "good": ([2, 3], 5), "bad": ([4], 0), "failing": ([13], 4), "also good": ([5], 6)}
    asked["unsaid"] = ([14], 4)
    executions = live.metric("exec_count", model)
    with ThreadPoolExecutor(len(asked)) as threads:

        def draw(seeds: list[int], steps: int) -> Samples:
            with live.client("grpc") as client:
                return client.sample(model, seeds=seeds, steps=steps)

        with live.closed(model) as waiting:
            futures = {"first": threads.submit(draw, *asked["first"])}
            eventually(waiting.exists, "the model has the first in hand")
            futures |= {name: threads.submit(draw, *one) for name, one in asked.items() if name != "first"}
            eventually(lambda: live.metric("exec_count", model) - executions == len(asked), "the others wait")
        for name in ("first", "good", "also good"):
            samples = futures[name].result()
            for row, seed in enumerate(asked[name][0]):
                assert_same(samples, row, local.sample(model, seeds=[seed], steps=asked[name][1]))
        with pytest.raises(SamplingError, match="steps is 0") as refusal:
            futures["bad"].result()
        assert refusal.value.status == 400
        for name, why in (("failing", "thirteen is too much"), ("unsaid", "fourteen cannot be said")):
            with pytest.raises(SamplingError, match=why) as failure:
                futures[name].result()
            assert failure.value.status == 500


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", ["tiny_busy", "tiny_busy_chain"])
def test_overload_is_answered_at_once(live: Live, protocol: str, model: str) -> None:
    """While the model does nothing at all, every request that finds the queue full has its 503."""
    count = 10
    with ThreadPoolExecutor(count) as threads:

        def draw() -> str | int:
            try:
                infer(live, protocol, model, {"seed": SEEDS}, {})
            except InferenceServerException as error:
                return error.status()
            return 200

        with live.closed("tiny_busy") as waiting:
            answers = [threads.submit(draw)]
            eventually(waiting.exists, "the model has the first in hand")
            answers += [threads.submit(draw) for _ in range(count - 1)]
            eventually(lambda: sum(answer.done() for answer in answers) == count - 3, "all but the two that wait")
            refused = {answer.result() for answer in answers if answer.done()}
            assert refused == {{"http": "503", "grpc": "StatusCode.UNAVAILABLE"}[protocol]}
        assert sum(answer.result() == 200 for answer in answers) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", ["tiny_busy", "tiny_busy_chain"])
def test_the_client_asks_an_overloaded_server_again(live: Live, local: LocalClient, protocol: str, model: str) -> None:
    refusals = []

    def draw(timeout: float, count: int) -> Samples:
        with live.client(protocol, timeout) as client:
            explain = client.explain
            client.explain = lambda failure: refusals.append(explain(failure)) or refusals[-1]
            return client.sample(model, count, seed=50)

    with ThreadPoolExecutor(12) as threads:
        with live.closed("tiny_busy"):
            patient = [threads.submit(draw, PATIENCE, 3 * MAX_BATCH) for _ in range(4)]
            eventually(lambda: len(refusals) >= 8, "they are refused, more than once each")
            with pytest.raises(SamplingError, match="queue") as refusal:
                draw(0.2, 1)
            assert refusal.value.status == 503
        expected = local.sample(model, 3 * MAX_BATCH, seed=50)
        for samples in patient:
            np.testing.assert_array_equal(samples.result().arrays["image"], expected.arrays["image"])
    assert {refusal.status for refusal in refusals} == {503}


def test_the_configuration_comes_from_the_manifest(live: Live) -> None:
    with grpc.InferenceServerClient(live.url("grpc")) as client:
        config = client.get_model_config("tiny_conditional", as_json=True)["config"]
    inputs = {tensor["name"]: (tensor["data_type"], tensor["dims"]) for tensor in config["input"]}
    outputs = {tensor["name"]: (tensor["data_type"], tensor["dims"]) for tensor in config["output"]}
    assert inputs == {"seed": ("TYPE_INT64", ["1"]), "anatomy": ("TYPE_UINT8", ["1", "16", "16"])}
    assert outputs == {"image": ("TYPE_FP32", ["1", "16", "16"]), "provenance": ("TYPE_STRING", ["1"])}
    assert config["max_batch_size"] == MAX_BATCH


@pytest.mark.skipif(Path("/proc/driver/nvidia/gpus").exists(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_instance_on_the_cpu(live: Live) -> None:
    """What Triton makes of KIND_AUTO."""
    with grpc.InferenceServerClient(live.url("grpc")) as client:
        (group,) = client.get_model_config("tiny", as_json=True)["config"]["instance_group"]
    assert (group["kind"], group["count"], group.get("gpus", [])) == ("KIND_CPU", 1, [])


def shared_memory(region: str) -> list[Path]:
    return [*Path("/dev/shm").glob(f"{region}*")]


def assert_is_freed(region: str) -> None:
    eventually(lambda: not shared_memory(region), "the shared memory is freed")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("single")
    add_model(repository, "tiny")
    return repository


def test_a_signal_ends_everything(single: Path) -> None:
    with running(single) as live:
        group, region = live.tritonserver(), live.region()
        assert len(processes(group)) >= 2
        assert shared_memory(region)
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 0
        assert processes(group) == []
    assert_is_freed(region)


def test_a_signal_while_the_models_load_ends_everything(single: Path) -> None:
    live = start(single)
    group, region = live.tritonserver(), live.region()
    live.process.send_signal(signal.SIGTERM)
    live.process.wait(PATIENCE)
    assert live.said() == ""
    eventually(lambda: processes(group) == [], "the server is gone")
    assert_is_freed(region)


def test_the_server_does_not_outlive_the_one_who_started_it(single: Path) -> None:
    with running(single) as live:
        group, region = live.tritonserver(), live.region()
        live.process.kill()
        live.process.wait()
        eventually(lambda: processes(group) == [], "the server and its models are gone")
    assert_is_freed(region)
