"""The commands `up`, `sample`, `draw`, `push`, `pull` and `page`."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.bundle import REPOSITORY, BundleError
from serving.chain import ChainError
from serving.client import DEFAULT_METRICS_URL, DEFAULT_URLS, Client, LocalClient, SampleClient, SamplingError
from serving.client_checks import Given
from serving.command_list import CommandList
from serving.condition_files import MaskFileError
from serving.conditions import check_count, read_condition
from serving.draw import digest_of, fill, in_parts
from serving.drawn_set import DrawnSet, Plan, SetError, check_set
from serving.finite import FiniteRange
from serving.page.settings import Server
from serving.picture_files import PictureFileError
from serving.progress import NowAndThen
from serving.shards import ShardError, shard_of
from serving.signals import terminated_as_interrupted
from serving.step_watch import Tell
from serving.store import StoreError, complete_chains, pull, push
from serving.triton.access import RISKS, Access
from serving.triton.address import LOOPBACK, Address
from serving.triton.errors import ServerError
from serving.triton.installation import find_installation
from serving.triton.keeper import Keeper
from serving.triton.log import as_json
from serving.triton.served_models import find_models, why_not_served
from serving.triton.server import TritonServer
from serving.triton.telemetry import METRICS, TRACES, metric_arguments, trace_arguments
from serving.triton.version import describe, find_version, narrowed, permitted
from serving.writers.layout import LayoutError
from serving.writers.layouts import BESIDE_OTHERS, LAYOUTS, make_layout
from serving.writers.npz import NameClashError
from serving.writers.sample_folder import check_destination, filling, names_in
from serving.writers.space import PART, WORTH_SAYING, Space, SpaceError, check_space, space_for, space_for_parts

PORT = click.IntRange(1, 65535)
repository_option = click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY,
    help="Model repository.",
)

STORE_FAILURES = (BundleError, ChainError, OSError, StoreError)


@click.group(cls=CommandList, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Serve trained generators, and ask them for samples."""


