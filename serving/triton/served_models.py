"""Which models of a repository can be served, and why the others cannot."""

import py_compile
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from serving.bundle import MANIFEST, BundleError, Manifest, bundle_folder, missing, option_for
from serving.chain import CONFIG, Chain, ChainError, check_stages, read_chain
from serving.folders import Busy, recover
from serving.triton.errors import ServerError

_NOT_BUILT = "has not been built: run"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def find_models(repository: Path, wanted: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Names of the models to serve, and those passed over, each with the reason.

    A chain is served with its stages. What is not built, and chains that cannot be run, are passed over unless wanted.
    Raises ServerError if a wanted model is unknown or cannot be served, or if there is nothing to serve.
    """
    known = _known(repository)
    if not known and not repository.exists():
        raise ServerError(missing(repository))
    if not known:
        raise ServerError(f"{repository} is no model repository: it holds no MODEL/{CONFIG}")
    wanted = tuple(wanted)
    if strangers := [name for name in wanted if name not in known]:
        raise ServerError(f"no model {strangers[0]!r} in {repository}; it holds {', '.join(known)}")
    for name in wanted:
        _check_name(name)
    served, passed_over = look(repository, wanted or known)
    if not (wanted or served) and len(passed_over) > 1 and len(_unbuilt(repository, passed_over)) == len(passed_over):
        command = _build_command(repository, "NAME")
        raise ServerError(f"no model in {repository} has been built: run {command}; medgen export list names them")
    if (wanted and passed_over) or not served:
        raise ServerError(next(iter(passed_over.values())))
    return served, passed_over


def why_not_served(repository: Path, passed_over: Mapping[str, str]) -> list[str]:
    """Lines that say it: those of which nothing is built share one."""
    unbuilt = _unbuilt(repository, passed_over)
    lines = [f"{name} is not served: {reason}" for name, reason in passed_over.items() if name not in unbuilt]
    return [*lines, f"Not built, and so not served: {', '.join(unbuilt)}"] if unbuilt else lines


def look(repository: Path, wanted: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The same of a repository that is being worked on: nothing raises, and there may be nothing to serve."""
    served: dict[str, None] = {}
    passed_over: dict[str, str] = {}
    for name in tuple(wanted) or _known(repository):
        try:
            _check_name(name)
            served |= dict.fromkeys(_with_stages(repository, name))
        except ServerError as error:
            passed_over[name] = str(error)
    return list(served), passed_over


def fingerprint(repository: Path, model: str) -> str:
    """Another one after every build and every edit of what Triton reads of a model, its stages apart."""
    digest = sha256()
    for file in (CONFIG, "1/model.py", f"1/bundle/{MANIFEST}"):
        try:
            digest.update((repository / model / file).read_bytes())
        except FileNotFoundError:  # a chain has neither code nor bundle
            digest.update(b"none")
    return digest.hexdigest()


def has_code(repository: Path, model: str) -> bool:
    """Whether it runs in a process of its own; a chain does not."""
    return (repository / model / "1" / "model.py").is_file()


def compile_code(repository: Path, model: str) -> None:
    """Writes what Python else writes when it first runs model.py: Triton would take that for a change of the model."""
    with suppress(OSError, py_compile.PyCompileError):  # whether the code is right, Triton says
        py_compile.compile(str(repository / model / "1" / "model.py"), doraise=True)


def is_built(repository: Path, model: str) -> bool:
    """Whether the bundle is there, of a chain those of all stages; it need not be one that can be served."""
    try:
        stages = _stages(_chain(repository, model), model)
    except ServerError:
        return False
    return all((bundle_folder(repository, stage) / MANIFEST).is_file() for stage in stages)


def _unbuilt(repository: Path, passed_over: Mapping[str, str]) -> list[str]:
    """Those that nothing but a build is wanting for; of a chain that has a stage there is more to say."""

    def has_any(name: str) -> bool:
        stages = _stages(_chain(repository, name), name)
        return any(bundle_folder(repository, stage).exists() for stage in stages)

    return [name for name, reason in passed_over.items() if _NOT_BUILT in reason and not has_any(name)]


def _known(repository: Path) -> list[str]:
    return sorted(file.parent.name for file in repository.glob(f"*/{CONFIG}"))


def _check_name(model: str) -> None:
    """Triton puts the name into a line for a shell."""
    if not _NAME.fullmatch(model):
        raise ServerError(f"model {model!r} cannot be served: its name may have letters, digits and _ - . alone")


def _with_stages(repository: Path, name: str) -> list[str]:
    """The model, after the stages that it has if it is a chain; raises ServerError if it cannot be served."""
    chain = _chain(repository, name)
    stages = _stages(chain, name)
    for stage in stages:
        try:
            recover(bundle_folder(repository, stage))
        except (Busy, OSError) as error:
            raise ServerError(f"the bundle of {stage} was being replaced when that was cut short: {error}") from None
        if not (bundle_folder(repository, stage) / MANIFEST).is_file():
            needed = "" if name == stage else f", which {name} needs,"
            raise ServerError(f"model {stage}{needed} {_NOT_BUILT} {_build_command(repository, name)}")
    if chain:
        _check_chain(repository, chain)
    return [*stages, name]


def _stages(chain: Chain | None, model: str) -> list[str]:
    """The model itself unless it is a chain."""
    return [stage.model for stage in chain.stages] if chain else [model]


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
    return f"medgen export build --model {model}{option_for(repository)}"
