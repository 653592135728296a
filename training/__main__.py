"""``python -m training``: train a generator, or pack a trained one to hand on."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from training import CheckpointError
from training.assignment import assignment
from training.models import family_names

if TYPE_CHECKING:
    from training.data.dataset import LoadedPairs, Unpaired
    from training.data.phantom import Phantoms
    from training.family import Family
    from training.fit import Run


@click.group()
def main() -> None:
    """Train the generators that `export` builds and `serving` serves."""


# fmt: off
@main.command("fit")
@click.option("--model",            required=True, type=click.Choice(family_names()), help="The model family.")
@click.option("--preset",           default="small", show_default=True,               help="One of the family's presets.")
@click.option("--set", "fields",    multiple=True, callback=assignment, metavar="FIELD=VALUE", help="Change a field of the preset, as in --set size=128.")
@click.option("--data",             required=True,                                    help="A folder (images/ and masks/, mini-MIAS, ACDC or M&Ms; for two kinds of images trainA/ and trainB/, or mini-MIAS), or 'phantom'.")
@click.option("--out",              required=True, type=click.Path(path_type=Path),   help="The run's folder.")
@click.option("--init",             type=click.Path(path_type=Path),                  help="Start from the weights of this checkpoint of the same networks; of pggan also genforce's state dict.")
@click.option("--resume",           is_flag=True,                                     help="Go on from the newest checkpoint in --out; give the other options as before.")
@click.option("--steps",            type=click.IntRange(1),                           help="Optimiser steps in each phase, instead of the preset's.")
@click.option("--batch",            type=click.IntRange(1),                           help="Samples a step and process, instead of the preset's.")
@click.option("--seed",             default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of the weights, the order of the data and the noise.")
@click.option("--precision",        default="no", show_default=True, type=click.Choice(["no", "bf16", "fp16"]), help="Mixed precision; 'no' is float32.")
@click.option("--compile", "compiled", is_flag=True,                                  help="Compile the networks with torch.compile (a C++ compiler is needed).")
@click.option("--workers",          default=0, show_default=True, type=click.IntRange(0), help="Processes that load data.")
@click.option("--log-every",        default=50, show_default=True, type=click.IntRange(1), help="Steps between rows of log.csv.")
@click.option("--checkpoint-every", default=500, show_default=True, type=click.IntRange(1), help="Steps between checkpoints.")
@click.option("--preview-every",    default=1000, show_default=True, type=click.IntRange(1), help="Steps between pictures, in the last phase.")
@click.option("--skip-bad",         is_flag=True,                                     help="Leave out files that cannot be used, instead of stopping.")
def fit_command(
    model: str,
    preset: str,
    fields: dict[str, Any],
    data: str,
    out: Path,
    init: Path | None,
    resume: bool,
    steps: int | None,
    batch: int | None,
    seed: int,
    precision: str,
    compiled: bool,
    workers: int,
    log_every: int,
    checkpoint_every: int,
    preview_every: int,
    skip_bad: bool,
) -> None:
    """Train a model on (mask, image) pairs.

    Run it under `accelerate launch` for several GPUs. Ctrl-C writes a checkpoint and stops.
    """
    import torch

    from training.fit import Run
    from training.models import load_family

    with failures_in_words(out):
        family = load_family(model)
        if preset not in family.presets:
            raise ValueError(f"--preset is {preset!r}; {model} has {', '.join(family.presets)}")
        overrides = {"steps": steps and (steps,) * len(family.phases), "batch": batch}
        if family.made_from is not None:
            raise ValueError(
                f"{model} learns nothing: train {family.made_from}, and build with "
                f"medgen export build --model {model} --checkpoint RUN"
            )
        chosen = family.presets[preset].replaced({**fields, **{k: v for k, v in overrides.items() if v is not None}})
        torch.manual_seed(seed)
        untrained = family(chosen)
        digest = None if init is None else start_from(init, untrained)
        config = {"preset_name": preset, "data": data, "seed": seed, "precision": precision, "init": digest}
        run = Run(out, config, seed, precision, compiled, workers, log_every, checkpoint_every, preview_every)
        train(untrained, data, run, resume, skip_bad)


@main.command("distill")
@click.option("--teacher",          required=True, type=click.Path(path_type=Path),   help="The run or checkpoint of the trained model, which may be a student itself.")
@click.option("--steps",            required=True, type=click.IntRange(1),            help="That the student takes to draw a sample.")
@click.option("--teacher-steps",    type=click.IntRange(2),                           help="That it learns to do in them.  [default: those of a teacher that is a student, else 4 for each]")
@click.option("--out",              required=True, type=click.Path(path_type=Path),   help="The run's folder.")
@click.option("--updates",          type=click.IntRange(1),                           help="Steps of the optimiser.  [default: as many as the teacher's last phase had]")
@click.option("--set", "fields",    multiple=True, callback=assignment, metavar="FIELD=VALUE", help="Change what the teacher's preset says of learning, as in --set learning_rate=1e-4.")
@click.option("--data",             help="As for fit.  [default: what the teacher's checkpoint names]")
@click.option("--resume",           is_flag=True,                                     help="Go on from the newest checkpoint in --out; give the other options as before.")
@click.option("--seed",             default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of the order of the data and the noise.")
@click.option("--precision",        default="no", show_default=True, type=click.Choice(["no", "bf16", "fp16"]), help="Mixed precision; 'no' is float32.")
@click.option("--compile", "compiled", is_flag=True,                                  help="Compile the networks with torch.compile (a C++ compiler is needed).")
@click.option("--workers",          default=0, show_default=True, type=click.IntRange(0), help="Processes that load data.")
@click.option("--log-every",        default=50, show_default=True, type=click.IntRange(1), help="Steps between rows of log.csv.")
@click.option("--checkpoint-every", default=500, show_default=True, type=click.IntRange(1), help="Steps between checkpoints.")
@click.option("--preview-every",    default=1000, show_default=True, type=click.IntRange(1), help="Steps between pictures.")
@click.option("--skip-bad",         is_flag=True,                                     help="Leave out files that cannot be used, instead of stopping.")
def distill_command(
    teacher: Path,
    steps: int,
    teacher_steps: int | None,
    out: Path,
    updates: int | None,
    fields: dict[str, Any],
    data: str | None,
    resume: bool,
    seed: int,
    precision: str,
    compiled: bool,
    workers: int,
    log_every: int,
    checkpoint_every: int,
    preview_every: int,
    skip_bad: bool,
) -> None:
    """Train a student that draws in --steps what its teacher draws in more.

    The checkpoint is one of the same model, to be built and served like any; it takes those steps and no others.
    """
    from training.checkpoint import load_checkpoint, unfinished
    from training.distill import plan, student_of
    from training.fit import Run

    with failures_in_words(out):
        trained, known = load_checkpoint(teacher)
        if so_far := unfinished(trained, known):
            raise ValueError(f"--teacher {teacher} was trained to {so_far}; go on with fit --resume first")
        source = data or known.get("data")
        if source is None:
            raise ValueError(f"--teacher {teacher} does not say what it learnt from; name it with --data")
        planned = plan(trained, known, steps, teacher_steps)
        student = student_of(trained, planned, updates or trained.preset.steps[-1], fields)
        click.echo(
            f"{planned.steps} steps of {planned.solver} for {planned.teacher_steps} of the teacher's, in "
            f"{student.preset.steps[0]} updates on {source}"
        )
        kept = {name: known[name] for name in ("license",) if name in known}
        config = {"preset_name": known.get("preset_name", "custom"), **kept, "data": source, "seed": seed}
        config |= {"precision": precision, "student": planned.record()}
        run = Run(out, config, seed, precision, compiled, workers, log_every, checkpoint_every, preview_every)
        train(student, source, run, resume, skip_bad)


# fmt: on


@contextmanager
def failures_in_words(out: Path) -> Iterator[None]:
    """What can be expected to go wrong in a run is one line, and a run that was stopped ends with 130."""
    from training.data import DataError
    from training.fit import Interrupted

    try:
        yield
    except BrokenPipeError:
        raise  # who reads has seen enough, and click knows what to do
    except OSError as error:
        named = error.filename or error.errno is None
        raise click.ClickException(str(error) if named else f"{out} cannot be written: {error.strerror}") from error
    except (CheckpointError, DataError, ValueError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as stopped:
        click.echo(stopped)
        raise SystemExit(130) from stopped


def train(untrained: "Family", data: str, run: "Run", resume: bool, skip_bad: bool) -> None:
    """Open the data, see that a run that is resumed is as it was, and fit."""
    from accelerate import PartialState

    from training.checkpoint import find_checkpoint, read_config, with_defaults
    from training.data import open_dataset
    from training.data.classes import LESION
    from training.data.listing import check_same_files
    from training.data.listing import digest as listing_digest
    from training.data.summary import lines, summarise
    from training.data.unpaired import open_unpaired
    from training.fit import fit

    preset = untrained.preset
    if resume:
        now = {"model": untrained.name, **run.config, "preset": dataclasses.asdict(preset)}
        before = read_config(find_checkpoint(run.out))
        if before.get("model") == untrained.name:
            before["preset"] = with_defaults(preset, before.get("preset", {}))
        check_unchanged(before, json.loads(json.dumps(now)))
    dataset: LoadedPairs | Phantoms | Unpaired
    if untrained.unpaired:
        dataset = open_unpaired(data, preset.size, skip_bad=skip_bad)
    else:
        labels = untrained.labels
        dataset = open_dataset(data, preset.size, "train", skip_bad, labels or LESION, masks=bool(labels))
        check_classes(untrained, dataset, data)
    files = getattr(dataset, "files", {})
    if resume:
        then = read_config(find_checkpoint(run.out)).get("data_digest")
        if then is None:
            click.echo(f"{run.out} was begun without a list of its data: whether they have changed is not known")
        check_same_files(run.out, then, files)
    summary = summarise(dataset)
    if PartialState().is_main_process:
        click.echo("\n".join(lines(summary)))
    config = {**run.config, "data_digest": listing_digest(files), "data_summary": summary}
    checkpoint = fit(untrained, dataset, dataclasses.replace(run, config=config, files=files), resume)
    if PartialState().is_main_process:
        click.echo(f"{checkpoint} is ready: medgen export build --model {untrained.name} --checkpoint {run.out}")


def start_from(checkpoint: Path, untrained: "Family") -> str:
    """Give a model the weights of a checkpoint, or of a file that others published, and return their digest."""
    from serving.bundle import file_digest
    from training.checkpoint import load_checkpoint

    if checkpoint.is_file():
        click.echo(f"{checkpoint}: {untrained.load_published(checkpoint)}")
        return file_digest(checkpoint)
    trained, config = load_checkpoint(checkpoint)
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (trained, untrained)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"--init is {checkpoint}, a {trained.name} of other networks than this preset's")
    untrained.load_state_dict(trained.state_dict())
    return config["digest"]


def check_classes(family: "Family", dataset: "LoadedPairs | Phantoms", data: str) -> None:
    """A model learns the classes that it has."""
    if family.labels and dataset.labels != family.labels:
        found, wanted = (", ".join(labels) for labels in (dataset.labels, family.labels))
        raise ValueError(f"--data {data} has masks of the classes {found}; {family.name} learns {wanted}")


def check_unchanged(then: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run is the run it was."""
    for name, value in now.items():
        before = then.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            check_unchanged(before, value)
        elif before != value:
            raise ValueError(f"--resume goes on with the run as it was: its {name} is {before}, not {value}")


