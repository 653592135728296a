"""Bundles of a case's checkpoints for other engines than those that it has."""

from pathlib import Path

from benchmarks.latency.contenders import Case
from serving.bundle import bundle_folder


def export_bundles(case: Case, repository: Path, target: str, precision: str) -> None:
    """A bundle of each stage in a repository. They are not compared with PyTorch: the table compares their samples."""
    # What a process that only draws has no need of.
    from export.build import describe, describe_target, note_rows, write_engines
    from export.options import Options
    from training.checkpoint import load_built

    for stage in case.stages:
        options = Options(target=target, precision=precision, max_batch=stage.manifest.max_batch)
        family, config = load_built(stage.manifest, stage.checkpoint)
        manifest = describe(family, config, options, describe_target(options))
        folder = bundle_folder(repository, stage.model)
        folder.mkdir(parents=True)
        note_rows(family, *write_engines(folder, family, manifest, options), options)
