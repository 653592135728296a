"""``medgen benchmarks quality``, ``utility``, ``privacy``, and ``report``, which is all three on one page."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from serving.bundle import REPOSITORY

if TYPE_CHECKING:
    from benchmarks.evaluation.report import Section
    from benchmarks.evaluation.sides import Asked, Sides

PACKAGES = ("medgen", "torch", "monai", "numpy", "scipy", "scikit-learn", "scikit-image", "torchmetrics", "pyradiomics")
NEEDED = {"jinja2": "Jinja2", "skimage": "scikit-image", "sklearn": "scikit-learn", "torchmetrics": "torchmetrics"}
TAKEN = ("fid", "frd", "kid", "radiomics", "segmenter")  # names that no network of the user may have
WIDE = 9  # columns that a terminal has no room for with their intervals
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Named(click.ParamType):
    """NAME=PATH of a file that is there."""

    name = "name=path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, found, path = str(value).partition("=")
        if not found or not name or not Path(path).is_file():
            self.fail(f"{value!r} is not NAME=PATH of a file that is there", param, ctx)
        if name.casefold() in TAKEN or (name.casefold() == "inception" and name != "inception"):
            self.fail(
                f"{name!r} would be taken for what it is not; the Inception of FID is called inception", param, ctx
            )
        return name, Path(path)


def _told_apart(
    _context: click.Context, _option: click.Parameter, files: tuple[tuple[str, Path], ...]
) -> tuple[tuple[str, Path], ...]:
    names = [name for name, _ in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise click.BadParameter(f"two networks are called {twice[0]!r}, and tables would not tell which is which")
    return files


COMMON = (
    click.argument("real"),
    click.argument("synthetic", required=False),
    click.option("--train", help="The real pairs that the generator was trained on; REAL is then of other patients."),
    click.option(
        "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the report."
    ),
    click.option(
        "--size", type=click.IntRange(16), help="Rows and columns to compare at.  [default: the samples' own]"
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Of splits, training and resampling, and of the first sample that --model draws.",
    ),
    click.option("--patient", help="Expression that finds the patient in a pair's name, such as '^(P\\d+)_'."),
    click.option("--skip-bad", is_flag=True, help="Leave out real files that cannot be used."),
    click.option(
        "--preset", default="small", show_default=True, type=click.Choice(["small", "paper"]), help="Of the segmenter."
    ),
    click.option("--epochs", type=click.IntRange(1), help="Of the segmenter.  [default: the preset's]"),
    click.option(
        "--model",
        help="Draw the samples from this model's bundle, instead of SYNTHETIC; under masks or pictures of the held-out "
        "real patients, for utility of those that were trained on, if it wants such.",
    ),
    click.option("--count", type=click.IntRange(4), help="Samples to draw.  [default: 512]"),
    click.option("--sample-seed", type=click.IntRange(0), help="Seed of the first sample alone.  [default: --seed]"),
    click.option("--steps", type=int, help="Of the solver.  [default: the model's own]"),
    click.option("--solver", help="[default: the model's own]"),
    click.option("--mask-steps", type=int, help="Of a chain's mask stage."),
    click.option("--mask-solver", help="Of a chain's mask stage."),
    click.option(
        "--repository", type=click.Path(path_type=Path), help=f"The model repository.  [default: {REPOSITORY}]"
    ),
    click.option("--url", help="Draw from the server at HOST:PORT (gRPC), instead of here."),
)
FEATURES = click.option(
    "--features",
    "files",
    multiple=True,
    type=Named(),
    callback=_told_apart,
    help="A network to compare by, TorchScript or ONNX: its distances have its name. Only 'inception' gives an FID.",
)
LPIPS = click.option("--lpips", type=FILE, help="Weights of torchvision's vgg16, for LPIPS.")
CHECKPOINTS = click.option(
    "--checkpoint", "checkpoints", multiple=True, type=FOLDER, help="A model's, for membership inference; repeat."
)
SEEDS = click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each row.")
OTHERS = click.option(
    "--other", "others", multiple=True, help="Another data set, trained on and tested on too; repeat for more."
)


def measuring(*options: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that all have, and some more."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed((*COMMON, *options)):
            command = option(command)
        return command

    return add


@click.command()
@measuring(FEATURES, LPIPS)
def quality(files: tuple[tuple[str, Path], ...], lpips: Path | None, **common: Any) -> None:
    """How far samples lie from real images, and whether their masks have the shapes of real ones.

    REAL and SYNTHETIC are folders of pairs: samples, images/ and masks/, a raw data set of nnU-Net, NIfTI files,
    mini-MIAS, ACDC or M&Ms; REAL may be phantom:COUNT. Of pictures without masks, such as images/ alone, what needs
    masks is left out. OUT/quality.html opens without a network.
    """
    with _asked("quality", common) as run:
        run.add(run.quality(files, lpips))


@click.command()
@measuring(SEEDS, OTHERS)
def utility(seeds: int, others: tuple[str, ...], **common: Any) -> None:
    """What a segmenter gains by samples: trained on real pairs, on samples, and on 0.5 to 2 times as many beside.

    REAL and SYNTHETIC as for `quality`. Of REAL, patients that are held out are tested on.
    """
    with _asked("utility", common) as run:
        run.add(run.utility(seeds, others))


@click.command()
@measuring(FEATURES, LPIPS, CHECKPOINTS)
def privacy(
    files: tuple[tuple[str, Path], ...], lpips: Path | None, checkpoints: tuple[Path, ...], **common: Any
) -> None:
    """Whether samples are copies of the training set, and whether the model tells whom it learnt from.

    REAL and SYNTHETIC as for `quality`. REAL must be what `fit` splits by patient, or --train must name the rest.
    """
    with _asked("privacy", common) as run:
        run.add(run.privacy(checkpoints, files, lpips))


@click.command()
@measuring(FEATURES, LPIPS, CHECKPOINTS, SEEDS, OTHERS)
def report(
    files: tuple[tuple[str, Path], ...],
    lpips: Path | None,
    checkpoints: tuple[Path, ...],
    seeds: int,
    others: tuple[str, ...],
    **common: Any,
) -> None:
    """Quality, utility and privacy on one page; what was measured before into the same folder is not measured again."""
    with _asked("report", common) as run:
        run.add(run.quality(files, lpips))
        run.add(run.privacy(checkpoints, files, lpips) if run.sides.as_fit else run.no_privacy())
        has_masks = run.sides.without_masks is None
        run.add(run.utility(seeds, others) if has_masks else run.no_utility())  # last, as it takes longest


class Run:
    """One command at work."""

    def __init__(self, asked: "Asked", sides: "Sides", preset: str, epochs: int | None) -> None:
        from dataclasses import replace

        from benchmarks.evaluation.segmentation import RECIPES

        self.asked, self.sides, self.cache = asked, sides, asked.cache
        self.recipe = replace(RECIPES[preset], epochs=epochs or RECIPES[preset].epochs)
        self.sections: list[Section] = []

    def add(self, section: "Section") -> None:
        self.sections.append(section)

    def quality(self, files: tuple[tuple[str, Path], ...], lpips: Path | None) -> "Section":
        from benchmarks.evaluation.measure_quality import quality

        return quality(self.sides, files, lpips, self.recipe, self.asked.seed, self.cache)

    def utility(self, seeds: int, others: tuple[str, ...]) -> "Section":
        from benchmarks.evaluation.measure_utility import utility
        from benchmarks.evaluation.sides import other_data

        elsewhere, sides = other_data(others, self.sides, self.asked), self.sides.to_train_with(self.asked.seed)
        return utility(sides, elsewhere, self.recipe, seeds, self.asked.seed, self.cache)

    def privacy(
        self, checkpoints: tuple[Path, ...], files: tuple[tuple[str, Path], ...], lpips: Path | None
    ) -> "Section":
        from benchmarks.evaluation.measure_privacy import privacy

        return privacy(self.sides, checkpoints, files, lpips, self.recipe, self.asked.seed, self.cache)

    def no_privacy(self) -> "Section":
        """What stands in its place where nobody says what the generator was trained on."""
        from benchmarks.evaluation.measure_privacy import UNKNOWN
        from benchmarks.evaluation.report import Section

        return Section("Privacy", warnings=[f"Not measured: {UNKNOWN}"])

    def no_utility(self) -> "Section":
        """What stands in its place of pictures alone."""
        from benchmarks.evaluation.report import Section

        return Section("Utility", warnings=[f"Not measured: {self.sides.without_masks}"])


@contextmanager
def _asked(name: str, common: dict[str, Any]) -> Iterator[Run]:
    """Opens the sides, and writes the report if all went well."""
    from importlib.util import find_spec

    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        raise click.ClickException(f"{name} needs {', '.join(missing)}: pip install 'medgen[evaluation]'")
    from benchmarks.evaluation.cache import versions_of
    from benchmarks.evaluation.pairs import EvaluationError
    from benchmarks.evaluation.report import write
    from benchmarks.evaluation.sides import Asked, open_sides, overview
    from training import CheckpointError

    preset, epochs = common.pop("preset"), common.pop("epochs")
    given = {each: common.pop(each) for each in ("steps", "solver", "mask_steps", "mask_solver")}
    solving = {each: value for each, value in given.items() if value is not None}
    try:
        asked = Asked(**common, solving=solving)
        run = Run(asked, open_sides(asked), preset, epochs)
        run.add(overview(run.sides))
        yield run
        facts = (
            {"command": shlex.join(["medgen", "benchmarks", *sys.argv[sys.argv.index(name) :]])}
            if name in sys.argv
            else {}
        )
        written = write(run.sections, {**facts, "versions": versions_of(PACKAGES)}, asked.out, name)
    except (EvaluationError, CheckpointError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print(run.sections)
    click.echo(", ".join(map(str, written)))


def _print(sections: "list[Section]") -> None:
    from rich import box
    from rich.table import Table

    from benchmarks.evaluation.report import shown
    from benchmarks.evaluation.statistics import Interval
    from benchmarks.tables import wide_console

    console = wide_console()
    for section in sections:
        for line in section.warnings:
            click.echo(f"note: {line}", err=True)
        for table in section.tables:
            printed = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=table.title, title_justify="left")
            for place, column in enumerate(table.columns):
                printed.add_column(column, justify="right" if place else "left", overflow="fold")
            wide = len(table.columns) > WIDE
            for row in table.rows:
                printed.add_row(*(shown(cell.value if wide and isinstance(cell, Interval) else cell) for cell in row))
            console.print(printed)
    click.echo("Tables of many columns are without their intervals here; the page has them.")
