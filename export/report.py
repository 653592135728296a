"""What `list`, `inspect` and `verify` say of bundles."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import onnx
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from export import BuildError, openvino
from export.build import check, limited, open_built
from export.chain import find_chain, find_chains
from export.options import Tolerance
from export.parity import BATCH, measure_parity
from export.tensorrt_parser import installed_library, read
from serving.bundle import Bundle, BundleError, Manifest, bundle_folder, load_bundle, missing
from serving.chain import Chain, ChainError, check_stages
from training.checkpoint import load_built, shipped_folder
from training.models import family_names


def print_list(repository: Path) -> None:
    """Tables of the families and the chains, 80 columns wide, and below them what there is to know of some."""
    models, notes = plain_table("model", "bundle", "preset", "default", "engines"), []
    manifests: dict[str, Manifest] = {}
    lacking: dict[str, str] = {}
    for name in family_names():
        folder = bundle_folder(repository, name)
        try:
            bundle = load_bundle(folder)
        except BundleError as error:
            state = "broken" if folder.exists() else "not built"
            models.add_row(name, state)
            lacking[name] = f"{name} is {state}"
            if folder.exists():
                notes.append(f"{name} is broken: {error}")
            continue
        manifest = manifests[name] = bundle.manifest
        engines = f"{manifest.target['name']} {manifest.precision}"
        models.add_row(name, bundle.digest[:12], manifest.preset, default_sampling(manifest), engines)
        if so_far := manifest.checkpoint.get("unfinished"):
            lacking[name] = f"{name} is unfinished"
            notes.append(f"{name} is unfinished: trained to {so_far}")
    chains = plain_table("chain", "stages", "bundles")
    found, broken = find_chains(repository)
    for name, chain in found.items():
        stages = [stage.model for stage in chain.stages]
        states = [lacking.get(stage, f"{stage} is unknown") for stage in stages if stage not in manifests]
        states += [lacking[stage] for stage in stages if stage in manifests and stage in lacking]
        if manifests.keys() >= {*stages}:
            try:
                check_stages(chain, manifests)
            except ChainError as error:
                states.insert(0, "they do not fit")
                notes.append(str(error))
        chains.add_row(name, ", ".join(stages), (*states, "all built")[0])
    for name, reason in broken.items():
        chains.add_row(name, "", "broken")
        notes.append(f"{name} is broken: {reason}")
    Console().print(models, "", chains)
    if not repository.exists():
        notes.insert(0, f"Nothing is built yet: {missing(repository)}")
    if shipped := ", ".join(name for name in family_names() if name not in manifests and shipped_folder(name)):
        notes.append(
            f"medgen ships a checkpoint of {shipped}, which medgen export build --model NAME takes; the others need "
            "--checkpoint"
        )
    for note in notes:
        click.echo(f"\n{click.wrap_text(note, 80)}")


def plain_table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap, table.columns[1].min_width = True, 12  # names and digests are there to be copied
    return table


def print_bundle(bundle: Bundle) -> None:
    """The manifest's main lines, the graphs' sizes and the parity figures."""
    manifest = bundle.manifest
    for name, fact in facts_of(bundle):
        click.echo(f"{name:<12} {fact}")
    Console().print(parity_table(manifest.parity, manifest))
    if note := manifest.parity.get("note"):
        click.echo(note)


def facts_of(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    yield "model", f"{manifest.model}, preset {manifest.preset}"
    yield "bundle", bundle.digest
    if so_far := manifest.checkpoint.get("unfinished"):
        yield "unfinished", f"trained to {so_far}"
    elif "step" in manifest.checkpoint:
        yield "trained", f"{manifest.checkpoint['step']} steps"
    yield "state", " x ".join(map(str, manifest.sample_shape))
    for output in manifest.outputs:
        values = ", ".join(output.labels) or f"{output.low:g} .. {output.high:g}"
        yield output.name, f"{output.dtype} {' x '.join(map(str, output.shape))} ({values})"
    only = ", and no others" if manifest.student else ""
    yield "default", default_sampling(manifest) + only
    if student := manifest.student:
        yield "student", f"of {student.teacher}, {student.steps} steps for {student.teacher_steps} of its"
    if tuned := manifest.tuned:
        yield "tuned", tuning(tuned)
    yield "target", f"{target(manifest)}, {manifest.precision}, batch up to {manifest.max_batch}"
    for name, engine in manifest.engines.items():
        path = bundle.engine_path(name)
        size = decimal(
            path.stat().st_size + (path.with_name(engine.weights.file).stat().st_size if engine.weights else 0)
        )
        if path.suffix == ".onnx":
            counts = Counter(node.op_type for node in onnx.load(path).graph.node).most_common(4)
            size += f": {', '.join(f'{count} {kind}' for kind, count in counts)}, ..."
        yield engine.file, size


def verify(found: Bundle, checkpoint: Path | None) -> None:
    """Raises BuildError, or what loading raises, or prints what is good."""
    graphs, representations = graphs_of(found, ".onnx"), graphs_of(found, ".xml")
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
    for path in representations:
        openvino.check(path, found.manifest.model)
    is_read = graphs or representations
    good = "digests and graphs are good" if is_read else "digests are good; nothing is known of what is in its plans"
    click.echo(f"{found.folder}: {good}")
    if checkpoint is None:
        return
    family, config = load_built(found.manifest, checkpoint)
    if config["digest"] != found.manifest.checkpoint.get("digest"):
        raise BuildError(f"{checkpoint} is not the checkpoint that {found.folder} was built from: their digests differ")
    manifest = found.manifest
    figures = measure_parity(family, open_built(found), batch=min(BATCH, manifest.max_batch))
    check(figures, Tolerance(**manifest.parity["tolerance"]), manifest)
    Console().print(parity_table(figures, manifest))


def verify_parser(found: Bundle) -> None:
    """Raises BuildError, naming the nodes, if TensorRT does not read a graph."""
    graphs = graphs_of(found, ".onnx")
    if not graphs:
        raise BuildError(f"{found.folder} holds no ONNX graphs that a parser could read")
    library = installed_library()
    for path in graphs:
        read(onnx.load(path), path.stem, library)
    click.echo(f"{found.folder}: {library.title} {library.load().__version__} reads the graphs")


def graphs_of(bundle: Bundle, suffix: str) -> list[Path]:
    paths = (bundle.engine_path(name) for name in bundle.manifest.engines)
    return [path for path in paths if path.suffix == suffix]


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


def parity_table(figures: Mapping[str, Any], manifest: Manifest) -> Table:
    table = Table("difference from PyTorch", "tensor", "largest", "tolerance")
    titles = {"end_to_end": "end to end", "onnx": "end to end, from ONNX Runtime", "batches": "end to end, any batch"}
    for kind, name, difference, limit in limited(figures, Tolerance(**manifest.parity["tolerance"]), manifest):
        table.add_row(titles.get(kind, kind), name, f"{difference:.1e}", f"{limit:.0e}")
    return table


def default_sampling(manifest: Manifest) -> str:
    return f"{manifest.default_solver}, {manifest.default_steps} steps" if manifest.default_solver else "one pass"


def tuning(tuned: Mapping[str, Any]) -> str:
    """Of `benchmarks tune`, what the default was measured to be worth; what something else says of it as it is."""
    try:
        reference, chosen, again = (tuned[name] for name in ("reference", "chosen", "confirmed"))
        seconds = ", ".join(f"{name} {each:.3g}" for name, each in tuned["seconds_per_sample"].items())
        which = "others, which had been asked before" if tuned.get("earlier") else "fresh ones"
        return (
            f"{tuned['verdict']} beside {reference['solver']}, {reference['steps']} steps, "
            f"{tuned['times_as_fast']:.3g} times as fast, on {chosen['samples']} seeds and on {again['samples']} "
            f"{which}; seconds a sample: {seconds}"
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        return json.dumps(tuned)


def target(manifest: Manifest) -> str:
    details = {key: value for key, value in manifest.target.items() if key != "name"}
    words = [
        ("" if value else "not ") + key if isinstance(value, bool) else f"{key} {value}"
        for key, value in details.items()
    ]
    return f"{manifest.target['name']} ({', '.join(words)})"
