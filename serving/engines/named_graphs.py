"""What engines have in common whose graphs have named inputs, as ONNX Runtime's and OpenVINO's."""

import abc
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import Float32, History, StepEngine


class NamedGraphs(StepEngine):
    """Runs the graphs "step" and "finish" of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._outputs = [output.name for output in bundle.manifest.outputs]

    @abc.abstractmethod
    def run(self, name: str, outputs: list[str], feeds: Mapping[str, NDArray | None]) -> list[NDArray]:
        """The outputs of a graph, given at least what it takes; raises EngineError."""

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[Any] | None = None,
    ) -> tuple[Float32, Float32]:
        states = {f"history_{k}": state for k, state in enumerate(history, start=1)}
        feeds = {"sample": sample, **states, "noise": noise, "coeffs": coeffs, "condition": condition}
        sample_next, prediction = self.run("step", ["sample_next", "prediction"], feeds)
        return sample_next, prediction

    def finish(self, sample: Float32, condition: NDArray[Any] | None = None) -> dict[str, NDArray]:
        arrays = self.run("finish", self._outputs, {"sample": sample, "condition": condition})
        return dict(zip(self._outputs, arrays, strict=True))
