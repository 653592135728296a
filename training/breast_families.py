"""What PIG and the models that it is compared with have in common: their noise, and what they take and give.

Zhang et al., "Paired Image Generation with Diffusion-Guided Diffusion Models", MICCAI 2025 (arXiv 2507.14833).
"""

import dataclasses

from serving.bundle import Output
from serving.sampling.solvers import Schedule
from training.data.classes import LESION

EPSILON = Schedule(kind="linear", num_train_timesteps=1024, beta_start=1e-4, beta_end=0.02, prediction="epsilon")
V = dataclasses.replace(EPSILON, prediction="v")


def mask_output(size: int) -> Output:
    """Background and lesion, uint8 [1, size, size] of 0 and 1."""
    return Output("mask", "uint8", (1, size, size), low=0, high=1, labels=LESION)


def image_output(size: int) -> Output:
    """Grey levels float32 [1, size, size] in [0, 1]."""
    return Output("image", "float32", (1, size, size), low=0.0, high=1.0, modality="MG")