@main.command()
@repository_option
@click.option(
    "--model", "models", multiple=True, help="Serve this model alone; repeat for more.  [default: all that are built]"
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every network this machine is on.")
@click.option("--http-port", type=PORT, default=8000)
@click.option("--grpc-port", type=PORT, default=8001)
@click.option("--metrics-port", type=PORT, default=8002)
@click.option(
    "--accept-known-vulnerabilities",
    "accepted",
    type=click.Choice(["grpc", "http"]),
    help="Listen on --host though this Triton has known security holes: by gRPC alone, or by HTTP and gRPC. "
    "One small request over HTTP can end such a Triton.",
)
@click.option(
    "--open-api",
    "open_apis",
    multiple=True,
    type=click.Choice(list(RISKS)),
    help="Leave an API of Triton's open to all who reach the server: "
    + "; ".join(f"with {api} they can {risk}" for api, risk in RISKS.items())
    + ". Repeat for more.  [default: all of these are closed]",
)
@click.option(
    "--metrics-config",
    "metric_settings",
    metavar="NAME=VALUE",
    multiple=True,
    help=f"Of Triton's metrics: {', '.join(METRICS)}. Repeat for more.",
)
@click.option(
    "--trace-config",
    "trace_settings",
    metavar="[MODE,]NAME=VALUE",
    multiple=True,
    help=f"Of Triton's traces: {', '.join(TRACES)}. Repeat for more.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to say what happens: json is an object a line, with the id of the request that it is about.",
)
@click.option("--verbose", is_flag=True, help="Show all of Triton's log.")
def up(
    repository: Path,
    models: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    accepted: str | None,
    open_apis: tuple[str, ...],
    metric_settings: tuple[str, ...],
    trace_settings: tuple[str, ...],
    log_format: str,
    verbose: bool,
) -> None:
    """Start Triton Inference Server and keep it up; Ctrl-C or SIGTERM ends it.

    tritonserver, or a process of a model, that dies is started again. What is built or rebuilt meanwhile is loaded, and
    no request fails for it.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)

    def tell(line: str) -> None:
        if log_format == "json":
            click.echo(as_json(line))
        else:
            console.out(line)

    try:
        names, passed_over = find_models(repository, models)
        for line in why_not_served(repository, passed_over):
            tell(line)
        installation = find_installation()
        version = find_version(installation)
        arguments = [*metric_arguments(metric_settings, version), *trace_arguments(trace_settings)]
        asked = Address(host, http_port, grpc_port, metrics_port)
        address = permitted(asked, version, accepted)
        if address != asked:
            tell(narrowed(asked, address, version))
        access = Access(open_apis)
        with TritonServer(repository, names, address, tell, verbose, access, installation, arguments) as server:
            keeper = Keeper(server, models)
            server.stop_on(signal.SIGINT, signal.SIGTERM)
            with console.status(f"Loading {', '.join(names)}"):
                ready = server.wait_until_ready()
            if ready:
                urls = address.urls()
                tell(f"Serving {', '.join(names)} by {describe(version)}")
                tell(f"HTTP http://{urls['http']}  gRPC {urls['grpc']}  metrics {urls['metrics']}/metrics")
                for api in open_apis:
                    tell(f"Open to all who reach this server: {api}, with which they can {RISKS[api]}")
                tell("Ctrl-C ends it")
            sys.exit(keeper.wait())
    except ServerError as error:
        if log_format == "json":
            click.echo(as_json(str(error), "error"), err=True)
            sys.exit(1)
        raise click.ClickException(str(error)) from None


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that asks for samples: of what, how, and whom."""
    for option in reversed(ASKING):
        command = option(command)
    return command


ASKING = (
    click.option("--model", required=True, help="The model to ask."),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        help="Seed of the first; each next one has the next seed.",
    ),
    click.option("--steps", type=int, help="Steps of the solver.  [default: the model's own]"),
    click.option("--solver", help="How to take them.  [default: the model's own]"),
    click.option("--mask-steps", type=int, help="Steps of a chain's mask stage.  [default: as --steps]"),
    click.option("--mask-solver", help="How it takes them.  [default: as --solver]"),
    click.option(
        "--condition",
        "condition_files",
        metavar="FILE",
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        help="What to draw under. Masks: the pairs.npz of other samples, or an .npy of uint8 [N, H, W] or "
        "[N, 1, H, W]. Pictures: a grey PNG or PGM of 8 or 16 bits, a folder of them, or an .npz; repeat for more.",
    ),
    click.option(
        "--label",
        "labels",
        metavar="CLASS",
        multiple=True,
        help="The class to draw, by its index or name, of a model that takes one; repeat for more, which samples have "
        "in turn.",
    ),
    click.option(
        "--add-to",
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="The raw nnU-Net data set that samples of the layout nnunet will be added to: they must fit it, and "
        "splits_final.json keeps them out of its validation.",
    ),
    click.option("--protocol", type=click.Choice(list(DEFAULT_URLS)), default="grpc"),
    click.option("--url", help="HOST:PORT of the server.  [default: port 8001 (grpc) or 8000 (http) of this machine]"),
    click.option(
        "--timeout",
        type=FiniteRange(0, min_open=True),
        default=300.0,
        help="Seconds that a request may take, waiting for those before it included.",
    ),
    click.option(
        "--wait", type=FiniteRange(0), default=0.0, help="Seconds to wait for a server that is still coming up."
    ),
    click.option(
        "--metrics-url", metavar="HOST:PORT", help="The server's metrics: steps are shown too, as they tell them."
    ),
    click.option("--local", is_flag=True, help="Sample in this process; no server is needed."),
    repository_option,
)
FAILURES = (
    SamplingError,
    MaskFileError,
    PictureFileError,
    LayoutError,
    NameClashError,
    SetError,
    ShardError,
    SpaceError,
    OSError,
)


@dataclass
class Asked:
    """What the options of `asking` say."""

    model: str
    seed: int
    steps: int | None
    solver: str | None
    mask_steps: int | None
    mask_solver: str | None
    condition_files: tuple[Path, ...]
    labels: tuple[str, ...]
    add_to: Path | None
    protocol: str
    url: str | None
    timeout: float
    wait: float
    metrics_url: str | None
    local: bool
    repository: Path

    def __post_init__(self) -> None:
        self.given: Given | None = None
        self.notes: list[str] = []
        self.told = _Steps()

    @property
    def solving(self) -> dict[str, Any]:
        """What was asked for, of the parameters of Client.sample."""
        given = {name: getattr(self, name) for name in ("steps", "solver", "mask_steps", "mask_solver")}
        return {name: value for name, value in given.items() if value is not None}

    def read_condition(self, client: Client) -> None:
        """Reads what the model is to draw under, and notes what is to be said of it."""
        if self.condition_files and self.labels:
            raise SamplingError(
                f"--condition {self.condition_files[0]} and --label {self.labels[0]}: a model takes one of them", 400
            )
        self.given, self.notes = read_condition(client, self.model, self.condition_files)

    def read_labels(self, client: Client, count: int) -> None:
        """The classes that so many samples are drawn of, and what they are."""
        if not self.labels:
            return
        self.given = client.labels(self.model, self.labels, count)
        classes = client.label(self.model)
        if classes is not None and classes.labels:
            drawn = dict.fromkeys(self.given.values[:, 0].tolist())
            self.notes = [f"{classes.name} {', '.join(f'{index} is {classes.labels[index]}' for index in drawn)}"]

    def count(self, wanted: int | None, default: int) -> int:
        if self.given is None:
            return wanted or default
        return check_count(self.given, self.condition_files, wanted)

    def client(self) -> Client:
        """Ready to be asked for the model, if `wait` is long enough."""
        if self.local:
            return LocalClient(self.repository)
        how: dict[str, Any] = {} if self.metrics_url is None else {"steps": self.told, "metrics_url": self.metrics_url}
        client = SampleClient(self.url, self.protocol, self.timeout, **how)
        if self.wait:
            client.wait_until_ready(self.model, self.wait)
        return client


