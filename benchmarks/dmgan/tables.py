"""From trained models to the paper's tables."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.dmgan.features import Features
from benchmarks.dmgan.runs import THE_DATA, Plan, found_again, others, priors, refine, refined, split, untrained
from benchmarks.evaluation.distances import frechet
from benchmarks.latency.command import describe_device

SHOWN = 5  # pictures in the paper's table 1


def psnr(pictures: Tensor, images: Tensor) -> list[float]:
    """In dB, of each picture [N, 1, S, S] in [0, 1]."""
    errors = (pictures - images).square().mean((1, 2, 3)).clamp(min=1e-10)
    return [float(value) for value in -10 * errors.log10()]


def measure(
    plan: Plan, counts: Sequence[int], seeds: int, private: Mapping[str, Any], features: Features
) -> dict[str, Any]:
    """Everything that the tables print, as JSON holds it."""
    learnt, held_out = split(plan)
    preset: Any = untrained("dmgan_image", plan.fields("dmgan_image"), plan.preset).preset
    truth = torch.stack([item["image"] for item in held_out.items]) / 2 + 0.5
    real = features(truth)
    rows: dict[str, Any] = {}
    found_priors = priors(plan, learnt)
    for name, prior in found_priors.items():
        plan.say(f"finding {len(held_out)} pictures again through the prior of {name}")
        began = time.perf_counter()
        pairs = found_again(plan, held_out, f"held out, prior of {name}", prior, preset)
        seconds = time.perf_counter() - began
        pictures = pairs.conditions / 2 + 0.5
        rows[f"mGANprior of {name}"] = judged(pictures, truth, real, features) | {
            "training_seconds": prior.seconds,
            "steps": sum(prior.model.preset.steps),
            "seconds_a_picture": seconds / len(held_out) if seconds > 1 else None,
        }
    prior = found_priors[THE_DATA]
    plan.say(f"finding {len(learnt)} pictures again that are learnt from")
    pairs = found_again(plan, learnt, "learnt", prior, preset)
    sought = found_again(plan, held_out, "held out, prior of the data", prior, preset)
    sites: dict[str, Any] = {}

    def run(count: int, seed: int, noise: Mapping[str, Any]) -> dict[str, Any]:
        model, seconds = refined(plan, pairs, learnt, prior, count, seed, noise)
        return judged(refine(model, sought.conditions), truth, real, features) | {
            "training_seconds": seconds,
            "steps": sum(model.preset.steps),
        }

    for count in counts:
        try:
            sites[str(count)] = [run(count, seed, {}) for seed in range(seeds)]
        except ValueError as error:
            sites[str(count)] = f"not run: {error}"
    if private and (ran := [count for count in counts if not isinstance(sites[str(count)], str)]):
        sites[f"{max(ran)}, private"] = [run(max(ran), 0, private)]
    for name, outcome in others(plan, learnt, held_out).items():
        if isinstance(outcome, str):
            rows[name] = outcome
        else:
            model, pictures, took = outcome
            rows[name] = {
                "psnr": None,
                "distance": frechet(features(pictures), real),
                "training_seconds": took,
                "steps": sum(model.preset.steps),
                "count": len(pictures),
            }
    return {
        "data": learnt.reading.get("layout") or Path(plan.data).name,
        "steps": plan.steps,
        "learnt": len(learnt),
        "held_out": len(held_out),
        "preset": {"name": plan.preset, **{k: v for k, v in asdict(preset).items() if not isinstance(v, dict)}},
        "machine": f"{describe_device(torch.get_num_threads())}, torch {torch.__version__}",
        "private": dict(private),
        "rows": rows,
        "sites": sites,
    }


def judged(pictures: Tensor, truth: Tensor, real: Any, features: Features) -> dict[str, Any]:
    return {"psnr": psnr(pictures, truth), "distance": frechet(features(pictures), real), "count": len(pictures)}


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and, of several, standard deviation."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"
