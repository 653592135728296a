"""medgen up | sample"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.bundle import REPOSITORY
from serving.client import DEFAULT_URLS, Client, LocalClient, SampleClient, SamplingError
from serving.condition_files import MaskFileError, read_masks
from serving.progress import NowAndThen
from serving.sample_set import Samples
from serving.signals import terminated_as_interrupted
from serving.step_watch import Tell
from serving.triton.access import RISKS, Access
from serving.triton.address import Address
from serving.triton.errors import ServerError
from serving.triton.installation import find_installation
from serving.triton.keeper import Keeper
from serving.triton.served_models import find_models
from serving.triton.server import TritonServer
from serving.triton.version import describe, find_version, narrowed, permitted
from serving.writers.nifti import NiftiError, check_nifti
from serving.writers.sample_folder import NameClashError, check_destination, write_samples
from serving.writers.space import WORTH_SAYING, SpaceError, check_space, space_for

PORT = click.IntRange(1, 65535)
repository_option = click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY,
    help="Model repository.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
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
    verbose: bool,
) -> None:
    """Start Triton Inference Server and keep it up; Ctrl-C or SIGTERM ends it.

    tritonserver, or a process of a model, that dies is started again. What is built or rebuilt meanwhile is loaded, and
    no request fails for it.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        names, passed_over = find_models(repository, models)
        for name, reason in passed_over.items():
            console.print(f"{name} is not served: {reason}")
        installation = find_installation()
        version = find_version(installation)
        asked = Address(host, http_port, grpc_port, metrics_port)
        address = permitted(asked, version, accepted)
        if address != asked:
            console.print(narrowed(asked, address, version))
        access = Access(open_apis)
        with TritonServer(repository, names, address, console.out, verbose, access, installation) as server:
            keeper = Keeper(server, models)
            server.stop_on(signal.SIGINT, signal.SIGTERM)
            with console.status(f"Loading {', '.join(names)}"):
                ready = server.wait_until_ready()
            if ready:
                urls = address.urls()
                console.print(f"Serving {', '.join(names)} by {describe(version)}")
                console.print(f"HTTP http://{urls['http']}  gRPC {urls['grpc']}  metrics {urls['metrics']}/metrics")
                for api in open_apis:
                    console.print(f"Open to all who reach this server: {api}, with which they can {RISKS[api]}")
                console.print("Ctrl-C ends it")
            sys.exit(keeper.wait())
    except ServerError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--model", required=True, help="The model to ask.")
@click.option("--count", type=click.IntRange(1), help="How many samples.  [default: 16, or one for each mask]")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Seed of the first; each next one has the next seed."
)
@click.option("--steps", type=int, help="Steps of the solver.  [default: the model's own]")
@click.option("--solver", help="How to take them.  [default: the model's own]")
@click.option("--mask-steps", type=int, help="Steps of a chain's mask stage.  [default: as --steps]")
@click.option("--mask-solver", help="How it takes them.  [default: as --solver]")
@click.option(
    "--condition",
    "condition_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Masks for an image model: the pairs.npz of other samples, or an .npy of uint8 [N, H, W] or [N, 1, H, W].",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the samples.")
@click.option("--nifti", is_flag=True, help="Write NIfTI files too, with sidecars that name labels and origin.")
@click.option("--force", is_flag=True, help="Replace the samples in the folder.")
@click.option("--protocol", type=click.Choice(list(DEFAULT_URLS)), default="grpc")
@click.option("--url", help="HOST:PORT of the server.  [default: port 8001 (grpc) or 8000 (http) of this machine]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=300.0,
    help="Seconds that a request may take, waiting for those before it included.",
)
@click.option(
    "--wait", type=click.FloatRange(0), default=0.0, help="Seconds to wait for a server that is still coming up."
)
@click.option(
    "--metrics-url", metavar="HOST:PORT", help="The server's metrics: steps are shown too, as they tell them."
)
@click.option("--local", is_flag=True, help="Sample in this process; no server is needed.")
@repository_option
@terminated_as_interrupted()
def sample(
    model: str,
    count: int | None,
    seed: int,
    steps: int | None,
    solver: str | None,
    mask_steps: int | None,
    mask_solver: str | None,
    condition_file: Path | None,
    out: Path,
    nifti: bool,
    force: bool,
    protocol: str,
    url: str | None,
    timeout: float,
    wait: float,
    metrics_url: str | None,
    local: bool,
    repository: Path,
) -> None:
    """Ask for samples and write them as NPZ and PNG, with a contact sheet.

    A seed gives the same sample every time, however many are asked for with it.
    """
    try:
        check_destination(out, force)
        if nifti:
            check_nifti()
        masks = None if condition_file is None else read_masks(condition_file)
        notes = []
        if condition_file is not None and masks is not None and not masks.labels:
            notes.append(f"{condition_file.name} does not name its classes: only their range was checked")
        count = count or (16 if masks is None else len(masks.values))
        solving = {"steps": steps, "solver": solver, "mask_steps": mask_steps, "mask_solver": mask_solver}
        steps_told = _Steps()
        how: dict[str, Any] = {} if metrics_url is None else {"steps": steps_told, "metrics_url": metrics_url}
        with LocalClient(repository) if local else SampleClient(url, protocol, timeout, **how) as client:
            if wait and isinstance(client, SampleClient):
                client.wait_until_ready(model, wait)
            space = space_for(client.shapes(model), count, nifti)
            check_space(out, space)
            if max(space.disk, space.memory) >= WORTH_SAYING:
                click.echo(f"{count} samples of {model} take {space}", err=True)
            began = time.monotonic()
            samples = _with_progress(client, steps_told, model, count, seed=seed, **solving, condition=masks)
            seconds = time.monotonic() - began
        names = write_samples(samples, out, force, nifti, notes)
    except (SamplingError, MaskFileError, NiftiError, NameClashError, SpaceError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{count} samples of {model} in {seconds:.1f} s, {count / seconds:.2f} a second")
    for line in (*notes, f"{out}: {', '.join(names)}"):
        click.echo(line)


class _Steps:
    """What a client calls while it draws; who draws says what is to be done."""

    show: Tell | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.show is not None:
            self.show(done, total)


def _with_progress(client: Client, told: _Steps, model: str, count: int, **asked: Any) -> Samples:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    line = NowAndThen()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(model, total=count)

        def progress(done: int, _: int) -> None:
            bar.update(task, completed=done)
            if not console.is_terminal:
                line(f"{model}: {done} of {count} samples")

        def show_steps(done: int, total: int) -> None:
            text = f"{model}, {done} of {total} steps"
            bar.update(task, description=text)
            if not console.is_terminal:
                line(text)

        told.show = show_steps
        return client.sample(model, count, **asked, progress=progress)


if __name__ == "__main__":
    main()
