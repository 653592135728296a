"""Steps that a server's metrics tell, and a server that tells none."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.client import SampleClient, SamplingError
from serving.step_watch import StepWatch, told

METRICS = """# TYPE medgen_request_done gauge
medgen_request_done{model="pig",instance="pig_0_0",request="a",version="1"} 3
medgen_request_done{model="pig",instance="pig_0_0",request="b",version="1"} 9
medgen_request_steps{model="pig",instance="pig_0_0",request="a",version="1"} 50.000000
medgen_request_steps{model="pig",instance="pig_0_0",request="b",version="1"} 12
medgen_steps_total{model="pig",instance="pig_0_0",version="1"} 700
"""


@pytest.mark.parametrize(("names", "steps"), [({"a"}, (3, 50)), ({"a", "b", "c"}, (12, 62)), ({"c"}, (0, 0))])
def test_steps_are_those_of_the_requests_that_are_asked_about(names, steps):
    assert told(METRICS, names) == steps


def test_what_is_told_again_and_again(monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.replace('"a"', f'"{name}"').encode())

        def log_message(self, *_):
            pass

    monkeypatch.setattr("serving.step_watch.SECONDS", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen, twice = [], threading.Event()

    def tell(*steps):
        seen.append(steps)
        if len(seen) == 2:
            twice.set()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watch = StepWatch(f"127.0.0.1:{server.server_port}", tell)
        name = watch.new_name()
        assert twice.wait(20)
        watch.close()
        server.shutdown()
    assert set(seen) == {(3, 50)}


def test_a_server_that_tells_no_steps_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr("serving.step_watch.SECONDS", 0.01)
    watch = StepWatch("127.0.0.1:9", pytest.fail)
    watch._thread.join(20)
    watch.close()
    assert caplog.text.count("nothing is told of steps: http://127.0.0.1:9/metrics") == 1


def test_what_is_no_http_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr("serving.step_watch.SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = StepWatch(f"127.0.0.1:{server.getsockname()[1]}", pytest.fail)
        connection = server.accept()[0]
        connection.sendall(b"no HTTP\r\n\r\n")
        connection.close()
        watch._thread.join(20)
        watch.close()
    assert caplog.text.count("nothing is told of steps") == 1


def test_an_address_of_metrics_that_is_none():
    with pytest.raises(SamplingError, match="metrics_url is 'nowhere'; it must be HOST:PORT"):
        SampleClient(steps=print, metrics_url="nowhere")
