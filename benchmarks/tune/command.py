"""``medgen benchmarks tune``"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.evaluation.command import FEATURES, FOLDER, LPIPS
from benchmarks.typed import as_typed
from export.options import TARGETS, TOLERANCES, Options
from serving.bundle import REPOSITORY
from serving.finite import FiniteRange

if TYPE_CHECKING:
    from benchmarks.evaluation.cache import Cache
    from benchmarks.evaluation.features import Extractor
    from benchmarks.evaluation.pairs import Pairs
    from benchmarks.evaluation.segmentation import Segmenter
    from benchmarks.tune.candidates import Held

ENGINES = ("onnxruntime", "openvino")
STEPS = "64,32,20,16,12,8,6,4"


def counts(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(each) for each in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as {STEPS}") from None
    if min(found) < 1:
        raise click.BadParameter(f"{min(found)} is below 1")
    return found


@click.command()
@click.option("--model", required=True, help="The model whose bundle is tuned; of a chain, one stage at a time.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report, and of what is drawn and built for it.",
)
@click.option(
    "--repository",
    default=REPOSITORY,
    type=click.Path(path_type=Path),
    help="The model repository; its bundle is the reference's too, in float32.",
)
@click.option(
    "--reference", type=FOLDER, help="The repository whose bundle draws the reference.  [default: --repository]"
)
@click.option("--reference-solver", help="[default: the paper's, and ddim_clipped for ddim]")
@click.option("--reference-steps", type=click.IntRange(1), help="[default: the paper's]")
@click.option(
    "--data",
    help="Real pairs, as for quality.  [default: what the model learnt; where patients are known, those held out]",
)
@click.option(
    "--also", multiple=True, type=FOLDER, help="Another repository with a bundle of the model to choose from; repeat."
)
@click.option(
    "--student",
    "students",
    multiple=True,
    type=FOLDER,
    help="A student's checkpoint, to build and choose from; repeat.",
)
@click.option("--checkpoint", type=FOLDER, help="What --target and --precision build; the bundle's own weights.")
@click.option(
    "--target", "targets", multiple=True, type=click.Choice(TARGETS), help="An engine to build and choose from; repeat."
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(list(TOLERANCES)),
    help="Of what is built; repeat.  [default: fp32]",
)
@click.option("--solver", "solvers", multiple=True, help="To try; repeat.  [default: all that fit]")
@click.option(
    "--steps",
    default=STEPS,
    show_default=True,
    callback=counts,
    help="To try of each solver, from the most down to the first that is not accepted.",
)
@click.option(
    "--count",
    type=click.IntRange(4),
    help="Samples of each; as many again confirm the winner.  [default: 128, or 300 where the reference draws noise]",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="The first sample's, and of resampling."
)
@click.option(
    "--rms",
    default=0.05,
    show_default=True,
    type=FiniteRange(0, 1),
    help="A sample is bad whose grey levels lie farther from the reference's of its seed; the range is 1.",
)
@click.option(
    "--dice",
    default=0.8,
    show_default=True,
    type=FiniteRange(0, 1),
    help="A sample is bad whose mask agrees less with the reference's of its seed.",
)
@click.option(
    "--margin",
    default=0.25,
    show_default=True,
    type=FiniteRange(0, min_open=True),
    help="Of the kernel distance, as a share of what two halves of the real images may have.",
)
@click.option(
    "--lost",
    default=0.05,
    show_default=True,
    type=FiniteRange(0, 1, min_open=True),
    help="How much less its pictures may follow their masks: as if so large a share of them were of other masks.",
)
@FEATURES
@LPIPS
@click.option("--apply", "applies", is_flag=True, help="Make what passed the bundle's default, with the evidence.")
@click.option("--skip-bad", is_flag=True, help="Leave out real files that cannot be used.")
def tune(applies: bool, **asked: Any) -> None:
    """Find the fewest steps whose samples are as good as the paper's, and prove it.

    Each candidate draws the reference's seeds. It passes if its samples are those of the reference, seed by seed; if
    they are no farther from real images; if its pictures follow their masks as well; if no shape of their masks has
    another distribution; and if no more masks cannot be. The fastest that passes is drawn once more with fresh seeds.
    OUT/tune.html shows all.
    """
    from benchmarks.evaluation.pairs import EvaluationError
    from export import BuildError
    from serving.bundle import BundleError
    from serving.engines import EngineError
    from serving.folders import Busy
    from training import CheckpointError

    try:
        _tune(applies, **asked)
    except (BuildError, BundleError, Busy, CheckpointError, EngineError, EvaluationError, OSError) as error:
        raise click.ClickException(str(error)) from error


@click.command("tune-calibrate")
@click.option("--trials", default=60, show_default=True, type=click.IntRange(1), help="Of each planted candidate.")
@click.option("--count", default=128, show_default=True, type=click.IntRange(4), help="Samples of each, as of tune.")
@click.option("--size", default=32, show_default=True, type=click.IntRange(32), help="Rows and columns of phantoms.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def calibrate(trials: int, count: int, size: int, seed: int) -> None:
    """Count how often tune's gate errs.

    Phantoms stand for the reference, and candidates are made of them: as good, or worse by just what the gate is to
    refuse 19 times in 20, or by much.
    """
    from rich import box
    from rich.table import Table

    from benchmarks.evaluation.report import shown
    from benchmarks.tables import wide_console
    from benchmarks.tune.calibration import calibrated
    from serving.progress import NowAndThen

    say, rates = NowAndThen(), []
    for done, found in enumerate(calibrated(trials, count, size, seed), 1):
        say(f"trial {done} of {trials}")
        rates = found
    table = Table(box=box.SIMPLE, title=f"{trials} trials of {count} samples", title_justify="left")
    for column in ("candidate", "is to be", "accepted", "refused", "too few samples", "share accepted"):
        table.add_column(column)
    for rate in rates:
        counts = [str(rate.verdicts.get(verdict, 0)) for verdict in ("accepted", "refused", "too few samples")]
        wanted = "refused" if rate.planted.is_worse else "accepted"
        table.add_row(rate.planted.name, wanted, *counts, shown(rate.accepted))
    wide_console().print(table)


def _tune(
    applies: bool, *, model: str, out: Path, repository: Path, reference: Path | None, data: str | None,
    count: int | None, seed: int, rms: float, dice: float, margin: float, lost: float,
    files: tuple[tuple[str, Path], ...], lpips: Path | None, skip_bad: bool, solvers: tuple[str, ...],
    steps: tuple[int, ...], **asked: Any,
) -> None:  # fmt: skip
    from benchmarks.evaluation.cache import Cache, versions_of
    from benchmarks.evaluation.command import PACKAGES, _print
    from benchmarks.evaluation.pairs import EvaluationError
    from benchmarks.evaluation.report import write
    from benchmarks.evaluation.similarity import Lpips
    from benchmarks.latency.command import describe_device
    from benchmarks.tune.apply import apply
    from benchmarks.tune.candidates import Candidate, check_drawing_alike, held, kin, labelled, ladders
    from benchmarks.tune.comparison import Comparison
    from benchmarks.tune.drawing import Drawer, as_pictures
    from benchmarks.tune.gate import Limits
    from benchmarks.tune.looks import Looks
    from benchmarks.tune.outcome import conclusion, section
    from benchmarks.tune.reader import reader_of
    from benchmarks.tune.timing import Clock, paper_sampler
    from benchmarks.tune.tune import Judge, published, split, tuned
    from serving.engines.cpu import threads
    from serving.sampling.solvers import SOLVERS, solver_table, solvers_for

    own = held(repository, model, "")
    first = own if reference is None else labelled(held(reference, model), kin(own))
    manifest = first.bundle.manifest
    if manifest.precision != "fp32" or manifest.student:
        kind = "a student" if manifest.student else f"of {manifest.precision}"
        raise EvaluationError(
            f"the bundle of {first.repository} is {kind}; the reference is the trained model in fp32: name a "
            "repository that holds it with --reference"
        )
    condition = manifest.condition
    if not any(output.labels for output in manifest.outputs) and (condition is None or condition.is_label):
        raise EvaluationError(f"{model} draws pictures alone; tune compares pairs of a mask and a picture")
    assert manifest.schedule is not None
    if unknown := {*solvers} - {*solvers_for(manifest.schedule)}:
        raise EvaluationError(f"--solver {min(unknown)}: {model} takes {', '.join(solvers_for(manifest.schedule))}")
    solver, most = asked["reference_solver"], asked["reference_steps"]
    if solver is None or most is None:
        papers = published(model)
        solver, most = solver or papers[0], most or papers[1]
    try:
        solver_table(solver, manifest.schedule, most)
    except ValueError as error:
        raise EvaluationError(f"the reference's {error}") from None
    # Without the noise of one seed in common, fewer say nothing of shapes.
    count = count or (300 if SOLVERS[solver].stochastic else 128)
    bundles = [own, *(held(each, model) for each in asked["also"])]
    bundles += _built(own, first, out, asked["checkpoint"], asked["students"], asked["targets"], asked["precisions"])
    known = kin(own, bundles)
    bundles = [own, *(labelled(each, known) for each in bundles[1:])]
    cache, limits = Cache(out / "cache"), Limits(rms=rms, dice=dice, kernel=margin, lost=lost)
    for each in bundles:
        check_drawing_alike(each, first)
        if applies and each.weights not in known:
            click.echo(f"{each.repository} holds other weights than {own.repository}: --apply will not put it there")
    real, learnt = _real(data or manifest.checkpoint.get("data"), first, count, seed, skip_bad)
    looks = Looks(out / "looks.json")
    with Drawer(cache, real) as drawer:
        before = Candidate(first, solver, most)
        draws_pictures = any(output.name == "image" for output in manifest.outputs)
        shown = real if draws_pictures else as_pictures(real)
        segmenter = _segmenter(learnt if draws_pictures else shown, cache, seed)
        extractors = _extractors(files, segmenter)
        reader = reader_of(segmenter) if draws_pictures else None
        perceptual = None if lpips is None else Lpips(lpips)
        comparison = Comparison(shown, extractors, reader, limits, cache, seed, perceptual)
        judge = Judge(drawer, before, comparison)
        clock = Clock(drawer, paper_sampler(before, asked["checkpoint"]))
        answer = tuned(judge, list(ladders(bundles, solvers, steps)), seed, count, clock, looks, click.echo)
    used = split(judge, range(seed, seed + count), range(seed + count, seed + 2 * count), answer.earlier)
    command = as_typed("tune")
    made_with = {"command": command, "machine": describe_device(threads()), "versions": versions_of(ENGINES + PACKAGES)}
    if answer.evidence:
        answer.evidence |= made_with
    found = section(answer, limits, real, used)
    written = write([found], made_with, out, "tune")
    _print([found])
    click.echo(", ".join(map(str, written)))
    click.echo(conclusion(answer))
    if applies and answer.winner is not None and answer.verdict == "accepted":
        chosen = answer.winner.candidate
        if chosen.held.weights not in known:
            raise EvaluationError(
                f"{own.bundle.folder} is as it was: it has weights of sha256 {own.weights}, and {chosen.name} those of "
                f"{chosen.held.weights}; medgen export build puts others in its place"
            )
        apply(chosen.held.bundle, chosen.solver, chosen.steps, answer.evidence, own.bundle)
        click.echo(f"{own.bundle.folder}: by default {chosen.solver}, {chosen.steps} steps")
    elif applies:
        raise click.ClickException(f"{own.bundle.folder} is as it was: {conclusion(answer)}")


def _built(
    own: "Held",
    first: "Held",
    out: Path,
    checkpoint: Path | None,
    students: tuple[Path, ...],
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
) -> "list[Held]":
    """Bundles of the students and, if an engine or precision is asked for, of the weights that are tuned: if those are
    a student's, of the reference's."""
    from benchmarks.tune.candidates import built, same_weights

    every = [
        Options(target=target, precision=precision)
        for target in targets or ("onnx",)
        for precision in precisions or ("fp32",)
    ]
    found = [built(own.model, student, out / "built", options) for student in students for options in every]
    if targets or precisions:
        manifest = own.bundle.manifest
        trained = same_weights(first if manifest.student else own, checkpoint)
        there = None if manifest.student else (manifest.target["name"], manifest.precision)
        found += [
            built(own.model, trained, out / "built", options)
            for options in every
            if (options.target, options.precision) != there
        ]
    return found


def _real(data: str | None, first: "Held", count: int, seed: int, skip_bad: bool) -> "tuple[Pairs, Pairs]":
    """What samples are compared with, and what the segmenter that reads them learns from: others, where any are held
    out."""
    from benchmarks.evaluation.pairs import EvaluationError, check_classes, drawn_by_patient
    from benchmarks.evaluation.reading import has_split, read_pairs

    if data is None:
        raise EvaluationError(f"{first.model}'s bundle does not say what it learnt; name real pairs with --data")
    source = f"phantom:{count}" if data == "phantom" else data
    size = first.bundle.manifest.outputs[0].shape[-1]
    split = "validation" if has_split(source) else "all"
    if split == "all" and data != "phantom":
        click.echo(
            f"{source} holds nothing out: where the model learnt from it, its own pictures are among the real ones; "
            "and the segmenter that reads samples learns from all"
        )
    pairs = read_pairs(source, size, split, first.labels, name="real", skip_bad=skip_bad)
    if not pairs.has_masks:
        raise EvaluationError(f"--data is {source}, which has no masks; the gate compares their shapes")
    others = pairs
    if split != "all":
        others = read_pairs(source, size, "train", first.labels, name="real", skip_bad=skip_bad)
    for each in (pairs, others):
        check_classes(each, first.model, first.labels)
    return drawn_by_patient(pairs, count, seed), drawn_by_patient(others, count, seed)


def _segmenter(learnt: "Pairs", cache: "Cache", seed: int) -> "Segmenter":
    from benchmarks.evaluation.segmentation import RECIPES, Segmenter

    return Segmenter(learnt, RECIPES["small"], max(len(learnt.labels), int(learnt.masks.max()) + 1), seed, cache)


def _extractors(files: tuple[tuple[str, Path], ...], segmenter: "Segmenter") -> "list[Extractor]":
    """Radiomics and what is given; where there is neither, what the segmenter sees."""
    from benchmarks.evaluation import features
    from benchmarks.evaluation.measure_quality import segmenter_features

    found = [features.of_network(name, file, segmenter.real.size) for name, file in files]
    if features.has_radiomics():
        found.insert(0, features.radiomics())
    return found or [segmenter_features(segmenter)]
