"""What can be chosen between: bundles of a model, and of each the solvers and steps that it takes."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.evaluation.pairs import EvaluationError
from export.build import build
from export.options import Options
from serving.bundle import PARITY, Bundle, BundleError, Manifest, bundle_folder, load_bundle, read_json
from serving.sampling.solvers import SOLVERS, solver_table, solvers_for
from training import CheckpointError
from training.checkpoint import load_checkpoint, shipped_checkpoint
from training.lineage import line, origin_of


@dataclass(frozen=True)
class Held:
    """A model's bundle in a repository; label: what tells it from the others, "" for that which is tuned."""

    repository: Path
    bundle: Bundle
    label: str

    @property
    def model(self) -> str:
        return self.bundle.manifest.model

    @property
    def weights(self) -> str | None:
        """The sha256 of what it was built of, if it says so."""
        return self.bundle.manifest.checkpoint.get("digest")

    @property
    def line(self) -> list[str]:
        """The weights, and those that they come from."""
        return line(origin_of(self.bundle.manifest))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the masks that it draws or draws under."""
        manifest = self.bundle.manifest
        given = manifest.condition.labels if manifest.condition else ()
        return next((output.labels for output in manifest.outputs if output.labels), given)

    @property
    def draws(self) -> str:
        """In words, of its condition and its outputs: names, shapes and classes or ranges."""
        manifest = self.bundle.manifest
        given = (manifest.condition.as_output(),) if manifest.condition else ()
        return ", ".join(
            f"{each.name} {list(each.shape)} of {', '.join(each.labels) or f'{each.low:g} to {each.high:g}'}"
            for each in (*given, *manifest.outputs)
        )


@dataclass(frozen=True)
class Candidate:
    held: Held
    solver: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.solver} {self.steps}" + (f", {self.held.label}" if self.held.label else "")

    @property
    def manifest(self) -> Manifest:
        return self.held.bundle.manifest

    @property
    def is_deterministic(self) -> bool:
        return not SOLVERS[self.solver].stochastic

    @property
    def rows(self) -> int:
        """Evaluations of the network."""
        schedule = self.manifest.schedule
        assert schedule is not None
        return len(solver_table(self.solver, schedule, self.steps))


def held(repository: Path, model: str, label: str | None = None) -> Held:
    """Raises EvaluationError if there is no bundle, or one that takes no steps."""
    try:
        bundle = load_bundle(bundle_folder(repository, model))
    except BundleError as error:
        raise EvaluationError(str(error)) from error
    manifest = bundle.manifest
    if manifest.schedule is None or manifest.schedule.process == "descent":
        raise EvaluationError(f"{model} has no solver and steps that could be tuned by what it draws")
    if label is None:
        kind = [f"student of {manifest.student.steps}"] if manifest.student else []
        label = " ".join([*kind, str(manifest.target["name"]), manifest.precision])
    return Held(repository, bundle, label)


def check_drawing_alike(held: Held, first: Held) -> None:
    """Raises EvaluationError if it draws other sizes or classes than the first, or under others."""
    if held.draws != first.draws:
        raise EvaluationError(
            f"the bundle of {held.repository} has {held.draws}; that of {first.repository} has {first.draws}"
        )


def built(model: str, checkpoint: Path, folder: Path, options: Options) -> Held:
    """A bundle of these options in a repository of its own below the folder; one that is there is taken."""
    digest = str(load_checkpoint(checkpoint)[1]["digest"])
    place = folder / f"{digest[:12]}-{options.target}-{options.precision}"
    try:
        there = load_bundle(bundle_folder(place, model))
        if there.manifest.checkpoint.get("digest") == digest:
            return held(place, model)
    except BundleError:
        pass
    build(model, checkpoint, place, options)
    return held(place, model)


def same_weights(held: Held, checkpoint: Path | None) -> Path:
    """The checkpoint that a bundle was built of, where it is still there, or medgen's own if it is that.

    Raises EvaluationError if it is neither, and what is given has other weights.
    """
    wanted, places = held.bundle.manifest.checkpoint.get("digest"), [checkpoint] if checkpoint else []
    if checkpoint is None:
        with suppress(OSError, ValueError, KeyError):
            places.append(Path(read_json((held.bundle.folder / PARITY).read_bytes())["checkpoint"]))
        with suppress(CheckpointError):
            places.append(shipped_checkpoint(held.model))
    for place in places:
        with suppress(CheckpointError):
            if load_checkpoint(place)[1]["digest"] == wanted:
                return place
    tried = f"{checkpoint} is not" if checkpoint else "name with --checkpoint"
    raise EvaluationError(f"{tried} what the bundle of {held.repository} was built of: weights of sha256 {wanted}")


def kin(own: Held, others: Sequence[Held] = ()) -> set[str | None]:
    """Weights that count as those of the bundle that is tuned: its own, those that it comes from, and those that come
    from what counts, taught or packed; an older bundle names its teacher alone."""
    known = {own.weights, *own.line}
    while more := {weights for each in others if known.intersection(each.line) for weights in each.line} - known:
        known |= more
    return known


def labelled(held: Held, known: Collection[str | None]) -> Held:
    return held if held.weights in known else replace(held, label=f"{held.label} of other weights")


def ladders(bundles: Sequence[Held], solvers: Sequence[str], steps: Sequence[int]) -> Iterator[list[Candidate]]:
    """Of each bundle and solver the steps from the most down; of a student what it has learnt.

    The order is that of what is given, and no figure of a sample has a part in it.
    """
    for each in bundles:
        manifest = each.bundle.manifest
        assert manifest.schedule is not None
        if manifest.student:
            yield [Candidate(each, manifest.student.solver, manifest.student.steps)]
            continue
        for solver in solvers or solvers_for(manifest.schedule):
            possible = sorted({count for count in steps if count <= manifest.schedule.num_train_timesteps})
            yield [Candidate(each, solver, count) for count in reversed(possible)]
