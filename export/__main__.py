"""``python -m export`` (installed as ``export``): build bundles, look at them, check them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from export import BuildError
from export.options import BF16_OPSET, COMPATIBILITY, OPSET, TARGETS, TOLERANCES, Options, PlanOptions
from serving.bundle import MAX_BATCH, REPOSITORY, BundleError
from serving.command_list import CommandList
from serving.engines import EngineError
from serving.finite import FiniteRange
from serving.folders import Busy
from serving.progress import NowAndThen
from serving.signals import terminated_as_interrupted
from training import CheckpointError
from training.assignment import assignment
from training.models import family_names

# Eager, for what --model allows depends on it.
REPOSITORY_OPTION = click.option(
    "--repository",
    default=REPOSITORY,
    type=click.Path(path_type=Path),
    is_eager=True,
    help="The Triton model repository.",
)
STEP_TOLERANCES = ", ".join(f"{limits.step:g} for {name}" for name, limits in TOLERANCES.items())
END_TOLERANCES = ", ".join(f"{limits.end_to_end:g} for {name}" for name, limits in TOLERANCES.items())


class Commands(CommandList):
    """Every expected failure is one line on standard error and exit code 1; SIGTERM clears up as Ctrl-C does."""

    def invoke(self, context: click.Context) -> object:
        try:
            with terminated_as_interrupted():
                return super().invoke(context)
        except BrokenPipeError:
            raise  # who reads has seen enough, and click knows what to do
        except OSError as error:
            what = error.filename or "a file of the bundle cannot be written"
            raise click.ClickException(f"{what}: {error.strerror or error}") from error
        except (BuildError, BundleError, Busy, CheckpointError, EngineError) as error:
            raise click.ClickException(str(error)) from error


def known_model(context: click.Context, _: click.Parameter, model: str) -> str:
    if model in family_names():
        return model
    from export.chain import check_known

    try:
        check_known(context.params["repository"], model)
    except BuildError as error:
        raise click.BadParameter(str(error)) from None
    return model


@click.group(cls=Commands)
@click.version_option(package_name="medgen", prog_name="medgen")
def main() -> None:
    """Turn trained generators into bundles that `serving` serves."""


# fmt: off
@main.command("build")
@click.option("--model",      required=True, metavar="NAME", callback=known_model,                  help="The model family, or a chain: all of its stages. `list` names them.")
@click.option("--checkpoint", "checkpoints", multiple=True, type=click.Path(path_type=Path),       help="A run or checkpoint folder; without it, the one medgen ships. Of a chain, one for each stage; those that are built already may be left out, and are kept.")
@REPOSITORY_OPTION
@click.option("--target",     type=click.Choice(TARGETS), help="What runs the engines.  [default: the fastest for CPUs that is installed and keeps the tolerance, openvino before onnx; with a GPU onnx]")
@click.option("--precision",  default="fp32", show_default=True, type=click.Choice([*TOLERANCES]), help="What the networks compute in; tf32 is for GPUs alone: a CPU runs it, and compares it with PyTorch, in float32.")
@click.option("--max-batch",  default=16, show_default=True, type=click.IntRange(1, MAX_BATCH),    help="Samples that one launch may hold.")
@click.option("--opset",      type=click.IntRange(18, 23),                                         help=f"ONNX operator set.  [default: {OPSET}, the fastest; {BF16_OPSET} for bf16]")
@click.option("--fuse/--no-fuse", "fused", default=None,                                          help="Whether to put the fused operators of `kernels` into the graphs.  [default: --fuse; for tensorrt the faster, timed on this GPU]")
@click.option("--tolerance",  type=FiniteRange(0),                                            help=f"Largest difference from PyTorch in any one step; of a gradient, as a share of its length.  [default: {STEP_TOLERANCES}]")
@click.option("--end-to-end-tolerance", type=FiniteRange(0),                                  help=f"Largest difference at the end: of an image's values, of a mask's share of pixels, of a loss as a share of it.  [default: {END_TOLERANCES}, and 0.001 for masks]")
@click.option("--unfinished", is_flag=True,                                                        help="Take a checkpoint whose training was not through; bundle and samples say so.")
@click.option("--set",        "chosen", multiple=True, callback=assignment, metavar="FIELD=VALUE",   help="Change a field of the preset that training does not decide, as in --set direction=b_to_a.")
@click.option("--preset",     help="Of a model that is made from another's checkpoint, one of its own presets.  [default: that which is called as the checkpoint's]")
@click.option("--license",    metavar="ID",                                                            help="Licence of the weights for the model card, as Hugging Face's hub names it.  [default: what the checkpoint says, or unknown]")
@click.option("--workspace",  type=FiniteRange(0, min_open=True),                             help="GiB of GPU memory that TensorRT may use for one layer.  [default: all]")
@click.option("--hardware-compatibility", default=COMPATIBILITY[0], show_default=True, type=click.Choice(COMPATIBILITY), help="Other GPUs that TensorRT's plans are to run on; they are slower for it.")
def build_command(
    model: str,
    checkpoints: tuple[Path, ...],
    repository: Path,
    target: str | None,
    precision: str,
    max_batch: int,
    opset: int | None,
    fused: bool | None,
    tolerance: float | None,
    end_to_end_tolerance: float | None,
    unfinished: bool,
    chosen: dict[str, Any],
    preset: str | None,
    license: str | None,
    workspace: float | None,
    hardware_compatibility: str,
) -> None:
    """Export a checkpoint's graphs, compare them with PyTorch, and put the bundle into the model repository."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    from export import ToleranceError
    from export.build import build
    from export.chain import Built, build_chain, by_model
    from export.default_target import default_targets
    from export.report import chain_named, print_bundle
    from training.checkpoint import shipped_checkpoint
    from training.models import load_family

    limits = TOLERANCES[precision]
    if tolerance is not None:
        limits = replace(limits, step=tolerance, gradient=tolerance)
    if end_to_end_tolerance is not None:
        limits = replace(
            limits, end_to_end=end_to_end_tolerance, mask=None, state=None, loss=end_to_end_tolerance
        )
    plan = PlanOptions(workspace, hardware_compatibility)
    targets = [(target, "")] if target else [*default_targets(precision)]
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    console, piped = Console(stderr=True), NowAndThen()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(line: str, done: int = 0, total: int | None = None) -> None:
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(line, total=total, completed=done)
            if not console.is_terminal:
                piped(line)

        def built(target: str) -> list[Built]:
            options = Options(target, precision, max_batch, opset, fused, limits, plan, unfinished, chosen, preset, license)
            if chain := chain_named(model, repository):
                return build_chain(chain, checkpoints, repository, options, show)
            shipped = load_family(model).made_from or model
            source = by_model(checkpoints, [model]).get(model) or shipped_checkpoint(shipped)
            return [Built(build(model, source, repository, options, show), source)]

        for picked, reason in targets:
            try:
                stages = built(picked)
                break
            except ToleranceError as error:
                if (picked, reason) == targets[-1]:
                    raise
                click.echo(f"--target {picked}: {error}", err=True)
    if reason:
        click.echo(f"--target {picked}: {reason}")
    for bundle, checkpoint in stages:
        click.echo(f"{bundle.folder} is {'kept as it was' if checkpoint is None else f'built from {checkpoint}'}")
        print_bundle(bundle)


