"""Graphs that a run of the tests exports once: exporting takes longer than all that is done with a graph afterwards."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import Tensor, nn
from torch.fx import GraphModule

from export import graphs
from training.family import Family


def folder_of_run(factory: pytest.TempPathFactory) -> Path:
    """One that all workers of this run of the tests have in common."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"


@contextmanager
def exported_once(folder: Path) -> Iterator[None]:
    """Graphs that are in the folder are read, and others are put there once they have been exported."""
    export, fuse = graphs.export_graph, graphs.fuse
    folder.mkdir(exist_ok=True)
    traces: dict[str, tuple[GraphModule, dict[str, int]]] = {}

    def exported(module: nn.Module, inputs: list[Tensor], *names_family_and_options: Any) -> onnx.ModelProto:
        file = folder / f"{key_of(module, inputs, *names_family_and_options)}.onnx"
        if not file.exists():
            made = export(module, inputs, *names_family_and_options)
            aside = file.with_suffix(f".{os.getpid()}")
            aside.write_bytes(made.SerializeToString())
            aside.replace(file)
        return onnx.load(file)

    def fused(module: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> tuple[GraphModule, dict[str, int]]:
        """A graph's first trace, which is the same in each precision."""
        key = key_of(module, [*example], module.family, None, None, None)
        if key not in traces:
            traces[key] = fuse(module, example, shapes)
        return copy.deepcopy(traces[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "fuse", fused)
        patch.setattr(graphs, "export_graph", exported)
        yield


def sharing(folder: Path, function: Callable[..., Any], *given: Any) -> Any:
    """The function, in a process of its own where it is told to be: there too graphs are exported once."""
    with exported_once(folder):
        return function(*given)


def key_of(module: nn.Module, inputs: list[Tensor], *names_family_and_options: Any) -> str:
    """Of all that a graph is made from: the same key, the same graph."""
    *names, family, opset, fused, precision = names_family_and_options
    assert isinstance(family, Family)
    kinds = [(type(part).__module__, type(part).__qualname__) for part in (module, family)]
    shapes = [(str(given.dtype), tuple(given.shape)) for given in inputs]
    said = repr((kinds, shapes, names, family.preset, family.sample_shape, family.condition, opset, fused, precision))
    key = hashlib.sha256(said.encode())
    for name, weight in family.state_dict().items():
        key.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        key.update(weight.detach().cpu().numpy().tobytes())
    return key.hexdigest()
