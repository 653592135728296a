"""PIG's Tables 1 and 2 on a data set of ours."""

from collections.abc import Mapping
from typing import Any

from benchmarks.evaluation.pairs import Pairs, drawn_by_patient, halves_by_patient, together
from benchmarks.evaluation.utility import Training, shuffled
from benchmarks.papers.amounts import Amounts
from benchmarks.papers.comparing import SHUFFLED, Judge
from benchmarks.papers.drawing import drawn
from benchmarks.papers.models import Model, Workshop
from benchmarks.papers.sources import told
from training.checkpoint import shipped_checkpoint

MODELS = ("ddpm", "ddpm-paired", "seg_guided", "controlnet", "pig")  # as a workshop has them
PAIRED, SHIPPED = "ddpm, paired", "PIG, as it ships"
RATIOS = {"PIG_1024": 0.5, "PIG_2048": 1.0, "PIG_3072": 1.5}  # of the real pairs; theirs is as 1 to 2 to 3 too
ALONE = ("DDPM", "DDIM")  # images without masks, of one network
CLASSES = 2


def measure_pictures(train: Pairs, held_out: Pairs, name: str, workshop: Workshop, judge: Judge) -> dict[str, Any]:
    """Of films without masks of lesions: Table 1 of what draws images alone."""
    model = workshop.model("ddpm", "ddpm", train, name, {"paired": False})
    one, other = halves_by_patient(together(train, held_out), judge.seed)
    return {
        **_told(train, held_out, name, {"DDPM": model}, workshop.amounts),
        "masks": "of tissue",
        "Table 1": judge.distances(one, other, _alone(model, len(train), judge), CLASSES),
    }


def measure(train: Pairs, held_out: Pairs, name: str, workshop: Workshop, judge: Judge) -> dict[str, Any]:
    """Everything that the two tables print, as JSON holds it; train: what the generators learn from."""
    amounts = workshop.amounts
    models: dict[str, Model] = {
        "DDPM": workshop.model("ddpm", "ddpm", train, name, {"paired": False}),
        PAIRED: workshop.model("ddpm-paired", "ddpm", train, name, {"paired": True}),
        "SegGuidedDif": workshop.model("seg_guided", "seg_guided", train, name),
        "ControlNet": workshop.model("controlnet", "controlnet", train, name),
        "PIG": workshop.model("pig", "pig", train, name),
    }
    shipped = shipped_checkpoint("pig")
    if name == "phantoms" and models["PIG"].family.preset.size == 64 and amounts.preset == "small":
        models[SHIPPED] = workshop.model("pig-shipped", "pig", train, name, checkpoint=shipped)
    real = train if amounts.real is None else drawn_by_patient(train, amounts.real, judge.seed)
    count, most = len(real), round(max(RATIOS.values()) * len(real))
    samples = {
        each: drawn(
            model,
            most if each in ("PIG", SHIPPED) else count,
            judge.cache,
            masks=real if model.family.condition else None,
            name=each,
        )
        for each, model in models.items()
        if each != "DDPM"
    }
    pictures = _alone(models["DDPM"], count, judge)
    one, other = halves_by_patient(together(train, held_out), judge.seed)
    table_1 = judge.distances(one, other, {**pictures, **samples}, CLASSES)
    rows = [Training("real", real, len(real), 0)]
    rows += [_with(real, samples[each], f"{each}_2048", 1.0) for each in ("SegGuidedDif", "ControlNet")]
    rows += [_with(real, samples["PIG"], each, ratio) for each, ratio in RATIOS.items()]
    rows += [_with(real, samples[each], each, 1.0) for each in (PAIRED, SHIPPED) if each in samples]
    rows.append(Training(f"real, {SHUFFLED}", shuffled(real), len(real), 0))
    table_2 = judge.utility(rows, [held_out], CLASSES)
    return {
        **_told(train, held_out, name, models, amounts),
        "Table 1": table_1,
        "Table 2": {
            row.name: {"real": row.real, "synthetic": row.synthetic, **table_2[row.name][held_out.name]["classes"][0]}
            for row in rows
        },
    }


def _alone(model: Model, count: int, judge: Judge) -> dict[str, Pairs]:
    """Samples of the images alone, by the row of Table 1."""
    steps = {"ddpm": judge.amounts.ddpm, "ddim": judge.amounts.ddim}
    return {
        name: drawn(model, count, judge.cache, solver=name.lower(), steps=steps[name.lower()], name=name)
        for name in ALONE
    }


def _told(train: Pairs, held_out: Pairs, name: str, models: Mapping[str, Model], amounts: Amounts) -> dict[str, Any]:
    default = {
        each: [model.family.preset.default_solver, model.family.preset.default_steps] for each, model in models.items()
    }
    return {
        "name": name,
        "train": told(train),
        "held_out": told(held_out),
        "size": train.size,
        "models": {each: dict(model.facts) for each, model in {**models, "DDIM": models["DDPM"]}.items()},
        "samplers": {**default, "DDPM": ["ddpm", amounts.ddpm], "DDIM": ["ddim", amounts.ddim]},
    }


def _with(real: Pairs, samples: Pairs, name: str, ratio: float) -> Training:
    count = round(ratio * len(real))
    return Training(f"real + {name}", together(real, samples.at(range(count))), len(real), count)
