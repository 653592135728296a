"""A family's networks as ONNX files of their own, for a loop in Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from benchmarks.latency.contenders import Stage
from benchmarks.latency.pytorch_stage import FINISH, LoadedStage
from export.graphs import quiet
from training.family import Network

BATCH = 2  # torch takes a batch of one for a constant


def session_network(path: Path, threads: int) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> Any:
        outs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        drawn = [torch.from_numpy(out) for out in outs]
        return drawn[0] if len(drawn) == 1 else tuple(drawn)

    return run


def export_networks(stage: Stage, folder: Path) -> None:
    """One file NAME.onnx for each network, with the batch dynamic wherever an input has one."""
    loaded = LoadedStage(stage)
    networks = loaded.networks
    for name, inputs in example_inputs(loaded, networks).items():
        dynamic = tuple({0: torch.export.Dim.DYNAMIC} if tensor.ndim else None for tensor in inputs)
        shapes: Any = (dynamic,) if name == FINISH else dynamic  # it takes them all as *inputs
        with quiet():
            program = torch.onnx.export(networks[name], inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert program is not None
        program.save(folder / f"{name}.onnx")


def example_inputs(loaded: LoadedStage, networks: Mapping[str, Network]) -> dict[str, tuple[Tensor, ...]]:
    """What each network is given in one step of the loop: in some a number t, in others one for each sample."""
    seen = {}

    def watched(name: str) -> Network:
        def run(*inputs: Tensor) -> Tensor:
            seen[name] = inputs
            return networks[name](*inputs)

        return run

    family, scheduler = loaded.family, loaded.scheduler()
    condition: Any = None
    if family.condition is not None:
        condition = torch.zeros(BATCH, *family.condition.shape, dtype=getattr(torch, family.condition.dtype))
    if scheduler is None:
        return {FINISH: (torch.randn(BATCH, *family.sample_shape), *(() if condition is None else (condition,)))}
    with torch.inference_mode(False), torch.no_grad():
        state = torch.randn(BATCH, *family.sample_shape)
        watching = {name: watched(name) for name in networks}
        family.scheduler_step(watching, scheduler, scheduler.timesteps[0], state, condition)
    return {name: tuple(tensor.contiguous() for tensor in inputs) for name, inputs in seen.items()}
