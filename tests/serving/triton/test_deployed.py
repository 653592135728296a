"""The real tritonserver, started with a manifest's arguments and asked what its probes ask."""

import subprocess
import sys
import urllib.request
from pathlib import Path

from deployed import container
from live import CHECKOUT, PATIENCE, Live, add_model, eventually, free_ports


def test_the_deployment_s_server_is_ready_draws_and_ends_when_told(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    add_model(repository, "tiny")
    server = container("base", "deployment.yaml")
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    # The last of an option counts.
    here = [
        f"--repository={repository}",
        "--host=127.0.0.1",
        *(f"--{name}-port={port}" for name, port in ports.items()),
    ]
    assert set(ports) == {port["name"] for port in server["ports"]}
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "serving", *server["args"], *here]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)
    live = Live(repository, ports, process, log)
    try:
        eventually(lambda: "Ctrl-C" in live.said() or process.poll() is not None, "the server is up")
        assert process.poll() is None, live.said()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = server[probe]["httpGet"]
            assert urllib.request.urlopen(f"http://{live.url(asked['port'])}{asked['path']}").status == 200
        with live.client("grpc") as client:
            assert client.sample("tiny", 1, seed=7).arrays["image"].shape[0] == 1
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
