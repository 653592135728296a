"""``python -m training``: train a generator, or pack a trained one to hand on."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from serving.command_list import CommandList
from serving.finite import FiniteRange
from training import CheckpointError
from training.assignment import assignment
from training.importing import import_command
from training.models import family_names

if TYPE_CHECKING:
    from training.data.dataset import LoadedPairs, Unpaired
    from training.data.phantom import Phantoms
    from training.family import Family
    from training.fit import Run


@click.group(cls=CommandList)
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
@click.option("--prior",            type=click.Path(path_type=Path),                  help="Of dmgan_image: the pggan through which its pictures are found again.")
@click.option("--sites",            type=click.IntRange(1, 1000),                     help="Of dmgan_image: discriminators at so many sites, simulated on this machine by cutting --data, or with --listen real ones.")
@click.option("--listen",           metavar="HOST:PORT",                              help="Wait there for the sites, which have data of their own; --data is the server's alone.")
@click.option("--certificate",      type=click.Path(path_type=Path),                  help="The server's kit, of python -m training certificates.")
@click.option("--site-timeout",     default=60.0, show_default=True, type=FiniteRange(0, min_open=True), help="Seconds after which a site is left out of a step.")
@click.option("--private", "private", multiple=True, callback=assignment, metavar="FIELD=VALUE", help="Of simulated sites: noise on their votes, by fields of FLARE's SVTPrivacy, as in --private epsilon=1.")
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
    prior: Path | None,
    sites: int | None,
    listen: str | None,
    certificate: Path | None,
    site_timeout: float,
    private: dict[str, Any],
) -> None:
    """Train a model on (mask, image) pairs.

    Run it under `accelerate launch` for several GPUs. Ctrl-C writes a checkpoint and stops.
    """
    import torch
    from accelerate import PartialState

    from serving.bundle import file_digest
    from training.checkpoint import find_checkpoint, read_config
    from training.federated.runs import Sites, check_counted, judged
    from training.fit import Run, check_folder
    from training.lineage import lineage
    from training.models import load_family
    from training.reconstructions import open_prior

    with failures_in_words(out):
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
        begun = [] if init is None else start_from(init, untrained)
        digest = begun[0]["digest"] if begun else None
        config = {"preset_name": preset, "data": data, "seed": seed, "precision": precision, "init": digest}
        elsewhere = Sites(sites, listen, certificate, site_timeout, private)
        if family.learns_through and prior is None:
            raise ValueError(f"{model} learns from what {family.learns_through} draws: name a checkpoint with --prior")
        through = open_prior(prior, model) if family.learns_through and prior else None
        if prior is not None and through is not None:
            begun += lineage({**read_config(find_checkpoint(prior)), "digest": through[1]})
            config |= {"learnt_through": through[1], "sites": sites, "elsewhere": listen is not None, "private": private}
            if file := getattr(chosen, "vgg16", None):
                config["vgg16_sha256"] = file_digest(Path(file))
            if PartialState().num_processes > 1:
                raise ValueError(f"{model} trains in one process, and its discriminators at --sites in others")
            check_counted(data)
        elif prior is not None or sites is not None:
            raise ValueError(f"--prior and --sites are for models that learn through another one; {model} does not")

        if begun:
            config["ancestors"] = begun

        def learning(dataset: Any) -> AbstractContextManager[Any]:
            if through is None:
                return nullcontext(dataset)
            check_folder(out, resume)  # before what takes long, and is written there
            out.mkdir(parents=True, exist_ok=True)
            return judged(untrained, dataset, *through, elsewhere, out, seed, click.echo)

        run = Run(out, config, seed, precision, compiled, workers, log_every, checkpoint_every, preview_every)
        train(untrained, data, run, resume, skip_bad, learning, {"sites"} if listen else set())


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
    from serving.sampling.solvers import SOLVERS
    from training.checkpoint import goes_on, load_checkpoint, unfinished
    from training.distill import plan, student_of
    from training.fit import Run
    from training.lineage import lineage

    with failures_in_words(out):
        trained, known = load_checkpoint(teacher)
        if so_far := unfinished(trained, known):
            raise ValueError(f"--teacher {teacher} was trained to {so_far}; go on with {goes_on(known)} first")
        source = data or known.get("data")
        if source is None:
            raise ValueError(f"--teacher {teacher} does not say what it learnt from; name it with --data")
        planned = plan(trained, known, steps, teacher_steps)
        student = student_of(trained, planned, updates or trained.preset.steps[-1], fields)
        click.echo(
            f"{planned.steps} steps of {planned.solver} for {planned.teacher_steps} of the teacher's, in "
            f"{student.preset.steps[0]} updates on {source}"
        )
        drawn_by = trained.preset.default_solver
        if drawn_by is not None and SOLVERS[drawn_by].stochastic:
            click.echo(
                f"{trained.name} draws by {drawn_by}, and what its noise mends on the way is lost to a student: look at "
                f"{planned.teacher_steps} steps of {planned.solver} first, with medgen benchmarks anatomy or tune"
            )
        kept = {name: known[name] for name in ("license",) if name in known}
        config = {"preset_name": known.get("preset_name", "custom"), **kept, "data": source, "seed": seed}
        config |= {"precision": precision, "student": planned.record(), "ancestors": lineage(known)}
        run = Run(out, config, seed, precision, compiled, workers, log_every, checkpoint_every, preview_every)
        train(student, source, run, resume, skip_bad, learnt_by_teacher=None if data else known.get("data_digest"))


# fmt: on


@contextmanager
def failures_in_words(out: Path) -> Iterator[None]:
    """What can be expected to go wrong in a run is one line, and a run that was stopped ends with 130."""
    import torch

    from training.data import DataError
    from training.federated.channel import ChannelError
    from training.fit import Interrupted

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        (why, *_) = str(error).splitlines() or ["out of memory"]
        raise click.ClickException(f"{why}: a smaller --batch takes less") from error
    except BrokenPipeError:
        raise  # who reads has seen enough, and click knows what to do
    except OSError as error:
        named = error.filename or error.errno is None
        raise click.ClickException(str(error) if named else f"{out} cannot be written: {error.strerror}") from error
    except (ChannelError, CheckpointError, DataError, ValueError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as stopped:
        click.echo(stopped)
        raise SystemExit(130) from stopped


def train(
    untrained: "Family",
    data: str,
    run: "Run",
    resume: bool,
    skip_bad: bool,
    learning: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    may_change: Set[str] = frozenset(),
    learnt_by_teacher: str | None = None,
) -> None:
    """Open the data, see that a run that is resumed is as it was, and fit.

    learning: of the data what is learnt from. may_change: what of the config is not the run's for ever.
    learnt_by_teacher: the digest that the data's files must have, if they must.
    """
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
    run = dataclasses.replace(run, config={**run.config, "processes": PartialState().num_processes})
    if resume:
        now = {"model": untrained.name, **run.config, "preset": dataclasses.asdict(preset)}
        before = read_config(find_checkpoint(run.out))
        if before.get("model") == untrained.name:
            before["preset"] = with_defaults(preset, before.get("preset", {}))
        now = json.loads(json.dumps(now))
        before.setdefault("processes", now["processes"])  # which an older medgen did not say
        if "ancestors" not in before:  # of an older medgen, which kept one digest alone
            before["ancestors"] = now.get("ancestors")
            if "student" in before and "student" in now:
                before["student"] = {"line": now["student"]["line"], **before["student"]}
        for name in sorted(may_change):
            if before.get(name) != now[name]:
                click.echo(f"{name}: {now[name]} from here on; it was {before.get(name)}")
                before[name] = now[name]
        check_unchanged(before, now)
    dataset: LoadedPairs | Phantoms | Unpaired
    if untrained.unpaired:
        dataset = open_unpaired(data, preset.size, skip_bad=skip_bad)
    else:
        labels = untrained.labels
        dataset = open_dataset(data, preset.size, "train", skip_bad, labels or LESION, masks=bool(labels))
        check_classes(untrained, dataset, data)
    files = getattr(dataset, "files", {})
    if learnt_by_teacher not in (None, listing_digest(files)):
        raise ValueError(
            f"{data} is not what the teacher learnt from: its files are others; name with --data what to take"
        )
    if resume:
        then = read_config(find_checkpoint(run.out)).get("data_digest")
        if then is None:
            click.echo(f"{run.out} was begun without a list of its data: whether they have changed is not known")
        check_same_files(run.out, then, files)
    summary = summarise(dataset)
    if PartialState().is_main_process:
        click.echo("\n".join(lines(summary)))
    config = {**run.config, "data_digest": listing_digest(files), "data_summary": summary}
    with learning(dataset) as learnt:
        checkpoint = fit(untrained, learnt, dataclasses.replace(run, config=config, files=files), resume)
    if PartialState().is_main_process:
        click.echo(f"{checkpoint} is ready: medgen export build --model {untrained.name} --checkpoint {run.out}")


# Of presets: what says how is learnt, which may be another at any time, and what networks compute with the same weights.
OF_LEARNING = {
    "batch", "steps", "learning_rate", "lr_schedule", "weight_decay", "ema_decay", "betas", "focus", "focus_at",
}  # fmt: skip
OF_NETWORKS = {"head_dim", "norm_groups", "time_embedding"}


def start_from(checkpoint: Path, untrained: "Family") -> list[dict[str, Any]]:
    """Give a model the weights of a checkpoint, or of a file that others published, and return their lineage."""
    from serving.bundle import file_digest
    from training.checkpoint import load_checkpoint
    from training.lineage import lineage

    if checkpoint.is_file():
        click.echo(f"{checkpoint}: {untrained.load_published(checkpoint)}")
        return [{"digest": file_digest(checkpoint)}]
    trained, config = load_checkpoint(checkpoint)
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (trained, untrained)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"--init is {checkpoint}, a {trained.name} of other networks than this preset's")
    untrained.load_state_dict(trained.state_dict())
    then, now = (dataclasses.asdict(model.preset) for model in (trained, untrained))
    for name in sorted((then.keys() & now.keys()) - OF_LEARNING):
        if then[name] == now[name]:
            continue
        if name in OF_NETWORKS:
            raise ValueError(f"--init is {checkpoint}, whose {name} is {then[name]}; this preset's is {now[name]}")
        click.echo(f"{checkpoint} learnt with {name} {then[name]}, and goes on with {now[name]}")
    return lineage(config)


def check_classes(family: "Family", dataset: "LoadedPairs | Phantoms", data: str) -> None:
    """A model learns the classes that it has."""
    if family.labels and dataset.labels != family.labels:
        found, wanted = (", ".join(labels) for labels in (dataset.labels, family.labels))
        raise ValueError(f"--data {data} has masks of the classes {found}; {family.name} learns {wanted}")


def check_unchanged(then: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run is the run it was: what is asked now is what was then, and of that no field is left out."""
    for name, value in now.items():
        before = then.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            check_unchanged(before, dict.fromkeys(before) | value)
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


