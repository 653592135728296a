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

from serving.bundle import Condition, load_bundle
from serving.chain import RANGE, range_of
from serving.engines import StepEngine, open_engine, open_on_cpu
from serving.engines.device import DeadGpuError
from serving.sampling.requests import BadRequest, SampleRequest, parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.ways import ways_of
from serving.triton.in_flight import InFlight, broken, failure, priority_of, queue_size

IN_FLIGHT, STATIC = "in_flight", "static"  # static: whole batches, one after the other, as Triton forms them
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
            kind = TRITON_TYPES[condition.dtype]
            config.add_input({"name": condition.name, "data_type": kind, "dims": list(condition.shape)})
        for output in manifest.outputs:
            kind = TRITON_TYPES[output.dtype]
            config.add_output({"name": output.name, "data_type": kind, "dims": list(output.shape)})
        config.add_output({"name": "provenance", "data_type": "TYPE_STRING", "dims": [1]})
        _check(config.as_dict(), manifest.condition)
        return config

    @classmethod
    def _folder(cls) -> Path:
        return Path(inspect.getfile(cls)).parent / "bundle"

    def initialize(self, args: dict[str, str]) -> None:
        bundle = load_bundle(self._folder())
        self.manifest = bundle.manifest
        on_gpu = args["model_instance_kind"] == "GPU"
        engine = open_engine(bundle, int(args["model_instance_device_id"])) if on_gpu else open_on_cpu(bundle)
        # What a client must know to draw the outputs, and Triton's own metadata cannot say.
        fields = dataclasses.asdict(bundle.manifest)
        ways = ways_of(bundle.manifest)
        self.described = {
            **{name: fields[name] for name in ("outputs", "condition")},
            "ways": None if ways is None else dataclasses.asdict(ways),
        }
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self.in_flight: InFlight | None = None
        if _batching(parameters) == STATIC:
            self.sampler = Sampler(bundle, engine)
        else:
            assert isinstance(engine, StepEngine), f"{type(engine).__name__} runs whole trajectories alone"
            self.in_flight = InFlight(bundle, engine, args, queue_size(parameters), self._response)

    def finalize(self) -> None:
        """Triton waits for what is in flight before."""
        if self.in_flight is not None:
            self.in_flight.stop()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Has every request join the loop, which answers it later; or draws them as one batch, if batching is static.

        Every request is answered for itself: a bad one, or one that fails, does no harm to those in its batch.
        """
        if self.in_flight is None:
            return self._answered_together(requests)
        for request in requests:
            sender = request.get_response_sender()
            try:
                parsed, priority = self._parsed(request)
            except Exception as error:
                sender.send(_refusal(error, _id(request)), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            timeout = request.timeout() / 1e6 or None
            self.in_flight.submit(sender, parsed, priority, timeout, _id(request))
        return None

    def _answered_together(self, requests: Sequence[Any]) -> list[Any]:
        """Triton merges requests whatever their parameters are, up to max_batch rows in all."""
        parsed = [self._parsed_or_refused(request) for request in requests]
        good = [request for request in parsed if isinstance(request, SampleRequest)]
        sampled = iter(self._sampled(good))
        return [next(sampled) if isinstance(request, SampleRequest) else request for request in parsed]

    def _parsed_or_refused(self, request: Any) -> Any:
        """A SampleRequest, or the response that refuses it."""
        try:
            return self._parsed(request)[0]
        except BadRequest as error:
            return _refusal(error)

    def _parsed(self, request: Any) -> tuple[SampleRequest, int]:
        """What is asked for, and its priority; copied, for Triton takes back its memory. Raises BadRequest."""
        tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        seed = tensors.pop("seed")
        condition = next(iter(tensors.values()), None)  # Triton lets no other input through
        parameters = _parameters(request)
        priority = priority_of(parameters)
        return parse_request(self.manifest, seed, parameters, condition), priority

    def _sampled(self, requests: list[SampleRequest]) -> list[Any]:
        """One response per request; if they fail together they are tried one by one, so that each fails alone."""
        try:
            return [self._response(samples) for samples in self.sampler.sample(requests)]
        except DeadGpuError:
            pb.Logger.log_error(traceback.format_exc())
            os._exit(1)  # no request can succeed here any more; a new process can
        except Exception as error:
            if len(requests) > 1:
                return [response for request in requests for response in self._sampled([request])]
            return [_refusal(error)]

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


def _id(request: Any) -> str:
    """Empty if it is not UTF-8, which Triton's HTTP front end lets through."""
    try:
        return request.request_id()
    except UnicodeDecodeError:
        return ""


def _refusal(error: Exception, name: str = "") -> Any:
    if isinstance(error, BadRequest):
        return failure(str(error), pb.TritonError.INVALID_ARG)
    return broken(error, name)


def _batching(parameters: Mapping[str, Mapping[str, str]]) -> str:
    value = parameters.get("batching", {}).get("string_value", IN_FLIGHT)
    if value not in (IN_FLIGHT, STATIC):
        raise ValueError(f"config.pbtxt: parameter batching is {value!r}; allowed are {IN_FLIGHT} and {STATIC}")
    return value


def _check(config: Mapping[str, Any], condition: Condition | None) -> None:
    """What is in config.pbtxt must not give wrong answers, or late ones."""
    if condition is not None and condition.classes is None:
        said, (low, high) = config.get("parameters", {}).get(RANGE, {}).get("string_value", ""), condition.limits
        if range_of(said) != (low, high):  # for clients: nothing else that Triton tells has it
            raise ValueError(
                f"config.pbtxt: parameter {RANGE} is {said!r}; {condition.name} is a picture of values from {low:g} to "
                f'{high:g}: write parameters {{ key: "{RANGE}" value {{ string_value: "{low:g} {high:g}" }} }}'
            )
    if config.get("response_cache", {}).get("enable"):
        raise ValueError(
            "config.pbtxt: response_cache must be off: Triton's key for it ignores a request's parameters, "
            "and so the samples of 9 steps may be answered with those of 100"
        )
    if "dynamic_batching" in config and _batching(config.get("parameters", {})) == IN_FLIGHT:
        raise ValueError(
            "config.pbtxt: dynamic_batching holds requests back that could join at the next step; leave it out, or "
            f'say parameters {{ key: "batching" value {{ string_value: "{STATIC}" }} }}'
        )
