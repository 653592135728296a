"""What may be chosen, the most telling first; imports nothing that takes long, for `--help` needs it."""

KERNELS = ("solver_step", "group_norm_silu", "attention")
YARDSTICK = "diffusers-eager"
WAYS = (
    YARDSTICK,
    "medgen-cuda-graph",
    "medgen-tensorrt",
    "medgen-tensorrt-unfused",
    "medgen-tensorrt-rtx",
    "medgen-onnxruntime",
    "diffusers-channels-last",
    "medgen-cuda-graph-channels-last",
    "medgen-pytorch",
    "medgen-pytorch-channels-last",
    "torch-compile",
)
SIZES = (512, 256)
BATCHES = (1, 16, 4)
PRECISIONS = ("fp16", "fp32", "bf16")  # the last is as fast as the first
