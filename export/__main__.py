"""``python -m export`` (installed as ``export``): build bundles, look at them, check them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

from export import BuildError
from export.build import Options, build, check, limited, open_built
from export.chain import Built, build_chain, by_model, find_chain, find_chains
from export.graphs import BF16_OPSET, OPSET
from export.parity import BATCH, measure_parity
from export.precision import TOLERANCES, Tolerance
from export.tensorrt import COMPATIBILITY, PlanOptions
from serving.bundle import REPOSITORY, Bundle, BundleError, Manifest, bundle_folder, load_bundle
from serving.chain import Chain, check_stages
from serving.engines import EngineError
from training.checkpoint import CheckpointError, load_checkpoint, shipped_checkpoint
from training.models import family_names

FAILURES = (BuildError, BundleError, CheckpointError, EngineError)
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


class Commands(click.Group):
    """Every expected failure is one line on standard error and exit code 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except FAILURES as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            what = error.filename or "a file of the bundle cannot be written"
            raise click.ClickException(f"{what}: {error.strerror}") from error


def known_model(context: click.Context, _: click.Parameter, model: str) -> str:
    repository = context.params["repository"]
    if model not in family_names() and not find_chain(repository, model):
        allowed = ", ".join(map(repr, [*family_names(), *find_chains(repository)[0]]))
        raise click.BadParameter(f"{model!r} is neither a model family nor a chain; allowed are {allowed}")
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
@click.option("--target",     default="onnx", show_default=True, type=click.Choice(["onnx", "tensorrt"]), help="What runs the engines.")
@click.option("--precision",  default="fp32", show_default=True, type=click.Choice([*TOLERANCES]), help="What the networks compute in; tf32 is for GPUs alone: a CPU runs it, and compares it with PyTorch, in float32.")
@click.option("--max-batch",  default=16, show_default=True, type=click.IntRange(1),               help="Samples that one launch may hold.")
@click.option("--opset",      type=click.IntRange(18, 23),                                         help=f"ONNX operator set.  [default: {OPSET}, the fastest; {BF16_OPSET} for bf16]")
@click.option("--fuse/--no-fuse", "fused", default=True, show_default=True,                        help="Put the fused operators of `kernels` into the graphs.")
@click.option("--tolerance",  type=click.FloatRange(0),                                            help=f"Largest difference from PyTorch in any one step.  [default: {STEP_TOLERANCES}]")
@click.option("--end-to-end-tolerance", type=click.FloatRange(0),                                  help=f"Largest difference at the end: of an image's values, of a mask's share of pixels.  [default: {END_TOLERANCES}, and 0.001 for masks]")
@click.option("--workspace",  type=click.FloatRange(0, min_open=True),                             help="GiB of GPU memory that TensorRT may use for one layer.  [default: all]")
@click.option("--hardware-compatibility", default=COMPATIBILITY[0], show_default=True, type=click.Choice(COMPATIBILITY), help="Other GPUs that TensorRT's plans are to run on; they are slower for it.")
def build_command(
    model: str,
    checkpoints: tuple[Path, ...],
    repository: Path,
    target: str,
    precision: str,
    max_batch: int,
    opset: int | None,
    fused: bool,
    tolerance: float | None,
    end_to_end_tolerance: float | None,
    workspace: float | None,
    hardware_compatibility: str,
) -> None:
    """Export a checkpoint's graphs, compare them with PyTorch, and put the bundle into the model repository."""
    limits = TOLERANCES[precision]
    if tolerance is not None:
        limits = replace(limits, step=tolerance)
    if end_to_end_tolerance is not None:
        limits = Tolerance(limits.step, end_to_end_tolerance)
    plan = PlanOptions(workspace, hardware_compatibility)
    options = Options(target, precision, max_batch, opset, fused, limits, plan)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(line: str, done: int = 0, total: int | None = None) -> None:
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(line, total=total, completed=done)

        if chain := chain_named(model, repository):
            stages = build_chain(chain, checkpoints, repository, options, show)
        else:
            source = by_model(checkpoints, [model]).get(model) or shipped_checkpoint(model)
            stages = [Built(build(model, source, repository, options, show), source)]
    for bundle, checkpoint in stages:
        click.echo(f"{bundle.folder} is {'kept as it was' if checkpoint is None else f'built from {checkpoint}'}")
        print_report(bundle)


# fmt: on


@main.command("list")
@REPOSITORY_OPTION
def list_command(repository: Path) -> None:
    """The model families and chains, and which of them the repository has bundles of."""
    if not repository.is_dir():
        raise BundleError(f"--repository is {repository}, which is no folder")
    table = Table("model", "bundle", "preset", "default", "precision", "target")
    table.columns[0].no_wrap, table.columns[1].min_width = True, 12  # names and digests are there to be copied
    for name in family_names():
        try:
            bundle = load_bundle(bundle_folder(repository, name))
        except BundleError as error:
            missing = not bundle_folder(repository, name).exists()
            table.add_row(name, "not built" if missing else f"broken: {error}")
            continue
        manifest = bundle.manifest
        table.add_row(
            name, bundle.digest[:12], manifest.preset, default_sampling(manifest), manifest.precision, target(manifest)
        )
    Console().print(table)
    Console().print(chain_table(repository))


