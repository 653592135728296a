"""What others have trained, imported, built and served, against the loop of the library that it was trained with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from foreign import MONAI_SCHEDULER, SIZE, diffusers_pipeline, monai_bundle
from live import running
from monai.networks.schedulers import DDIMScheduler as MonaiDDIM
from torch import Tensor

from export.build import build
from export.options import Options
from serving.client import LocalClient
from serving.sampling.noise import draw
from training.__main__ import main

SEEDS, STEPS = [3, 8, 4], 6
CLASSES = ["BI-RADS 1", "BI-RADS 2", "BI-RADS 5"]


def built(source: Path, home: Path, repository: Path, *more: str) -> dict[str, Any]:
    """Imports and builds; returns what the manifest has of where it came from."""
    said = ["--range", "-1,1", "--spacing", "unknown", "--steps", str(STEPS), *more]
    result = CliRunner().invoke(main, ["import", str(source), "--as", "imported", "--out", str(home / "run"), *said])
    assert result.exit_code == 0, result.output
    bundle = build("imported", home / "run", home / "repository", Options(max_batch=4))
    (home / "repository/imported").rename(repository)
    return bundle.manifest.checkpoint["imported"]


def noise() -> Tensor:
    states = torch.empty(len(SEEDS), 1, SIZE, SIZE)
    for seed, state in zip(SEEDS, states.numpy(), strict=True):
        draw(seed, "imported", 0, out=state)
    return states


@torch.no_grad()
def test_samples_are_those_of_the_library(tmp_path: Path) -> None:
    """Of a class-conditional pipeline of diffusers, and of latents from MONAI's bundle; here and in Triton."""
    repository = tmp_path / "repository"
    repository.mkdir()
    pipeline = diffusers_pipeline(tmp_path / "diffusers", num_class_embeds=3)
    origin = built(tmp_path / "diffusers", tmp_path / "a", repository / "classes", "--classes", ",".join(CLASSES))
    assert origin["options"]["classes"] == CLASSES
    assert origin["format"] == "diffusers"
    unet, vae = monai_bundle(tmp_path / "monai")
    size = ["--scale", "1.3", "--size", str(SIZE)]
    assert built(tmp_path / "monai", tmp_path / "b", repository / "latents", *size)["options"]["scale"] == 1.3

    state, labels = noise(), torch.tensor([2, 0, 2])
    pipeline.scheduler.set_timesteps(STEPS)
    for t in pipeline.scheduler.timesteps:
        out = pipeline.unet(state, t, class_labels=labels).sample
        state = pipeline.scheduler.step(out, t, state).prev_sample
    latent, settings = noise(), {key: value for key, value in MONAI_SCHEDULER.items() if not key.startswith("_")}
    scheduler = MonaiDDIM(**settings)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        latent, _ = scheduler.step(unet(latent, t.expand(len(latent))), t, latent)
    expected = {"classes": state, "latents": vae.decode(latent / 1.3)}
    asked: dict[str, Any] = {"classes": {"label": ["BI-RADS 5", 0]}, "latents": {}}

    local = LocalClient(repository)
    with running(repository) as server:
        for client in (local, server.client("grpc")):
            for model, pictures in expected.items():
                drawn = client.sample(model, seeds=SEEDS, **asked[model])
                right = (pictures / 2 + 0.5).clamp(0, 1).numpy()
                assert drawn.arrays["image"].shape == right.shape
                assert right.std() > 0.02
                np.testing.assert_allclose(drawn.arrays["image"], right, rtol=0, atol=1e-5)
                if model == "classes":
                    assert [facts["label_name"] for facts in drawn.provenance] == [CLASSES[k] for k in labels]
