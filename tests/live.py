"""A live server for tests: `python -m serving up` in a process of its own, on free ports, with tiny models."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiny import FLOW, LABELS, write_tiny_bundle

from serving.bundle import TEMPLATES, Condition, bundle_folder
from serving.client import SampleClient

CHECKOUT = Path(__file__).resolve().parent.parent
SPACING = (1.25, 1.5)
CONDITION = Condition("anatomy", (1, 16, 16), 4, ("air", "skin", "fat", "bone"), (2.0, 2.5))
MASK = Condition("mask", (1, 16, 16), 4, LABELS, SPACING)
LABEL = Condition("label", (1,), 3, ("normal", "benign", "malignant"))
PICTURE = Condition("photo", (1, 16, 16), low=-1.0, high=3.0)
NOTICE = "A sample is a near copy of its photo."
CHAINS = ("cmr_ddpm", "cmr_ldm", "cmr_flow")
MAX_BATCH = 8
CHAIN_BATCH = 5  # of cmr_flow's second stage, and so of cmr_flow
PATIENCE = 150.0  # these tests may share two cores with a training run

GATED_MODEL = '''
import time
from pathlib import Path

from serving.sampling.flight import Flight
from serving.triton.model import BundleModel

MODEL = Path(__file__).parents[1]
# Beside the models: a file in a model's folder would be a change of the model to Triton.
CLOSED, WAITING, SLOW = (MODEL.with_name(f".{MODEL.name}-{name}") for name in ("closed", "waiting", "slow"))


class TritonPythonModel(BundleModel):
    """Steps when nobody has closed it, cannot do seed 13, and cannot say what it has done for 14."""

    def _response(self, samples):
        if b'"seed": 14,' in samples["provenance"][0, 0]:
            raise RuntimeError("fourteen cannot be said")
        return super()._response(samples)


def when_open(step):
    def gated(flight, together):
        while CLOSED.exists():
            WAITING.touch()
            time.sleep(0.005)
        if SLOW.exists():
            time.sleep(0.1)
        if any(row.seed == 13 for states in together for row in states.rows):
            raise RuntimeError("thirteen is too much")
        return step(flight, together)

    return gated


Flight.step = when_open(Flight.step)
'''


def add_model(repository: Path, name: str, **tiny: object) -> Path:
    """The files that are committed for a model, or else for pig, with a tiny bundle."""
    copy_committed(name if (TEMPLATES / name).is_dir() else "pig", repository / name)
    write_tiny_bundle(bundle_folder(repository, name), **{"model": name, "max_batch": MAX_BATCH, **tiny})
    return repository / name


def copy_committed(name: str, folder: Path) -> None:
    shutil.copytree(TEMPLATES / name, folder, ignore=shutil.ignore_patterns("bundle", ".bundle*", "__pycache__"))


def add_chains(repository: Path) -> None:
    """The committed chains, with tiny bundles whose largest batches differ; cmr_ldm_image has states of 4 x 4 x 4."""
    add_model(repository, "cmr_mask", sample_shape=(4, 16, 16), spacing=SPACING)
    image = {"condition": MASK, "spacing": SPACING}
    add_model(repository, "cmr_ddpm_image", sample_shape=(1, 16, 16), **image)
    add_model(repository, "cmr_ldm_image", sample_shape=(4, 4, 4), **image)
    add_model(repository, "cmr_flow_image", sample_shape=(1, 16, 16), schedule=FLOW, max_batch=CHAIN_BATCH, **image)
    for chain in CHAINS:
        copy_committed(chain, repository / chain)


def add_picture_model(repository: Path, name: str) -> None:
    """It draws in one pass, under pictures."""
    folder = add_model(repository, name, condition=PICTURE, schedule=None, notices=(NOTICE,))
    with (folder / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "condition_range" value { string_value: "-1 3" } }\n')


THROUGH = """
platform: "ensemble"
input [
  { name: "seed" data_type: TYPE_INT64 dims: [-1, 1] },
  { name: "scan" data_type: TYPE_FP32 dims: [-1, 1, -1, -1] }
]
output [
  { name: "mask" data_type: TYPE_UINT8 dims: [-1, 1, -1, -1] },
  { name: "image" data_type: TYPE_FP32 dims: [-1, 1, -1, -1] },
  { name: "mask_provenance" data_type: TYPE_STRING dims: [-1, 1] },
  { name: "provenance" data_type: TYPE_STRING dims: [-1, 1] }
]
parameters { key: "steps_of" value { string_value: "mask" } }
ensemble_scheduling { step [
  {
    model_name: "tiny_found"
    model_version: -1
    input_map { key: "seed" value: "seed" }
    input_map { key: "photo" value: "scan" }
    output_map { key: "mask" value: "mask" }
    output_map { key: "provenance" value: "mask_provenance" }
  },
  {
    model_name: "tiny_pass"
    model_version: -1
    input_map { key: "seed" value: "seed" }
    input_map { key: "mask" value: "mask" }
    output_map { key: "image" value: "image" }
    output_map { key: "provenance" value: "provenance" }
  }
] }
"""


def add_chain_under_pictures(repository: Path, name: str) -> None:
    """A client gives it pictures; its first stage takes steps, its second none."""
    folder = add_model(repository, "tiny_found", sample_shape=(4, 16, 16), condition=PICTURE, spacing=SPACING)
    with (folder / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "condition_range" value { string_value: "-1 3" } }\n')
    add_model(repository, "tiny_pass", sample_shape=(1, 16, 16), condition=MASK, schedule=None, spacing=SPACING)
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(THROUGH)


def add_gated_model(repository: Path, name: str, queue: int) -> None:
    folder = add_model(repository, name)
    (folder / "1" / "model.py").write_text(GATED_MODEL)
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(re.sub(r'string_value: "\d+"', f'string_value: "{queue}"', config))


ALONE = """
platform: "ensemble"
input [{{ name: "seed" data_type: TYPE_INT64 dims: [-1, 1] }}]
output [
  {{ name: "image" data_type: TYPE_FP32 dims: [-1, 1, -1, -1] }},
  {{ name: "provenance" data_type: TYPE_STRING dims: [-1, 1] }}
]
ensemble_scheduling {{ step [{{
  model_name: "{stage}"
  model_version: -1
  input_map {{ key: "seed" value: "seed" }}
  output_map {{ key: "image" value: "image" }}
  output_map {{ key: "provenance" value: "provenance" }}
}}] }}
"""


def add_chain_of_one(repository: Path, name: str, stage: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(ALONE.format(stage=stage))


def eventually(holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.02)


@dataclass
class Live:
    """A server that is up."""

    repository: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes]
    log: Path
    host: str = "127.0.0.1"

    def said(self) -> str:
        """All that it has written."""
        return self.log.read_text()

    def url(self, protocol: str) -> str:
        return f"{self.host}:{self.ports[protocol]}"

    def client(self, protocol: str, timeout: float = PATIENCE) -> SampleClient:
        return SampleClient(self.url(protocol), protocol, timeout)

    def tritonserver(self) -> int:
        """Its process, which leads the group of the models' processes."""

        def found() -> list[int]:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return [int(pid) for pid in children if b"\0--load-model=" in arguments(int(pid))]

        eventually(lambda: found() != [], "tritonserver has been started")
        return found()[0]

    def region(self) -> str:
        """What the names of its shared memory begin with, and those of no other server."""
        (prefix,) = re.findall(rb"shm-region-prefix-name=(\w+)", arguments(self.tritonserver()))
        return str(prefix, "ascii")

    def process_of(self, model: str) -> int:
        """The process of a model, the newest if there are two for a moment."""

        def found() -> list[int]:
            called = f"/{model}/1/model.py\0".encode()
            return [pid for pid in processes(self.tritonserver()) if called in arguments(pid)]

        eventually(lambda: found() != [], f"{model} has a process")
        return max(found())

    def metric(self, name: str, model: str, **labels: str) -> float:
        """The value of one of Triton's metrics or of ours, added up over the labels that are not given."""
        text = urllib.request.urlopen(f"http://{self.url('metrics')}/metrics").read().decode()
        wanted = [f'{key}="{value}"' for key, value in {"model": model, **labels}.items()]
        name = name if name.startswith("medgen_") else f"nv_inference_{name}"
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in wanted))

    @contextmanager
    def closed(self, model: str) -> Iterator[Path]:
        """A gated model, kept from working while the context lasts; the file is there once it has a batch in hand."""
        closed, waiting = (self.repository / f".{model}-{name}" for name in ("closed", "waiting"))
        waiting.unlink(missing_ok=True)
        closed.touch()
        try:
            yield waiting
        finally:
            closed.unlink()

    @contextmanager
    def slow(self, model: str) -> Iterator[None]:
        """A gated model takes a tenth of a second for each step while the context lasts."""
        slow = self.repository / f".{model}-slow"
        slow.touch()
        try:
            yield
        finally:
            slow.unlink()


