import dataclasses
import hashlib
import json

import numpy as np
import pytest
from tiny import FLOW, LINEAR, write_tiny_bundle

from serving.bundle import MANIFEST, BundleError, Condition, EngineFile, file_digest, load_bundle, seal
from serving.engines import EngineError, StepEngine, open_engine
from serving.sampling import noise
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.solvers import COLUMNS, solver_table, solvers_for

DIFFUSION, FLOWS = solvers_for(LINEAR), solvers_for(FLOW)
MASK = Condition("mask", (1, 16, 16), classes=4)


def sampler_of(folder, **options):
    return Sampler(load_bundle(write_tiny_bundle(folder, **options)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return sampler_of(tmp_path_factory.mktemp("tiny"))


def request(sampler, seeds, solver=None, steps=None, condition=None):
    given = {"solver": solver, "steps": steps}
    parameters = {name: value for name, value in given.items() if value is not None}
    return parse_request(sampler.bundle.manifest, np.array(seeds)[:, None], parameters, condition)


def with_max_batch(sampler, max_batch):
    manifest = dataclasses.replace(sampler.bundle.manifest, max_batch=max_batch)
    return Sampler(dataclasses.replace(sampler.bundle, manifest=manifest), sampler._engine)


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert (
            one[name].tolist() == two[name].tolist()
            if one[name].dtype == object
            else (one[name].tobytes() == two[name].tobytes())
        )


# --- the promise: a sample depends on bundle, seed, solver, steps and condition, and on nothing else ---


@pytest.mark.parametrize(
    ("options", "solvers", "mixes"),
    [
        ({}, DIFFUSION, 300),
        ({"schedule": FLOW}, FLOWS, 60),
        ({"condition": MASK, "sample_shape": (1, 16, 16)}, DIFFUSION, 60),
    ],
    ids=["diffusion", "flow", "conditional"],
)
def test_a_sample_alone_is_the_sample_in_any_company(tmp_path, options, solvers, mixes):
    sampler = sampler_of(tmp_path, **options)
    random = np.random.default_rng(17)

    def drawn_request():
        seeds = random.integers(0, 2**63 - 1, size=random.integers(1, 6))
        condition = None
        if "condition" in options:
            condition = random.integers(0, 4, size=(len(seeds), 1, 16, 16), dtype=np.uint8)
        return request(sampler, seeds, random.choice(solvers).item(), int(random.integers(1, 13)), condition)

    requests = [drawn_request() for _ in range(mixes)]
    alone = []
    for asked in requests:
        rows = [slice(k, k + 1) for k in range(len(asked.seeds))]
        conditions = [None if asked.condition is None else asked.condition[row] for row in rows]
        alone.append(
            [
                sampler.sample([request(sampler, asked.seeds[row], asked.solver, asked.steps, condition)])[0]
                for row, condition in zip(rows, conditions, strict=True)
            ]
        )
    waiting = random.permutation(mixes)
    while len(waiting):
        together, waiting = np.split(waiting, [random.integers(1, 12)])
        company = with_max_batch(sampler, int(random.integers(1, 17)))
        for k, samples in zip(together, company.sample([requests[k] for k in together]), strict=True):
            for row, lone in enumerate(alone[k]):
                assert_same_bits({name: values[row : row + 1] for name, values in samples.items()}, lone)


def test_seed_solver_steps_and_condition_each_matter(tiny, tmp_path):
    images = [
        tiny.sample([request(tiny, [seed], solver, steps)])[0]["image"].tobytes()
        for seed, solver, steps in ((1, "ddim", 6), (2, "ddim", 6), (1, "ddpm", 6), (1, "ddim", 7))
    ]
    conditional = sampler_of(tmp_path, condition=MASK, sample_shape=(1, 16, 16))
    images += [
        conditional.sample([request(conditional, [1], condition=np.full((1, 1, 16, 16), label, np.uint8))])[0][
            "image"
        ].tobytes()
        for label in (0, 1)
    ]
    assert len(set(images)) == len(images)


def test_the_model_names_the_stream(tiny, tmp_path):
    other = sampler_of(tmp_path, model="other")
    one, two = (sampler.sample([request(sampler, [1])])[0]["image"] for sampler in (tiny, other))
    assert not np.array_equal(one, two)


# --- what the engine is asked to do ---


def test_the_onnx_step_reads_every_tensor_at_its_place(tiny):
    random = np.random.default_rng(5)
    sample, *history, row_noise = random.normal(size=(5, 1, 2, 16, 16)).astype(np.float32)
    expected = {"a": sample, "d1": history[0], "d2": history[1], "d3": history[2], "s": row_noise}
    for column, tensor in expected.items():
        coeffs = np.zeros((1, len(COLUMNS)), np.float32)
        coeffs[0, COLUMNS.index(column)] = 1
        sample_next, prediction = tiny._engine.step(sample, tuple(history), row_noise, coeffs)
        assert np.array_equal(sample_next, tensor), column
        assert not prediction.any()


class Recorder(StepEngine):
    """Takes states through the contract with the network x -> x/2, and keeps what it was given."""

    def __init__(self):
        self.steps = []

    def step(self, sample, history, row_noise, coeffs, condition=None):
        self.steps.append((sample.copy(), [h.copy() for h in history], row_noise.copy(), coeffs.copy(), condition))
        _, p, q, a, b, c, s, m, n, *d = (column[:, None, None, None] for column in coeffs.T)
        out = sample / 2
        x0 = p * sample + q * out
        past = sum(weight * prediction for weight, prediction in zip(d, history, strict=True))
        return a * sample + b * x0 + c * out + past + s * row_noise, m * x0 + n * out

    def finish(self, sample, condition=None):
        self.last = sample
        return {"mask": (sample[:, :1] > 0).astype(np.uint8), "image": sample[:, 1:]}


def test_the_loop_runs_each_samples_own_table(tiny):
    recorder = Recorder()
    asked = [("ipndm", 5), ("ddpm", 3), ("dpmpp_3m", 7)]
    requests = [request(tiny, [seed], *how) for seed, how in enumerate(asked)]
    results = Sampler(tiny.bundle, recorder).sample(requests)
    assert [len(sample) for sample, *_ in recorder.steps] == [3, 3, 3, 2, 2, 1, 1]
    for seed, (solver, steps) in enumerate(asked):
        x = np.empty((1, 2, 16, 16), np.float32)
        noise.draw(seed, "tiny", 0, out=x)
        history = [np.zeros_like(x)] * 3
        for k, row in enumerate(solver_table(solver, LINEAR, steps).astype(np.float32)):
            row_noise = np.zeros_like(x)
            if row[COLUMNS.index("s")]:
                noise.draw(seed, "tiny", k + 1, out=row_noise)
            x, prediction = Recorder().step(x, history, row_noise, row[None])
            history = [prediction, *history[:2]]
        assert np.array_equal(results[seed]["image"], x[:, 1:])


def test_a_deterministic_row_gets_no_noise(tiny):
    recorder = Recorder()
    Sampler(tiny.bundle, recorder).sample([request(tiny, [1], "ddpm", 4), request(tiny, [2], "ddim", 4)])
    for k, (_, _, row_noise, coeffs, _) in enumerate(recorder.steps):
        assert row_noise.any(axis=(1, 2, 3)).tolist() == [k < 3, False]
        assert (coeffs[:, COLUMNS.index("s")] != 0).tolist() == [k < 3, False]


def test_a_trajectory_past_a_samples_end_leaves_it_as_it_is(tiny):
    trajectories = []

    class Keeper(Recorder):
        def generate(self, trajectory):
            trajectories.append(trajectory)
            return super().generate(trajectory)

    Sampler(tiny.bundle, Keeper()).sample([request(tiny, [1], "ddim", 2), request(tiny, [2], "ddim", 5)])
    (trajectory,) = trajectories
    assert trajectory.lengths.tolist() == [5, 2]
    assert [trajectory.live(row) for row in range(5)] == [2, 2, 1, 1, 1]
    still = np.eye(len(COLUMNS), dtype=np.float32)[COLUMNS.index("a")]
    assert np.array_equal(trajectory.coeffs[2:, 1], [still] * 3)


def test_batches_are_never_larger_than_the_bundle_allows(tiny):
    recorder = Recorder()
    with_max = with_max_batch(Sampler(tiny.bundle, recorder), 3)
    done = []
    with_max.sample(
        [request(tiny, range(5), "ddim", 2), request(tiny, range(3), "ddim", 1)], lambda *at: done.append(at)
    )
    assert done == [(3, 8), (6, 8), (8, 8)]
    assert max(len(sample) for sample, *_ in recorder.steps) == 3


# --- what comes back ---


def test_samples_are_what_the_manifest_says(tiny):
    first, second = tiny.sample([request(tiny, [5, 3]), request(tiny, [8], "ddim", 2)])
    assert list(first) == ["mask", "image", "provenance"]
    for samples, count in ((first, 2), (second, 1)):
        assert (samples["mask"].shape, samples["mask"].dtype) == ((count, 1, 16, 16), np.uint8)
        assert (samples["image"].shape, samples["image"].dtype) == ((count, 1, 16, 16), np.float32)
        assert (samples["provenance"].shape, samples["provenance"].dtype) == ((count, 1), object)
    texts = [*first["provenance"][:, 0], second["provenance"][0, 0]]
    assert all(
        isinstance(text, bytes) and text == json.dumps(json.loads(text), sort_keys=True).encode() for text in texts
    )
    common = {"model": "tiny", "bundle": tiny.bundle.digest}
    assert [json.loads(text) for text in texts] == [
        {**common, "seed": 5, "solver": "dpmpp_2m", "steps": 4},
        {**common, "seed": 3, "solver": "dpmpp_2m", "steps": 4},
        {**common, "seed": 8, "solver": "ddim", "steps": 2},
    ]


def test_provenance_says_how_far_an_unfinished_training_came(tiny):
    so_far = {"digest": "0" * 64, "unfinished": "step 40 of 90"}
    manifest = dataclasses.replace(tiny.bundle.manifest, checkpoint=so_far)
    sampler = Sampler(dataclasses.replace(tiny.bundle, manifest=manifest), tiny._engine)
    for drawn_by, expected in ((tiny, None), (sampler, "step 40 of 90")):
        (samples,) = drawn_by.sample([request(drawn_by, [3])])
        assert json.loads(samples["provenance"][0, 0]).get("unfinished") == expected


def test_provenance_knows_the_mask(tmp_path):
    conditional = sampler_of(tmp_path, condition=MASK, sample_shape=(1, 16, 16))
    masks = np.random.default_rng(0).integers(0, 4, (2, 1, 16, 16), np.uint8)
    (samples,) = conditional.sample([request(conditional, [1, 1], condition=masks)])
    known = [json.loads(text)["condition_sha256"] for text in samples["provenance"][:, 0]]
    assert known == [hashlib.sha256(mask.tobytes()).hexdigest() for mask in masks]


def test_no_requests_no_samples(tiny):
    assert tiny.sample([]) == []


def test_channels_without_noise_start_at_zero(tmp_path):
    """The last of a state's channels, of a model that leaves its state as it is."""
    gan = sampler_of(tmp_path, schedule=None, noise_channels=1)
    whole = sampler_of(tmp_path / "whole", schedule=None)
    (some,), (all_noise,) = (sampler.sample([request(sampler, [4, 5])]) for sampler in (gan, whole))
    assert (some["image"] == 0.5).all()
    assert not (all_noise["image"] == 0.5).all()
    start = np.empty((1, 16, 16), np.float32)
    noise.draw(5, "tiny", 0, out=start)
    assert np.array_equal(some["mask"][1], start > 0)


def test_provenance_has_the_notices_of_the_model(tmp_path):
    sampler = sampler_of(tmp_path, notices=("Not for diagnosis.",))
    (samples,) = sampler.sample([request(sampler, [5])])
    assert json.loads(samples["provenance"][0, 0])["notices"] == ["Not for diagnosis."]


def test_a_model_without_steps_is_all_finish(tmp_path):
    gan = sampler_of(tmp_path, schedule=None)
    samples = gan.sample([request(gan, [4, 5]), request(gan, [5])])
    start = np.empty((2, 16, 16), np.float32)
    noise.draw(4, "tiny", 0, out=start)
    assert np.array_equal(samples[0]["mask"][0, 0], start[0] > 0)
    assert samples[0]["image"][1].tobytes() == samples[1]["image"][0].tobytes()
    facts = json.loads(samples[0]["provenance"][0, 0])
    assert (facts["solver"], facts["steps"]) == (None, 0)


# --- what goes wrong ---


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["the last state", "image"])
def test_values_that_are_not_finite_are_not_returned(tiny, place, value):
    class Broken(Recorder):
        def generate(self, trajectory):
            state, outputs = super().generate(trajectory)
            state, outputs = state.copy(), {name: values.copy() for name, values in outputs.items()}
            {"the last state": state, **outputs}[place][1, 0, 3, 3] = value
            return state, outputs

    with pytest.raises(EngineError, match=f"NaN or infinity in {place} of tiny for seed 22, solver ddim, steps 3"):
        Sampler(tiny.bundle, Broken()).sample([request(tiny, [11, 22, 33], "ddim", 3)])


def test_a_graph_that_does_not_run_says_which(tiny):
    with pytest.raises(EngineError, match="ONNX Runtime failed in the finish graph"):
        tiny._engine.finish(np.zeros((1, 5, 16, 16), np.float32))


def test_provenance_says_that_the_training_was_not_through(tiny):
    (whole,) = tiny.sample([request(tiny, [5])])
    so_far = "step 3 of 9, in phase guider"
    manifest = dataclasses.replace(tiny.bundle.manifest, checkpoint={"unfinished": so_far})
    (samples,) = Sampler(dataclasses.replace(tiny.bundle, manifest=manifest), tiny._engine).sample([request(tiny, [5])])
    facts, expected = (json.loads(drawn["provenance"][0, 0]) for drawn in (samples, whole))
    assert facts == {**expected, "unfinished": so_far}


def test_a_file_that_is_no_graph_is_named(tmp_path):
    folder = write_tiny_bundle(tmp_path)
    (folder / "step.onnx").write_bytes(b"no graph")
    manifest = load_manifest_with(folder, step=EngineFile("step.onnx", file_digest(folder / "step.onnx")))
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)
    with pytest.raises(EngineError, match=r"cannot open .*step\.onnx"):
        Sampler(load_bundle(folder))


def load_manifest_with(folder, **engines):
    fields = json.loads((folder / MANIFEST).read_text())
    fields["engines"] |= {name: dataclasses.asdict(engine) for name, engine in engines.items()}
    (folder / MANIFEST).write_text(json.dumps(fields))
    seal(folder)
    return load_bundle(folder).manifest


def test_a_target_that_is_not_served_is_refused(tiny):
    manifest = dataclasses.replace(tiny.bundle.manifest, target={"name": "abacus"})
    with pytest.raises(BundleError, match="target is 'abacus'; this version of medgen serves onnx"):
        open_engine(dataclasses.replace(tiny.bundle, manifest=manifest))


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_a_gpu_that_is_only_promised_is_not_needed(tiny, monkeypatch):
    """onnxruntime-gpu lists its CUDA provider on machines without a GPU too."""
    promised = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: promised)
    asked = request(tiny, [1, 2], "ddpm", 5)
    assert_same_bits(Sampler(tiny.bundle).sample([asked])[0], tiny.sample([asked])[0])
