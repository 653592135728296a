import dataclasses
import errno
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_bundle
from tiny_openvino import write_tiny_openvino_bundle

from serving.bundle import Bundle, BundleError, Condition, load_bundle
from serving.engines import EngineError, StepEngine, open_engine, open_on_cpu, openvino
from serving.engines.cpu import instruction_sets
from serving.engines.one_by_one import OneByOneEngine, alone
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.openvino import SIZES, OpenVinoEngine, rounds_of
from serving.sampling.loop import Loop
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.solvers import COLUMNS, solvers_for
from serving.sampling.step_cost import measure_cost

MASK = Condition("mask", (1, 16, 16), classes=4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "threads", lambda: 1)
        return load_bundle(write_tiny_openvino_bundle(tmp_path_factory.mktemp("bundle"), max_batch=16))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more, this bundle's norm cuts the sums of a batch of one into parts: ``seen_on`` is for that."""
    monkeypatch.setattr(openvino, "threads", lambda: 1)


def inputs(count, channels=2):
    random = np.random.default_rng(5)
    sample, *history, noise = random.normal(size=(5, count, channels, 16, 16)).astype(np.float32)
    return sample, tuple(history), noise, random.uniform(size=(count, len(COLUMNS))).astype(np.float32)


def of_rows(given, rows):
    sample, history, noise, coeffs = given
    return sample[rows], tuple(state[rows] for state in history), noise[rows], coeffs[rows]


def test_it_draws_what_onnx_runtime_draws(bundle, tmp_path):
    other = load_bundle(write_tiny_bundle(tmp_path, max_batch=16))
    asked = [parse_request(bundle.manifest, np.arange(7)[:, None], {"solver": "ddpm", "steps": 5})]
    (found,), (expected,) = (Sampler(each).sample(asked) for each in (bundle, other))
    assert np.array_equal(found["mask"], expected["mask"])
    np.testing.assert_allclose(found["image"], expected["image"], atol=1e-5)


def test_it_takes_a_condition(tmp_path):
    options = {"sample_shape": (1, 16, 16), "condition": MASK}
    one, other = (
        load_bundle(write(tmp_path / write.__name__, **options))
        for write in (write_tiny_openvino_bundle, write_tiny_bundle)
    )
    masks = np.random.default_rng(0).integers(0, 4, (3, 1, 16, 16), np.uint8)
    asked = [parse_request(one.manifest, np.arange(3)[:, None], {}, masks)]
    (found,), (expected,) = (Sampler(each).sample(asked) for each in (one, other))
    np.testing.assert_allclose(found["image"], expected["image"], atol=1e-5)


def test_rows_are_the_same_bits_in_every_batch_and_order(bundle):
    engine = OpenVinoEngine(bundle)
    given = inputs(16)
    alone = [
        np.concatenate(parts) for parts in zip(*(engine.step(*of_rows(given, [k])) for k in range(16)), strict=True)
    ]
    random = np.random.default_rng(1)
    for count in range(1, 17):
        rows = random.permutation(16)[:count]
        for found, expected in zip(engine.step(*of_rows(given, rows)), alone, strict=True):
            assert found.tobytes() == expected[rows].tobytes()


def test_requests_in_flight_are_those_of_the_sampler(bundle):
    engine = OpenVinoEngine(bundle)
    random = np.random.default_rng(3)
    solvers = solvers_for(bundle.manifest.schedule)
    requests = [
        parse_request(
            bundle.manifest,
            random.integers(0, 2**60, size=(int(random.integers(1, 6)), 1)),
            {"solver": str(random.choice(solvers)), "steps": int(random.integers(1, 8))},
        )
        for _ in range(20)
    ]
    answers: dict[int, object] = {}
    loop = Loop(bundle, engine, measure_cost(engine, bundle.manifest))
    for number, request in enumerate(requests):
        loop.submit(request, lambda answer, number=number: answers.update({number: answer}))
    loop.start()
    loop.stop()
    sampler = Sampler(bundle, engine)
    for number, request in enumerate(requests):
        (expected,) = sampler.sample([request])
        for name in ("mask", "image"):
            assert answers[number][name].tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("share", [1, 64])