def arguments(pid: int) -> bytes:
    """The command line of a process, each argument followed by a zero byte; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processes(group: int) -> list[int]:
    """The living processes of a process group."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(member) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def start(repository: Path, *more: str, host: str = "127.0.0.1") -> Live:
    """`python -m serving up` with more options, not yet ready."""
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    options = [f"--{name}-port={port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "serving", "up", f"--repository={repository}", f"--host={host}", *options, *more]
    # To a file: a pipe that nobody reads would stop the server once it is full.
    log = repository.with_name(f"{repository.name}-{ports['http']}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)
    return Live(repository, ports, process, log, f"[{host}]" if ":" in host else host)


@contextmanager
def running(repository: Path, *more: str, host: str = "127.0.0.1") -> Iterator[Live]:
    """The same, ready, and ended when the context ends."""
    live = start(repository, *more, host=host)
    try:
        eventually(lambda: "Ctrl-C" in live.said() or live.process.poll() is not None, "the server is up")
        assert live.process.poll() is None, f"the server ended: {live.said()}"
        yield live
    finally:
        live.process.send_signal(signal.SIGINT)
        live.process.wait(PATIENCE)


def replace_bundle(repository: Path, model: str, **tiny: object) -> None:
    """As a build does: written aside, then renamed into place."""
    bundle = bundle_folder(repository, model)
    new, old = bundle.with_name(".bundle-new"), bundle.with_name(".bundle-old")
    write_tiny_bundle(new, **{"model": model, "max_batch": MAX_BATCH, **tiny})
    bundle.rename(old)
    new.rename(bundle)
    shutil.rmtree(old)