def _say_space(model: str, count: int, space: Space, folder: Path) -> None:
    check_space(folder, space)
    if max(space.disk, space.memory) >= WORTH_SAYING:
        click.echo(f"{count} samples of {model} take {space}", err=True)


@main.command()
@click.option(
    "--count", type=click.IntRange(1), help="How many samples.  [default: 16, or one for each mask or picture]"
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the samples.")
@click.option("--nifti", is_flag=True, help="As --layout nifti.")
@click.option(
    "--layout",
    "layout_names",
    multiple=True,
    type=click.Choice(BESIDE_OTHERS),
    help="Write them so too, into a folder of that name; repeat for more.",
)
@click.option("--force", is_flag=True, help="Replace the samples in the folder.")
@asking
@terminated_as_interrupted()
def sample(
    count: int | None, out: Path, nifti: bool, layout_names: tuple[str, ...], force: bool, **options: Any
) -> None:
    """Ask for samples and write them as NPZ and PNG, with a contact sheet.

    A seed gives the same sample every time, however many are asked for with it. For more samples than are looked at,
    `draw` is the better command.
    """
    try:
        check_destination(out, force)
        names = dict.fromkeys([*(["nifti"] if nifti else []), *layout_names])
        asked = Asked(**options)
        if asked.add_to is not None and "nnunet" not in names:
            raise LayoutError("--add-to is for --layout nnunet")
        layouts = [make_layout(name, asked.add_to if name == "nnunet" else None) for name in names]
        with asked.client() as client:
            asked.read_condition(client)
            count = asked.count(count, 16)
            asked.read_labels(client, count)
            _say_space(asked.model, count, space_for(client.shapes(asked.model), count, layouts), out)
            began = time.monotonic()
            with filling(out, force, layouts, asked.notes) as add, _progress(asked, count) as progress:
                seeds = range(asked.seed, asked.seed + count)
                for part in in_parts(client, asked.model, seeds, PART, asked.given, asked.solving, progress):
                    add(part)
            seconds = time.monotonic() - began
    except FAILURES as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{count} samples of {asked.model} in {seconds:.1f} s, {count / seconds:.2f} a second")
    for line in (*asked.notes, f"{out}: {', '.join(names_in(out))}"):
        click.echo(line)


def _check(context: click.Context, _: click.Parameter, folder: Path | None) -> None:
    if folder is None:
        return
    try:
        found = check_set(folder)
    except FAILURES as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{folder}: {found.samples} samples in {found.parts} parts are as they were drawn")
    for problem in found.problems:
        click.echo(problem)
    if not found.problems:
        click.echo(f"sha256 of all: {found.digest}")
    context.exit(1 if found.problems else 0)


@main.command()
@click.option(
    "--count", type=click.IntRange(1), help="How many samples, of all shards.  [default: one for each mask or picture]"
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the samples, of all shards.")
@click.option("--layout", "layout_name", type=click.Choice(list(LAYOUTS)), default="npz", help="How they are laid out.")
@click.option("--per-file", type=click.IntRange(1, 100_000), default=PART, help="Samples that are written together.")
@click.option(
    "--shard",
    metavar="K/N",
    help="Draw the K-th of N shards, from 0. With N alone, or without it, SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX "
    "says which.",
)
@click.option(
    "--check",
    metavar="DIR",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_check,
    help="Draw nothing: compare all files in DIR with what was drawn, and say what is missing.",
)
@asking
@terminated_as_interrupted()
def draw(count: int | None, out: Path, layout_name: str, per_file: int, shard: str | None, **options: Any) -> None:
    """Draw many samples, as many as the disk holds, by as many processes as there are.

    A part is put in its place when it is whole. After a kill, at whatever moment, the same command goes on with what is
    missing, and the files are the same as without one. Other options, or another bundle, are refused.
    """
    try:
        mine = shard_of(shard, os.environ)
        asked = Asked(**options)
        layout = make_layout(layout_name, asked.add_to)
        if not (count or asked.condition_files):
            raise click.UsageError("--count is missing")
        with asked.client() as client:
            asked.read_condition(client)
            count = asked.count(count, 0)
            asked.read_labels(client, count)
            condition = None if asked.given is None else digest_of(asked.given)
            described = {"name": layout_name, **layout.options()}
            plan = Plan(asked.model, asked.seed, count, per_file, asked.solving, condition, described)
            drawn_set, parts = DrawnSet(out, plan, layout), mine.parts(plan.parts)
            wanted = sum(len(plan.seeds(part)) for part in parts)
            if mine.source:
                click.echo(f"shard {mine.number} of {mine.of} ({mine.source}): {len(parts)} of {plan.parts} parts")
            drawn_set.open()
            missing = sum(len(plan.seeds(part)) for part in parts if not drawn_set.has(part))
            space = space_for_parts(client.shapes(asked.model), missing, per_file, layout)
            _say_space(asked.model, missing, space, out)
            began = time.monotonic()
            with _progress(asked, wanted) as progress:
                drawn, there = fill(client, drawn_set, parts, asked.given, progress, asked.notes)
            seconds = time.monotonic() - began
    except FAILURES as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{drawn} samples of {asked.model} in {seconds:.1f} s, {drawn / seconds:.2f} a second; {there} were there"
    )
    for line in (*asked.notes, f"{out} is right if medgen draw --check {shlex.quote(str(out))} says so"):
        click.echo(line)


@main.command("push")
@click.argument("model")
@click.argument("url")
@repository_option
@terminated_as_interrupted()
def push_command(model: str, url: str, repository: Path) -> None:
    """Copy MODEL's bundle to URL/MODEL/DIGEST, and say that address.

    URL is a place that fsspec knows: file:///..., s3://BUCKET/... (package s3fs), gs://... (gcsfs), az://... (adlfs).
    """
    try:
        click.echo(push(repository, model, url))
    except STORE_FAILURES as error:
        raise click.ClickException(str(error)) from None


@main.command("pull")
@click.argument("address", metavar="URL/MODEL/DIGEST")
@repository_option
@terminated_as_interrupted()
def pull_command(address: str, repository: Path) -> None:
    """Put a bundle that was pushed into the repository, if every file of it is the one that was pushed.

    The bundle that was there before is replaced at once and whole, or stays as it was.
    """
    try:
        bundle = pull(address, repository)
        click.echo(f"{bundle.folder} is {bundle.digest}")
        for chain in complete_chains(repository, bundle.manifest.model):
            click.echo(f"the chain {chain} has all its stages")
    except STORE_FAILURES as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--url", help="HOST:PORT of the server, gRPC.  [default: port 8001 of this machine]")
@click.option(
    "--metrics-url",
    metavar="HOST:PORT",
    help="The server's metrics: steps are shown too, as they tell them.  [default: port 8002 of this machine, without "
    "--url]",
)
@click.option("--timeout", type=FiniteRange(0, min_open=True), default=300.0, help="Seconds that a request may take.")
@click.option("--host", default=LOOPBACK, help="Address to listen on. Nobody is asked for a name.")
@click.option("--port", type=PORT, default=7860)
def page(url: str | None, metrics_url: str | None, timeout: float, host: str, port: int) -> None:
    """Show a server's models on a page in a browser: draw, look at samples, and download them.

    The page needs no internet, and asks nobody but the server. Ctrl-C or SIGTERM ends it.
    """
    if url is None and metrics_url is None:
        metrics_url = DEFAULT_METRICS_URL
    try:
        from serving.page.server import serve

        with suppress(KeyboardInterrupt):  # which is how it is to end
            serve(Server(url, metrics_url, timeout), host, port, click.echo)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "serving":
            raise
        raise click.ClickException(
            f"page needs the package {error.name}, which is not installed: pip install 'medgen[page]'"
        ) from None
    except (SamplingError, OSError) as error:
        raise click.ClickException(str(error)) from None


class _Steps:
    """What a client calls while it draws; who draws says what is to be done."""

    show: Tell | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.show is not None:
            self.show(done, total)


@contextmanager
def _progress(asked: Asked, count: int) -> Iterator[Callable[[int, int], None]]:
    """What shows how many of the samples are drawn, on a terminal as a bar, and else as a line now and then."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    line, model = NowAndThen(), asked.model
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(model, total=count)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not console.is_terminal:
                line(f"{model}: {done} of {total} samples")

        def show_steps(done: int, total: int) -> None:
            text = f"{model}, {done} of {total} steps"
            bar.update(task, description=text)
            if not console.is_terminal:
                line(text)

        asked.told.show = show_steps
        yield progress


if __name__ == "__main__":
    main()