# fmt: off
@main.command("site")
@click.option("--server",      required=True, metavar="HOST:PORT",                     help="Where the server listens.")
@click.option("--certificate", required=True, type=click.Path(path_type=Path),         help="This site's kit, of python -m training certificates.")
@click.option("--data",        required=True,                                          help="This site's pictures, as of fit; they do not leave it.")
@click.option("--prior",       required=True, type=click.Path(path_type=Path),         help="The server's pggan.")
@click.option("--out",         required=True, type=click.Path(path_type=Path),         help="This site's folder: its discriminator's checkpoints, and its reconstructions.")
@click.option("--private", "private", multiple=True, callback=assignment, metavar="FIELD=VALUE", help="Noise on what is said of pictures, by fields of FLARE's SVTPrivacy: epsilon, epsilon_release, gamma, fraction, tau, noise_var.")
@click.option("--patience",    default=600.0, show_default=True, type=FiniteRange(0), help="Seconds that the server may be away.")
@click.option("--skip-bad",    is_flag=True,                                           help="Leave out files that cannot be used, instead of stopping.")
def site_command(
    server: str, certificate: Path, data: str, prior: Path, out: Path, private: dict[str, Any], patience: float, skip_bad: bool
) -> None:
    """Judge what a server's generator draws, by pictures that stay here.

    Start it again with the same options after a crash: it goes on from its newest checkpoint.
    """
    from serving.folders import Busy, locked
    from training.data import DataError
    from training.federated.channel import ChannelError
    from training.federated.client import run_site
    from training.federated.privacy import sparse_vector_privacy
    from training.federated.runs import open_site_data

    try:
        out.mkdir(parents=True, exist_ok=True)
        noisy = sparse_vector_privacy(private, click.echo) if private else None
        with locked(out / ".lock"):
            opened = open_site_data(data, prior, out, skip_bad, click.echo)
            run_site(server, certificate, out, opened, noisy, patience, click.echo)
    except KeyboardInterrupt:
        click.echo("this site has left; the same command brings it back")
        raise SystemExit(130) from None
    except (Busy, ChannelError, CheckpointError, DataError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


# fmt: on


@main.command("certificates")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--host", default="localhost", show_default=True, help="The server's name in the network.")
@click.option("--site", "sites", multiple=True, metavar="NAME", help="A site's name; repeat for more, also later.")
def certificates_command(out: Path, host: str, sites: tuple[str, ...]) -> None:
    """Write kits for a server and its sites to OUT: keys, and certificates by which they know each other."""
    from training.federated.channel import ChannelError, write_kits

    try:
        kits = write_kits(out, host, sites)
    except (ChannelError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for kit in kits:
        click.echo(f"{kit}: give it to nobody but {kit.name}")


if __name__ == "__main__":
    main(prog_name="python -m training")
