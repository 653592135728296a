"""What a page shows and sends, without a browser."""

import dataclasses
import html
import os
import shlex
import socket
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from live import Live, eventually, free_ports
from PIL import Image
from tiny_samples import HEART, pairs

from medgen import main
from serving.bundle import Output, Student, bundle_folder, load_bundle
from serving.client import SamplingError
from serving.condition_files import MaskFileError
from serving.page.command_line import command_of, stem
from serving.page.downloads import FORMATS, pack
from serving.page.drawing import AT_ONCE, PLACES, CancelledError, Drawing, Drawn
from serving.page.pictures import has_mask_over, tile, tiles, what_is_seen
from serving.page.server import listening, serve
from serving.page.settings import (
    KEPT_SECONDS,
    LAST_SEED,
    Limits,
    Server,
    Settings,
    Upload,
    WrongSettingError,
    read_settings,
    uploads,
)
from serving.picture_files import PictureFileError
from serving.sample_set import Samples
from serving.sampling.ways import Ways, ways_of
from serving.writers.pictures import PALETTE
from serving.writers.sample_folder import write_samples

HEARTS = pairs("hearts", "MR", HEART, (1.25, 1.5))
NOTHING = (None, None, None, None, None, None, None)


def server_of(live: Live) -> Server:
    return Server(live.url("grpc"), live.url("metrics"), 60.0)


def drawn_of(samples: Samples, **settings: object) -> Drawn:
    return Drawn(samples, Settings(**{"model": "hearts", "count": 2, "seed": 7, "solving": {}, **settings}), ())


@pytest.mark.parametrize(("count", "said"), [(1, "1 sample is drawn"), (2, "2 samples are drawn")])
def test_how_many_are_drawn_is_said_above_the_notes(count: int, said: str) -> None:
    some = Samples(HEARTS.arrays, HEARTS.provenance[:count], HEARTS.outputs)
    drawn = dataclasses.replace(drawn_of(some), notes=("the classes of an NPY are not checked",))
    assert drawn.told() == f"{said}\nthe classes of an NPY are not checked"


@pytest.mark.parametrize(
    ("model", "count", "seed", "steps", "said"),
    [
        (None, 4.0, "0", None, "no model is chosen"),
        ("pig", 65.0, "0", None, "samples is 65; it must be from 1 to 64"),
        ("pig", None, "0", None, "samples is None"),
        ("pig", 2.5, "0", None, "samples is 2.5; it must be a whole number"),
        ("pig", 4.0, "-1", None, "first seed is '-1'"),
        ("pig", 4.0, "9223372036854775808", None, "first seed is '9223372036854775808'"),
        ("pig", 4.0, "7", 8.5, "steps is 8.5; it must be a whole number"),
    ],
)
def test_what_cannot_be_sent_is_named(
    model: str | None, count: float | None, seed: str, steps: float | None, said: str
) -> None:
    with pytest.raises(WrongSettingError, match=said):
        read_settings(model, count, seed, "ddim", steps, *NOTHING[2:])


def test_files_of_one_name_are_refused() -> None:
    files = ["one/mask.npy", "other/mask.npy"]
    with pytest.raises(WrongSettingError, match=r"several files are called mask\.npy"):
        read_settings("pig", None, "0", None, None, None, None, None, files, None)


def test_other_steps_have_another_name() -> None:
    names = {stem(drawn_of(HEARTS, solving=solving)) for solving in ({}, {"steps": 4}, {"solver": "ddim", "steps": 4})}
    assert names == {"hearts-7", "hearts-7-4", "hearts-7-ddim-4"}


@pytest.mark.parametrize("server", [Server("nonsense", None, 1.0), Server(None, "nonsense", 1.0)])
def test_what_is_no_address_is_said_at_the_start(server: Server) -> None:
    with pytest.raises(SamplingError, match="url is 'nonsense'"):
        serve(server, "127.0.0.1", 0, print)


