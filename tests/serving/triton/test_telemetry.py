"""Boards, traces and logs: a real Prometheus evaluates every query of the board on a real server under load."""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from live import PATIENCE, Live, add_gated_model, add_model, eventually, free_ports, running

from serving.client import LocalClient, SampleClient, SamplingError

MONITORING = Path(__file__).parents[3] / "serving" / "deploy" / "monitoring"
GPU_PANELS = {"GPU memory", "GPU", "Power of GPUs"}
PANELS = json.loads((MONITORING / "grafana.json").read_text())["panels"]
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="no prometheus and promtool here: on Debian and Ubuntu apt-get install prometheus",
)


class Collector:
    """What takes in OpenTelemetry's traces over HTTP."""

    def __init__(self) -> None:
        got: list[tuple[str, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.got, self._server = got, HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Live]:
    """A server that tells all it can."""
    repository = tmp_path_factory.mktemp("told")
    add_model(repository, "tiny")
    add_gated_model(repository, "tiny_busy", queue=2)
    settings = [
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.5:0.05,0.95:0.001",
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=1",
        "--trace-config=count=-1",
        f"--trace-config=opentelemetry,url={collector.url}",
        "--trace-config=opentelemetry,resource=service.name=medgen-test",
        "--trace-config=opentelemetry,bsp_schedule_delay=100",
        "--log-format=json",
    ]
    with running(repository, *settings) as live:
        yield live


@pytest.fixture(scope="module")
def prometheus(told: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The committed configuration, with this server's port and shorter times."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = (MONITORING / "prometheus.yml").read_text()
    for old, new in {
        "127.0.0.1:8002": told.url("metrics"),
        "interval: 5s": "interval: 1s",
        "interval: 15s": "interval: 1s",
    }.items():
        assert old in config
        config = config.replace(old, new)
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(MONITORING / "rules.yml", folder)
    place = f"127.0.0.1:{free_ports(1)[0]}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address={place}"], stdout=log, stderr=log)
        yield place
        process.terminate()
        process.wait(PATIENCE)


def evaluated(place: str, query: str) -> list[Any]:
    url = f"http://{place}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)["data"]["result"]


def answers(place: str) -> bool:
    try:
        return bool(evaluated(place, 'up{job="medgen"} == 1'))
    except OSError:
        return False


@needs_prometheus
def test_every_panel_has_figures_under_load(told: Live, prometheus: str) -> None:
    eventually(lambda: answers(prometheus), "Prometheus has scraped the server")
    has_gpu = bool(evaluated(prometheus, "nv_gpu_memory_total_bytes"))
    queries = {
        (panel["title"], target["refId"]): target["expr"].replace("$__rate_interval", "20s").replace("$model", "tiny")
        for panel in PANELS
        for target in panel["targets"]
        if has_gpu or panel["title"] not in GPU_PANELS
    }
    recorded = 'model:medgen_request_seconds:p95_5m{model="tiny"}'
    queries[recorded, "A"] = recorded
    ended = threading.Event()

    def load(seed: int) -> None:
        with SampleClient(told.url("grpc"), steps=lambda done, total: None, metrics_url=told.url("metrics")) as client:
            while not ended.is_set():
                client.sample("tiny", count=4, seed=seed, steps=20)

    empty = dict(queries)

    def all_have_figures() -> bool:
        for key, query in list(empty.items()):
            result = evaluated(prometheus, query)
            if any(sample["value"][1] != "NaN" for sample in result):
                del empty[key]
        return not empty

    with ThreadPoolExecutor(2) as threads:
        loads = [threads.submit(load, seed) for seed in range(2)]
        try:
            deadline = time.monotonic() + PATIENCE
            while not all_have_figures() and time.monotonic() < deadline:
                time.sleep(0.5)
        finally:
            ended.set()
    for done in loads:
        done.result()
    assert not empty
    (p95,) = evaluated(prometheus, recorded)
    assert 0 < float(p95["value"][1]) < PATIENCE
    assert not evaluated(prometheus, "medgen_request_done")


@needs_prometheus
def test_the_rules_pass_promtools_tests() -> None:
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_it() -> None:
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "rules.yml").read_text())
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts", (MONITORING / "rules_test.yml").read_text())
    assert set(fired) == set(alerts)


