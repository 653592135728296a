"""Chains: models that Triton runs one after the other for one request, as an ensemble's config.pbtxt says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.bundle import BundleError, Condition, Manifest, Output

CONFIG = "config.pbtxt"
SEED, PROVENANCE = "seed", "provenance"
RANGE = "condition_range"  # parameter of a model that draws under pictures: their lowest and highest value, "-1 1"


class ChainError(BundleError):
    """A chain cannot be run as its config.pbtxt says; the message names the chain, and the stage if it is one."""


@dataclass(frozen=True)
class Stage:
    """One model of a chain: which of the chain's tensors its inputs are, and which its outputs become."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Chain:
    """Its stages, in the order in which they run, and which of the tensors a client gets."""

    model: str
    stages: tuple[Stage, ...]
    outputs: tuple[str, ...]


def read_chain(repository: Path, model: str) -> Chain | None:
    """The chain of that name, or None if the model is none or is not there.

    Raises ChainError if config.pbtxt cannot be read, or as chain_of does.
    """
    file = repository / model / CONFIG
    try:
        # What is unknown here a newer Triton may know.
        config = text_format.Parse(file.read_text(), ModelConfig(), allow_unknown_field=True)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ChainError(f"{file} cannot be read: {error}") from None
    config.name = model
    return chain_of(config)


def chain_of(config: ModelConfig) -> Chain | None:
    """The chain that a model's configuration describes, or None if it describes a single model.

    Raises ChainError if a stage draws from other seeds than the client's, takes what no stage before it gives, gives
    what is there already, or keeps its provenance from the client.
    """
    if config.platform != "ensemble":
        return None
    stages = tuple(
        Stage(step.model_name, dict(step.input_map), dict(step.output_map)) for step in config.ensemble_scheduling.step
    )
    given = {SEED}
    outputs = tuple(tensor.name for tensor in config.output)
    for stage in stages:
        if stage.inputs.get(SEED) != SEED:
            raise ChainError(f"chain {config.name}: {stage.model} must take {SEED!r} as its {SEED!r}")
        if missing := sorted(set(stage.inputs.values()) - given):
            raise ChainError(f"chain {config.name}: {stage.model} takes {missing[0]!r}, which nothing before it gives")
        if stage.outputs.get(PROVENANCE) not in outputs:
            raise ChainError(f"chain {config.name}: the provenance of {stage.model} is none of its outputs")
        for tensor in stage.outputs.values():
            if tensor in given:
                raise ChainError(f"chain {config.name}: {stage.model} gives {tensor!r}, which is there already")
            given.add(tensor)
    if not stages:
        raise ChainError(f"chain {config.name} has no stages")
    return Chain(config.name, stages, outputs)


def check_stages(chain: Chain, manifests: Mapping[str, Manifest]) -> None:
    """Raise ChainError if a stage is conditioned on something else than what a stage before it draws.

    manifests: of every stage, by its model's name.
    """
    drawn: dict[str | None, tuple[str, Output]] = {}
    for stage in chain.stages:
        manifest = manifests[stage.model]
        if (condition := manifest.condition) is not None:
            if (tensor := stage.inputs.get(condition.name)) not in drawn:
                raise ChainError(f"chain {chain.model}: no stage draws the {condition.name} that {stage.model} needs")
            source, output = drawn[tensor]
            needed, given = wanted(condition), found(output, condition)
            if given != needed:
                raise ChainError(
                    f"chain {chain.model}: {source} draws {output.name} as {given}; {stage.model} needs {needed}"
                )
        drawn |= {stage.outputs[o.name]: (stage.model, o) for o in manifest.outputs if o.name in stage.outputs}


def range_of(parameter: str) -> tuple[float, float] | None:
    """What RANGE says, or None if it says nothing of the kind."""
    try:
        low, high = map(float, parameter.split())
    except ValueError:
        return None
    return low, high


def wanted(condition: Condition) -> str:
    """What masks or pictures a model needs, in words; ``found`` says the same of those that fit."""
    return found(condition.as_output(), condition)


def found(output: Output, condition: Condition) -> str:
    """What masks or pictures are; labels and spacing only where the condition has its own: without them any will do."""
    text = f"{output.dtype} {list(output.shape)}"
    if condition.classes is None and output.dtype == "float32":
        text += f" from {output.low:g} to {output.high:g}"
    else:
        text += f" of {len(output.labels) or int(output.high) + 1} classes"
    labels = _labels(output.labels) if condition.labels else ""
    return text + labels + (_pixels(output.spacing) if condition.spacing else "")


def _labels(labels: tuple[str, ...]) -> str:
    return f" ({', '.join(labels)})" if labels else ""


def _pixels(spacing: tuple[float, float] | None) -> str:
    return f", {spacing[0]} x {spacing[1]} mm" if spacing else ", pixels of unknown size"