def test_threads_stay_on_their_cores_where_all_cores_are_theirs(bundle, monkeypatch, share):
    monkeypatch.setattr(openvino, "cores", lambda _: share)
    compiled = OpenVinoEngine(bundle)._compiled("finish", 1, 1)
    assert compiled.get_property("ENABLE_CPU_PINNING") == (share == 1)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 16])
def test_rows_are_in_one_piece_each(rows, streams):
    rounds = list(rounds_of(rows, streams))
    assert [row for pieces in rounds for piece in pieces for row in range(piece.start, piece.stop)] == [*range(rows)]
    sizes = [{piece.stop - piece.start for piece in pieces} for pieces in rounds]
    assert all(len(size) == 1 and size <= {*SIZES} for size in sizes)
    assert {len(pieces) for pieces in rounds[:-1]} <= {streams}


class TestHalves:
    """Of two threads each computes half of a batch."""

    @pytest.fixture(autouse=True)
    def two_threads(self, monkeypatch, one_thread) -> None:
        monkeypatch.setattr(openvino, "threads", lambda: 2)

    def test_they_are_what_one_thread_computes(self, bundle, monkeypatch):
        engine, given = OpenVinoEngine(bundle), inputs(14)
        halves = engine.step(*given), engine.finish(given[0])
        assert {key[2] for key in engine._requests} == {2}
        monkeypatch.setattr(openvino, "threads", lambda: 1)
        alone = OpenVinoEngine(bundle)
        expected = alone.step(*given), alone.finish(given[0])
        assert {key[2] for key in alone._requests} == {1}
        for found, wanted in zip((*halves[0], *halves[1].values()), (*expected[0], *expected[1].values()), strict=True):
            assert found.tobytes() == wanted.tobytes()

    def test_each_has_a_thread_and_what_is_left_over_has_both(self, bundle):
        engine = OpenVinoEngine(bundle)
        assert engine.machine.endswith(f"with {instruction_sets()}, 2 threads in 2 streams")
        engine.step(*inputs(3))
        found = {
            (size, streams): requests[0].get_compiled_model().get_property("NUM_STREAMS")
            for (_, size, streams), requests in engine._requests.items()
        }
        assert found == {(1, 2): 2, (1, 1): 1}

    def test_one_that_fails_is_an_error_and_the_next_batch_is_computed(self, bundle):
        engine, given = OpenVinoEngine(bundle), inputs(2)
        expected = engine.step(*given)
        wrong = (given[0][:, :1], *given[1:])
        with pytest.raises(EngineError, match="OpenVINO failed in the step graph"):
            engine.step(*wrong)
        for found, wanted in zip(engine.step(*given), expected, strict=True):
            assert found.tobytes() == wanted.tobytes()


