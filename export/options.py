"""What may be chosen about a bundle; imports nothing that takes long, for `--help` needs it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# Measured on ONNX Runtime's CPU with PIG's UNet: at 21 GroupNormalization is one node, which the runtime takes apart
# into slow pieces; at 18 it is InstanceNormalization, which has a kernel of its own.
OPSET = 18
BF16_OPSET = 22  # the first with convolutions of bfloat16

TARGETS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class Tolerance:
    """The largest differences from PyTorch in float32 that a bundle may have, see ``measure_parity``.

    step: in one step. end_to_end: of an output's values. mask: of a mask's share of pixels. state: of the last state's
    values. The last two are as ``end_to_end`` if None. Of a descent ``gradient`` is the limit of a gradient, as a share
    of its length, and of the step along it.
    """

    step: float
    end_to_end: float
    mask: float | None = None
    state: float | None = None
    gradient: float = 2e-2  # seen 4.6e-3 from float64, by PyTorch's float32 and by ONNX Runtime's alike

    def of(self, kind: str, name: str, masks: Collection[str], descends: bool = False) -> float:
        """The limit of one of ``build.KINDS`` of figures, of a tensor; ``masks`` names outputs."""
        if descends and kind in ("random", "step") and name != "prediction":
            return self.gradient
        if kind in ("random", "step"):
            return self.step
        limit = self.state if name == "state" else self.mask if name in masks else self.end_to_end
        return self.end_to_end if limit is None else limit


# Over what the checkpoint that comes with medgen shows with every value rounded: in a step, in the image, in the share
# of mask pixels and in the last state, whose mask is of any size where a pixel is undecided.
# fmt: off
TOLERANCES = {
    "fp32": Tolerance(step=1e-4, end_to_end=1e-3),                        # seen 2.9e-6, 1.9e-6, 0, 1.3e-5
    "tf32": Tolerance(step=5e-3, end_to_end=1e-2, mask=1e-3),             # multiplies with as many bits as fp16
    "fp16": Tolerance(step=5e-3, end_to_end=1e-2, mask=1e-3),             # seen 2.8e-3, 4.8e-4, 0, 3.0e-3
    "bf16": Tolerance(step=5e-2, end_to_end=1e-1, mask=1e-3, state=1.0),  # seen 2.6e-2, 3.6e-2, 2.4e-4, 3.1e-1
}
# fmt: on


@dataclass(frozen=True)
class PlanOptions:
    """What the libraries may be told.

    workspace: GiB of GPU memory that a layer may use while it runs, None for all there is. hardware_compatibility:
    which other GPUs TensorRT's plans run on, one of ``COMPATIBILITY``. deadline: by ``time.monotonic``, when a build
    that is not done is given up.
    """

    workspace: float | None = None
    hardware_compatibility: str = COMPATIBILITY[0]
    deadline: float = field(default=math.inf, compare=False)  # plans are the same with another


@dataclass(frozen=True)
class Options:
    """What may be chosen about a bundle.

    target: one of ``TARGETS``. precision: "fp32", "tf32", "fp16" or "bf16". opset: None for the one that is fastest.
    fused: None for whichever is faster on this GPU, where the target is "tensorrt", and True for the others. tolerance:
    None for the precision's own. plan: for plans alone. unfinished: take checkpoints whose training was not through.
    chosen: fields of the preset that the family lets be chosen only now. preset: of a model that is made from another's
    checkpoint, one of its own; None for that which is called as the checkpoint's.
    license: of the weights, as Hugging Face's hub names it; None for what the checkpoint itself says.
    """

    target: str = "onnx"
    precision: str = "fp32"
    max_batch: int = 16
    opset: int | None = None
    fused: bool | None = None
    tolerance: Tolerance | None = None
    plan: PlanOptions = field(default_factory=PlanOptions)
    unfinished: bool = False
    chosen: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    license: str | None = None


DEFAULTS = Options()