# fmt: on


@main.command("list")
@REPOSITORY_OPTION
def list_command(repository: Path) -> None:
    """The model families and chains, and which of them the repository has bundles of."""
    if repository.exists() and not repository.is_dir():
        raise BundleError(f"--repository is {repository}, which is no folder")
    from export.report import print_list

    print_list(repository)


@main.command("inspect")
@click.argument("bundle", metavar="BUNDLE")
@REPOSITORY_OPTION
def inspect_command(bundle: str, repository: Path) -> None:
    """What BUNDLE (a folder, or the name of a model or chain) holds."""
    from export.report import open_bundles, print_bundle

    for found in open_bundles(bundle, repository):
        print_bundle(found)


@main.command("verify")
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Also compare the engines with this checkpoint; of a chain, one for each stage that is to be compared.",
)
@click.option(
    "--parser",
    is_flag=True,
    help="Also have the parser of TensorRT read the ONNX graphs; that of tensorrt-rtx needs no GPU.",
)
@REPOSITORY_OPTION
def verify_command(bundle: str, checkpoints: tuple[Path, ...], parser: bool, repository: Path) -> None:
    """Check BUNDLE (a folder, or the name of a model or chain).

    That is its digests and ONNX graphs, whether a chain's stages fit together and, if asked for, whether TensorRT
    reads the graphs, and parity with PyTorch.
    """
    from export.chain import by_model
    from export.report import open_bundles, verify, verify_parser

    bundles = {found.manifest.model: found for found in open_bundles(bundle, repository)}
    given = by_model(checkpoints, [*bundles])
    for model, found in bundles.items():
        verify(found, given.get(model))
        if parser:
            verify_parser(found)


if __name__ == "__main__":
    main(prog_name="python -m export")