@pytest.mark.parametrize(
    ("solving", "said"),
    [
        ({"steps": 0}, "steps is 0; it must be from 1 to 1000"),
        ({"steps": 20, "mask_steps": 101}, "mask_steps is 101; it must be from 1 to 100"),
    ],
)
def test_steps_that_a_model_has_not_are_refused(solving: dict[str, int], said: str) -> None:
    limits = Limits("cmr_flow", Ways(("euler",), "euler", 20, 1000), Ways(("ddpm",), "ddpm", 50, 100))
    limits.check(Settings("cmr_flow", 1, 0, {"steps": 1000, "mask_steps": 100}))
    with pytest.raises(WrongSettingError, match=said):
        limits.check(Settings("cmr_flow", 1, 0, solving))
    with pytest.raises(WrongSettingError, match="were not yet those of pig"):
        limits.check(Settings("pig", 1, 0, {}))


def test_a_student_is_shown_with_its_own_steps_alone(live: Live) -> None:
    manifest = load_bundle(bundle_folder(live.repository, "tiny")).manifest
    learnt = Student("0" * 64, 8, "ddim_clipped_trailing", 4)
    ways = ways_of(dataclasses.replace(manifest, student=learnt, default_solver=learnt.solver, default_steps=4))
    assert ways.solvers == (learnt.solver,)
    limits = Limits("tiny", ways, None)
    limits.check(Settings("tiny", 1, 0, {"steps": 4}))
    with pytest.raises(WrongSettingError, match="steps is 5; it must be 4, which is all that it has learnt"):
        limits.check(Settings("tiny", 1, 0, {"steps": 5}))


def test_a_port_that_is_taken_is_named_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="cannot listen") as error:
        listening("127.0.0.1", port := taken.getsockname()[1])
    said = f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --host or --port"
    assert str(error.value) == said


def test_seeds_that_a_browsers_numbers_cannot_hold_are_kept() -> None:
    assert read_settings("pig", 1.0, f" {LAST_SEED} ", *NOTHING).seed == LAST_SEED


def test_a_mask_is_mixed_with_what_is_under_it() -> None:
    grey = np.array(tile(HEARTS, 0, 0.0))
    folder_has = np.rint(np.clip((HEARTS.arrays["image"][0, 0].astype(float) + 1) / 4, 0, 1) * 255)
    assert np.array_equal(grey, np.repeat(folder_has[..., None], 3, -1))
    mask = HEARTS.arrays["mask"][0, 0]
    assert np.array_equal(np.array(tile(HEARTS, 0, 1.0))[mask > 0], PALETTE[mask][mask > 0])
    half = np.array(tile(HEARTS, 0, 0.5))
    assert np.array_equal(half[mask == 0], grey[mask == 0])
    assert np.array_equal(half[mask > 0], np.rint((grey[mask > 0].astype(float) + PALETTE[mask][mask > 0]) / 2))


def test_no_file_is_written_again_while_a_browser_reads_it(tmp_path: Path) -> None:
    processing = pytest.importorskip("gradio.processing_utils")
    shown = [picture for _ in range(2) for picture, _ in tiles(HEARTS, 0.4)]
    files = {processing.save_pil_to_cache(picture, cache_dir=tmp_path, format="png") for picture in shown}
    assert len(files) == len(shown)


def test_what_was_given_is_beside_what_was_found() -> None:
    given, found = (np.full((1, 1, 4, 6), value, np.float32) for value in (0.0, 1.0))
    outputs = tuple(Output(name, "float32", (1, 4, 6), 0.0, 1.0) for name in ("<photo>", "image"))
    provenance = [{"model": "m", "seed": 3, "notices": ["a < b"]}]
    samples = Samples({"<photo>": given, "image": found}, provenance, outputs, ("<photo>",))
    shown = np.array(tile(samples, 0, 0.4))
    assert shown.shape == (4, 6 + 2 + 6, 3)
    assert not shown[:, :6].any()
    assert (shown[:, 6:] == 255).all()
    sides, notice = "<p>Side by side: &lt;photo&gt; (given), image</p>", '<p class="notice">a &lt; b</p>'
    assert what_is_seen(samples) == sides + notice
    assert not has_mask_over(samples)
    assert has_mask_over(HEARTS)


