import dataclasses
import hashlib
import json

import pytest
from tiny import FLOW, write_tiny_bundle

from serving.bundle import (
    MANIFEST,
    BundleError,
    Condition,
    EngineFile,
    Manifest,
    Output,
    bundle_folder,
    file_digest,
    load_bundle,
)

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
        {"schedule": FLOW, "default_solver": "euler"},
        {"schedule": None, "default_solver": None, "default_steps": 0, "engines": {"finish": EngineFile("f", "00")}},
        {"parity": {"step": {"max": 1e-6, "tolerances": [1, None, "x"]}}},
    ],
)
def test_a_manifest_survives_its_json(folder, changes):
    manifest = dataclasses.replace(load_bundle(folder).manifest, **changes)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json().encode()) == manifest


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Manifest)])
def test_a_missing_field_is_named(folder, name):
    fields = json.loads((folder / MANIFEST).read_text())
    del fields[name]
    with pytest.raises(BundleError, match=rf"manifest\.json: {name} is missing"):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "schema is 1; this version of medgen reads schema 2"),
        ({"schema": None}, "schema is None"),
        ({"colour": 1}, "colour is not a field"),
        ({"model": 7}, "model is 7; it must be a string"),
        ({"max_batch": "16"}, "max_batch is '16'; it must be an integer"),
        ({"max_batch": True}, "max_batch is True; it must be an integer"),
        ({"max_batch": 0}, "max_batch is 0; it must be at least 1"),
        ({"sample_shape": [2, 16]}, "sample_shape has 2 items; it must have 3"),
        ({"sample_shape": [2, 16, 1.5]}, r"sample_shape\[2\] is 1.5; it must be an integer"),
        ({"outputs": []}, "outputs is empty"),
        ({"outputs__0__dtype": "float99"}, r"outputs\[0\].dtype is 'float99'; allowed are uint8, "),
        ({"outputs__1__spacing": [1.25]}, r"outputs\[1\].spacing has 1 items; it must have 2"),
        ({"outputs__1__spacing": [1.25, 0]}, r"outputs\[1\].spacing is \[1.25, 0\]; both must be above 0 mm"),
        ({"outputs__1__low": "0"}, r"outputs\[1\].low is '0'; it must be a number"),
        ({"engines__step": {"file": "step.onnx"}}, "engines.step.sha256 is missing"),
        ({"engines__step__file": "../step.onnx"}, "engines.step.file is '../step.onnx'"),
        ({"engines__extra": {"file": "x", "sha256": "0"}}, r"engines has .*extra.*; it must have \['finish', 'step'\]"),
        ({"schedule__kind": "cosine"}, "schedule: .*cosine"),
        ({"schedule": None}, r"engines has \['finish', 'step'\]; it must have \['finish'\]"),
        ({"schedule": None, "engines": {}, "default_solver": None}, r"engines has \[\]"),
        (
            {"schedule": None, "engines": {"finish": {"file": "f", "sha256": "0"}}},
            "default_solver and default_steps must be null and 0 where schedule is null",
        ),
        ({"default_solver": "euler"}, "default_solver.*euler"),
        ({"default_steps": 0}, "default_steps.* 0"),
        (
            {"condition": {"name": "mask", "shape": [1, 16, 16], "labels": [], "spacing": None}},
            "condition.classes is miss",
        ),
        (
            {"condition": {**CONDITION, "labels": ["LV"]}},
            r"condition.labels is \['LV'\]; it must name all 4 classes, or none",
        ),
        (
            {"condition": {**CONDITION, "spacing": [0, 1.25]}},
            r"condition.spacing is \[0, 1.25\]; both must be above 0 mm",
        ),
    ],
)
def test_a_wrong_field_is_named(folder, changes, message):
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(edited(folder, **changes))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe\xfd"])
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


def test_a_missing_file_is_named(folder):
    (folder / "step.onnx").unlink()
    with pytest.raises(BundleError, match=r"step\.onnx is missing; build it with: python -m export build --model tiny"):
        load_bundle(folder)


def test_a_missing_bundle_says_how_to_build_it(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle at .*; build it with: python -m export build --model pig"):
        load_bundle(bundle_folder(tmp_path, "pig"))
    with pytest.raises(BundleError, match="export build --model NAME"):
        load_bundle(tmp_path / "elsewhere")
