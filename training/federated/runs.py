"""From the options of `fit` to a panel: a discriminator in this process, simulated sites, or real ones."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from training.data import open_dataset
from training.data.dataset import LoadedPairs
from training.family import Family
from training.federated.channel import SERVER, ChannelError, check_installed, write_kits
from training.federated.client import StruckOut, run_site
from training.federated.privacy import check_fields, sparse_vector_privacy, try_privacy
from training.federated.server import SitesElsewhere
from training.federated.shards import known_patient, shards
from training.federated.site import Site, SitesHere
from training.federated.terms import Terms
from training.reconstructions import Pairs, found_pairs, key_of, open_prior, read_pairs, write_pairs

Say = Callable[[str], object]
PAIRS = "pairs.safetensors"
ALONE = "here"
PATIENCE = 60.0  # seconds that a simulated site waits for a server that has gone


@dataclass(frozen=True)
class Sites:
    """How discriminators are to be had.

    count: None for one in this process; of simulated sites, or with ``address`` of real ones to wait for. address:
    HOST:PORT to listen at, with the server's kit. timeout: as of ``SitesElsewhere``. private: fields of FLARE's filter,
    of simulated sites; real ones decide for themselves.
    """

    count: int | None = None
    address: str | None = None
    kit: Path | None = None
    timeout: float = 60.0
    private: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count is None and (self.address or self.kit or self.private):
            raise ValueError("--listen, --certificate and --private are of sites: say how many with --sites")
        if (self.address is None) != (self.kit is None):
            raise ValueError(
                "--listen and --certificate go together: python -m training certificates writes the server's"
            )
        if self.address and self.private:
            raise ValueError("--private is said by each site itself, with python -m training site")
        check_fields(self.private)


def names_of(dataset: Any) -> list[str]:
    return list(dataset.names) if isinstance(dataset, LoadedPairs) else [f"{k:08d}" for k in range(len(dataset))]


@contextmanager
def judged(
    family: Any, dataset: Dataset[Any], prior: Family, digest: str, sites: Sites, out: Path, seed: int, say: Say
) -> Iterator[Pairs]:
    """Give a family its panel while it lasts, and yield the pairs that it is to learn from."""
    preset = family.preset
    if family.perceives:
        family.vgg16()  # a file that is none is told of before the long part
    if sites.count is not None:
        check_installed()
    files = getattr(dataset, "files", None) or names_of(dataset)
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if (tenth := 10 * done // total) > told and done < total:
            told = tenth
            say(f"reconstructions: {done} of {total}")

    pairs = found_pairs(out / PAIRS, dataset, prior, digest, preset, files, progress)
    say(f"{len(pairs)} reconstructions of {preset.codes} codes, {preset.inversion_steps} steps: {psnr(pairs):.1f} dB")
    terms = Terms(family.name, preset, seed, digest)
    with ExitStack() as stack:
        if sites.count is None:
            family.panel = SitesHere({ALONE: Site(ALONE, pairs, terms, out / "sites" / ALONE, say=say)})
        else:
            processes: list[Any] = []
            address, kit = sites.address, sites.kit
            if address is None or kit is None:
                pairs, shares = split(dataset, pairs, sites.count, say)
                address, kit = f"localhost:{free_port()}", out / "sites" / "kits" / SERVER
                names = [f"site-{number:02d}" for number in range(1, sites.count + 1)]
                key = key_of(files, digest, preset)
                if sites.private:
                    try_privacy(sites.private, (preset.batch, 1, preset.size, preset.size), say)
                processes = prepared(out / "sites", names, shares, key, address, sites.private)
                stack.callback(end, processes)
            family.panel = stack.enter_context(
                SitesElsewhere(
                    address,
                    kit,
                    terms,
                    sites.count,
                    sites.timeout,
                    recorded(say, out / "sites" / "log.txt"),
                    lambda: bool(family.stops),
                    lambda: lost(processes, out / "sites"),
                )
            )
            for process in processes:
                process.start()
        yield pairs


def recorded(say: Say, file: Path) -> Say:
    """Say, and keep it with its time: who was there when decides what a run has learnt."""
    file.parent.mkdir(parents=True, exist_ok=True)

    def both(line: str) -> None:
        say(line)
        with file.open("a") as log:
            log.write(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} {line}\n")

    return both


def psnr(pairs: Pairs) -> float:
    """In dB, of all pictures' mean squared error, in [0, 1]."""
    error = ((pairs.images - pairs.conditions) / 2).square().mean()
    return float(-10 * error.log10())