# fmt: off
@main.command("import")
@click.argument("guider", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--as", "model",      required=True, type=click.Choice(["pig"]),        help="The model family.")
@click.option("--generator",        required=True, type=click.Path(path_type=Path),   help="The file of the generator, beside SRC, the guider's.")
@click.option("--preset",           default="paper", show_default=True,               help="One of the family's presets.")
@click.option("--set", "fields",    multiple=True, callback=assignment, metavar="FIELD=VALUE", help="Change a field of the preset.")
@click.option("--out",              required=True, type=click.Path(path_type=Path),   help="The checkpoint's folder, a new one.")
def import_command(guider: Path, model: str, generator: Path, preset: str, fields: dict[str, Any], out: Path) -> None:
    """Make a checkpoint of the files that PIG's authors' code writes: SRC of the guider, --generator of the other."""
    from training.checkpoint import save_checkpoint
    from training.imports.pig import import_pig
    from training.models.pig import PRESETS, PigPreset

    try:
        if out.exists():
            raise CheckpointError(f"--out {out} is there already; name a new folder")
        if preset not in PRESETS:
            raise ValueError(f"--preset is {preset!r}; {model} has {', '.join(PRESETS)}")
        chosen = PRESETS[preset].replaced(fields)
        assert isinstance(chosen, PigPreset)
        family, origin = import_pig(guider, generator, chosen)
        imported = {**origin, "options": {"preset": preset, "set": fields}}
        save_checkpoint(out, family, family.state_dict(), {"preset_name": preset, "imported": imported})
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"not in the files, and taken from the preset: {json.dumps(dataclasses.asdict(family.preset))}")
    click.echo(f"{out} is ready: medgen export build --model {model} --checkpoint {out}")


# fmt: on


@main.command("pack")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def pack_command(checkpoint: Path, out: Path) -> None:
    """Copy CHECKPOINT to OUT as float16 weights without the state to resume from."""
    from rich.filesize import decimal

    from training.checkpoint import pack

    try:
        pack(checkpoint, out)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {decimal(sum(file.stat().st_size for file in out.iterdir()))}")


if __name__ == "__main__":
    main(prog_name="python -m training")
