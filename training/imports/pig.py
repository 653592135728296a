"""PIG as its authors save it: ``[state_dict, optimiser, epoch]`` a network, with the names of Ho et al. 2020's code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from training import CheckpointError
from training.imports import read_pickle
from training.models.pig import Pig, PigPreset

RESNET = {"norm1": "norm1", "conv1": "conv1", "time_emb_proj": "temb_proj", "norm2": "norm2", "conv2": "conv2",
          "conv_shortcut": "nin_shortcut"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def blocks(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Prefixes of diffusers' UNet2DModel and theirs, whether or not the network has each."""
    yield from {"time_embedding.linear_1": "temb.dense.0", "time_embedding.linear_2": "temb.dense.1"}.items()
    yield from {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}.items()
    parts = [("mid_block.resnets.0", "mid.block_1", RESNET), ("mid_block.resnets.1", "mid.block_2", RESNET)]
    parts += [("mid_block.attentions.0", "mid.attn_1", ATTENTION)]
    for level in range(levels):
        yield f"down_blocks.{level}.downsamplers.0.conv", f"down.{level}.downsample.conv"
        yield f"up_blocks.{levels - 1 - level}.upsamplers.0.conv", f"up.{level}.upsample.conv"
        for side, block, count in (("down", level, layers), ("up", levels - 1 - level, layers + 1)):
            for j in range(count):
                parts += [(f"{side}_blocks.{block}.resnets.{j}", f"{side}.{level}.block.{j}", RESNET)]
                parts += [(f"{side}_blocks.{block}.attentions.{j}", f"{side}.{level}.attn.{j}", ATTENTION)]
    for ours, theirs, names in parts:
        yield from ((f"{ours}.{new}", f"{theirs}.{old}") for new, old in names.items())


def renamed(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], preset: PigPreset, file: Path
) -> dict[str, Tensor]:
    """One network's weights under diffusers' names; 1 x 1 convolutions of attention become matrices."""
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for ours, theirs in blocks(len(preset.widths), preset.layers)
             for kind in ("weight", "bias")}  # fmt: skip
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    expected = {theirs for theirs, ours in names.items() if ours in wanted}
    if odd := plain.keys() ^ expected:
        raise CheckpointError(f"{file} and this preset differ in {len(odd)} weights, as in {min(odd)}; see --set")
    out = {}
    for theirs, tensor in plain.items():
        ours = names[theirs]
        squeezed = tensor.flatten(1) if tensor.ndim == 4 and wanted[ours].ndim == 2 else tensor
        if squeezed.shape != wanted[ours].shape:
            raise CheckpointError(
                f"{file}: {theirs} is {tuple(tensor.shape)}, not {tuple(wanted[ours].shape)}; see --set"
            )
        out[ours] = squeezed
    return out


def import_pig(guider: Path, generator: Path, preset: PigPreset) -> tuple[Pig, dict[str, Any]]:
    """The model, and what ``config.json`` records of where it came from.

    Raises:
        CheckpointError: a file is no such list or state dict, or of another network than the preset's.
    """
    pig, digests = Pig(preset), {}
    for name, file in {"guider": guider, "generator": generator}.items():
        content, digests[name] = read_pickle(file)
        weights = content[0] if isinstance(content, list) and content else content
        if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise CheckpointError(f"{file} holds a {type(weights).__name__}; it must be a state dict, or a list of one")
        network = getattr(pig, name)
        network.load_state_dict(renamed(weights, network.state_dict(), preset, file))
    if len({*digests.values()}) == 1:
        raise CheckpointError(f"{guider} and {generator} hold the same: guider and generator are two networks")
    return pig.eval(), {"format": "pig", "sha256": digests}