def chain_table(repository: Path) -> Table:
    table = Table("chain", "stages", "bundles")
    chains, broken = find_chains(repository)
    for name, chain in chains.items():
        stages = [stage.model for stage in chain.stages]
        missing = [stage for stage in stages if not bundle_folder(repository, stage).exists()]
        table.add_row(name, ", ".join(stages), f"{missing[0]} is not built" if missing else "all built")
    for name, error in broken.items():
        table.add_row(name, "", f"broken: {error}")
    return table


@main.command("inspect")
@click.argument("bundle", metavar="BUNDLE")
@REPOSITORY_OPTION
def inspect_command(bundle: str, repository: Path) -> None:
    """What BUNDLE (a folder, or the name of a model or chain) holds."""
    for found in open_bundles(bundle, repository):
        print_report(found)


@main.command("verify")
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Also compare the engines with this checkpoint; of a chain, one for each stage that is to be compared.",
)
@REPOSITORY_OPTION
def verify_command(bundle: str, checkpoints: tuple[Path, ...], repository: Path) -> None:
    """Check BUNDLE (a folder, or the name of a model or chain).

    That is its digests and ONNX graphs, whether a chain's stages fit together and, given a checkpoint, parity with PyTorch.
    """
    bundles = {found.manifest.model: found for found in open_bundles(bundle, repository)}
    given = by_model(checkpoints, [*bundles])
    for model, found in bundles.items():
        verify(found, given.get(model))


def verify(found: Bundle, checkpoint: Path | None) -> None:
    """Raises what FAILURES are, or prints what is good."""
    graphs = onnx_graphs(found)
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
    good = "digests and graphs are good" if graphs else "digests are good; nothing is known of what is in its plans"
    click.echo(f"{found.folder}: {good}")
    if checkpoint is None:
        return
    family, config = load_checkpoint(checkpoint)
    if config["digest"] != found.manifest.checkpoint.get("digest"):
        raise BuildError(f"{checkpoint} is not the checkpoint that {found.folder} was built from: their digests differ")
    manifest = found.manifest
    figures = measure_parity(family, open_built(found), batch=min(BATCH, manifest.max_batch))
    check(figures, Tolerance(**manifest.parity["tolerance"]), manifest)
    Console().print(parity_table(figures, manifest))


def onnx_graphs(bundle: Bundle) -> list[Path]:
    paths = (bundle.engine_path(name) for name in bundle.manifest.engines)
    return [path for path in paths if path.suffix == ".onnx"]


def open_bundles(bundle: str, repository: Path) -> list[Bundle]:
    """One, or those of a chain's stages, which fit together."""
    chain = chain_named(bundle, repository)
    if chain is None:
        return [load_bundle(bundle_folder(repository, bundle) if bundle in family_names() else Path(bundle))]
    stages = [stage.model for stage in chain.stages]
    bundles = [load_bundle(bundle_folder(repository, stage)) for stage in stages]
    check_stages(chain, dict(zip(stages, (found.manifest for found in bundles), strict=True)))
    return bundles


def chain_named(name: str, repository: Path) -> Chain | None:
    return None if name in family_names() else find_chain(repository, name)


def print_report(bundle: Bundle) -> None:
    """The manifest's main lines, the graphs' sizes and the parity figures."""
    manifest = bundle.manifest
    facts = {"model": f"{manifest.model}, preset {manifest.preset}", "bundle": bundle.digest}
    facts["state"] = " x ".join(map(str, manifest.sample_shape))
    for output in manifest.outputs:
        values = ", ".join(output.labels) or f"{output.low:g} .. {output.high:g}"
        facts[output.name] = f"{output.dtype} {' x '.join(map(str, output.shape))} ({values})"
    facts["default"] = default_sampling(manifest)
    facts["target"] = f"{target(manifest)}, {manifest.precision}, batch up to {manifest.max_batch}"
    for name, engine in manifest.engines.items():
        path = bundle.engine_path(name)
        facts[engine.file] = f"{path.stat().st_size / 1e6:.1f} MB"
        if path.suffix == ".onnx":
            counts = Counter(node.op_type for node in onnx.load(path).graph.node).most_common(4)
            facts[engine.file] += f": {', '.join(f'{count} {kind}' for kind, count in counts)}, ..."
    for name, fact in facts.items():
        click.echo(f"{name:<12} {fact}")
    Console().print(parity_table(manifest.parity, manifest))
    if note := manifest.parity.get("note"):
        click.echo(note)


def parity_table(figures: Mapping[str, Any], manifest: Manifest) -> Table:
    table = Table("difference from PyTorch", "tensor", "largest", "tolerance")
    titles = {"end_to_end": "end to end", "onnx": "end to end, from ONNX Runtime"}
    for kind, name, difference, limit in limited(figures, Tolerance(**manifest.parity["tolerance"]), manifest):
        table.add_row(titles.get(kind, kind), name, f"{difference:.1e}", f"{limit:.0e}")
    return table


def default_sampling(manifest: Manifest) -> str:
    return f"{manifest.default_solver}, {manifest.default_steps} steps" if manifest.default_solver else "one pass"


def target(manifest: Manifest) -> str:
    details = ", ".join(f"{key} {value}" for key, value in manifest.target.items() if key != "name")
    return f"{manifest.target['name']} ({details})"


if __name__ == "__main__":
    main(prog_name="python -m export")
