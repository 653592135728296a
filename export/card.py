"""The model card beside a bundle, in the format of Hugging Face's hub: what the manifest says, for people."""

import re
from collections.abc import Iterator
from pathlib import PurePath

from huggingface_hub import ModelCardData

from export.options import Tolerance
from serving.bundle import Manifest, Output

CARD = "README.md"
UNKNOWN = "unknown"  # a licence, as the hub calls it
TITLES = {"step": "one step", "end_to_end": "whole trajectories", "onnx": "ONNX Runtime", "batches": "every batch size"}
INTENDED = (
    "Research and development: trying software, studying generators, adding to training sets whose worth is then "
    "measured on real images. Not for diagnosis, treatment, or the teaching of either, and no stand-in for images of "
    "patients where a method is evaluated."
)
NOT_MEASURED = (
    "Parity says that the engines draw what PyTorch draws, and nothing of how real that looks.",
    "Whether samples repeat images of the training data was not measured here. Where those are of patients, find out "
    "before samples are given to others.",
)


def model_card(manifest: Manifest) -> str:
    """The card's text; it names no path of the machine that it was built on."""
    fields = ModelCardData(
        license=str(manifest.checkpoint.get("license", UNKNOWN)),
        library_name="medgen",
        pipeline_tag="unconditional-image-generation" if manifest.condition is None else "image-to-image",
        tags=["medical", "synthetic-data", manifest.model],
    )
    sections = {
        "Data": _data(manifest),
        "What it draws": _draws(manifest),
        "How it draws": _samples(manifest),
        "Parity with PyTorch": _parity(manifest),
        "Licence": _licence(manifest),
        "Intended use": [INTENDED],
        "Known limits": [f"- {limit}" for limit in _limits(manifest)],
    }
    title = (
        f"# {manifest.model}, preset {manifest.preset}\n\nA bundle of medgen: `medgen sample --model {manifest.model}`."
    )
    body = "\n\n".join(f"## {name}\n\n" + "\n".join(lines) for name, lines in sections.items())
    return f"---\n{fields.to_yaml()}\n---\n\n{title}\n\n{body}\n"


def learnt_phantoms(manifest: Manifest) -> bool:
    return re.fullmatch(r"phantom(:\d+)?", str(manifest.checkpoint.get("data"))) is not None


def _data(manifest: Manifest) -> list[str]:
    data = manifest.checkpoint.get("data")
    if learnt_phantoms(manifest):
        named = "procedural phantoms, drawn from seeds; no patient's image"
    else:
        named = f"`{PurePath(str(data)).name}`" if data else "not recorded"
    steps = manifest.checkpoint.get("step")
    trained = f"- trained for: {steps} steps" if steps is not None else "- trained for: not recorded"
    if so_far := manifest.checkpoint.get("unfinished"):
        trained += f", and not through: {so_far}"
    return [f"- data: {named}", trained, f"- weights, sha256: `{manifest.checkpoint.get('digest', 'not recorded')}`"]


def _draws(manifest: Manifest) -> list[str]:
    lines = [f"- {_described(output)}" for output in manifest.outputs]
    if (condition := manifest.condition) is not None:
        labels = f" ({', '.join(condition.labels)})" if condition.labels else ""
        lines.append(f"- under a `{condition.name}` that is given: {condition.classes} classes{labels}")
    return lines


def _described(output: Output) -> str:
    size = " x ".join(map(str, output.shape))
    values = ", ".join(output.labels) or f"{output.low:g} to {output.high:g}"
    pixels = f"{output.spacing[0]:g} x {output.spacing[1]:g} mm" if output.spacing else "of unknown size"
    return f"`{output.name}`: {output.dtype}, {size}, {values}; pixels {pixels}"


def _samples(manifest: Manifest) -> list[str]:
    lines = [f"- engines: {manifest.target['name']}, {manifest.precision}, batches of up to {manifest.max_batch}"]
    if (schedule := manifest.schedule) is None:
        return ["- one pass, no steps", *lines]
    steps = f"{schedule.num_train_timesteps} timesteps"
    kind = f"- schedule: {schedule.kind}, {steps}, beta {schedule.beta_start:g} to {schedule.beta_end:g}"
    if schedule.kind == "flow":
        kind = f"- schedule: flow, {steps}"
    default = f"- by default: `{manifest.default_solver}`, {manifest.default_steps} steps"
    return [f"{kind}; predicts {schedule.prediction}", default, *lines]


def _parity(manifest: Manifest) -> list[str]:
    tolerance = manifest.parity.get("tolerance")
    if not tolerance:
        return ["Not measured."]
    limits, masks = Tolerance(**tolerance), [output.name for output in manifest.outputs if output.labels]
    rows = [
        f"| {title} | {name} | {difference:.1e} | {limits.of(kind, name, masks):.0e} |"
        for kind, title in TITLES.items()
        for name, difference in manifest.parity.get(kind, {}).items()
    ]
    note = ["", str(manifest.parity["note"])] if "note" in manifest.parity else []
    return ["| over | tensor | largest difference | allowed |", "|---|---|---|---|", *rows, *note]


def _licence(manifest: Manifest) -> list[str]:
    if licence := manifest.checkpoint.get("license"):
        return [f"Of the weights: {licence}."]
    return ["Of the weights: not stated. What the training data allow goes before anything else."]


def _limits(manifest: Manifest) -> Iterator[str]:
    if learnt_phantoms(manifest):
        yield "It has seen no patient: its samples are for trying software, and for nothing else."
    if so_far := manifest.checkpoint.get("unfinished"):
        yield f"Its training was not through: {so_far}."
    if any(output.spacing is None for output in manifest.outputs):
        yield "The size of its pixels is unknown, so nothing can be measured in mm."
    yield "Single slices of one size: no volumes, no series, no second view of the same case."
    yield from NOT_MEASURED