def test_rules_and_boards_name_what_the_server_tells(told: Live) -> None:
    """Whatever the load is, and without Prometheus."""
    with told.client("grpc") as client:
        client.sample("tiny", count=1)
    text = urllib.request.urlopen(f"http://{told.url('metrics')}/metrics").read().decode()
    exprs = [target["expr"] for panel in PANELS for target in panel["targets"]]
    named = set(
        re.findall(r"(?<![:\w])((?:medgen|nv)_\w+)\b(?!:)", " ".join([*exprs, (MONITORING / "rules.yml").read_text()]))
    )
    unknown = {name for name in named if not re.search(rf"^{name}[{{ ]", text, re.MULTILINE)}
    assert {name for name in unknown if not name.startswith("nv_gpu_")} == set()


def test_requests_take_as_long_as_they_do(told: Live) -> None:
    """The histogram goes from a request's arrival to its samples."""

    def count(name: str, **labels: str) -> float:
        return told.metric(f"medgen_request_seconds_{name}", "tiny_busy", **labels)

    slow = count("count") - count("bucket", le="0.5"), count("sum")
    before = count("count")
    with told.client("grpc") as client, ThreadPoolExecutor(1) as thread:
        with told.closed("tiny_busy") as waiting:
            call = thread.submit(client.sample, "tiny_busy", 1)
            eventually(waiting.exists, "the request has arrived")
            time.sleep(0.7)
        call.result()
    eventually(lambda: count("count") == before + 1, "the request is counted")
    assert count("bucket", le="+Inf") == count("count")
    assert count("count") - count("bucket", le="0.5") == slow[0] + 1
    assert 0.7 <= count("sum") - slow[1] < PATIENCE


def test_summaries_are_told(told: Live) -> None:
    with told.client("http") as client:
        client.sample("tiny", count=1)
    text = urllib.request.urlopen(f"http://{told.url('metrics')}/metrics").read().decode()
    quantiles = set(re.findall(r'nv_inference_request_summary_us\{model="tiny".*quantile="([^"]+)"', text))
    assert quantiles == {"0.5", "0.95"}


def test_a_request_is_traced_and_logged_by_its_id_and_drawn_as_ever(told: Live, collector: Collector) -> None:
    def failed(protocol: str) -> SamplingError:
        with told.client(protocol) as client, pytest.raises(SamplingError) as caught:
            client.sample("tiny_busy", count=1, seed=13)
        return caught.value

    local = LocalClient(told.repository).sample("tiny", count=2, seed=3)
    for protocol in ("grpc", "http"):
        error = failed(protocol)
        assert error.status == 500
        name = error.request_id
        assert name is not None
        assert f"(request {name})" in str(error)
        logged: list[dict[str, Any]] = []

        def is_logged(name: str = name, logged: list[dict[str, Any]] = logged) -> bool:
            logged[:] = [one for one in map(json.loads, told.said().splitlines()) if one.get("request_id") == name]
            return bool(logged)

        eventually(is_logged, f"the log has {name}")
        assert logged[0]["level"] == "error"
        assert "thirteen is too much" in logged[0]["message"]
        eventually(lambda name=name: any(name.encode() in body for _, body in collector.got), f"{name} is traced")
        with told.client(protocol) as client:
            samples = client.sample("tiny", count=2, seed=3)
        assert samples.provenance == local.provenance
        assert samples.arrays["image"].tobytes() == local.arrays["image"].tobytes()
    eventually(lambda: any(b"INFER_RESPONSE_COMPLETE" in body for _, body in collector.got), "answers are traced")
    assert all(path == "/v1/traces" and b"medgen-test" in body for path, body in collector.got)


def test_what_is_not_the_servers_fault_names_no_request(told: Live) -> None:
    with told.client("grpc") as client, pytest.raises(SamplingError) as caught:
        client.sample("tiny", count=1, steps=0)
    assert caught.value.status == 400
    assert "(request" not in str(caught.value)


def test_each_request_has_an_id_of_its_own_that_no_metrics_have() -> None:
    with SampleClient("127.0.0.1:1") as client:
        assert client.new_id() != client.new_id()
        assert "." in client.new_id()
