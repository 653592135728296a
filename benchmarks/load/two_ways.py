"""A server with one bundle as two models: batched in flight, and as Triton's own batcher does it."""

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.latency.with_medgen import free_ports
from serving.bundle import bundle_folder, load_bundle
from serving.triton.address import Address
from serving.triton.server import TritonServer

IN_FLIGHT, STATIC = "in_flight", "static"
WAYS = (IN_FLIGHT, STATIC)
CODE_OF_MODEL = """from serving.triton.model import BundleModel


class TritonPythonModel(BundleModel):
    pass
"""
QUEUE = 128
CONFIG = {
    IN_FLIGHT: f'parameters {{ key: "max_queue_size" value {{ string_value: "{QUEUE}" }} }}',
    STATIC: f"""
parameters {{ key: "batching" value {{ string_value: "static" }} }}
dynamic_batching {{
  max_queue_delay_microseconds: 1000
  default_queue_policy {{ max_queue_size: {QUEUE} }}
}}""",
}


@dataclass(frozen=True)
class TwoWays:
    """The models have the names in WAYS. url: of gRPC."""

    url: str
    metrics_url: str

    def process(self, way: str) -> int:
        """Of the model."""
        for child in psutil.Process().children(recursive=True):
            if any(argument.endswith(f"/{way}/1/model.py") for argument in child.cmdline()):
                return child.pid
        raise RuntimeError(f"the server has no process of {way}")

    def metric(self, name: str, way: str) -> float:
        """One of medgen's own."""
        text = urllib.request.urlopen(self.metrics_url).read().decode()
        return sum(map(float, re.findall(rf'^medgen_{name}{{[^}}]*model="{way}"[^}}]*}} (\S+)$', text, re.MULTILINE)))


@contextmanager
def serving_in_two_ways(repository: Path, model: str, metrics_port: int | None = None) -> Iterator[TwoWays]:
    """On free ports, but for a metrics_port that is given.

    Raises BundleError or ServerError if the bundle cannot be served.
    """
    bundle = load_bundle(bundle_folder(repository, model)).folder
    with TemporaryDirectory() as folder:
        for way in WAYS:
            (Path(folder) / way / "1").mkdir(parents=True)
            (Path(folder) / way / "1" / "model.py").write_text(CODE_OF_MODEL)
            (Path(folder) / way / "1" / "bundle").symlink_to(bundle)
            instances = "instance_group [{ kind: KIND_AUTO count: 1 }]"
            (Path(folder) / way / "config.pbtxt").write_text(f'backend: "python"\n{CONFIG[way]}\n{instances}\n')
        http, grpc, free = free_ports(3)
        address = Address("127.0.0.1", http, grpc, metrics_port or free)
        with TritonServer(Path(folder), WAYS, address, show=lambda line: None, verbose=False) as server:
            server.wait_until_ready()
            yield TwoWays(f"{address.host}:{address.grpc}", f"http://{address.host}:{address.metrics}/metrics")
