"""The real tritonserver, started with the arguments of manifests and of the image, and asked what their probes ask."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from deployed import KUBERNETES, container, instructions
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


# All but one folder, in which another is read-only too; a process that others start is not concerned.
READ_ONLY = """
for place in $(cut -d' ' -f5 /proc/self/mountinfo); do
  case $place in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro $place || exit 1;; esac
done
mount --bind "$1" "$1" && mount -o remount,bind,rw "$1" || exit 1
mount --bind "$2" "$2" && mount -o remount,bind,ro "$2" || exit 1
shift 2
exec "$@"
"""
may_mount = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0


@contextmanager
def started(deployed: Deployed, repository: Path, *before: str) -> Iterator[tuple[Live, dict[int, str]]]:
    """A server that is up, started by a command with others before it, and which protocol each of its ports is of."""
    here = f"--repository={repository}"
    given = up.make_context("up", [*deployed.arguments[1:], here]).params
    protocols = {given[f"{protocol}_port"]: protocol for protocol in ("http", "grpc", "metrics")}
    ports = dict(zip(protocols.values(), free_ports(3), strict=True))
    # The last of an option counts.
    changed = [here, *(f"--{protocol}-port={port}" for protocol, port in ports.items())]
    log = repository.with_name("log.txt")
    with log.open("wb") as output:
        command = [*before, sys.executable, "-m", "serving", *deployed.arguments, *changed]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)
    live = Live(repository, ports, process, log)
    try:
        eventually(lambda: "Ctrl-C" in live.said() or process.poll() is not None, "the server is up")
        assert process.poll() is None, live.said()
        yield live, protocols
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("of", [image, deployment, kserve])
def test_a_deployed_server_is_ready_draws_and_ends_when_told(tmp_path: Path, of: Callable[[], Deployed]) -> None:
    repository = tmp_path / "models"
    add_model(repository, "tiny")
    deployed = of()
    assert deployed.probes
    with started(deployed, repository) as (live, protocols):
        assert deployed.ports <= set(protocols)
        for port, path in deployed.probes:
            assert urllib.request.urlopen(f"http://{live.url(protocols[port])}{path}").status == 200
        with live.client("grpc") as client:
            assert client.sample("tiny", 1, seed=7).arrays["image"].shape[0] == 1


@pytest.mark.skipif(not may_mount, reason="only root, or who may have namespaces, can make all read-only for a process")
def test_a_server_writes_where_its_manifest_lets_it_alone(tmp_path: Path) -> None:
    """Triton itself writes to /tmp."""
    spec = yaml.safe_load((KUBERNETES / "base" / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    assert server["securityContext"]["readOnlyRootFilesystem"]
    room = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert {place for place, mount in mounts.items() if mount["name"] in room} == {"/tmp", "/dev/shm"}
    assert mounts["/models"]["readOnly"]
    repository = Path("/tmp") / f"medgen-{tmp_path.name}-{os.getpid()}" / "models"
    add_model(repository, "tiny")
    try:
        read_only = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", "/tmp", str(repository)]
        for file, is_written in (
            (repository / "file", False),
            (CHECKOUT / ".file", False),
            (repository.parent / "file", True),
        ):
            subprocess.run([*read_only, "touch", file], check=False, capture_output=True)
            assert file.exists() == is_written
        cache = ["env", "TMPDIR=/tmp", f"XDG_CACHE_HOME={repository.parent}/cache"]
        with started(deployment(), repository, *read_only, *cache) as (live, _), live.client("grpc") as client:
            assert client.sample("tiny", 1, seed=7).arrays["image"].shape[0] == 1
    finally:
        shutil.rmtree(repository.parent)