def split(dataset: Any, pairs: Pairs, count: int, say: Say) -> tuple[Pairs, list[Pairs]]:
    """The server's own, and each simulated site's."""
    sizes = getattr(dataset, "sizes", None)
    names = names_of(dataset)
    if strange := [name for name in names if known_patient(name) is None]:
        say(
            f"{len(strange)} of {len(names)} names, such as {strange[0]!r}, do not say whose the pictures are: each is "
            "taken for a patient of its own, and those of one patient may be in two parts"
        )
    own, others = shards(names, sizes, count)
    by = "patients, in the order of their breasts' sizes" if sizes else "patients; the sizes of breasts are not known"
    least, most = (pick(len(part) for part in others) for pick in (min, max))
    of_site = f"{least}" if least == most else f"{least} to {most}"
    say(
        f"{count} sites of {of_site} pictures, by {by}; the generator learns from {len(own)} pictures of other patients"
    )
    return Pairs(pairs.images[own], pairs.conditions[own]), [
        Pairs(pairs.images[part], pairs.conditions[part]) for part in others
    ]


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def prepared(
    folder: Path, names: Sequence[str], shares: Sequence[Pairs], key: str, address: str, private: Mapping[str, Any]
) -> list[Any]:
    """Processes of simulated sites, each with a folder of its own, not started yet."""
    kits = folder / "kits"
    if missing := [name for name in names if not (kits / name).exists()]:
        write_kits(kits, "localhost", missing)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.federated.client", "nvflare.fuel.f3.cellnet.cell"])
    processes = []
    threads = max(1, (os.cpu_count() or 1) // len(names))
    for name, share in zip(names, shares, strict=True):
        write_pairs(folder / name / PAIRS, share, key)
        arguments = (address, kits / name, folder / name, dict(private), threads)
        processes.append(context.Process(target=simulated_site, args=arguments, name=name, daemon=True))
    return processes


def simulated_site(address: str, kit: Path, folder: Path, private: Mapping[str, Any], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which tells the sites
    failed = False
    torch.set_num_threads(threads)
    # FLARE's noise is of numpy's own generator, whose state all that are forked have from one process.
    np.random.seed()
    with open(folder / "log.txt", "a", buffering=1) as log:

        def open_data(terms: Terms) -> Pairs:
            pairs = read_pairs(folder / PAIRS)
            if pairs is None:
                raise ValueError(f"{folder / PAIRS} is missing or damaged")
            return pairs

        try:
            say = partial(print, file=log)
            noisy = sparse_vector_privacy(private, say) if private else None
            run_site(address, kit, folder, open_data, noisy, PATIENCE, say)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=log)
            failed = not isinstance(error, StruckOut)  # the others go on, and the server has said it
    os._exit(failed)  # all is written; the libraries under training take seconds to clear up


def lost(processes: Sequence[Any], folder: Path) -> set[str]:
    """The simulated sites that have been killed; raises ChannelError if one has ended for a reason of its own."""
    ended = [process for process in processes if process.exitcode is not None]
    for process in ended:
        if process.exitcode > 0:
            log = folder / process.name / "log.txt"
            lines = log.read_text().splitlines() if log.is_file() else []
            raise ChannelError(f"{process.name} has ended: {lines[-1] if lines else 'it could not begin'} ({log})")
    return {process.name for process in ended}


def end(processes: Sequence[Any], patience: float = 5.0) -> None:
    """Wait that long, for all together, and then stop those that have not ended."""
    deadline = time.monotonic() + patience
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in begun:
        process.terminate()
    for process in begun:
        process.join()


def check_counted(data: str) -> None:
    """Raises ValueError for phantoms without a number, of which there are too many to find them all again."""
    if data == "phantom":
        raise ValueError("--data is 'phantom'; say of how many reconstructions are to be found: phantom:COUNT")


def open_site_data(data: str, prior_path: Path, folder: Path, skip_bad: bool, say: Say) -> Callable[[Terms], Pairs]:
    """What opens a real site's pictures, and finds them again, as the terms of a server's run say."""

    def opened(terms: Terms) -> Pairs:
        prior, digest = open_prior(prior_path, terms.model)
        if digest != terms.prior:
            raise ValueError(
                f"--prior {prior_path} has the sha256 {digest[:12]}; the server's prior {terms.prior[:12]}"
            )
        check_counted(data)
        dataset = open_dataset(data, terms.preset.size, "train", skip_bad, masks=False)
        files = getattr(dataset, "files", None) or names_of(dataset)
        say(f"{len(dataset)} pictures; finding them again through the prior, which is done once")
        return found_pairs(folder / PAIRS, dataset, prior, digest, terms.preset, files)

    return opened
