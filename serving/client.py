"""Ask for samples: a Triton server over gRPC or HTTP, or this process. They are the same samples, bit for bit."""

import abc
import json
import math
import random
import re
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from serving.bundle import REPOSITORY, BundleError, Condition, Output, bundle_folder, decoded, load_bundle, missing
from serving.chain import CONFIG, PROVENANCE, RANGE, SEED, Chain, ChainError, chain_of, range_of, read_chain
from serving.client_checks import (
    Given,
    SamplingError,
    check_classes,
    check_condition,
    check_given,
    check_is_alone,
    check_model,
    check_values,
    parameter,
)
from serving.condition_files import Masks
from serving.engines import EngineError
from serving.labels import Labels, labels_of
from serving.picture_files import Pictures
from serving.sample_set import Samples, joined, under
from serving.sampling.chain_sampler import ChainSampler
from serving.sampling.requests import BadRequest, parse_request, shown
from serving.sampling.sampler import Sampler
from serving.sampling.seeds import seed_column
from serving.sampling.ways import Ways
from serving.step_watch import StepWatch, Tell

DEFAULT_URLS = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}
NAMES = {"grpc": "gRPC", "http": "HTTP"}
DEFAULT_METRICS_URL = "127.0.0.1:8002"
ADDRESS = "it must be HOST:PORT, with a port from 1 to 65535"
MOST_SECONDS = 1e9
LISTENING_SECONDS = 2.0  # in which a port that is open is found to be
CONFIG_SECONDS = 1.0  # for which what the server says of a model is taken as said
# Enough that the server always has a batch waiting.
IN_FLIGHT = 4
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
BESIDE_PROVENANCE = ("outputs", "condition", "ways")  # what a server adds to it for clients
ENDING = "Server exiting"  # what Triton says of itself while it is being ended
TOO_MANY_ROWS = "batch-size must be <="  # than a model's max_batch, in Triton's words
OTHER_VERSION = "the server's medgen is of another version than this one: {}"
# What Triton says before the reason: the place in a chain, and the request's id.
PREFIXES = re.compile(r"^(in ensemble '[^']*', )?(\[request id: [^\]]*\] )?")

