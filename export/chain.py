"""A chain is built when its stages are: those whose checkpoints are given, beside those that are there already."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from export import BuildError, Progress, silent
from export.build import build_all, refuse_unfinished
from export.options import Options
from serving.bundle import (
    MANIFEST,
    TEMPLATES,
    Bundle,
    BundleError,
    Manifest,
    bundle_folder,
    file_digest,
    load_bundle,
    read_json,
)
from serving.chain import CONFIG, Chain, ChainError, check_stages, read_chain
from serving.folders import recover
from serving.repository import prepare_repository
from training.checkpoint import CheckpointError, find_checkpoint, read_config, shipped_checkpoint
from training.lineage import no_phantoms, origin_of
from training.models import family_names, load_family


class Built(NamedTuple):
    """A stage's bundle, and the checkpoint that it was built from just now; None if it was there and was kept."""

    bundle: Bundle
    checkpoint: Path | None


def find_chain(repository: Path, model: str) -> Chain | None:
    """The chain of that name that the repository has, or else medgen itself; raises ChainError if it is broken."""
    if Path(model).name != model:
        return None
    return read_chain(repository, model) or read_chain(TEMPLATES, model)


def find_chains(repository: Path) -> tuple[dict[str, Chain], dict[str, ChainError]]:
    """All that there are by their names, and what is wrong with those that are broken."""
    chains, broken = {}, {}
    files = [file for where in (repository, TEMPLATES) for file in where.glob(f"*/{CONFIG}")]
    for name in sorted({file.parent.name for file in files} - set(family_names())):
        try:
            if chain := find_chain(repository, name):
                chains[name] = chain
        except ChainError as error:
            broken[name] = error
    return chains, broken


def check_known(repository: Path, model: str) -> None:
    """Raises BuildError, with the names there are, if it is neither a model family nor a chain."""
    if model not in family_names() and not find_chain(repository, model):
        allowed = ", ".join(map(repr, [*family_names(), *find_chains(repository)[0]]))
        raise BuildError(f"{model!r} is neither a model family nor a chain; allowed are {allowed}")


def by_model(checkpoints: Iterable[Path], models: Sequence[str]) -> dict[str, Path]:
    """Checkpoints by the names of their models, which they know themselves.

    Raises:
        CheckpointError: one is missing or broken.
        BuildError: one is of none of ``models``, or two are of the same.
    """
    found: dict[str, Path] = {}
    for checkpoint in checkpoints:
        held = str(read_config(find_checkpoint(checkpoint)).get("model"))
        made = (name for name in models if name in family_names() and load_family(name).made_from == held)
        model = held if held in models else next(made, held)
        if model not in models:
            raise BuildError(f"{checkpoint} holds a {held}; wanted is {' or '.join(models)}")
        if model in found:
            raise BuildError(f"{found[model]} and {checkpoint} both hold a {model}; name one")
        found[model] = checkpoint
    return found


def build_chain(
    chain: Chain,
    checkpoints: Sequence[Path],
    repository: Path,
    options: Options,
    progress: Progress = silent,
) -> list[Built]:
    """Build the stages whose checkpoints are given, all or none of them, and keep the others.

    A stage that has neither a checkpoint nor a bundle gets the checkpoint that medgen ships, if it ships one and the
    other stages have learnt phantoms too; so does one whose bundle is broken, if it was built from that checkpoint. The
    repository gets the chain's own folder.

    Raises:
        BuildError: a stage has nothing to be built from, or a checkpoint is of no stage; and as ``build`` does.
        ChainError: a stage draws masks of another size or other classes than the next one takes.
        BundleError: a bundle that would be kept is broken, or of an older medgen, and was not built from what medgen
            ships.
        CheckpointError, EngineError, OSError: as ``build`` does.
    """
    models = [stage.model for stage in chain.stages]
    given = by_model(checkpoints, models)
    kept = {}
    for model in models:
        if model in given:
            continue
        folder = bundle_folder(repository, model)
        recover(folder)
        if folder.exists():
            try:
                kept[model] = load_bundle(folder)
            except BundleError:
                if (shipped := _built_from_shipped(folder, model)) is None:
                    raise
                given[model] = shipped  # as it was: nothing is lost
                continue
            origin = origin_of(kept[model].manifest)
            refuse_unfinished(f"{folder} was", origin.get("unfinished"), origin, options)
    learnt = {model: read_config(find_checkpoint(checkpoint)) for model, checkpoint in given.items()}
    learnt |= {model: origin_of(bundle.manifest) for model, bundle in kept.items()}
    given |= {model: _shipped(chain, model, learnt) for model in models if model not in learnt}

    def fit(new: Mapping[str, Manifest]) -> None:
        check_stages(chain, {**{model: bundle.manifest for model, bundle in kept.items()}, **new})

    wanted = {model: given[model] for model in models if model in given}
    built = build_all(wanted, repository, options, progress, fit)
    prepare_repository(repository, chain.model)
    return [Built(built[model], given[model]) if model in built else Built(kept[model], None) for model in models]


def _built_from_shipped(folder: Path, model: str) -> Path | None:
    """The checkpoint that medgen ships, if a bundle that is of no use any more was built from that."""
    try:
        shipped = shipped_checkpoint(model)
        digest = read_json((folder / MANIFEST).read_bytes())["checkpoint"]["digest"]
        return shipped if digest == file_digest(shipped / "model.safetensors") else None
    except (CheckpointError, KeyError, OSError, TypeError, ValueError):
        return None


def _shipped(chain: Chain, model: str, learnt: Mapping[str, Mapping[str, Any]]) -> Path:
    """``learnt``: the configs of the stages which are there."""
    needed = (
        f"{chain.model} needs {model}, which has not been built: name a checkpoint of it with --checkpoint, such as "
        f"the --out of medgen fit --model {model}"
    )
    try:
        checkpoint = shipped_checkpoint(model)
    except CheckpointError:
        raise BuildError(needed) from None
    for stage, config in learnt.items():
        for other in no_phantoms(config):
            whose = stage if other is config else f"the weights that {stage} comes from"
            raise BuildError(f"{needed}; the one that medgen ships learnt phantoms, and {whose} {_learnt(other)}")
    return checkpoint


def _learnt(config: Mapping[str, Any]) -> str:
    if config.get("elsewhere"):
        return "learnt at sites elsewhere too"
    return f"learnt {config['data']}" if config.get("data") else "learnt what is not recorded"
