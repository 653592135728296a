"""Weights as MONAI GenerativeModels names them, for MONAI's networks of the same architecture.

Its attention over pixels has a matrix ``proj_attn`` that it never uses, and MONAI's ``load_old_state_dict`` puts that
where MONAI uses it. Here MONAI's is the identity or, without ``include_fc``, is not there.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

ATTENTION = re.compile(r"(?P<block>.+)\.(?P<part>to_[qkv])\.(?P<kind>weight|bias)")
UNUSED = re.compile(r"(?P<block>.+)\.proj_attn\.(weight|bias)")
OUTPUT = re.compile(r"(?P<block>.+\.transformer_blocks\..+)\.to_out\.0\.(?P<kind>weight|bias)")
UPSAMPLING = re.compile(r"(?P<block>.+)\.conv\.conv\.(?P<kind>weight|bias)")


def has_unused(weights: Mapping[str, Tensor]) -> bool:
    """Whether there is such a matrix: the attention is that of GenerativeModels, and ends without one."""
    return any(UNUSED.fullmatch(name) for name in weights)


def in_new_layout(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of a network of MONAI's, of which ``wanted`` is a state dict.

    What it has under the same name stays, and so does what has no place in it.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name not in wanted and UNUSED.fullmatch(name):
            continue
        new = new_name(name)
        out[name if name in wanted or new not in wanted else new] = tensor
        attention = new.rpartition(".to_q.")[0]
        if new != name and f"{attention}.out_proj.weight" in wanted:
            out[f"{attention}.out_proj.weight"] = torch.eye(len(tensor))
            out[f"{attention}.out_proj.bias"] = torch.zeros(len(tensor))
    return out


def new_name(name: str) -> str:
    if match := ATTENTION.fullmatch(name):
        return f"{match['block']}.attn.{match['part']}.{match['kind']}"
    if match := OUTPUT.fullmatch(name):
        return f"{match['block']}.out_proj.{match['kind']}"
    if match := UPSAMPLING.fullmatch(name):
        return f"{match['block']}.postconv.conv.{match['kind']}"
    return name
