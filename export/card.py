"""The model card beside a bundle, in the format of Hugging Face's hub: what the manifest says, for people."""

import math
from collections.abc import Iterator
from pathlib import PurePath

from huggingface_hub import ModelCardData

from export.options import Tolerance
from serving.bundle import Manifest, Output
from training.lineage import ancestors, no_phantoms, origin_of

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
        pipeline_tag="image-to-image" if sees_a_picture(manifest) else "unconditional-image-generation",
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


def sees_a_picture(manifest: Manifest) -> bool:
    """Or a mask."""
    return manifest.condition is not None and not manifest.condition.is_label


def learnt_phantoms(manifest: Manifest) -> bool:
    """And so did all that it comes from."""
    return not no_phantoms(origin_of(manifest))


def _data(manifest: Manifest) -> list[str]:
    data = manifest.checkpoint.get("data")
    named = f"`{PurePath(str(data)).name}`" if data else "not recorded"
    if learnt_phantoms(manifest):
        named = "procedural phantoms, drawn from seeds; no patient's image"
    prior = manifest.checkpoint.get("prior")
    steps = manifest.checkpoint.get("step")
    trained = f"- trained for: {steps} steps" if steps is not None else "- trained for: not recorded"
    if so_far := manifest.checkpoint.get("unfinished"):
        trained += f", and not through: {so_far}"
    made = [f"- made of a trained `{prior}`, whose data and steps these are; it learnt nothing more"] if prior else []
    facts = [f"- {name}: {value}" for name, value in manifest.checkpoint.get("facts", {}).items()]
    if origin := manifest.checkpoint.get("imported"):
        said = ", ".join(f"{name} {value}" for name, value in origin.get("options", {}).items())
        made = [f"- trained elsewhere, and imported from files of {origin['format']}; said of them: {said}"]
    digest = manifest.checkpoint.get("digest", "not recorded")
    data_lines = [f"- data: {named}", *_before(manifest), *_judges(manifest)]
    return [*made, *data_lines, trained, f"- weights, sha256: `{digest}`", *facts]


def _before(manifest: Manifest) -> Iterator[str]:
    """What those weights learnt that it comes from."""
    for each in ancestors(origin_of(manifest)):
        learnt = f"`{PurePath(str(each['data'])).name}`" if each.get("data") else "data that are not recorded"
        if imported := each.get("imported"):
            learnt += f", and were imported from files of {imported['format']}"
        yield f"- comes from weights of sha256 `{each['digest']}`, which learnt {learnt}"


def _judges(manifest: Manifest) -> list[str]:
    """Whose pictures a generator has learnt from that it never saw, and through whose weights."""
    origin = manifest.checkpoint
    lines = []
    if sites := origin.get("sites"):
        whose = "of their own, which are not named here" if origin.get("elsewhere") else "of a part of the same data"
        noise = ", ".join(f"{name} {value}" for name, value in origin.get("private", {}).items())
        filtered = f"; what they said was clipped and noisy ({noise})" if noise else ""
        lines.append(f"- judged by discriminators at {sites} sites, with pictures {whose}{filtered}")
    if through := origin.get("learnt_through"):
        lines.append(f"- learnt from pictures found again through a `pggan`, weights sha256 `{through}`")
    if vgg16 := origin.get("vgg16_sha256"):
        lines.append(f"- VGG16 of its perceptual term, sha256 `{vgg16}`")
    return lines


def _draws(manifest: Manifest) -> list[str]:
    lines = [f"- {_described(output)}" for output in manifest.outputs]
    if (condition := manifest.condition) is not None:
        labels = f" ({', '.join(condition.labels)})" if condition.labels else ""
        low, high = condition.limits
        size = " x ".join(map(str, condition.shape))
        values = (
            f"{condition.classes} classes{labels}" if condition.classes else f"float32, {size}, {low:g} to {high:g}"
        )
        lines.append(f"- under a `{condition.name}` that is given: {values}")
    return lines


def _described(output: Output) -> str:
    size = " x ".join(map(str, output.shape))
    values = ", ".join(output.labels) or f"{output.low:g} to {output.high:g}"
    if math.prod(output.shape) == 1:
        return f"`{output.name}`: {output.dtype}, one number, {values}"
    pixels = f"{output.spacing[0]:g} x {output.spacing[1]:g} mm" if output.spacing else "of unknown size"
    return f"`{output.name}`: {output.dtype}, {size}, {values}; pixels {pixels}"


def _samples(manifest: Manifest) -> list[str]:
    lines = [f"- engines: {manifest.target['name']}, {manifest.precision}, batches of up to {manifest.max_batch}"]
    if (schedule := manifest.schedule) is None:
        return ["- one pass, no steps", *lines]
    steps = f"{schedule.num_train_timesteps} timesteps"
    kind = f"- schedule: {schedule.kind}, {steps}"
    if schedule.kind not in ("cosine", "betas"):
        kind += f", beta {schedule.beta_start:g} to {schedule.beta_end:g}"
    if schedule.spacing:
        kind += f", {schedule.spacing} timesteps"
    if schedule.process == "flow":
        kind = f"- schedule: flow, {steps}"
    if schedule.process == "descent":
        kind = f"- goes down a loss, in up to {schedule.num_train_timesteps} steps"
    default = f"- by default: `{manifest.default_solver}`, {manifest.default_steps} steps"
    if student := manifest.student:
        default += (
            f", and no others: distilled to do in them what weights of sha256 `{student.teacher}` do in "
            f"{student.teacher_steps}"
        )
    return [f"{kind}; predicts {schedule.prediction}", default, *lines]


def _parity(manifest: Manifest) -> list[str]:
    tolerance = manifest.parity.get("tolerance")
    if not tolerance:
        return ["Not measured."]
    limits, masks = Tolerance(**tolerance), [output.name for output in manifest.outputs if output.labels]
    descends = manifest.schedule is not None and manifest.schedule.process == "descent"
    rows = [
        f"| {title} | {name} | {difference:.1e} | {limits.of(kind, name, masks, descends):.0e} |"
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
    yield from manifest.notices
    if learnt_phantoms(manifest) and manifest.condition is not None and manifest.condition.classes is None:
        yield "It has learnt from no patient. The pictures that it is given may be patients', and its samples then too."
    elif learnt_phantoms(manifest):
        yield "It has seen no patient: its samples are for trying software, and for nothing else."
    if so_far := manifest.checkpoint.get("unfinished"):
        yield f"Its training was not through: {so_far}."
    if any(output.spacing is None and math.prod(output.shape) > 1 for output in manifest.outputs):
        yield "The size of its pixels is unknown, so nothing can be measured in mm."
    yield "Single slices of one size: no volumes, no series, no second view of the same case."
    yield from NOT_MEASURED
