"""What README says of the models and of the order of its commands."""

import re
from pathlib import Path

import pytest
import torch

from serving.bundle import TEMPLATES
from serving.chain import read_chain
from training.checkpoint import SHIPPED
from training.models import family_names, load_family

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NETWORKS = {
    "pig": ["guider"],  # and a generator like it
    "ddpm": ["denoiser"],
    "seg_guided": ["denoiser"],
    "controlnet": ["denoiser.unet", "denoiser.control"],
    "cmr_mask": ["denoiser"],
    "cmr_ddpm_image": ["denoiser"],
    "cmr_ldm_image": ["autoencoder", "denoiser"],
    "cmr_flow_image": ["denoiser.unet", "denoiser.control"],
    "dcgan": ["generator"],
    "cyclegan": ["generators.a_to_b"],
    "dmgan_image": ["generator"],
    "pggan": ["generator"],
}


@pytest.mark.parametrize("model", NETWORKS)
def test_the_table_has_the_parameters_of_the_networks(model: str) -> None:
    (row,) = re.findall(rf"^\| `{model}` \|.*$", README, re.MULTILINE)
    told = dict(re.findall(r"`(\w+)` \d+x\d+,([^;|]*)", row))
    family = load_family(model)
    assert told.keys() == family.presets.keys()
    for name, preset in family.presets.items():
        with torch.device("meta"):
            drawn_by = family(preset)
        networks = [drawn_by.get_submodule(path) for path in NETWORKS[model]]
        counts = [sum(weight.numel() for weight in network.parameters()) for network in networks]
        shown = [f"{count:,}" if model == "pig" else f"{count / 1e6:.2f} M" for count in counts]
        assert re.findall(r"[\d,]{6,}|[\d.]+ M", told[name]) == shown, name


def test_nothing_is_built_before_it_is_trained_or_drawn_before_it_is_built() -> None:
    trained = {name for name in NETWORKS if (SHIPPED / f"{name}-phantom").is_dir()}
    built = set()
    commands = re.findall(r"(fit|build|sample|latency) (?:[^`\n]* )?--model (\w+)", README)
    assert {command for command, _ in commands} == {"fit", "build", "sample", "latency"}
    for command, model in commands:
        chain = read_chain(TEMPLATES, model)
        stages = {stage.model for stage in chain.stages} if chain else {model}
        if command == "fit":
            trained.add(model)
        elif command == "build":
            made = {stage for stage in stages if stage in family_names() and load_family(stage).made_from in trained}
            trained |= made
            assert stages <= trained, f"{model} is built before {stages - trained} is trained"
            built |= {model, *stages}
        else:
            assert model in built, f"{command} needs {model} before it is built"


def test_the_picture_of_the_house_has_every_room() -> None:
    parents: list[Path] = []
    shown = []
    for indent, name in re.findall(r"^    ( *)(\w+)/ {2,}\S", README, re.MULTILINE):
        parents = [*parents[: len(indent) // 2], Path(name)]
        shown.append(Path(*parents))
    tops = [file.parent for file in ROOT.glob("*/__init__.py")]
    packages = {file.parent.relative_to(ROOT) for top in tops for file in top.rglob("__init__.py")}
    assert packages <= {*shown}
    assert all((ROOT / room).is_dir() for room in shown)
    assert len(shown) == len({*shown})


def test_blocks_of_commands_are_one_paste() -> None:
    """Nothing waits for ever, and each command is medgen's own."""
    blocks = [block.splitlines() for block in re.findall(r"(?:^    \S.*\n)+", README, re.MULTILINE)]
    commands = [[line.strip() for line in block] for block in blocks if any(" medgen " in line for line in block)]
    assert len(commands) >= 4
    for block in commands:
        starts = [line for line in block if not line.startswith("--")]
        assert all(re.match(r"(medgen|\. \.venv/bin/activate|kill \$server)\b", line) for line in starts if line), block
        up = [number for number, line in enumerate(block) if line.startswith("medgen up")]
        for number in up:
            assert block[number] == "medgen up & server=$!"
            assert "--wait" in block[number + 1]
            assert any(line.startswith("kill $server") for line in block[number:])
