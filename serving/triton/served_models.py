"""Which models of a repository can be served, and why the others cannot."""

from collections.abc import Iterable
from pathlib import Path

from serving.bundle import MANIFEST, REPOSITORY, BundleError, Manifest, bundle_folder
from serving.chain import CONFIG, Chain, ChainError, check_stages, read_chain
from serving.folders import Busy, recover
from serving.triton.errors import ServerError


def find_models(repository: Path, wanted: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Names of the models to serve, and those passed over, each with the reason.

    A chain is served with its stages. What is not built, and chains that cannot be run, are passed over unless wanted.
    Raises ServerError if a wanted model is unknown or cannot be served, or if there is nothing to serve.
    """
    known = sorted(file.parent.name for file in repository.glob(f"*/{CONFIG}"))
    if not known:
        raise ServerError(f"{repository} is no model repository: it holds no MODEL/{CONFIG}")
    wanted = tuple(wanted)
    if strangers := [name for name in wanted if name not in known]:
        raise ServerError(f"no model {strangers[0]!r} in {repository}; it holds {', '.join(known)}")
    served: dict[str, None] = {}
    passed_over: dict[str, str] = {}
    for name in wanted or known:
        try:
            served |= dict.fromkeys(_with_stages(repository, name))
        except ServerError as error:
            if wanted:
                raise
            passed_over[name] = str(error)
    if not served:
        raise ServerError(next(iter(passed_over.values())))
    return list(served), passed_over


def _with_stages(repository: Path, name: str) -> list[str]:
    """The model, after the stages that it has if it is a chain; raises ServerError if it cannot be served."""
    chain = _chain(repository, name)
    stages = [stage.model for stage in chain.stages] if chain else [name]
    for stage in stages:
        try:
            recover(bundle_folder(repository, stage))
        except (Busy, OSError) as error:
            raise ServerError(f"the bundle of {stage} was being replaced when that was cut short: {error}") from None
        if not (bundle_folder(repository, stage) / MANIFEST).is_file():
            needed = "" if name == stage else f", which {name} needs,"
            raise ServerError(f"model {stage}{needed} has not been built: run {_build_command(repository, name)}")
    if chain:
        _check_chain(repository, chain)
    return [*stages, name]


def _chain(repository: Path, model: str) -> Chain | None:
    try:
        return read_chain(repository, model)
    except ChainError as error:
        raise ServerError(str(error)) from None


def _check_chain(repository: Path, chain: Chain) -> None:
    """Triton itself loads stages that do not fit, and then every request fails."""
    manifests = {}
    for stage in chain.stages:
        file = bundle_folder(repository, stage.model) / MANIFEST
        try:
            manifests[stage.model] = Manifest.from_json(file.read_bytes())
        except (BundleError, OSError) as error:
            raise ServerError(f"{file.parent}: {error}") from None
    try:
        check_stages(chain, manifests)
    except ChainError as error:
        raise ServerError(f"{error}; {_build_command(repository, chain.model)} with checkpoints that fit") from None


def _build_command(repository: Path, model: str) -> str:
    elsewhere = "" if repository == REPOSITORY else f" --repository {repository}"
    return f"python -m export build --model {model}{elsewhere}"
