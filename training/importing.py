"""``medgen import``: a checkpoint of files that other people's code has written."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Here and above, nothing that takes long.
from training import CheckpointError
from training.assignment import assignment

if TYPE_CHECKING:
    from training.family import Family
    from training.imports.found import Found

# The options that each family takes, beside --as, --out and --set.
OF_HEARTS = ("preset", "labels", "spacing")
OF_PAINTERS = (*OF_HEARTS, "range", "mask_encoding")
TAKEN = {
    "imported": (
        "range", "spacing", "steps", "solver", "scale", "size", "labels", "mask_encoding", "classes", "modality",
        "config", "weights", "autoencoder_weights", "key",
    ),
    "pig": ("generator", "preset"),
    "cmr_mask": (*OF_HEARTS, "key"),
    "cmr_ddpm_image": (*OF_PAINTERS, "steps", "solver", "config"),
    "cmr_flow_image": (*OF_PAINTERS, "key"),
    "seg_guided": ("preset", "labels", "range", "mask_encoding", "steps", "solver", "config"),
    "controlnet": ("preset", "labels", "range", "mask_encoding", "key", "control"),
}  # fmt: skip


def numbers(kind: type, count: int, *words: str) -> Any:
    """A callback: ``count`` numbers with commas between them, or one of the words."""

    def read(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        if text is None or text in words:
            return text
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) == 1 and count == 2 and kind is int:
            values *= 2
        if len(values) != count:
            raise click.BadParameter(f"{text!r} is not {count} numbers, as in 1,1{''.join(f', or {w}' for w in words)}")
        return values

    return read


def names(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(","))
    if not all(found) or len({*found}) < len(found):
        raise click.BadParameter(f"{text!r} is no list of different names, as in background,lesion")
    return found


# fmt: off
@click.command("import")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--as", "model",      required=True, type=click.Choice(list(TAKEN)), help="The model family.")
@click.option("--out",              required=True, type=click.Path(path_type=Path),   help="The checkpoint's folder, a new one.")
@click.option("--set", "fields",    multiple=True, callback=assignment, metavar="FIELD=VALUE", help="Change a field of the preset.")
@click.option("--preset",           help="All but imported: one of the family's presets.  [default: paper]")
@click.option("--generator",        type=click.Path(path_type=Path),                  help="pig: the file of the generator, beside SRC, the guider's.")
@click.option("--control",          type=click.Path(path_type=Path),                  help="controlnet: the ControlNet's file, where SRC is the UNet's alone.")
@click.option("--range", "range_",  callback=numbers(float, 2), metavar="LOW,HIGH",   help="All but pig and cmr_mask: between which values the pictures lay that the network learned from.")
@click.option("--spacing",          callback=numbers(float, 2, "unknown"), metavar="ROWS,COLUMNS", help="imported, cmr_*: mm between pixels, or 'unknown'.")
@click.option("--steps",            type=click.IntRange(1),                           help="imported, cmr_ddpm_image, seg_guided: steps that a sample takes by default.")
@click.option("--solver",           help="imported, cmr_ddpm_image, seg_guided: the default solver, instead of the authors' sampler.")
@click.option("--scale",            type=float,                                       help="imported: by what latents were multiplied for training.")
@click.option("--size",             callback=numbers(int, 2), metavar="ROWS,COLUMNS", help="imported: of what the network denoises, pictures or latents.")
@click.option("--labels",           callback=names, metavar="NAME,NAME,...",          help="All but pig: the classes of the mask that it draws or draws under, from 0 up.")
@click.option("--mask-encoding",    type=click.Choice(["one-hot", "index", "index/255"]), help="All but pig and cmr_mask: in which form the network sees the mask.")
@click.option("--classes",          callback=names, metavar="NAME,NAME,...",          help="imported: what the classes mean that the network is told, from 0 up.")
@click.option("--modality",         type=click.Choice(["MG", "MR"]),                  help="imported: DICOM's word for the pictures.")
@click.option("--config",           type=click.Path(path_type=Path),                  help="inference.json of a lone file of MONAI's weights, or scheduler_config.json of a lone network of diffusers'.")
@click.option("--weights",          type=click.Path(path_type=Path),                  help="imported: the denoiser's weights in a bundle.  [default: models/model.pt]")
@click.option("--autoencoder-weights", type=click.Path(path_type=Path),               help="imported: the autoencoder's.  [default: models/model_autoencoder.pt]")
@click.option("--key",              help="imported, cmr_mask, cmr_flow_image, controlnet: under which the files hold the state dict, if there is more in them.")
def import_command(source: Path, model: str, out: Path, fields: dict[str, Any], **options: Any) -> None:
    """Make a checkpoint of SRC, that other people's code has written.

    --as imported: a pipeline's folder of diffusers', a bundle of MONAI's, or a lone network with --config. What the
    files do not say must be said.

    --as cmr_..., seg_guided, controlnet: a network of hearts or breasts in that family's layout, of MONAI
    GenerativeModels, diffusers or MOTFM; its classes may have another order.

    --as pig: the files that PIG's authors' code writes, SRC of the guider, --generator of the other. Their networks have
    one shape: that one file was given for the other cannot be seen.
    """
    from training.checkpoint import save_checkpoint

    options["range"] = options.pop("range_")
    if odd := [name for name, value in options.items() if value is not None and name not in TAKEN[model]]:
        raise click.ClickException(f"--{odd[0].replace('_', '-')} is not for --as {model}")
    try:
        if out.exists():
            raise CheckpointError(f"--out {out} is there already; name a new folder")
        reader = {"imported": read_imported, "pig": read_pig}.get(model, partial(read_under_masks, model))
        family, config = reader(source, fields, options)
        save_checkpoint(out, family, family.state_dict(), config)
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out} is ready: medgen export build --model {model} --checkpoint {out}")


# fmt: on


def read_pig(source: Path, fields: dict[str, Any], options: dict[str, Any]) -> tuple["Family", dict[str, Any]]:
    from training.imports.pig import import_pig
    from training.models.pig import PRESETS, PigPreset

    preset = options["preset"] or "paper"
    if options["generator"] is None:
        raise CheckpointError("--generator is missing: PIG's are two files")
    if preset not in PRESETS:
        raise ValueError(f"--preset is {preset!r}; pig has {', '.join(PRESETS)}")
    chosen = PRESETS[preset].replaced({"time_embedding": "ddpm", **fields})  # the authors', whatever the preset
    assert isinstance(chosen, PigPreset)
    family, origin = import_pig(source, options["generator"], chosen)
    show("not in the files, and taken from the preset", family)
    return family, {"preset_name": preset, "imported": {**origin, "options": {"preset": preset, "set": fields}}}


def read_imported(source: Path, fields: dict[str, Any], options: dict[str, Any]) -> tuple["Family", dict[str, Any]]:
    from serving.user import have_a_name

    have_a_name()  # MONAI asks for it
    from training.imports.generic import Said, imported_family

    files = {name: options.pop(name) for name in ("config", "weights", "autoencoder_weights", "key")}
    said = Said(**{name: value for name, value in options.items() if name in TAKEN["imported"]})
    found = read_files(source, **files)
    family, origin = imported_family(found, said, fields)
    channels = family.outputs[0].shape[0]
    colours = (f"pictures have {channels} channels: sample writes them to pairs.npz alone",) if channels != 1 else ()
    for note in (*found.sampling.notes, *colours):
        click.echo(note)
    click.echo(f"not in the files, and said: {json.dumps(origin['options'])}")
    show(f"all that is taken, of files of {found.format}'s", family)
    return family, {"preset_name": "imported", "imported": origin}


def read_under_masks(
    model: str, source: Path, fields: dict[str, Any], options: dict[str, Any]
) -> tuple["Family", dict[str, Any]]:
    from serving.user import have_a_name

    have_a_name()  # MONAI asks for it
    from training.imports.under_masks import CLASSES, SaidOfMasks, import_under_masks

    needed = [name for name in OF_PAINTERS if name in TAKEN[model] and name != "preset"]
    if missing := [f"--{name.replace('_', '-')}" for name in needed if options[name] is None]:
        raise CheckpointError(f"the files do not say, and nothing is guessed: give {', '.join(missing)}")
    if options["spacing"] == "unknown":
        raise CheckpointError("--spacing must be known: that of medgen's hearts is, and may be another")
    preset = options["preset"] or "paper"
    said = SaidOfMasks(CLASSES[model], **{name: options[name] for name in (*needed, "steps", "solver")})
    files = {name: options[name] for name in ("key", "config", "control")}
    family, origin, notes = import_under_masks(model, source, preset, fields, said, **files)
    for note in notes:
        click.echo(note)
    click.echo(f"not in the files, and said: {json.dumps(origin['options'])}")
    show("the network, and what is taken from the preset where the files do not say", family)
    return family, {"preset_name": preset, "imported": origin}


def read_files(
    source: Path, config: Path | None, weights: Path | None, autoencoder_weights: Path | None, key: str | None
) -> "Found":
    """Of whichever library's they are."""
    from training.imports.diffusers_folder import INDEX, read_folder
    from training.imports.monai_files import CONFIG, read_monai

    if not source.exists():
        raise CheckpointError(f"{source} is not there")
    if (source / INDEX).is_file() or (source / "config.json").is_file():
        if given := [name for name in (weights, autoencoder_weights, key) if name is not None]:
            raise CheckpointError(
                f"{given[0]} was given; {source} is a folder of diffusers', and holds its own weights"
            )
        return read_folder(source, config)
    if source.is_file() or (source / CONFIG).is_file() or config is not None:
        return read_monai(source, config, weights, autoencoder_weights, key)
    raise CheckpointError(f"{source} has neither {INDEX}, as of diffusers, nor {CONFIG}, as of MONAI's bundles")


def show(what: str, family: "Family") -> None:
    import dataclasses

    click.echo(f"{what}: {json.dumps(dataclasses.asdict(family.preset))}")