Progress = Callable[[int, int], object]
AnyClient = TypeVar("AnyClient", bound="Client")
Arrays = Mapping[str, NDArray[Any]]
Shapes = dict[str, tuple[np.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Description:
    """What a server says of a model: how each stage draws (a model that is no chain has one), and under what.

    stages: by their models, in their order; None draws in one pass. condition: None of a chain that draws its own, too.
    """

    stages: Mapping[str, Ways | None]
    condition: Condition | None


class Client(abc.ABC):
    """What SampleClient and LocalClient have in common. A client is a context that closes it."""

    def __enter__(self: AnyClient) -> AnyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - a client need not have anything to close
        """Gives back what the client holds."""

    def sample(
        self,
        model: str,
        count: int | None = None,
        *,
        seed: int = 0,
        seeds: Sequence[int] | NDArray[np.integer] | None = None,
        steps: int | None = None,
        solver: str | None = None,
        mask_steps: int | None = None,
        mask_solver: str | None = None,
        condition: NDArray[Any] | Masks | Pictures | Labels | None = None,
        label: int | str | Sequence[int | str] | None = None,
        progress: Progress | None = None,
    ) -> Samples:
        """Samples of `count` seeds from `seed` up, or of the given `seeds`, in that order; any number of them.

        seeds: whole numbers of any integer type in a list, an array or a range; one may come more than once.
        steps, solver: the model's own unless given; of a chain, every stage's. mask_steps, mask_solver: those of a
        chain's mask stage, for chains alone. condition: for a model that wants them a mask per sample, uint8
        [N, 1, H, W], or a picture, float32 [N, C, H, W] in the range that ``picture`` tells; the samples hold it too.
        Of a bare array of masks only the range of the classes is checked, of Masks that have labels these and the
        spacing too. label: for a model that wants one, the class of all samples, or several that they have in turn,
        each by its index or its name. progress: called with (samples done, samples in all).
        Raises SamplingError.
        """
        check_model(model)
        under = check_given(condition)
        given = {"steps": steps, "solver": solver, "mask_steps": mask_steps, "mask_solver": mask_solver}
        try:
            column = seed_column(count, seed, seeds)
            parameters = {name: parameter(name, value) for name, value in given.items() if value is not None}
        except BadRequest as error:
            raise SamplingError(str(error), 400) from None
        if label is not None:
            if under is not None:
                raise SamplingError("a condition and a label were given; a model takes one of them", 400)
            under = self.labels(model, [label] if isinstance(label, int | str) else label, len(column))
        samples = self._draw(model, column, parameters, under, progress)
        if isinstance(under, Pictures):
            for facts, name in zip(samples.provenance, under.names, strict=False):
                facts["condition_file"] = name
        return samples

    def labels(self, model: str, asked: Sequence[int | str], rows: int) -> Labels:
        """What so many samples of a model are drawn under, of classes by their indices or names, in turn.

        Raises SamplingError.
        """
        condition = self.label(model)
        if condition is None:
            raise SamplingError(f"label is {shown([*asked])}; {model} takes none", 400)
        if not asked:
            raise SamplingError("label has no entry; at least 1 is needed", 400)
        try:
            return labels_of(asked, condition, rows)
        except BadRequest as error:
            raise SamplingError(str(error), 400) from None

    @abc.abstractmethod
    def label(self, model: str) -> Condition | None:
        """The label that a model draws under, with its classes; None if it takes none. Raises SamplingError."""

    @abc.abstractmethod
    def condition(self, model: str) -> Condition | None:
        """What a client is to give, a mask, a label or a picture; None of a model or chain that wants nothing.

        Raises SamplingError.
        """

    @abc.abstractmethod
    def shapes(self, model: str) -> Shapes:
        """The arrays of one sample, a condition's too; raises SamplingError."""

    @abc.abstractmethod
    def picture(self, model: str) -> Condition | None:
        """The pictures that a model draws under, with their range; None if it wants masks or nothing.

        Raises SamplingError.
        """

    @abc.abstractmethod
    def _draw(
        self,
        model: str,
        seeds: NDArray[np.int64],
        parameters: dict[str, Any],
        given: Given | None,
        progress: Progress | None,
    ) -> Samples:
        """The samples of seeds [N, 1]."""


class LocalClient(Client):
    """Samples drawn in this process, from the bundles of a model repository."""

    def __init__(self, repository: Path = REPOSITORY) -> None:
        self._repository = repository
        self._samplers: dict[str, Sampler] = {}
        self._chains: dict[str, ChainSampler] = {}

    def _draw(
        self,
        model: str,
        seeds: NDArray[np.int64],
        parameters: dict[str, Any],
        given: Given | None,
        progress: Progress | None,
    ) -> Samples:
        try:
            if chain := self._chains.get(model) or self._open_chain(model):
                wanted = chain.condition
                if wanted is not None:
                    check_classes(model, given, wanted)
                    check_condition(model, wanted.name, wanted.dtype, wanted.shape, given, len(seeds))
                elif given is not None:
                    raise SamplingError(f"a condition was given; {model} takes none", 400)
                arrays = chain.sample(seeds, parameters, progress, None if given is None else given.values)
                manifests = chain.manifests
                stages = [
                    _of_stage(arrays, stage.outputs, manifests[stage.model].outputs) for stage in chain.chain.stages
                ]
                samples = joined(model, stages)
                return samples if wanted is None or given is None else under(wanted, given.values, samples)
            sampler = self._sampler(model)
            manifest = sampler.bundle.manifest
            check_is_alone(model, parameters)
            if (condition := manifest.condition) is not None:
                check_classes(model, given, condition)
                check_condition(model, condition.name, condition.dtype, condition.shape, given, len(seeds))
            values = None if given is None else given.values
            (arrays,) = sampler.sample([parse_request(manifest, seeds, parameters, values)], progress)
            samples = _of_stage(arrays, {name: name for name in arrays}, manifest.outputs)
            return samples if condition is None or values is None else under(condition, values, samples)
        except BadRequest as error:
            raise SamplingError(str(error), 400) from None
        except BundleError as error:
            raise SamplingError(str(error), 404) from None
        except EngineError as error:
            raise SamplingError(str(error), 500) from error

    def shapes(self, model: str) -> Shapes:
        check_model(model)
        try:
            if chain := self._chains.get(model) or self._open_chain(model):
                manifests = chain.manifests
                drawn = [(manifests[stage.model].outputs, stage.outputs) for stage in chain.chain.stages]
                condition = chain.condition
            else:
                manifest = self._sampler(model).bundle.manifest
                drawn = [(manifest.outputs, {output.name: output.name for output in manifest.outputs})]
                condition = manifest.condition
            if condition is not None:
                drawn.insert(0, ((condition.as_output(),), {condition.name: condition.name}))
        except BundleError as error:
            raise SamplingError(str(error), 404) from None
        except EngineError as error:
            raise SamplingError(str(error), 500) from error
        return {
            names[o.name]: (np.dtype(o.dtype), o.shape) for outputs, names in drawn for o in outputs if o.name in names
        }

    def picture(self, model: str) -> Condition | None:
        condition = self.condition(model)
        return None if condition is None or condition.classes else condition

    def label(self, model: str) -> Condition | None:
        condition = self.condition(model)
        return condition if condition is not None and condition.is_label else None

    def condition(self, model: str) -> Condition | None:
        check_model(model)
        try:
            if chain := self._chains.get(model) or self._open_chain(model):
                return chain.condition
            return self._sampler(model).bundle.manifest.condition
        except BundleError as error:
            raise SamplingError(str(error), 404) from None
        except EngineError as error:
            raise SamplingError(str(error), 500) from error

    def _sampler(self, model: str) -> Sampler:
        if not self._repository.exists():
            raise BundleError(missing(self._repository))
        if not (self._repository / model).is_dir():
            held = ", ".join(sorted(file.parent.name for file in self._repository.glob(f"*/{CONFIG}"))) or "none"
            raise BundleError(f"no model {model!r} in {self._repository}; it holds {held}")
        if model not in self._samplers:
            self._samplers[model] = Sampler(load_bundle(bundle_folder(self._repository, model)))
        return self._samplers[model]

    def _open_chain(self, model: str) -> ChainSampler | None:
        if chain := read_chain(self._repository, model):
            self._chains[model] = ChainSampler(
                chain, {stage.model: self._sampler(stage.model) for stage in chain.stages}
            )
        return self._chains.get(model)


class SampleClient(Client):
    """Samples from a Triton server.

    url: HOST:PORT, the server's default port on this machine unless given. protocol: "grpc" or "http".
    timeout: seconds that one request (at most the model's max_batch samples) may take, repeats included: a server that
    is overloaded is asked again, with growing pauses, and so is, by a new connection, whichever took the place of one
    that is being ended. The server gives a request up a second later.
    steps: called about once a second, by another thread, with (steps done, steps in all) of the requests that the
    server is at, as its metrics say; metrics_url is their HOST:PORT.
    For one thread; close it, or use it as a context.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: str = "grpc",
        timeout: float = 300.0,
        *,
        steps: Tell | None = None,
        metrics_url: str = DEFAULT_METRICS_URL,
    ) -> None:
        if not timeout > 0:
            raise SamplingError(f"timeout is {shown(timeout)}; it must be above 0 seconds", 400)
        if protocol not in DEFAULT_URLS:
            raise SamplingError(f"protocol is {protocol!r}; allowed are {' and '.join(DEFAULT_URLS)}", 400)
        self.url = (url or DEFAULT_URLS[protocol]).removeprefix(f"{protocol}://").rstrip("/")
        if not _is_address(self.url):
            raise SamplingError(f"url is {self.url!r}; {ADDRESS}", 400)
        if not _is_address(metrics_url):
            raise SamplingError(f"metrics_url is {metrics_url!r}; {ADDRESS}", 400)
        self.protocol, self.timeout = protocol, timeout
        self._triton: Any = import_module(f"tritonclient.{protocol}")
        # Over HTTP the connection has the limit.
        self._limit = {"client_timeout": timeout} if protocol == "grpc" else {}
        self.failures: tuple[type[Exception], ...] = (InferenceServerException, OSError)
        if protocol == "http":
            self.failures += (import_module("geventhttpclient.response").HTTPParseError,)
            hub = import_module("gevent").get_hub()
            # Raised again where they are awaited; not to be printed too.
            hub.NOT_ERROR = tuple({*hub.NOT_ERROR, *self.failures})
        self._connections: WeakSet[Any] = WeakSet()
        self._is_closed = False
        self._connect()
        self._configs: dict[str, tuple[float, ModelConfig]] = {}  # and when they were told
        self._watch = None if steps is None else StepWatch(metrics_url, steps)
        self._labels: dict[str, Condition] = {}

    def _connect(self) -> None:
        """Opens a connection; the one before, if any, is closed after its last answer, or by ``close``."""
        self._client, self.has_answered = self._triton.InferenceServerClient(self.url, **self._options()), False
        self._connections.add(self._client)
        if self._is_closed:  # by another thread, which did not want to wait
            self._client.close()

    def _options(self) -> dict[str, Any]:
        if self.protocol == "http":
            return {"concurrency": IN_FLIGHT, "network_timeout": self.timeout}
        # As over HTTP, no proxy is asked; a server that is not up yet is tried again soon.
        options = {"enable_http_proxy": 0, "max_reconnect_backoff_ms": 1000}
        options["use_local_subchannel_pool"] = 1  # else a new channel goes by the connection of an old one
        sizes = {"max_send_message_length": -1, "max_receive_message_length": -1}
        return {"channel_args": [(f"grpc.{name}", value) for name, value in {**options, **sizes}.items()]}

    def close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.close()
        for connection in [*self._connections]:
            connection.close()

    def wait_until_ready(self, model: str, timeout: float = 60.0) -> None:
        """Returns when the server can answer for the model; raises SamplingError if it cannot after timeout seconds."""
        check_model(model)
        deadline = time.monotonic() + timeout
        while not self._holds(self._client.is_model_ready, model):
            if time.monotonic() > deadline:
                live = self._holds(self._client.is_server_live)
                reason = "serves other models, or is loading it" if live else "start a server with medgen up"
                raise SamplingError(f"{self.url} is not ready to serve {model} after {timeout:g} s: {reason}", 504)
            time.sleep(0.2)

    def _draw(
        self,
        model: str,
        seeds: NDArray[np.int64],
        parameters: dict[str, Any],
        given: Given | None,
        progress: Progress | None,
    ) -> Samples:
        try:
            return self._drawn(model, seeds, parameters, given, progress)
        except SamplingError as error:
            if error.status != 400 or TOO_MANY_ROWS not in str(error):
                raise
        self._configs.clear()  # it was loaded anew meanwhile, and takes fewer rows at a time
        return self._drawn(model, seeds, parameters, given, progress)

    def _drawn(
        self,
        model: str,
        seeds: NDArray[np.int64],
        parameters: dict[str, Any],
        given: Given | None,
        progress: Progress | None,
    ) -> Samples:
        config = self._config(model)
        names = [output.name for output in config.output]
        chain = _chain(config)
        columns = {SEED: seeds, **_condition_column(self._wanting(config, chain), given, len(seeds))}
        if chain:
            parameters = chain.for_stages(parameters)
        else:
            check_is_alone(model, parameters)
        configs = [self._config(stage.model) for stage in chain.stages] if chain else [config]
        size = min(one.max_batch_size for one in configs)
        told = [stage.outputs[PROVENANCE] for stage in chain.stages] if chain else [PROVENANCE]
        starts = deque(range(0, len(seeds), size))
        under_way: deque[_Call] = deque()
        parts: list[Arrays] = []
        while starts or under_way:
            while starts and len(under_way) < IN_FLIGHT:
                rows = slice(starts[0], starts.popleft() + size)
                part = {name: column[rows] for name, column in columns.items()}
                under_way.append(_Call(self, partial(self._send, model, part, parameters)))
            answer = under_way.popleft().answer()
            parts.append({name: answer.as_numpy(name) for name in names})
            if any(values is None for values in parts[-1].values()) or any(
                _said(parts[-1][name]) != _said(parts[0][name]) for name in told
            ):
                raise self._loaded_anew(model)
            if given is not None and not chain and len(parts) == 1:
                condition = _described_condition(parts[0][PROVENANCE])
                if isinstance(given, Labels) and given.names and given.names != condition.labels:
                    raise self._loaded_anew(model)
                check_classes(model, given, condition)
            if progress is not None:
                progress(sum(len(part[names[0]]) for part in parts), len(seeds))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
        try:
            if chain:
                samples = joined(model, [_as_described(arrays, stage.outputs) for stage in chain.stages])
                if given is None or chain.conditioned is None:
                    return samples
                first = next(stage for stage in chain.stages if stage.model == chain.conditioned[0])
                condition = _described_condition(arrays[first.outputs[PROVENANCE]])
                return under(replace(condition, name=str(chain.condition)), given.values, samples)
            return _as_described(arrays, {name: name for name in names}, given)
        except BundleError as error:
            raise SamplingError(OTHER_VERSION.format(error), 500) from None

    def _loaded_anew(self, model: str) -> SamplingError:
        self._configs.clear()
        self._labels.clear()
        return SamplingError(f"{model} was loaded anew meanwhile and draws something else: ask again", 503)

    def condition(self, model: str) -> Condition | None:
        return self.describe(model).condition

    def shapes(self, model: str) -> Shapes:
        check_model(model)
        config = self._config(model)
        chain = _chain(config)
        if not chain:
            return {tensor.name: _array_of(tensor) for tensor in (*config.input, *config.output) if tensor.name != SEED}
        drawn = [(self._config(stage.model).output, stage.outputs) for stage in chain.stages]
        given = {tensor.name: _array_of(tensor) for tensor in _inputs(self._wanting(config, chain))}
        return given | {names[o.name]: _array_of(o) for outputs, names in drawn for o in outputs if o.name in names}

    def picture(self, model: str) -> Condition | None:
        check_model(model)
        config = self._config(model)
        return _picture(self._wanting(config, _chain(config)))

    def _wanting(self, config: ModelConfig, chain: Chain | None) -> ModelConfig:
        """A configuration that says what a client is to give; a chain's own has no sizes, so its stage's is taken."""
        if chain is None or chain.conditioned is None:
            return config
        model, name = chain.conditioned
        wanting = ModelConfig()
        wanting.CopyFrom(self._config(model))
        wanting.name = chain.model
        for tensor in wanting.input:
            if tensor.name == name:
                tensor.name = str(chain.condition)
        return wanting

    def label(self, model: str) -> Condition | None:
        """Triton's metadata have no names of classes, but a sample's provenance has: one of one step is drawn."""
        check_model(model)
        if model not in self._labels:
            config = self._config(model)
            wanted = [] if _chain(config) else _inputs(config)
            if not wanted or _array_of(wanted[0]) != (np.int64, (1,)):
                return None
            zero = np.zeros((1, 1), np.int64)
            answer = self._told(model, {SEED: zero, wanted[0].name: zero})
            self._labels[model] = _described_condition(answer.as_numpy(PROVENANCE))
        return self._labels[model]

    def _told(self, model: str, columns: Arrays) -> Any:
        """A sample, for what is said beside it: of one step, or of its own where it takes no other or none."""
        try:
            return _Call(self, partial(self._send, model, columns, {"steps": 1})).answer()
        except SamplingError as error:
            if error.status != 400:
                raise
            return _Call(self, partial(self._send, model, columns, {})).answer()

    def models(self) -> list[str]:
        """The models that the server has loaded, chains and their stages too; raises SamplingError."""
        # Of the two APIs that name them this one is open to all.
        try:
            if self.protocol == "http":
                told = self._client.get_inference_statistics()["model_stats"]
                return sorted({model["name"] for model in told})
            return sorted({model.name for model in self._client.get_inference_statistics(**self._limit).model_stats})
        except self.failures as failure:
            raise self.explain(failure) from None

    def check_ready(self) -> None:
        """Raises SamplingError unless the server has loaded all of its models, and has one."""
        try:
            is_ready = self._client.is_server_ready(**self._limit)
        except self.failures as failure:
            raise self.explain(failure) from None
        if not is_ready:
            raise SamplingError(f"{self.url} is not ready: not all of its models can draw", 503)
        if not self.models():
            raise SamplingError(f"{self.url} has no model", 503)

    def describe(self, model: str) -> Description:
        """How a model draws, which it says beside a sample: one is drawn, of one step where it takes steps.

        Raises SamplingError.
        """
        check_model(model)
        config = self._config(model)
        chain = _chain(config)
        wanting = self._wanting(config, chain)
        columns: dict[str, NDArray[Any]] = {SEED: np.zeros((1, 1), np.int64)}
        for given in _inputs(wanting):
            dtype, shape = _array_of(given)
            darkest = 0 if (picture := _picture(wanting)) is None else picture.limits[0]
            columns[given.name] = np.full((1, *shape), darkest, dtype)
        answer = self._told(model, columns)
        told = {stage.model: stage.outputs[PROVENANCE] for stage in chain.stages} if chain else {model: PROVENANCE}
        facts = {stage: json.loads(answer.as_numpy(name)[0, 0]) for stage, name in told.items()}
        try:
            stages = {
                stage: None if fact["ways"] is None else decoded(Ways, fact["ways"], "ways")
                for stage, fact in facts.items()
            }
            first = model if chain is None else (chain.conditioned or (None,))[0]
            held = None if first is None else facts[first]["condition"]
            condition = None if held is None else decoded(Condition, held, "condition")
            if chain and condition is not None:
                condition = replace(condition, name=str(chain.condition))
        except (KeyError, BundleError) as error:
            raise SamplingError(OTHER_VERSION.format(error), 500) from None
        return Description(stages, condition)

    def _config(self, model: str) -> ModelConfig:
        """As the server says, or said within the last CONFIG_SECONDS: one that draws in a loop need not ask each time.

        Raises SamplingError.
        """
        told, config = self._configs.get(model, (-math.inf, None))
        now = time.monotonic()
        if config is None or now - told >= CONFIG_SECONDS:
            self._configs.pop(model, None)
            config = self._asked_config(model)
            self._configs[model] = now, config
        return config

    def _asked_config(self, model: str) -> ModelConfig:
        def ask() -> ModelConfig:
            if self.protocol == "http":
                fields = self._client.get_model_config(model)
                return json_format.ParseDict(fields, ModelConfig(), ignore_unknown_fields=True)
            return self._client.get_model_config(model, **self._limit).config

        try:
            return _Call(self, lambda *_: ask, is_named=False).answer()
        except SamplingError as error:
            if error.status != 404:
                raise
            served = ", ".join(self.models()) or "none"
            raise SamplingError(f"no model {model!r} is served at {self.url}; served are {served}", 404) from None

    def new_id(self) -> str:
        """Of a request; with a dot, where no metrics are to be told of it alone."""
        return f"medgen.{uuid.uuid4().hex}" if self._watch is None else self._watch.new_name()

    def _send(
        self, model: str, columns: Arrays, parameters: dict[str, Any], request_id: str, left: float
    ) -> Callable[[], Any]:
        """Sends one request, which may take the seconds that are left, and returns what waits for its result."""
        inputs = []
        for name, values in columns.items():
            inputs.append(self._triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
            inputs[-1].set_data_from_numpy(values)
        # An HTTP client that has gone away is not noticed, nor is any by the stages of a chain.
        given: dict[str, Any] = {"parameters": parameters, "timeout": round(1e6 * min(left + 1, MOST_SECONDS))}
        given["request_id"] = request_id
        if self.protocol == "http":
            return self._client.async_infer(model, inputs, **given).get_result
        future: Future[Any] = Future()

        def settle(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._client.async_infer(model, inputs, settle, **given, client_timeout=left)
        return future.result

    def explain(self, failure: Exception) -> SamplingError:
        """What tritonclient raised, over either protocol, as a SamplingError."""
        if isinstance(failure, InferenceServerException):
            name = str(failure.status()).removeprefix("StatusCode.")
            status = int(name) if name.isdigit() else HTTP_STATUS.get(name, 500)
            message = PREFIXES.sub("", str(failure.message()))
        else:
            status, message = 504 if isinstance(failure, TimeoutError) else 503, str(failure)
        if status == 504:
            return SamplingError(f"{self.url} did not answer within {self.timeout:g} s", status)
        if status in (404, 503):
            try:
                is_live, why = self._client.is_server_live(**self._limit), ""
            except self.failures as unlike:
                is_live, why = False, str(unlike)
            if ENDING in why:
                self._connect()
                return SamplingError(f"the server at {self.url} is being ended", 503)
            if not is_live:
                return self._no_server()
        return SamplingError(message, status)

    @property
    def connection(self) -> object:
        """The one by which requests are sent from now on."""
        return self._client

    def moves_on(self, connection: object) -> bool:
        """Whether what failed by a connection is to be asked by another, which is open then.

        Behind one that has brought answers the server may have been ended, and another may have taken its place.
        """
        if connection is self._client:
            if not self.has_answered:
                return False
            self._connect()
        return True

    def _no_server(self) -> SamplingError:
        place = urlsplit(f"//{self.url}")
        try:
            socket.create_connection((place.hostname, place.port), LISTENING_SECONDS).close()
        except OSError:
            return SamplingError(f"no server answers at {self.url}: start one with medgen up", 502)
        why = f"what listens at {self.url} does not answer by {NAMES[self.protocol]}"
        return SamplingError(f"{why}: medgen up says which of its ports does", 502)

    def _holds(self, question: Callable[..., bool], *arguments: str) -> bool:
        try:
            return question(*arguments, **self._limit)
        except self.failures:
            return False


class _Call:
    """A request under way; `send` sends it by its id, "" if it is not named, for the seconds that are left, and returns
    what waits for its result."""

    def __init__(
        self, client: SampleClient, send: Callable[[str, float], Callable[[], Any]], is_named: bool = True
    ) -> None:
        self._client, self._send, self._id = client, send, client.new_id() if is_named else ""
        self._deadline = time.monotonic() + client.timeout
        self._ask()

    def _ask(self) -> None:
        left = max(self._deadline - time.monotonic(), SHORTEST_PAUSE)
        self._connection, self._result = self._client.connection, self._send(self._id, left)

    def answer(self) -> Any:
        """The result, after as many repeats as are necessary; raises SamplingError.

        A request that is asked again has the same samples, so it does not matter what became of the first.
        """
        pause = SHORTEST_PAUSE
        while True:
            try:
                result = self._result()
                self._client.has_answered |= self._connection is self._client.connection
                return result
            except self._client.failures as failure:
                error = self._client.explain(failure)
            may_succeed = error.status == 503 or (
                error.status in (404, 502) and self._client.moves_on(self._connection)
            )
            if not may_succeed or time.monotonic() + pause > self._deadline:
                raise error.of(self._id) if self._id else error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)
            self._ask()


def _is_address(url: str) -> bool:
    try:
        place = urlsplit(f"//{url}")
        return place.hostname is not None and bool(place.port)
    except ValueError:
        return False


def _chain(config: ModelConfig) -> Chain | None:
    try:
        return chain_of(config)
    except ChainError as error:
        raise SamplingError(str(error), 500) from None


def _array_of(tensor: Any) -> tuple[np.dtype, tuple[int, ...]]:
    """What a ModelInput or ModelOutput says of one sample's array."""
    name = DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return np.dtype(triton_to_np_dtype("BYTES" if name == "STRING" else name)), tuple(tensor.dims)


def _inputs(config: ModelConfig) -> list[Any]:
    """Those beside the seed; there is one at most."""
    return [given for given in config.input if given.name != SEED]


def _picture(config: ModelConfig) -> Condition | None:
    wanted = _inputs(config)
    if not wanted or _array_of(wanted[0])[0] != np.float32:
        return None
    limits = range_of(config.parameters[RANGE].string_value) if RANGE in config.parameters else None
    if limits is None:
        raise SamplingError(OTHER_VERSION.format(f"{config.name} does not say which values its pictures have"), 500)
    low, high = limits
    return Condition(wanted[0].name, tuple(wanted[0].dims), low=low, high=high)


def _condition_column(config: ModelConfig, given: Given | None, rows: int) -> Arrays:
    wanted = _inputs(config)
    if not wanted:
        if given is not None:
            raise SamplingError(f"a condition was given; {config.name} takes none", 400)
        return {}
    name, (dtype, shape) = wanted[0].name, _array_of(wanted[0])
    check_condition(config.name, name, dtype.name, shape, given, rows)
    if picture := _picture(config):
        check_values(given, picture)
    return {} if given is None else {name: given.values}


def _said(provenance: NDArray[Any]) -> list[Any]:
    """What a server says of a model's bundle, of all its outputs and of its condition."""
    facts = json.loads(provenance[0, 0])
    return [facts.get(name) for name in ("bundle", "outputs", "condition")]


def _described_condition(provenance: NDArray[Any]) -> Condition:
    try:
        return decoded(Condition, json.loads(provenance[0, 0]).get("condition"), "condition")
    except BundleError as error:
        raise SamplingError(OTHER_VERSION.format(error), 500) from None


def _as_described(arrays: Arrays, names: Mapping[str, str], given: Given | None = None) -> Samples:
    """The samples of a stage, which a server describes beside its provenance."""
    facts = json.loads(arrays[names[PROVENANCE]][0, 0])
    outputs = tuple(decoded(Output, fields, "outputs") for fields in facts.get("outputs", ()))
    samples = _of_stage(arrays, names, outputs)
    return samples if given is None else under(_described_condition(arrays[PROVENANCE]), given.values, samples)


def _of_stage(arrays: Arrays, names: Mapping[str, str], described: Sequence[Output]) -> Samples:
    """The samples of one stage; names: what its outputs are called among the arrays."""
    provenance = [json.loads(text) for text in arrays[names[PROVENANCE]][:, 0]]
    for facts in provenance:
        for name in BESIDE_PROVENANCE:
            facts.pop(name, None)
    outputs = [replace(output, name=names[output.name]) for output in described if names.get(output.name) in arrays]
    return Samples({output.name: arrays[output.name] for output in outputs}, provenance, tuple(outputs))
