"""What `up` passes on of Triton's metrics and traces, what it refuses, and its log as JSON."""

import json

import pytest
from click.testing import CliRunner

from serving.__main__ import main
from serving.triton.errors import ServerError
from serving.triton.log import as_json, is_worth_showing
from serving.triton.telemetry import METRICS, TRACES, metric_arguments, trace_arguments

VERSION = (2, 51, 0)


def test_what_is_right_is_passed_on_in_its_order() -> None:
    metrics = ["summary_latencies=true", "summary_quantiles=0.5:0.05,0.95:0.001"]
    assert metric_arguments(metrics, VERSION) == [f"--metrics-config={one}" for one in metrics]
    assert metric_arguments(["histogram_latencies=true"], (2, 60, 0)) == ["--metrics-config=histogram_latencies=true"]
    traces = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", "opentelemetry,resource=service.name=a"]
    traces.append("opentelemetry,resource=site=b")
    assert trace_arguments(traces) == [f"--trace-config={one}" for one in traces]
    assert metric_arguments([], None) == trace_arguments([]) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["histogram=true"], ["'histogram=true'", *METRICS]),
        (["a"], ["'a'", *METRICS]),
        (["summary_latencies"], ["summary_latencies is ''", "true or false"]),
        (["summary_latencies=yes"], ["'yes'", "true or false"]),
        (["summary_latencies=true", "summary_quantiles=2:x"], ["'2:x'", "0.5:0.05,0.95:0.001"]),
        (["summary_latencies=true", "summary_quantiles=95:0.1"], ["'95:0.1'", "from 0 to 1"]),
        (["summary_quantiles=0.5:0.05"], ["summary_latencies=true"]),
        (["summary_latencies=true", "summary_latencies=false"], ["twice", "'true'", "'false'"]),
        (["histogram_latencies=true"], ["Triton 2.51.0", "summary_latencies", "medgen_request_seconds"]),
    ],
)
def test_a_bad_setting_of_metrics_is_refused_with_what_is_allowed(settings: list[str], said: list[str]) -> None:
    with pytest.raises(ServerError) as refusal:
        metric_arguments(settings, VERSION)
    assert all(text in str(refusal.value) for text in ["--metrics-config", *said])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["mode=jaeger"], ["'jaeger'", "triton or opentelemetry"]),
        (["level=ALL"], ["'ALL'", "OFF, TIMESTAMPS or TENSORS"]),
        (["rate=0"], ["'0'", "from 1 up"]),
        (["count=1.5"], ["'1.5'", "-1 for all"]),
        (["opentelemetry,bsp=3"], ["'opentelemetry,bsp=3'", *TRACES]),
        (["opentelemetry,url=host:4318"], ["'host:4318'", "http://HOST:PORT"]),
        (["opentelemetry,resource=a"], ["'a'", "KEY=VALUE"]),
        (["mode=opentelemetry"], ["level=TIMESTAMPS"]),
        (["level=TIMESTAMPS"], ["triton,file=FILE", "mode=opentelemetry"]),
        (["level=TIMESTAMPS", "opentelemetry,url=http://a:1/v1"], ["opentelemetry,url", "mode=opentelemetry"]),
        (["mode=opentelemetry", "level=TIMESTAMPS", "triton,file=a"], ["triton,file", "mode=triton"]),
    ],
)
def test_a_bad_setting_of_traces_is_refused_with_what_is_allowed(settings: list[str], said: list[str]) -> None:
    with pytest.raises(ServerError) as refusal:
        trace_arguments(settings)
    assert all(text in str(refusal.value) for text in ["--trace-config", *said])


def test_a_line_of_tritons_is_taken_apart() -> None:
    line = 'E1127 01:14:08.316913 21769 a.cc:94] "[request id: a.b-1] failed:\\n  \\"é\\""'
    told = json.loads(as_json(line))
    assert told.pop("time").endswith("+00:00")
    message = '[request id: a.b-1] failed:\n  "é"'
    assert told == {"level": "error", "message": message, "source": "a.cc:94", "request_id": "a.b-1"}


@pytest.mark.parametrize("line", ["Serving pig", 'W1127 01:14:08.316913 21769 a.cc:94] "not closed', "", '{"a": 1}'])
def test_any_line_is_one_object(line: str) -> None:
    told = json.loads(as_json(line))
    assert line.endswith(told["message"])
    assert "request_id" not in told


def test_a_server_that_cannot_start_says_so_as_json(tmp_path) -> None:
    done = CliRunner().invoke(main, ["up", f"--repository={tmp_path / 'none'}", "--log-format=json"])
    assert done.exit_code == 1
    told = json.loads(done.output)
    assert told["level"] == "error"
    assert str(tmp_path / "none") in told["message"]


def test_what_every_start_without_a_gpu_says_is_not_shown() -> None:
    line = 'W1127 18:29:51.141380 29814 pinned_memory_manager.cc:170] "failed to allocate pinned system memory: {}"'
    assert not is_worth_showing(line.format("no pinned memory pool, falling back to non-pinned system memory"))
    assert is_worth_showing(line.format("another reason"))
