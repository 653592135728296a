"""The Triton model of every family: it serves what the manifest of its bundle describes."""

import dataclasses
import inspect
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from numpy.typing import NDArray

from serving.bundle import load_bundle
from serving.engines import open_engine, open_on_cpu
from serving.engines.device import DeadGpuError
from serving.sampling.requests import BadRequest, SampleRequest, parse_request
from serving.sampling.sampler import Sampler

TRITON_TYPES = {
    "uint8": "TYPE_UINT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
}


class BundleModel:
    """Base of a `TritonPythonModel` whose model.py has its bundle beside it; Triton calls the methods."""

    @classmethod
    def auto_complete_config(cls, config: Any) -> Any:
        """Adds to config.pbtxt what the manifest knows: inputs, outputs and the largest batch."""
        manifest = load_bundle(cls._folder()).manifest
        config.set_max_batch_size(manifest.max_batch)
        config.add_input({"name": "seed", "data_type": "TYPE_INT64", "dims": [1]})
        if (condition := manifest.condition) is not None:
            config.add_input({"name": condition.name, "data_type": "TYPE_UINT8", "dims": list(condition.shape)})
        for output in manifest.outputs:
            kind = TRITON_TYPES[output.dtype]
            config.add_output({"name": output.name, "data_type": kind, "dims": list(output.shape)})
        config.add_output({"name": "provenance", "data_type": "TYPE_STRING", "dims": [1]})
        return config

    @classmethod
    def _folder(cls) -> Path:
        return Path(inspect.getfile(cls)).parent / "bundle"

    def initialize(self, args: dict[str, str]) -> None:
        bundle = load_bundle(self._folder())
        self.manifest = bundle.manifest
        on_gpu = args["model_instance_kind"] == "GPU"
        engine = open_engine(bundle, int(args["model_instance_device_id"])) if on_gpu else open_on_cpu(bundle)
        self.sampler = Sampler(bundle, engine)
        # What a client must know to draw the outputs, and Triton's own metadata cannot say.
        fields = dataclasses.asdict(bundle.manifest)
        self.described = {name: fields[name] for name in ("outputs", "condition")}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers every request for itself: a bad one, or one that fails, does no harm to those in its batch.

        Triton merges requests whatever their parameters are, up to max_batch rows in all.
        """
        parsed = [self._parsed(request) for request in requests]
        good = [request for request in parsed if isinstance(request, SampleRequest)]
        sampled = iter(self._sampled(good))
        return [next(sampled) if isinstance(request, SampleRequest) else request for request in parsed]

    def _parsed(self, request: Any) -> Any:
        """A SampleRequest, or the response that refuses it."""
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        seed = tensors.pop("seed")
        condition = next(iter(tensors.values()), None)  # Triton lets no other input through
        try:
            return parse_request(self.manifest, seed, _parameters(request), condition)
        except BadRequest as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))

    def _sampled(self, requests: list[SampleRequest]) -> list[Any]:
        """One response per request; if they fail together they are tried one by one, so that each fails alone."""
        try:
            return [self._response(samples) for samples in self.sampler.sample(requests)]
        except DeadGpuError:
            pb.Logger.log_error(traceback.format_exc())
            os._exit(1)  # no request can succeed here any more; Triton starts a new process for the next
        except Exception as error:
            if len(requests) > 1:
                return [response for request in requests for response in self._sampled([request])]
            pb.Logger.log_error(traceback.format_exc())
            return [pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))]

    def _response(self, samples: Mapping[str, NDArray[Any]]) -> Any:
        facts = [json.loads(text) for text in samples["provenance"][:, 0]]
        provenance = [[json.dumps({**fact, **self.described}).encode()] for fact in facts]
        arrays = {**samples, "provenance": np.array(provenance, object)}
        return pb.InferenceResponse([pb.Tensor(name, values) for name, values in arrays.items()])


def _parameters(request: Any) -> dict[str, Any]:
    """Raises BadRequest if they are not UTF-8, which Triton's HTTP front end lets through."""
    try:
        return json.loads(request.parameters())
    except ValueError as error:
        raise BadRequest(f"the parameters cannot be read: {error}") from None