class TestCache:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return tmp_path / "medgen"

    def test_a_compiled_model_is_kept(self, bundle, folder, monkeypatch):
        expected = OpenVinoEngine(bundle).step(*inputs(1))
        assert len(list(folder.iterdir())) == 1
        again = OpenVinoEngine(bundle)
        again._core = WithoutCompiler(again._core)
        assert again.step(*inputs(1))[0].tobytes() == expected[0].tobytes()
        with pytest.raises(EngineError, match=r"cannot open .*step\.xml, which OpenVINO 20.* wrote: not this time"):
            again.step(*inputs(2))

    def test_one_that_is_damaged_is_made_again(self, bundle, folder):
        expected = OpenVinoEngine(bundle).step(*inputs(1))
        (kept,) = folder.iterdir()
        whole = kept.read_bytes()
        for damaged in (whole[:-500], whole[:2000] + bytes(500) + whole[2500:], b""):
            kept.write_bytes(damaged)
            assert OpenVinoEngine(bundle).step(*inputs(1))[0].tobytes() == expected[0].tobytes()
            assert kept.read_bytes()[:32] != damaged[:32] or kept.read_bytes() != damaged

    def test_another_bundle_in_its_place_is_neither_run_nor_kept(self, tmp_path):
        first, other = tmp_path / "first", tmp_path / "other"
        write_tiny_openvino_bundle(first, max_batch=16)
        write_tiny_openvino_bundle(other, max_batch=16, sample_shape=(1, 16, 16))
        kept = load_bundle(first)
        expected = OpenVinoEngine(kept).step(*inputs(1))[0].tobytes()
        for file in (tmp_path / "medgen").iterdir():
            file.unlink()
        engine = OpenVinoEngine(kept)
        first.rename(tmp_path / "before")
        other.rename(first)
        assert engine.step(*inputs(1))[0].tobytes() == expected
        assert engine.finish(inputs(1)[0])["image"].shape == (1, 1, 16, 16)
        (tmp_path / "before").rename(tmp_path / "again")
        assert OpenVinoEngine(load_bundle(tmp_path / "again")).step(*inputs(1))[0].tobytes() == expected

    def test_nothing_is_left_of_one_that_there_is_no_room_for(self, bundle, folder, monkeypatch):
        def full(self, content):
            self.touch()
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        assert OpenVinoEngine(bundle).finish(inputs(1)[0])
        assert not [*folder.iterdir()]

    def test_no_place_for_one_is_no_error(self, bundle, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
        assert OpenVinoEngine(bundle).finish(inputs(1)[0])


class WithoutCompiler:
    def __init__(self, core):
        self._core = core

    def __getattr__(self, name):
        return getattr(self._core, name)

    def compile_model(self, *_):
        raise RuntimeError("not this time")


OPENED_AND_ENDED = """
import signal, sys
from pathlib import Path
from serving.bundle import load_bundle
from serving.engines import open_engine

engines = [open_engine(load_bundle(Path(sys.argv[1]))) for _ in range(2)]
while engines:
    del engines[0]
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_are_heard_when_engines_have_ended_in_the_order_of_their_making(bundle):
    command = [sys.executable, "-c", OPENED_AND_ENDED, str(bundle.folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr


def test_a_cpu_without_bf16_says_what_it_costs(bundle, caplog, monkeypatch):
    class Old:
        def get_property(self, device, name):
            return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else "an old CPU"

        def read_model(self, path):
            return path

    assert openvino.lacking(Old(), "fp32") is None
    monkeypatch.setattr(openvino, "the_core", Old)
    manifest = dataclasses.replace(bundle.manifest, precision="bf16")
    with caplog.at_level(logging.WARNING):
        OpenVinoEngine(dataclasses.replace(bundle, manifest=manifest))
    assert (
        "tiny: this CPU does not compute in bf16, for which it needs avx512_bf16 or AMX: it computes in float32, of"
        in caplog.text
    )


def test_without_openvino_it_says_how_to_get_it(bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(EngineError, match=r"tiny needs OpenVINO: pip install openvino"):
        open_engine(bundle)


def test_weights_that_are_not_those_of_the_manifest_are_refused(tmp_path):
    folder = write_tiny_openvino_bundle(tmp_path)
    weights = folder / "step.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"step\.bin is not the file that was built"):
        load_bundle(folder)
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text("".join(line for line in sums.splitlines(True) if "step.bin" not in line))
    with pytest.raises(BundleError, match=r"SHA256SUMS does not have step\.bin"):
        load_bundle(folder)


@pytest.mark.parametrize("opened", [open_engine, open_on_cpu])
@pytest.mark.parametrize("write", [write_tiny_bundle, write_tiny_openvino_bundle])
def test_where_rows_depend_on_their_batch_each_is_alone(tmp_path, write, opened, caplog):
    bundle = load_bundle(write(tmp_path, max_batch=6))
    target = {**bundle.manifest.target, "rows_are_independent": False}
    manifest = dataclasses.replace(bundle.manifest, target=target)
    engine, plain = opened(dataclasses.replace(bundle, manifest=manifest)), opened(bundle)
    assert "tiny is computed a sample at a time: a row's bits depend on its batch" in caplog.text
    assert isinstance(engine, OneByOneEngine)
    assert isinstance(plain, StepEngine)
    assert engine.buckets is None
    seen = []
    step = engine._engine.step
    engine._engine.step = lambda sample, *others: seen.append(len(sample)) or step(sample, *others)
    for found, expected in zip(engine.step(*inputs(5)), plain.step(*inputs(5)), strict=True):
        assert found.tobytes() == expected.tobytes()
    assert seen == [1] * 5
    ends, others = engine.finish(inputs(5)[0]), plain.finish(inputs(5)[0])
    assert ends.keys() == others.keys()
    assert all(ends[name].tobytes() == others[name].tobytes() for name in others)


def test_a_row_that_is_alone_begins_where_memory_is_aligned():
    batch = np.arange(15, dtype=np.float32).reshape(5, 3)
    for row, expected in zip(alone(batch), batch, strict=True):
        assert row.ctypes.data % 16 == 0
        np.testing.assert_array_equal(row, expected[None])


@pytest.mark.parametrize(
    ("write", "kind", "library"),
    [
        (write_tiny_bundle, OnnxRuntimeEngine, "ONNX Runtime 1."),
        (write_tiny_openvino_bundle, OpenVinoEngine, "OpenVINO"),
    ],
)
def test_with_another_version_or_on_another_machine_each_is_alone_too(tmp_path, write, kind, library, caplog):
    bundle = load_bundle(write(tmp_path))
    machine = kind(bundle).machine
    assert machine.startswith(library)
    other = machine.replace(library, "Another 0.")
    for seen_on, opened in ((machine, kind), (other, OneByOneEngine)):
        target = {**bundle.manifest.target, "rows_are_independent": True, "seen_on": seen_on}
        manifest = dataclasses.replace(bundle.manifest, target=target)
        assert isinstance(open_on_cpu(dataclasses.replace(bundle, manifest=manifest)), opened)
    assert f"was seen with {other}, and here is {machine}; build it here to have batches" in caplog.text


@pytest.mark.parametrize("opened", [open_engine, open_on_cpu])
@pytest.mark.parametrize(
    ("write", "kind"), [(write_tiny_bundle, OnnxRuntimeEngine), (write_tiny_openvino_bundle, OpenVinoEngine)]
)
def test_a_bundle_that_is_replaced_while_it_is_opened_is_not_run(tmp_path, monkeypatch, write, kind, opened):
    bundle = load_bundle(write(tmp_path / "bundle"))
    write(tmp_path / "other", sample_shape=(1, 16, 16))
    begin = kind.__init__

    def replaced(self, bundle):
        (tmp_path / "bundle").rename(tmp_path / "before")
        (tmp_path / "other").rename(tmp_path / "bundle")
        begin(self, bundle)

    monkeypatch.setattr(kind, "__init__", replaced)
    with pytest.raises(BundleError, match=f"was replaced while it was opened: it held {bundle.digest}, and holds"):
        opened(bundle)


@pytest.mark.parametrize("lacks", ["rows_are_independent", "seen_on"])
def test_where_the_build_did_not_say_what_it_saw_each_is_alone_too(tmp_path, lacks, caplog):
    bundle = load_bundle(write_tiny_bundle(tmp_path))
    target = {**bundle.manifest.target, "rows_are_independent": True, "seen_on": OnnxRuntimeEngine(bundle).machine}
    del target[lacks]
    manifest = dataclasses.replace(bundle.manifest, target=target)
    assert isinstance(open_on_cpu(dataclasses.replace(bundle, manifest=manifest)), OneByOneEngine)
    assert "tiny is computed a sample at a time: its build does not say where it saw that" in caplog.text
