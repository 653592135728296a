"""``python -m export`` (installed as ``export``): build bundles, look at them, check them."""

from collections import Counter
from pathlib import Path

import click
import onnx
from rich.console import Console
from rich.table import Table

from export.build import BuildError, Options, Tolerance, build, check
from export.graphs import OPSET
from export.parity import measure_parity
from serving.bundle import REPOSITORY, Bundle, BundleError, Manifest, bundle_folder, load_bundle
from serving.engines import EngineError, StepEngine, open_engine
from training.checkpoint import CheckpointError, load_checkpoint, shipped_checkpoint
from training.models import family_names

FAILURES = (BuildError, BundleError, CheckpointError, EngineError)
REPOSITORY_OPTION = click.option(
    "--repository", default=REPOSITORY, type=click.Path(path_type=Path), help="The Triton model repository."
)


class Commands(click.Group):
    """Every expected failure is one line on standard error and exit code 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except FAILURES as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"cannot write the bundle: {error}") from error


@click.group(cls=Commands)
@click.version_option(package_name="medgen", prog_name="medgen")
def main() -> None:
    """Turn trained generators into bundles that `serving` serves."""


# fmt: off
@main.command("build")
@click.option("--model",      required=True, type=click.Choice(family_names()),                    help="The model family.")
@click.option("--checkpoint", type=click.Path(path_type=Path),                                     help="A run or checkpoint folder; without it, the one medgen ships.")
@REPOSITORY_OPTION
@click.option("--target",     default="onnx", show_default=True, type=click.Choice(["onnx"]),      help="What runs the engines.")
@click.option("--max-batch",  default=16, show_default=True, type=click.IntRange(1),               help="Samples that one launch may hold.")
@click.option("--opset",      default=OPSET, show_default=True, type=click.IntRange(18, 23),       help="ONNX operator set; the default was the fastest.")
@click.option("--fuse/--no-fuse", "fused", default=True, show_default=True,                        help="Put the fused operators of `kernels` into the graphs.")
@click.option("--tolerance",  default=Tolerance.step, show_default=True, type=click.FloatRange(0), help="Largest difference from PyTorch in any one step.")
@click.option("--end-to-end-tolerance", default=Tolerance.end_to_end, show_default=True, type=click.FloatRange(0), help="Largest difference at the end: of an image's values, of a mask's share of pixels.")
def build_command(
    model: str,
    checkpoint: Path | None,
    repository: Path,
    target: str,
    max_batch: int,
    opset: int,
    fused: bool,
    tolerance: float,
    end_to_end_tolerance: float,
) -> None:
    """Export a checkpoint's graphs, compare them with PyTorch, and put the bundle into the model repository."""
    checkpoint = checkpoint or shipped_checkpoint(model)
    options = Options(max_batch, opset, fused, Tolerance(tolerance, end_to_end_tolerance))
    with Console(stderr=True).status("") as status:
        bundle = build(model, checkpoint, repository, options, status.update)
    click.echo(f"{bundle.folder} is built from {checkpoint}")
    print_report(bundle)


# fmt: on


@main.command("list")
@REPOSITORY_OPTION
def list_command(repository: Path) -> None:
    """The model families, and which of them the repository has a bundle of."""
    table = Table("model", "bundle", "preset", "default", "precision", "target")
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


@main.command("inspect")
@click.argument("bundle", metavar="BUNDLE")
@REPOSITORY_OPTION
def inspect_command(bundle: str, repository: Path) -> None:
    """What BUNDLE (a folder, or a model's name) holds."""
    print_report(open_bundle(bundle, repository))


@main.command("verify")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Also compare the engines with this checkpoint.")
@REPOSITORY_OPTION
def verify_command(bundle: str, checkpoint: Path | None, repository: Path) -> None:
    """Check BUNDLE (a folder, or a model's name): digests, graphs and, given a checkpoint, parity with PyTorch."""
    found = open_bundle(bundle, repository)
    for name in found.manifest.engines:
        onnx.checker.check_model(str(found.engine_path(name)), full_check=True)
    click.echo(f"{found.folder}: digests and graphs are good")
    if checkpoint is None:
        return
    family, config = load_checkpoint(checkpoint)
    if config["digest"] != found.manifest.checkpoint.get("digest"):
        raise BuildError(f"{checkpoint} is not the checkpoint that {found.folder} was built from: their digests differ")
    engine = open_engine(found)
    assert isinstance(engine, StepEngine)
    recorded = found.manifest.parity["tolerance"]
    figures = measure_parity(family, engine)
    check(figures, Tolerance(recorded["step"], recorded["end_to_end"]))
    Console().print(parity_table(figures))


def open_bundle(bundle: str, repository: Path) -> Bundle:
    return load_bundle(bundle_folder(repository, bundle) if bundle in family_names() else Path(bundle))


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
        counts = Counter(node.op_type for node in onnx.load(path).graph.node).most_common(4)
        common = ", ".join(f"{count} {kind}" for kind, count in counts)
        facts[engine.file] = f"{path.stat().st_size / 1e6:.1f} MB: {common}, ..."
    for name, fact in facts.items():
        click.echo(f"{name:<12} {fact}")
    Console().print(parity_table(manifest.parity))


def parity_table(figures: object) -> Table:
    assert isinstance(figures, dict)
    table = Table("difference from PyTorch", "tensor", "largest", "tolerance")
    tolerance = figures.get("tolerance", {})
    for kind in ("random", "step", "end_to_end"):
        for name, difference in figures[kind].items():
            limit = tolerance.get("end_to_end" if kind == "end_to_end" else "step")
            table.add_row(kind.replace("_", " "), name, f"{difference:.1e}", f"{limit:.0e}" if limit else "")
    return table


def default_sampling(manifest: Manifest) -> str:
    return f"{manifest.default_solver}, {manifest.default_steps} steps" if manifest.default_solver else "one pass"


def target(manifest: Manifest) -> str:
    details = ", ".join(f"{key} {value}" for key, value in manifest.target.items() if key != "name")
    return f"{manifest.target['name']} ({details})"


if __name__ == "__main__":
    main(prog_name="python -m export")