def test_the_classes_have_names_and_colours() -> None:
    seen = what_is_seen(HEARTS)
    assert all(f"</span>{name}</li>" in seen for name in HEART[1:])
    assert f">{HEART[0]}<" not in seen
    assert f"rgb{tuple(PALETTE[2].tolist())}" in seen
    odd = pairs("odd", None, ("background", "<b>"), None)
    assert html.escape("<b>") in what_is_seen(odd)


def test_a_file_to_take_away_is_what_sample_writes(tmp_path: Path) -> None:
    write_samples(HEARTS, tmp_path / "written")
    npz = pack(drawn_of(HEARTS), "NPZ", tmp_path)
    assert npz.name == "hearts-7.npz"
    assert npz.read_bytes() == (tmp_path / "written" / "pairs.npz").read_bytes()
    ends = {
        "PNG": "images/000007.png",
        "NIfTI": ".nii.gz",
        "nnU-Net": "dataset.json",
        "DICOM": ".dcm",
        "WebDataset": ".tar",
    }
    assert {"NPZ", *ends} == {*FORMATS}
    for kind, end in ends.items():
        with zipfile.ZipFile(pack(drawn_of(HEARTS), kind, tmp_path)) as packed:
            names = packed.namelist()
            assert any(name.endswith(end) for name in names), kind
            assert "provenance.json" in names
            assert len(names) == len({*names})
            if kind == "PNG":
                with Image.open(packed.open(end)) as picture:
                    assert np.array_equal(np.array(picture), np.array(tile(HEARTS, 0, 0.0))[..., 0])


def test_files_are_not_kept_for_ever(tmp_path: Path) -> None:
    old, new = (pack(drawn_of(HEARTS), "NPZ", tmp_path) for _ in range(2))
    past = time.time() - KEPT_SECONDS - 1
    os.utime(old.parent, (past, past))
    last = pack(drawn_of(HEARTS), "NPZ", tmp_path)
    assert {*tmp_path.rglob("*.npz")} == {new, last}


