"""medgen up | sample, as a person types them."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from live import (
    CHAINS,
    CHECKOUT,
    LABEL,
    MASK,
    NOTICE,
    PATIENCE,
    Live,
    add_chains,
    add_model,
    free_ports,
    processes,
    start,
)
from PIL import Image
from tiny import write_tiny_bundle

from serving.__main__ import main
from serving.bundle import TEMPLATES, bundle_folder
from serving.triton.installation import find_installation
from serving.triton.served_models import find_models, why_not_served
from serving.writers.layouts import BESIDE_OTHERS

HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1, 1000, 1000)}"
HUGE = b"\x93NUMPY\x01\x00\x76\x00" + HEADER.ljust(117).encode() + b"\n"


def serving(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line that says why."""
    result = serving(*arguments)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    return result.output


@pytest.fixture(autouse=True)
def no_patience_for_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.triton.address.PORT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    add_model(folder, "tiny")
    shutil.copytree(TEMPLATES / "pig", folder / "pig", ignore=shutil.ignore_patterns("bundle", ".bundle*"))
    return folder


@pytest.mark.parametrize(
    ("model", "options", "taken"),
    [
        ("tiny", ["--solver", "dpmpp_2m"], [("dpmpp_2m", 6)]),
        (
            "cmr_flow",
            ["--solver", "midpoint", "--mask-solver", "ddim", "--mask-steps", 4],
            [("ddim", 4), ("midpoint", 6)],
        ),
    ],
)
def test_all_ways_to_sample_write_the_same_files(
    live: Live, tmp_path: Path, model: str, options: list[object], taken: list[tuple[str, int]]
) -> None:
    asked = ["sample", "--model", model, "--count", 11, "--seed", 7, "--steps", 6, *options]
    ways = {
        "local": ["--local", "--repository", live.repository],
        "grpc": ["--url", live.url("grpc")],
        "http": ["--protocol", "http", "--url", live.url("http")],
    }
    for way, where in ways.items():
        result = serving(*asked, *where, "--out", tmp_path / way)
        assert result.exit_code == 0, result.output
        assert f"11 samples of {model} in" in result.output
        assert f"{tmp_path / way}: images/, masks/, overlays/, pairs.npz, provenance.json, sheet.png" in result.output
    files = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*") if path.is_file())
    assert len(files) == 3 + 3 * 11
    for file in files:
        local, grpc, http = ((tmp_path / way / file).read_bytes() for way in ways)
        assert local == grpc == http, file
    with np.load(tmp_path / "http" / "pairs.npz") as pairs:
        assert pairs["seed"].tolist() == list(range(7, 18))
    record = json.loads((tmp_path / "grpc" / "provenance.json").read_text())
    for sample in record["samples"]:
        assert [(facts["solver"], facts["steps"]) for facts in sample.get("stages", [sample])] == taken


@pytest.mark.parametrize("model", ["tiny", "cmr_flow"])
def test_nifti_files_hold_the_pairs(live: Live, tmp_path: Path, model: str) -> None:
    out = tmp_path / "samples"
    result = serving("sample", "--model", model, "--count", 2, "--url", live.url("grpc"), "--nifti", "--out", out)
    assert ", nifti/, overlays/" in result.output
    with np.load(out / "pairs.npz") as pairs:
        for name in ("mask", "image"):
            for row, seed in enumerate(pairs["seed"]):
                voxels = np.asanyarray(nibabel.load(out / "nifti" / f"{seed:06d}_{name}.nii.gz").dataobj)
                np.testing.assert_array_equal(voxels[..., 0].T, pairs[name][row, 0])
    record = json.loads((out / "provenance.json").read_text())
    sidecar = json.loads((out / "nifti" / "000001_mask.json").read_text())
    assert sidecar["provenance"] == record["samples"][1]
    assert list(sidecar["labels"].values()) == record["outputs"][0]["labels"]


