"""Chains: models that Triton runs one after the other for one request, as an ensemble's config.pbtxt says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.bundle import BundleError, Condition, Manifest, Output

CONFIG = "config.pbtxt"
SEED, PROVENANCE = "seed", "provenance"
STEPS_OF = "steps_of"  # parameter of a chain: the tensor whose stage ``steps`` and ``solver`` are for; else for all
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
    """Its stages, in the order in which they run, and which of the tensors a client gets.

    ``condition`` is the tensor that a client gives beside the seeds, None where there is none. Where ``steps_of`` names
    a tensor, ``steps`` and ``solver`` are for the stage alone that draws it.
    """

    model: str
    stages: tuple[Stage, ...]
    outputs: tuple[str, ...]
    condition: str | None = None
    steps_of: str | None = None

    def for_stages(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What a client asks for, by the names by which the stages know it."""
        if self.steps_of is None:
            return dict(parameters)
        own = {name: f"{self.steps_of}_{name}" for name in ("steps", "solver")}
        return {own.get(name, name): value for name, value in parameters.items()}

    @property
    def conditioned(self) -> tuple[str, str] | None:
        """The first stage that takes the condition, and by which name."""
        taken = (
            (stage.model, name) for stage in self.stages for name, t in stage.inputs.items() if t == self.condition
        )
        return None if self.condition is None else next(taken)


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

    Raises ChainError if a stage draws from other seeds than the client's, takes what neither the client nor a stage
    before it gives, gives what is there already, or keeps its provenance from the client; if a client has more to give
    than seeds and one condition; or if no stage draws what STEPS_OF names.
    """
    if config.platform != "ensemble":
        return None
    stages = tuple(
        Stage(step.model_name, dict(step.input_map), dict(step.output_map)) for step in config.ensemble_scheduling.step
    )
    given = {tensor.name for tensor in config.input}
    others = sorted(given - {SEED})
    if len(others) > 1:
        raise ChainError(f"chain {config.name} takes {' and '.join(others)}; there can be one condition")
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
    if others and not any(others[0] in stage.inputs.values() for stage in stages):
        raise ChainError(f"chain {config.name}: no stage takes {others[0]!r}")
    steps_of = config.parameters[STEPS_OF].string_value if STEPS_OF in config.parameters else None
    if steps_of is not None and not any(steps_of in stage.outputs.values() for stage in stages):
        raise ChainError(f"chain {config.name}: {STEPS_OF} is {steps_of!r}, which no stage gives")
    return Chain(config.name, stages, outputs, others[0] if others else None, steps_of)


def check_stages(chain: Chain, manifests: Mapping[str, Manifest]) -> None:
    """Raise ChainError if a stage is conditioned on something else than what a stage before it draws.

    manifests: of every stage, by its model's name.
    """
    drawn: dict[str | None, tuple[str, Output]] = {}
    for stage in chain.stages:
        manifest = manifests[stage.model]
        if (condition := manifest.condition) is not None:
            tensor = stage.inputs.get(condition.name)
            given_by_client = chain.condition is not None and tensor == chain.condition
            if not given_by_client and tensor not in drawn:
                raise ChainError(f"chain {chain.model}: no stage draws the {condition.name} that {stage.model} needs")
            source, output = drawn.get(tensor, ("a client", condition.as_output()))
            if source in manifests:
                check_learnt_from(chain, manifest, manifests[source])
            needed, given = wanted(condition), found(output, condition)
            if given != needed:
                raise ChainError(
                    f"chain {chain.model}: {source} draws {output.name} as {given}; {stage.model} needs {needed}"
                )
        drawn |= {stage.outputs[o.name]: (stage.model, o) for o in manifest.outputs if o.name in stage.outputs}


def check_learnt_from(chain: Chain, manifest: Manifest, source: Manifest) -> None:
    """Raise ChainError if a stage has learnt from what other weights than its source's draw, or in another way."""
    learnt = {"weights": manifest.checkpoint.get("learnt_through")} | manifest.checkpoint.get("facts", {}).get(
        "learnt_from", {}
    )
    holds = {"weights": source.checkpoint.get("digest")} | source.checkpoint.get("facts", {})
    for name, value in learnt.items():
        if value is not None and holds.get(name, value) != value:
            raise ChainError(
                f"chain {chain.model}: {manifest.model} has learnt from what {source.model} draws with {name} {value}; "
                f"this one has {name} {holds[name]}"
            )


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
