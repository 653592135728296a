"""``python -m training``: train a generator, or pack a trained one to hand on."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from training import CheckpointError
from training.assignment import assignment
from training.importing import import_command
from training.models import family_names

if TYPE_CHECKING:
    from training.data.dataset import LoadedPairs, Unpaired
    from training.data.phantom import Phantoms
    from training.family import Family


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
    from accelerate import PartialState

    from training.checkpoint import find_checkpoint, read_config, with_defaults
    from training.data import DataError, open_dataset
    from training.data.classes import LESION
    from training.data.listing import check_same_files
    from training.data.listing import digest as listing_digest
    from training.data.summary import lines, summarise
    from training.data.unpaired import open_unpaired
    from training.fit import Interrupted, Run, fit
    from training.models import load_family

    try:
        family = load_family(model)
        if preset not in family.presets:
            raise ValueError(f"--preset is {preset!r}; {model} has {', '.join(family.presets)}")
        overrides = {"steps": steps and (steps,) * len(family.phases), "batch": batch}
        if not family.phases and family.made_from is None:
            raise ValueError(f"{model} learns nothing here: medgen import makes its checkpoints")
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
        if resume:
            now = {"model": model, **config, "preset": dataclasses.asdict(chosen)}
            before = read_config(find_checkpoint(out))
            if before.get("model") == model:
                before["preset"] = with_defaults(chosen, before.get("preset", {}))
            check_unchanged(before, json.loads(json.dumps(now)))
        dataset: LoadedPairs | Phantoms | Unpaired
        if family.unpaired:
            dataset = open_unpaired(data, chosen.size, skip_bad=skip_bad)
        else:
            labels = untrained.labels
            dataset = open_dataset(data, chosen.size, "train", skip_bad, labels or LESION, masks=bool(labels))
            check_classes(untrained, dataset, data)
        files = getattr(dataset, "files", {})
        if resume:
            then = read_config(find_checkpoint(out)).get("data_digest")
            if then is None:
                click.echo(f"{out} was begun without a list of its data: whether they have changed is not known")
            check_same_files(out, then, files)
        summary = summarise(dataset)
        if PartialState().is_main_process:
            click.echo("\n".join(lines(summary)))
        config |= {"data_digest": listing_digest(files), "data_summary": summary}
        run = Run(out, config, seed, precision, compiled, workers, log_every, checkpoint_every, preview_every, files=files)
        checkpoint = fit(untrained, dataset, run, resume)
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
    if PartialState().is_main_process:
        click.echo(f"{checkpoint} is ready: medgen export build --model {model} --checkpoint {out}")


# fmt: on


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


main.add_command(import_command)


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