def test_the_command_draws_the_same_again(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solving = {"steps": 5, "solver": "ddim", "mask_steps": 3}
    drawn = Drawing(server_of(live), Settings("cmr_ddpm", 3, 11, solving)).result()
    command = shlex.split(command_of(drawn, live.url("grpc")))
    monkeypatch.chdir(tmp_path)
    assert command[0] == "medgen"
    assert CliRunner().invoke(main, command[1:]).exit_code == 0
    assert (tmp_path / stem(drawn) / "pairs.npz").read_bytes() == pack(drawn, "NPZ", tmp_path).read_bytes()


def test_labels_are_in_the_command_too(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawing(server_of(live), Settings("tiny_label", 3, 5, {}, labels=("malignant", "normal"))).result()
    command = shlex.split(command_of(drawn, live.url("grpc")))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, command[1:]).exit_code == 0
    assert (tmp_path / stem(drawn) / "pairs.npz").read_bytes() == pack(drawn, "NPZ", tmp_path).read_bytes()
    with live.client("grpc") as client:
        expected = client.sample("tiny_label", 3, seed=5, label=["malignant", "normal"])
    assert np.array_equal(drawn.samples.arrays["image"], expected.arrays["image"])


def test_files_in_the_command_are_called_what_the_visitor_calls_them() -> None:
    drawn = drawn_of(HEARTS, files=(Upload(Path("uploads/my masks.npz"), "my masks: $5.npz"),), count=None)
    assert command_of(drawn, "127.0.0.1:8001") == (
        "medgen sample --model hearts --count 2 --seed 7 --condition 'my masks: $5.npz' --out hearts-7"
    )


def test_what_is_said_of_files_has_the_names_that_the_visitor_gave_them(live: Live, tmp_path: Path) -> None:
    place = tmp_path / "uploaded"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(place, "PNG")
    drawn = Drawing(server_of(live), Settings("tiny_picture", None, 0, {}, (Upload(place, "a: b.png"),))).result()
    assert drawn.samples.provenance[0]["condition_file"] == "a: b.png"
    assert drawn.notes[0].startswith("a: b.png: 8-bit")
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(place, "PNG")
    with pytest.raises(PictureFileError, match=r"^a: b\.png is 1 x 16 x 20"):
        Drawing(server_of(live), Settings("tiny_picture", None, 0, {}, (Upload(place, "a: b.png"),))).result()


def test_a_small_file_that_would_take_all_memory_is_refused(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", mask=np.zeros((1, 1, 2048, 2048), np.uint8))
    monkeypatch.setattr("serving.page.drawing.UNPACKED", 1 << 20)
    given = Settings("tiny_picture", None, 0, {}, (Upload(tmp_path / "zeros.npz", "zeros.npz"),))
    with pytest.raises(MaskFileError, match=r"zeros\.npz unpacks to 4 MiB; at most 1 are read"):
        Drawing(server_of(live), given).result()


@pytest.mark.parametrize(
    ("names", "name"), [(["a/b: c"], "b: c"), (["a\0b"], "it"), (["x" * 256], "it"), ([None], "it"), ([], "it")]
)
def test_what_a_file_cannot_be_called(names: list[str], name: str) -> None:
    assert uploads(["folder/it"], names) == [Upload(Path("folder/it"), name)]


def test_a_fault_of_the_page_s_own_is_said_too(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.page.drawing.read_condition", lambda *_: {}["nothing"])
    with pytest.raises(SamplingError, match="KeyError: 'nothing'"):
        Drawing(server_of(live), Settings("tiny", 1, 0, {})).result()
    assert "KeyError" in caplog.text


def test_what_the_server_refuses_is_said_in_its_words(live: Live) -> None:
    settings = Settings("tiny", 1, 0, {"steps": 5000})
    with pytest.raises(SamplingError) as theirs, live.client("grpc") as client:
        client.sample("tiny", 1, steps=5000)
    with pytest.raises(SamplingError) as ours:
        Drawing(server_of(live), settings).result()
    assert str(ours.value) == str(theirs.value)
    assert "steps is 5000" in str(ours.value)


def test_who_cancels_ends_it_on_the_server_too(live: Live) -> None:
    def since(name: str) -> float:
        return live.metric(name, "tiny_gated") - before[name]

    in_hand = ("medgen_rows_in_flight", "medgen_rows_waiting")
    eventually(lambda: not any(live.metric(name, "tiny_gated") for name in in_hand), "those of others have left")
    before = {name: live.metric(name, "tiny_gated") for name in ("exec_count", "medgen_rows_cancelled_total")}
    with live.slow("tiny_gated"):
        with live.closed("tiny_gated"):
            # From seed 20 on: the model cannot do 13, and a request that fails is not one that is cancelled.
            drawing = Drawing(server_of(live), Settings("tiny_gated", 16, 20, {"steps": 1000}))
            eventually(lambda: since("exec_count") >= 2, "the model has both requests")
            drawing.cancel()
            with pytest.raises(CancelledError, match="Cancelled, with 0 of 16 samples drawn"):
                drawing.result()
        # Whenever Triton hears of it, steps are left.
        eventually(lambda: since("medgen_rows_cancelled_total") == 16, "all have left")


def test_who_waits_for_others_need_not_to_cancel(live: Live) -> None:
    with ExitStack() as others:
        for _ in range(PLACES):
            others.enter_context(AT_ONCE)
        drawing = Drawing(server_of(live), Settings("tiny", 1, 0, {}))
        assert drawing.so_far() == "Waiting for the server"
        drawing.cancel()
        eventually(drawing.has_ended, "it ends")
        with pytest.raises(CancelledError, match=r"^Cancelled$"):
            drawing.result()
    assert len(Drawing(server_of(live), Settings("tiny", 1, 0, {})).result().samples) == 1


def test_a_page_is_ready_when_its_server_can_draw(live: Live) -> None:
    health = pytest.importorskip("serving.page.health")
    testing = pytest.importorskip("starlette.testclient")

    def ready(server: Server) -> tuple[int, str]:
        answer = testing.TestClient(health.with_health(server)).get(health.READY)
        return answer.status_code, answer.text

    assert ready(server_of(live)) == (200, "ready")
    (port,) = free_ports(1)
    gone = Server(f"127.0.0.1:{port}", None, 60.0)
    assert ready(gone) == (503, f"no server answers at 127.0.0.1:{port}: start one with medgen up")
