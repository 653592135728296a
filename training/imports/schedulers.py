"""Noise and sampler, as diffusers and MONAI write them down."""

import math
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from serving.sampling.solvers import Schedule
from training import CheckpointError
from training.imports.found import Sampling, refuse_unknown

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
OURS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")
# They take other steps than any of medgen's solvers, from the same networks; but UniPC as in UNIPC takes ``unipc``'s.
OTHERS = (
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
UNIPC = {"solver_order": 3, "solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None}
# What a setting must be, in as far as the scheduler has it.
AS_IS: Mapping[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", None),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint", "bh2"),
    "lower_order_final": (True,),
    "solver_order": (2, 3),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-math.inf,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
}


def from_diffusers(written: Mapping[str, Any], where: str) -> Sampling:
    """Of a ``scheduler_config.json``; what it leaves out has the library's defaults.

    Raises:
        CheckpointError: it is of another kind, or has a setting that medgen's tables have not.
    """
    name = written.get("_class_name")
    if name not in (*OURS, *OTHERS):
        raise CheckpointError(f"{where} is of a {name}; medgen samples as {', '.join(OURS)} do")
    kind = getattr(diffusers, name)
    given = {key: value for key, value in written.items() if not key.startswith("_")}
    refuse_unknown(given, kind, where)
    try:
        scheduler = kind.from_config(given)
    except (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: diffusers makes no {name} of it: {error}") from error
    config = dict(scheduler.config)
    if config["prediction_type"] not in PREDICTIONS:
        raise CheckpointError(f"{where}: prediction_type is {config['prediction_type']!r}; known are {[*PREDICTIONS]}")
    noise = {"num_train_timesteps": config["num_train_timesteps"], "prediction": config["prediction_type"]}
    if config.get("trained_betas") is None and not config.get("rescale_betas_zero_snr"):
        noise["kind"] = config["beta_schedule"]
        noise |= {"beta_start": config["beta_start"], "beta_end": config["beta_end"]}
    if noise.get("kind") not in KINDS:
        noise |= {"kind": "betas", "betas": tuple(scheduler.betas.double().tolist())}
    is_unipc = name == "UniPCMultistepScheduler" and all(config[key] == value for key, value in UNIPC.items())
    if name in OTHERS and not is_unipc:
        if config.get("timestep_type", "discrete") != "discrete":
            raise CheckpointError(f"{where}: timestep_type is {config['timestep_type']!r}; medgen has 'discrete' alone")
        unheeded = [key for key in ("timestep_spacing", "steps_offset") if given.get(key)]
        notes = tuple(f"{where}: {key} is {given[key]!r}, which medgen's solvers do not follow" for key in unheeded)
        return Sampling(schedule_of(noise, where), None, None, notes)
    for setting, allowed in AS_IS.items():
        if setting in config and config[setting] not in allowed:
            raise CheckpointError(f"{where}: {setting} is {config[setting]!r}; medgen has {allowed[0]!r} alone")
    spacing = config["timestep_spacing"]
    noise |= {"spacing": spacing, "offset": config["steps_offset"] if spacing == "leading" else 0}
    if name == "DDIMScheduler":
        noise["ends_clean"] = config["set_alpha_to_one"]
    schedule = schedule_of(noise, where)
    if not torch.allclose(torch.from_numpy(schedule.alphas_cumprod).float(), scheduler.alphas_cumprod, 5e-3, 1e-6):
        raise CheckpointError(f"{where}: this diffusers makes other betas of it than medgen")
    clips = config.get("clip_sample", False)
    solvers = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "UniPCMultistepScheduler": "unipc"}
    solver = solvers.get(name, f"dpmpp_{config.get('solver_order')}m")
    return Sampling(schedule, float(config["clip_sample_range"]) if clips else None, solver)


MONAI_SCHEDULERS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}
MONAI_DEFAULTS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "schedule": "linear_beta",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "s": 8e-3,
    "sig_range": 6,
    "clip_sample": True,
    "clip_sample_min": -1.0,
    "clip_sample_max": 1.0,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "steps_offset": 0,
    "set_alpha_to_one": True,
}
MONAI_KINDS = {
    "linear_beta": "linear",
    "scaled_linear_beta": "scaled_linear",
    "sigmoid_beta": "sigmoid",
    "cosine": "cosine",
    "linear": "linear",
    "scaled_linear": "scaled_linear",
}
NEVER_CLEAN = (
    "MONAI's DDPM steps from each timestep to the one just below, and with fewer steps than timesteps does not arrive "
    "at clean data; medgen's does"
)


def from_monai(written: Mapping[str, Any], name: str, library: str, where: str) -> Sampling:
    """Of a bundle's scheduler. library: "monai", whose timesteps are "linspace", or "generative", with "leading" ones.

    Raises:
        CheckpointError: it is of another kind, or has a setting that medgen's tables have not.
    """
    if name not in MONAI_SCHEDULERS:
        raise CheckpointError(f"{where} is a {name}; medgen samples as {', '.join(MONAI_SCHEDULERS)} do")
    given = dict(written)
    if "beta_schedule" in given:  # its name before MONAI 1.4
        given["schedule"] = given.pop("beta_schedule")
    if unknown := given.keys() - MONAI_DEFAULTS.keys():
        raise CheckpointError(f"{where} has {min(unknown)!r}; medgen knows {', '.join(MONAI_DEFAULTS)}")
    config = {**MONAI_DEFAULTS, **given}
    for setting in ("s", "sig_range", "variance_type"):
        if config[setting] != MONAI_DEFAULTS[setting]:
            raise CheckpointError(
                f"{where}: {setting} is {config[setting]!r}; medgen has {MONAI_DEFAULTS[setting]!r} alone"
            )
    if config["schedule"] not in MONAI_KINDS:
        raise CheckpointError(f"{where}: schedule is {config['schedule']!r}; known are {', '.join(MONAI_KINDS)}")
    if config["prediction_type"] not in PREDICTIONS:
        raise CheckpointError(f"{where}: prediction_type is {config['prediction_type']!r}; known are {[*PREDICTIONS]}")
    clip = None
    if config["clip_sample"]:
        clip = float(config["clip_sample_max"])
        if clip != -config["clip_sample_min"]:
            raise CheckpointError(f"{where} clips from {config['clip_sample_min']} to {clip}; medgen clips evenly")
    noise = {name: config[name] for name in ("num_train_timesteps", "beta_start", "beta_end")}
    noise |= {"kind": MONAI_KINDS[config["schedule"]], "prediction": config["prediction_type"]}
    noise |= {"spacing": "leading" if library == "generative" else "linspace"}
    if name == "DDIMScheduler":
        noise |= {"offset": config["steps_offset"], "ends_clean": config["set_alpha_to_one"]}
    notes = (NEVER_CLEAN,) if name == "DDPMScheduler" else ()
    return Sampling(schedule_of(noise, where), clip, MONAI_SCHEDULERS[name], notes)


def schedule_of(noise: Mapping[str, Any], where: str) -> Schedule:
    kind = KINDS.get(noise["kind"], noise["kind"])
    ends = {} if kind in ("cosine", "betas") else {name: noise[name] for name in ("beta_start", "beta_end")}
    fields = {**noise, "beta_start": 0.0, "beta_end": 0.0, **ends}
    try:
        return Schedule(**{**fields, "kind": kind, "prediction": PREDICTIONS[noise["prediction"]]})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error
