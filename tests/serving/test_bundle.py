import dataclasses
import hashlib
import json
import math
import subprocess

import pytest
from tiny import DESCENT, FLOW, write_tiny_bundle

from serving.bundle import (
    MANIFEST,
    PARITY,
    SUMS,
    BundleError,
    Condition,
    EngineFile,
    Manifest,
    Output,
    Student,
    bundle_folder,
    file_digest,
    load_bundle,
    seal,
)

PHOTO = dataclasses.asdict(Condition("photo", (1, 16, 16), low=-1.0, high=1.0))
CONDITION = dataclasses.asdict(Condition("mask", (1, 16, 16), 4))


@pytest.fixture
def folder(tmp_path):
    return write_tiny_bundle(bundle_folder(tmp_path, "tiny"))


def edited(folder, **changes):
    """The manifest as JSON text, fields replaced; "engines__step" is the field "step" of "engines"."""
    fields = json.loads((folder / MANIFEST).read_text())
    for path, value in changes.items():
        *parents, name = path.split("__")
        inner = fields
        for parent in parents:
            inner = inner[int(parent) if isinstance(inner, list) else parent]
        inner[name] = value
    return json.dumps(fields)


def test_a_bundle_loads_with_the_digest_of_its_manifest(folder):
    bundle = load_bundle(folder)
    assert bundle.digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert bundle.engine_path("step") == folder / "step.onnx"
    assert bundle.manifest.outputs[0] == Output("mask", "uint8", (1, 16, 16), 0, 1, ("background", "lesion"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"condition": Condition("mask", (1, 16, 16), 4)},
        {"condition": Condition("mask", (1, 16, 16), 2, ("background", "LV"), (1.25, 1.5))},
        {"outputs": (Output("image", "float32", (1, 16, 16), 0, 1, spacing=(1.25, 1.5)),)},
        {"condition": Condition("photo", (1, 16, 16), low=-1.0, high=1.0)},
        {"schedule": FLOW, "default_solver": "euler"},
        {"schedule": DESCENT, "default_solver": "heavy_ball"},
        {"noise_channels": 1, "notices": ("A near copy.",)},
        {
            "schedule": None,
            "default_solver": None,
            "default_steps": 0,
            "engines": {"finish": EngineFile("f", "0" * 64)},
        },
        {"parity": {"step": {"max": 1e-6, "tolerances": [1, None, "x"]}}},
        {"student": Student("0" * 64, 8, "dpmpp_2m", 4, ("0" * 64, "1" * 64))},
        {"student": Student("0" * 64, 8, "dpmpp_2m", 4), "tuned": {"verdict": "accepted", "seeds": [[0, 1]]}},
    ],
)
def test_a_manifest_survives_its_json(folder, changes):
    manifest = dataclasses.replace(load_bundle(folder).manifest, **changes)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json().encode()) == manifest


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Manifest) if field.default is dataclasses.MISSING]
)
def test_a_missing_field_is_named(folder, name):
    fields = json.loads((folder / MANIFEST).read_text())
    del fields[name]
    with pytest.raises(BundleError, match=rf"manifest\.json: {name} is missing"):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "schema is 1; this version of medgen reads schema 4"),
        ({"schema": None}, "schema is None"),
        ({"colour": 1}, "colour is not a field"),
        ({"max_batch": 10**12}, "max_batch is 1000000000000; it must be less than or equal to 65536"),
        ({"sample_shape": [2, -1, 16]}, r"sample_shape\[1\] is -1; it must be greater than or equal to 1"),
        ({"sample_shape": [9, 65536, 65536]}, r"sample_shape is \[9, 65536, 65536\]; a sample has at most"),
        ({"outputs__0__shape": [1, 16, -1]}, r"outputs\[0\].shape\[2\] is -1; it must be greater"),
        ({"outputs__0__shape": [65536] * 3}, r"outputs\[0\].shape is \[65536, 65536, 65536\]; a sample has at most"),
        ({"outputs__1__low": math.nan}, r"outputs\[1\].low is nan; it must be a finite number"),
        ({"outputs__1__high": math.inf}, r"outputs\[1\].high is inf; it must be a finite number"),
        ({"outputs__1__low": 2}, r"outputs\[1\].low is 2; it must be at most high, which is 1"),
        ({"outputs__1__name": "mask"}, r"outputs has the names \['mask', 'mask'\]"),
        ({"outputs__1__name": "../image"}, r"outputs\[1\].name is '../image'; it must match"),
        ({"engines__step__file": "step\0.onnx"}, r"engines.step.file is 'step.x00.onnx'; it must match"),
        ({"engines__step__sha256": "0"}, "engines.step.sha256 is '0'; it must match"),
        ({"engines__step__file": "step\ud800.onnx"}, "is not JSON: .*hex escape at line 1"),
        (
            {"schedule__num_train_timesteps": 10**12},
            "num_train_timesteps must be an integer from 1 to 100000, not 1000",
        ),
        ({"default_steps": 10**12}, "default_steps do not go .* 1000000000000"),
        ({"model": 7}, "model is 7; it must be a valid string"),
        ({"max_batch": "16"}, "max_batch is '16'; it must be a valid integer"),
        ({"max_batch": True}, "max_batch is True; it must be a valid integer"),
        ({"max_batch": 0}, "max_batch is 0; it must be greater than or equal to 1"),
        ({"sample_shape": [2, 16]}, r"sample_shape\[2\] is missing"),
        ({"sample_shape": [2, 16, 1.5]}, r"sample_shape\[2\] is 1.5; it must be a valid integer"),
        ({"outputs": []}, r"outputs has the names \[\]"),
        ({"outputs__0__dtype": "float99"}, r"outputs\[0\].dtype is 'float99'; it must be 'uint8', "),
        ({"outputs__1__spacing": [1.25]}, r"outputs\[1\].spacing\[1\] is missing"),
        ({"outputs__1__spacing": [1.25, 0]}, r"outputs\[1\].spacing\[1\] is 0; it must be greater than 0"),
        ({"outputs__1__low": "0"}, r"outputs\[1\].low is '0'; it must be a valid number"),
        ({"engines__step": {"file": "step.onnx"}}, "engines.step.sha256 is missing"),
        ({"engines__step__file": "../step.onnx"}, "engines.step.file is '../step.onnx'"),
        (
            {"engines__extra": {"file": "x", "sha256": "0" * 64}},
            r"engines has .*extra.*; it must have \['finish', 'step'\]",
        ),
        ({"schedule__kind": "square"}, "schedule: .*square"),
        ({"schedule": None}, r"engines has \['finish', 'step'\]; it must have \['finish'\]"),
        ({"schedule": None, "engines": {}, "default_solver": None}, r"engines has \[\]"),
        (
            {"schedule": None, "engines": {"finish": {"file": "f", "sha256": "0" * 64}}},
            "default_solver and default_steps must be null and 0 where schedule is null",
        ),
        ({"default_solver": "euler"}, "default_solver.*euler"),
        ({"default_steps": 0}, "default_steps.* 0"),
        (
            {"condition": {"name": "mask", "shape": [1, 16, 16], "labels": [], "spacing": None}},
            "condition.classes is null, low None and high None; a picture has low below high",
        ),
        ({"condition": {**CONDITION, "low": 0.0}}, "condition.classes is 4, and low and high are not null"),
        ({"condition": {**PHOTO, "low": 1.0}}, "condition.classes is null, low 1.0 and high 1.0; a picture has low be"),
        ({"condition": {**PHOTO, "labels": ["LV"]}}, r"condition.labels is \['LV'\]; a picture has none"),
        ({"noise_channels": 3}, "noise_channels is 3; sample_shape has 2 channels"),
        (
            {"condition": {**CONDITION, "labels": ["LV"]}},
            r"condition.labels is \['LV'\]; it must name all 4 classes, or none",
        ),
        (
            {"condition": {**CONDITION, "spacing": [0, 1.25]}},
            r"condition.spacing\[0\] is 0; it must be greater than 0",
        ),
    ],
)
def test_a_wrong_field_is_named(folder, changes, message):
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(edited(folder, **changes))