def test_layouts_lie_beside_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than are written together, whatever their number."""
    add_chains(tmp_path / "models")
    monkeypatch.setattr("serving.__main__.PART", 2)
    asked = [
        "sample",
        "--local",
        "--repository",
        tmp_path / "models",
        "--model",
        "cmr_flow",
        "--count",
        5,
        "--steps",
        2,
    ]
    layouts = [word for name in BESIDE_OTHERS for word in ("--layout", name)]
    result = serving(*asked, *layouts, "--nifti", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "out: dicom/, images/, masks/, nifti/, nnunet/, overlays/, pairs.npz" in result.output
    assert len(list((tmp_path / "out" / "nnunet" / "labelsTr").iterdir())) == 5
    assert json.loads((tmp_path / "out" / "nnunet" / "dataset.json").read_text())["numTraining"] == 5
    assert len(list((tmp_path / "out" / "webdataset").iterdir())) == 3
    with np.load(tmp_path / "out" / "pairs.npz") as pairs:
        assert pairs["image"].shape == (5, 1, 16, 16)
    assert serving(*asked, "--force", "--out", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "dicom").exists()
    said = refused(*asked, "--add-to", tmp_path / "models", "--out", tmp_path / "other")
    assert "--add-to is for --layout nnunet" in said
    said = refused(*asked, "--layout", "nnunet", "--add-to", tmp_path / "models", "--out", tmp_path / "other")
    assert f"{tmp_path / 'models' / 'dataset.json'} cannot be read" in said
    assert not (tmp_path / "other").exists()


def test_nifti_without_nibabel_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'medgen[nifti]'" in refused("sample", "--model", "tiny", "--nifti", "--out", tmp_path / "out")


def test_images_under_the_masks_of_other_samples(live: Live, tmp_path: Path) -> None:
    asked = ["sample", "--local", "--repository", live.repository]
    assert serving(*asked, "--model", "cmr_flow", "--count", 6, "--out", tmp_path / "chain").exit_code == 0
    pairs = np.load(tmp_path / "chain" / "pairs.npz")
    np.save(tmp_path / "masks.npy", pairs["mask"][:, 0])
    for file in (tmp_path / "chain" / "pairs.npz", tmp_path / "masks.npy"):
        result = serving(
            *asked, "--model", "cmr_flow_image", "--condition", file, "--out", tmp_path / "image", "--force", "--nifti"
        )
        assert result.exit_code == 0, result.output
        assert "6 samples of cmr_flow_image" in result.output
        for name, values in np.load(tmp_path / "image" / "pairs.npz").items():
            np.testing.assert_array_equal(values, pairs[name])
        sidecar = json.loads((tmp_path / "image" / "nifti" / "000000_mask.json").read_text())
        assert tuple(sidecar["labels"].values()) == MASK.labels
        assert (sidecar["spacing"]["y"], sidecar["spacing"]["x"]) == MASK.spacing
        chain, image = (Image.open(tmp_path / folder / "sheet.png").tobytes() for folder in ("chain", "image"))
        assert chain == image, "the masks are outlined alike"


@pytest.mark.parametrize("way", ["local", "grpc"])
def test_a_class_is_drawn_by_its_name(live: Live, tmp_path: Path, way: str) -> None:
    here = ["--local", "--repository", live.repository] if way == "local" else ["--url", live.url("grpc")]
    asked = [*here, "--model", "tiny_label", "--count", 3, "--steps", 2]
    labels = ["--label", "malignant", "--label", "0"]
    result = serving("sample", *asked, "--out", tmp_path / "samples", *labels)
    assert result.exit_code == 0, result.output
    assert "label 2 is malignant, 0 is normal" in result.output.splitlines()
    record = json.loads((tmp_path / "samples" / "provenance.json").read_text())
    assert [sample["label_name"] for sample in record["samples"]] == ["malignant", "normal", "malignant"]
    with np.load(tmp_path / "samples" / "pairs.npz") as pairs:
        assert pairs["label"].tolist() == [[2], [0], [2]]
        assert pairs["label_labels"].tolist() == [*LABEL.labels]
    assert serving("draw", *asked, "--per-file", 2, "--out", tmp_path / "set", *labels).exit_code == 0
    (again, _) = sorted((tmp_path / "set").glob("*.npz"))
    with np.load(again) as part, np.load(tmp_path / "samples" / "pairs.npz") as pairs:
        np.testing.assert_array_equal(part["image"], pairs["image"][:2])
    said = refused("draw", *asked, "--per-file", 2, "--out", tmp_path / "set", "--label", 1)
    assert "condition" in said
    assert "label is 'odd'; allowed are 0 (normal)" in refused(
        "sample", *asked, "--out", tmp_path / "x", "--label", "odd"
    )


@pytest.mark.parametrize("way", ["local", "grpc"])
def test_pictures_are_scaled_and_that_is_said(live: Live, tmp_path: Path, way: str) -> None:
    here = ["--local", "--repository", live.repository] if way == "local" else ["--url", live.url("grpc")]
    asked = ["sample", *here, "--model", "tiny_picture", "--out", tmp_path / "samples"]
    crops = tmp_path / "crops"
    crops.mkdir()
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    for name, pixels in {"b.png": ramp, "a.png": ramp[::-1].copy()}.items():
        Image.fromarray(pixels).save(crops / name)
    result = serving(*asked, "--condition", crops)
    assert result.exit_code == 0, result.output
    note = "2 files from a.png to b.png: 16-bit, 0..65535 to -1..3"
    assert note in result.output.splitlines()
    record = json.loads((tmp_path / "samples" / "provenance.json").read_text())
    assert record["notes"] == [note]
    assert [sample["condition_file"] for sample in record["samples"]] == ["a.png", "b.png"]
    assert all(sample["notices"] == [NOTICE] for sample in record["samples"])
    with np.load(tmp_path / "samples" / "pairs.npz") as pairs:
        np.testing.assert_allclose(pairs["photo"][1, 0], -1 + 4 * (ramp / 65535), atol=1e-6)
        assert pairs["photo_range"].tolist() == [-1, 3]
    again = serving(*asked, "--force", "--condition", tmp_path / "samples" / "pairs.npz")
    assert "pairs.npz: float32, -1..3 to -1..3" in again.output.splitlines()
    Image.fromarray(ramp[:8].copy()).save(crops / "c.png")
    said = refused(*asked, "--force", "--condition", crops / "c.png")
    assert "c.png is 1 x 8 x 16, and photo must be 1 x 16 x 16: nothing is resized" in said
    assert "b.png is one file too many: tiny takes masks of one file, or no condition at all" in refused(
        "sample", *here, "--model", "tiny", "--out", tmp_path / "x", *2 * ["--condition", crops / "b.png"]
    )
    said = refused("sample", *here, "--model", "tiny", "--out", tmp_path / "x", "--condition", crops)
    assert "crops is of pictures, and tiny draws under none: it takes masks, or no condition at all" in said
    drawn = ["draw", *here, "--model", "tiny_picture", "--out", tmp_path / "set"]
    assert serving(*drawn, "--condition", crops / "a.png", "--condition", crops / "b.png").exit_code == 0
    assert json.loads((tmp_path / "set" / "index.json").read_text())["notes"] == [note]
    said = refused(*asked, "--force", "--condition", crops / "a.png", "--steps", 4)
    assert "steps is 4; tiny_picture draws in one pass, and takes no steps" in said


@pytest.mark.parametrize(
    ("name", "masks", "said"),
    [
        ("masks.npy", np.zeros((2, 16, 16)), "masks.npy holds float64 values; masks must be uint8"),
        ("masks.npy", np.full((2, 1, 16, 16), 4, np.uint8), "mask holds class 4; allowed are 0 to 3"),
        ("masks.npy", np.zeros((2, 1, 16, 8), np.uint8), "mask has shape [2, 1, 16, 8]; it must be uint8 of shape"),
        ("masks.npy", np.zeros((16, 16), np.uint8), "shape [16, 16]; it must be [N, H, W] or [N, 1, H, W]"),
        ("masks.npy", np.zeros((0, 16, 16), np.uint8), "shape [0, 16, 16]; it must be"),
        ("masks.npy", np.array([None]), "masks.npy is no .npz or .npy of masks"),
        ("masks.npy", HUGE, "masks.npy is no .npz or .npy of masks"),
        ("masks.npy", b"PNG", "masks.npy is no .npz or .npy of masks"),
        ("masks.npz", b"PK\x03\x04", "masks.npz is no .npz or .npy of masks"),
        ("pairs.npz", {"image": np.zeros(3), "seed": np.zeros(3)}, "has no array 'mask'; it holds image, seed"),
        ("masks.npy", np.zeros((3, 16, 16), np.uint8), "masks.npy holds 3 masks, and --count is 2: give one for each"),
    ],
)
def test_masks_that_will_not_do(live: Live, tmp_path: Path, name: str, masks: object, said: str) -> None:
    file = tmp_path / name
    if isinstance(masks, bytes):
        file.write_bytes(masks)
    elif isinstance(masks, dict):
        np.savez(file, **masks)
    else:
        np.save(file, masks, allow_pickle=True)
    asked = ["sample", "--model", "cmr_ddpm_image", "--local", "--repository", live.repository, "--condition", file]
    assert said in refused(*asked, "--out", tmp_path / "samples", "--count", 2)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("way", ["local", "grpc"])
def test_masks_of_another_model_are_refused(live: Live, tmp_path: Path, way: str) -> None:
    here = ["--local", "--repository", live.repository] if way == "local" else ["--url", live.url("grpc")]
    assert serving("sample", *here, "--model", "tiny", "--count", 2, "--out", tmp_path / "pairs").exit_code == 0
    asked = ["sample", *here, "--model", "cmr_ddpm_image", "--count", 2, "--out", tmp_path / "images"]
    said = refused(*asked, "--condition", tmp_path / "pairs" / "pairs.npz")
    assert "the masks are uint8 [1, 16, 16] of 2 classes (background, lesion), pixels of unknown size; " in said
    assert "cmr_ddpm_image needs uint8 [1, 16, 16] of 4 classes (background, LV, MYO, RV), 1.25 x 1.5 mm" in said
    assert "mask is missing; cmr_ddpm_image needs it as uint8 of shape [2, 1, 16, 16]: " in refused(*asked)
    assert not (tmp_path / "images").exists()
    np.save(tmp_path / "bare.npy", np.load(tmp_path / "pairs" / "pairs.npz")["mask"])
    result = serving(*asked, "--condition", tmp_path / "bare.npy")
    note = "bare.npy does not name its classes: only their range was checked"
    assert note in result.output.splitlines()
    assert json.loads((tmp_path / "images" / "provenance.json").read_text())["notes"] == [note]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "file/samples"], "file/samples cannot be written: Not a directory"),
        (["--out", "samples", "--count", 10**8], "the samples take up to 1.8 TB on disk and 204.8 GB of memory, and "),
        (["--out", "samples", "--count", 10**30], "the samples take up to "),
        (["--out", "samples", "--model", "pug"], "no model 'pug' in "),
    ],
)
def test_what_cannot_be_written_is_found_before_anything_is_drawn(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], said: str
) -> None:
    def draw(*_: object, **__: object) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr("serving.client.LocalClient.sample", draw)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert said in refused("sample", "--model", "tiny", "--local", "--repository", repository, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_the_output_is_piped_a_line_comes_now_and_then(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["sample", "--model", "tiny", "--local", "--repository", repository, "--count", 11, "--out", tmp_path / "a"]
    assert "of 11 samples" not in serving(*asked, "--force").output
    monkeypatch.setattr("serving.progress.SECONDS", 0)
    assert "tiny: 8 of 11 samples\ntiny: 11 of 11 samples\n" in serving(*asked, "--force").output


def test_what_takes_much_room_is_said(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.__main__.WORTH_SAYING", 1000)
    asked = ["sample", "--model", "tiny", "--local", "--repository", repository, "--count", 11, "--out", tmp_path / "a"]
    assert "11 samples of tiny take up to 197.1 kB on disk and 50.7 kB of memory\n" in serving(*asked).output


def test_samples_are_replaced_only_when_asked(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    asked = ["sample", "--model", "tiny", "--local", "--repository", repository, "--out", out]
    assert serving(*asked, "--count", 3).exit_code == 0
    assert "holds samples already" in refused(*asked, "--count", 2)
    assert len(list((out / "masks").iterdir())) == 3
    assert serving(*asked, "--count", 2, "--force").exit_code == 0
    assert len(list((out / "masks").iterdir())) == 2
    assert "exists and holds no samples" in refused(*asked[:-1], repository, "--force")


def test_sigterm_leaves_the_old_samples_and_nothing_else(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, handler = tmp_path / "samples", signal.getsignal(signal.SIGTERM)
    asked = ["sample", "--model", "tiny", "--local", "--repository", repository, "--out", out, "--force", "--count"]
    assert serving(*asked, 3).exit_code == 0
    monkeypatch.setattr("serving.writers.sample_folder.contact_sheet", lambda _: signal.raise_signal(signal.SIGTERM))
    assert serving(*asked, 2).exit_code == 128 + signal.SIGTERM
    assert len(list((out / "masks").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_what_sample_refuses(repository: Path, tmp_path: Path) -> None:
    asked = ["sample", "--model", "tiny", "--out", tmp_path / "samples"]
    here = ["--local", "--repository", repository]
    assert "steps is 0; it must be from 1 to 1000" in refused(*asked, *here, "--steps", 0)
    assert "solver is 'magic'; allowed for tiny are ddpm, ddim" in refused(*asked, *here, "--solver", "magic")
    assert "medgen export build --model pig" in refused(*asked, *here, "--model", "pig")
    assert f"no model 'pug' in {repository}; it holds pig, tiny" in refused(*asked, *here, "--model", "pug")
    port = free_ports(1)[0]
    assert f"no server answers at 127.0.0.1:{port}: start one with" in refused(*asked, "--url", f"127.0.0.1:{port}")
    waited = refused(*asked, "--url", f"127.0.0.1:{port}", "--wait", 0.3)
    assert f"127.0.0.1:{port} is not ready to serve tiny after 0.3 s" in waited
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_taken_port_is_named(repository: Path, option: str) -> None:
    ports = dict(zip(["--http-port", "--grpc-port", "--metrics-port"], free_ports(3), strict=True))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = taken.getsockname()[1]
        said = refused(
            "up", "--repository", repository, "--model", "tiny", *[x for pair in ports.items() for x in pair]
        )
    assert f"cannot listen on 127.0.0.1 port {ports[option]}: Address already in use" in said
    assert f"choose another with {option}" in said


def test_equal_ports_are_refused(repository: Path) -> None:
    said = refused("up", "--repository", repository, "--model", "tiny", "--http-port", 9000, "--grpc-port", 9000)
    assert "--http-port 9000, --grpc-port 9000, --metrics-port 8002" in said


def test_what_cannot_be_served_is_named(repository: Path, tmp_path: Path) -> None:
    said = refused("up", "--repository", repository, "--model", "pig")
    assert f"model pig has not been built: run medgen export build --model pig --repository {repository}" in said
    assert "no model 'pug'" in refused("up", "--repository", repository, "--model", "pug")
    assert "it holds pig, tiny" in refused("up", "--repository", repository, "--model", "tiny", "--model", "pug")
    assert "is no model repository" in refused("up", "--repository", tmp_path)
    shutil.copytree(repository / "pig", tmp_path / "pig")
    assert "model pig has not been built" in refused("up", "--repository", tmp_path)


def test_models_without_a_bundle_are_passed_over(repository: Path) -> None:
    command = f"medgen export build --model pig --repository {repository}"
    assert find_models(repository) == (["tiny"], {"pig": f"model pig has not been built: run {command}"})
    assert find_models(repository, ["tiny"]) == (["tiny"], {})


def test_what_is_not_built_takes_one_line(tmp_path: Path) -> None:
    add_chains(tmp_path)
    add_model(tmp_path, "tiny")
    add_model(tmp_path, "pig")
    for model in ("pig", "cmr_mask", "cmr_ddpm_image", "cmr_flow_image"):
        shutil.rmtree(bundle_folder(tmp_path, model))
    passed_over = find_models(tmp_path)[1]
    first, last = why_not_served(tmp_path, passed_over)
    assert first == f"cmr_ldm is not served: {passed_over['cmr_ldm']}"
    assert last == "Not built, and so not served: cmr_ddpm, cmr_ddpm_image, cmr_flow, cmr_flow_image, cmr_mask, pig"
    for model in ("tiny", "cmr_ldm_image"):
        shutil.rmtree(bundle_folder(tmp_path, model))
    said = refused("up", "--repository", tmp_path)
    assert f"no model in {tmp_path} has been built: run medgen export build --model NAME --repository" in said


def test_a_chain_is_served_with_its_stages_or_not_at_all(tmp_path: Path) -> None:
    add_chains(tmp_path)
    add_model(tmp_path, "tiny")
    assert find_models(tmp_path, ["cmr_flow"]) == (["cmr_mask", "cmr_flow_image", "cmr_flow"], {})
    everything = {"cmr_mask", "tiny", *CHAINS, *(f"{chain}_image" for chain in CHAINS)}
    assert set(find_models(tmp_path)[0]) == everything
    shutil.rmtree(bundle_folder(tmp_path, "cmr_flow_image"))
    served, passed_over = find_models(tmp_path)
    assert set(served) == everything - {"cmr_flow_image", "cmr_flow"}
    command = f"medgen export build --model cmr_flow --repository {tmp_path}"
    why = f"model cmr_flow_image, which cmr_flow needs, has not been built: run {command}"
    alone = f"medgen export build --model cmr_flow_image --repository {tmp_path}"
    assert passed_over == {"cmr_flow": why, "cmr_flow_image": f"model cmr_flow_image has not been built: run {alone}"}
    assert why in refused("up", "--repository", tmp_path, "--model", "cmr_flow")


def test_a_chain_whose_stages_do_not_fit_is_not_served(tmp_path: Path) -> None:
    add_chains(tmp_path)
    write_tiny_bundle(bundle_folder(tmp_path, "cmr_mask"), model="cmr_mask", sample_shape=(4, 24, 24))
    said = refused("up", "--repository", tmp_path, "--model", "cmr_flow")
    assert "chain cmr_flow: cmr_mask draws mask as uint8 [1, 24, 24] of 4 classes" in said
    assert "; cmr_flow_image needs uint8 [1, 16, 16] of 4 classes" in said
    assert find_models(tmp_path, ["cmr_mask"]) == (["cmr_mask"], {})
    (bundle_folder(tmp_path, "cmr_mask") / "manifest.json").write_text('{"schema": 1}')
    said = refused("up", "--repository", tmp_path, "--model", "cmr_flow")
    assert f"{bundle_folder(tmp_path, 'cmr_mask')}: manifest.json: schema is 1" in said


def test_chains_that_cannot_be_run_do_not_keep_others_from_being_served(tmp_path: Path) -> None:
    add_chains(tmp_path)
    add_model(tmp_path, "tiny")
    bundle = bundle_folder(tmp_path, "cmr_flow_image") / "manifest.json"
    bundle.write_text(bundle.read_text().replace('"LV"', '"left ventricle"'))
    (tmp_path / "cmr_ddpm" / "config.pbtxt").write_text("platform")
    served, passed_over = find_models(tmp_path)
    assert set(served) == {"tiny", "cmr_ldm", "cmr_mask", *(f"{chain}_image" for chain in CHAINS)}
    assert passed_over.keys() == {"cmr_flow", "cmr_ddpm"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = serving("up", "--repository", tmp_path, "--http-port", taken.getsockname()[1]).output
    assert "cmr_flow is not served: chain cmr_flow: cmr_mask draws mask as" in said
    assert f"cmr_ddpm is not served: {tmp_path / 'cmr_ddpm' / 'config.pbtxt'} cannot be read" in said
    for chain, reason in passed_over.items():
        assert reason in refused("up", "--repository", tmp_path, "--model", "tiny", "--model", chain)


def test_without_triton_there_is_a_line_to_type(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install nvidia-pytriton" in refused("up", "--repository", repository, "--model", "tiny")


def test_tritonserver_on_the_path_comes_first_and_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = find_installation()
    assert (found.program, found.arguments) == (program, ())
    assert found.environment == {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def spoil_engine(model: Path) -> str:
    engine = model / "1" / "bundle" / "step.onnx"
    engine.write_bytes(engine.read_bytes() + b" ")
    return f"{engine} is not the file that was built"


def spoil_code(model: Path) -> str:
    (model / "1" / "model.py").write_text("import torche")
    return "No module named 'torche'"


def spoil_config(model: Path) -> str:
    (model / "config.pbtxt").write_text('backend: "python"\nbackends: 2')
    return f"failed to read text proto from {model / 'config.pbtxt'}"


@pytest.mark.parametrize("spoil", [spoil_engine, spoil_code, spoil_config])
def test_a_model_that_cannot_be_loaded_is_explained_in_one_line(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    reason = spoil(add_model(tmp_path, "tiny"))
    live = start(tmp_path)
    assert live.process.wait(PATIENCE) == 1
    said = live.said()
    assert said.startswith("Error: model tiny cannot be loaded: ")
    assert reason in said
    assert said.count("\n") == 1


def test_triton_that_crashes_while_loading_is_started_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the crash left alive, with its hands on the log, is cleared away."""
    program = tmp_path / "tritonserver"
    program.write_text(
        f"""#!/bin/sh
        case "$*" in *--allow-http=false*) exit 1;; esac  # it was asked for its version
        if [ ! -e {tmp_path}/first ]; then sleep 1000 & echo $$ > {tmp_path}/first; fi
        echo something went wrong
        kill -ABRT $$
        """
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    live = start(repository)
    assert live.process.wait(PATIENCE) == 1
    crash = "tritonserver ended with code -6 (SIGABRT): something went wrong"
    again = f"{crash}; starting it again"
    assert live.said().splitlines()[1:] == [again, again, f"Error: {crash}"]
    assert processes(int((tmp_path / "first").read_text())) == []
