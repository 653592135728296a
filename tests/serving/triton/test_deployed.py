"""The real tritonserver, started with the arguments of manifests and of the image, and asked what their probes ask."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from deployed import container, instructions
from live import CHECKOUT, PATIENCE, Live, add_model, eventually, free_ports

from serving.__main__ import up


class Deployed(NamedTuple):
    """ports: at which others are told to ask. probes: (port, path) over HTTP."""

    arguments: list[str]
    ports: set[int]
    probes: list[tuple[int, str]]


def image() -> Deployed:
    of = dict(instructions("server"))
    probes = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", of["HEALTHCHECK"])
    ports = {int(port) for port in of["EXPOSE"].split()}
    return Deployed(json.loads(of["CMD"]), ports, [(int(port), path) for port, path in probes])


def deployment() -> Deployed:
    server = container("base", "deployment.yaml")
    numbers = {port["name"]: port["containerPort"] for port in server["ports"]}
    asked = [server[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    return Deployed(server["args"], set(numbers.values()), [(numbers[one["port"]], one["path"]) for one in asked])


def kserve() -> Deployed:
    server = container("kserve", "runtime.yaml")
    asked = server["readinessProbe"]["httpGet"]
    # Where KServe asks, whatever the manifest says.
    return Deployed(server["args"], {8080, 9000}, [(asked["port"], asked["path"])])


@pytest.mark.parametrize("of", [image, deployment, kserve])
def test_a_deployed_server_is_ready_draws_and_ends_when_told(tmp_path: Path, of: Callable[[], Deployed]) -> None:
    repository = tmp_path / "models"
    add_model(repository, "tiny")
    deployed = of()
    here = f"--repository={repository}"
    given = up.make_context("up", [*deployed.arguments[1:], here]).params
    protocols = {given[f"{protocol}_port"]: protocol for protocol in ("http", "grpc", "metrics")}
    assert deployed.ports <= set(protocols)
    assert deployed.probes
    ports = dict(zip(protocols.values(), free_ports(3), strict=True))
    # The last of an option counts.
    changed = [here, *(f"--{protocol}-port={port}" for protocol, port in ports.items())]
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "serving", *deployed.arguments, *changed]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)
    live = Live(repository, ports, process, log)
    try:
        eventually(lambda: "Ctrl-C" in live.said() or process.poll() is not None, "the server is up")
        assert process.poll() is None, live.said()
        for port, path in deployed.probes:
            assert urllib.request.urlopen(f"http://{live.url(protocols[port])}{path}").status == 200
        with live.client("grpc") as client:
            assert client.sample("tiny", 1, seed=7).arrays["image"].shape[0] == 1
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