DEEP = b'{"schema": 4, "target": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe\xfd", DEEP, b"[" * 100_000])
def test_what_is_not_a_manifest_is_refused(folder, text):
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["step.onnx", "finish.onnx"])
def test_a_damaged_file_is_named_with_both_digests(folder, name):
    expected = file_digest(folder / name)
    damaged = bytearray((folder / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / name).write_bytes(damaged)
    with pytest.raises(BundleError) as refusal:
        load_bundle(folder)
    for fact in (str(folder / name), expected, hashlib.sha256(damaged).hexdigest(), "export build --model tiny"):
        assert fact in str(refusal.value)


@pytest.mark.parametrize("name", [MANIFEST, PARITY, SUMS, "step.onnx"])
def test_a_flipped_bit_anywhere_is_found_and_the_file_named(folder, name):
    (folder / PARITY).write_text('{"step": 1.5e-6}')
    seal(folder)
    load_bundle(folder)
    content = (folder / name).read_bytes()
    for place in range(0, len(content), max(1, len(content) // 200)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(BundleError) as refusal:
            load_bundle(folder)
        assert name in str(refusal.value)
    (folder / name).write_bytes(content)
    load_bundle(folder)


def test_the_sums_are_those_of_sha256sum(folder):
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)


def test_a_bundle_without_sums_or_with_a_file_that_they_lack_is_refused(folder):
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if "step.onnx" not in line))
    with pytest.raises(BundleError, match=r"SHA256SUMS does not have step\.onnx; build it with"):
        load_bundle(folder)
    (folder / SUMS).unlink()
    with pytest.raises(BundleError, match=r"SHA256SUMS is missing; build it with: .* --model tiny"):
        load_bundle(folder)


def test_an_engine_of_another_build_is_refused(folder):
    """With sums of its own: they are not the manifest's."""
    (folder / "step.onnx").write_bytes((folder / "finish.onnx").read_bytes())
    seal(folder)
    with pytest.raises(BundleError, match=r"step\.onnx is not the file that manifest\.json names"):
        load_bundle(folder)


def test_an_error_without_words_of_the_system_has_its_own(folder, monkeypatch):
    monkeypatch.setattr("serving.bundle.file_digest", lambda _: (_ for _ in ()).throw(OSError("the disk is gone")))
    with pytest.raises(BundleError, match="cannot be read: the disk is gone"):
        load_bundle(folder)


def test_a_missing_file_is_named(folder):
    (folder / "step.onnx").unlink()
    with pytest.raises(
        BundleError,
        match=r"step\.onnx, which .*SHA256SUMS names, is missing; build it with: medgen export build --model tiny",
    ):
        load_bundle(folder)


def test_a_missing_bundle_says_how_to_build_it(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle at .*; build it with: medgen export build --model pig"):
        load_bundle(bundle_folder(tmp_path, "pig"))
    with pytest.raises(BundleError, match="export build --model NAME"):
        load_bundle(tmp_path / "elsewhere")
