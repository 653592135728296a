"""What Triton is to tell of requests, beyond what it always does: latencies among its metrics, and traces.

Triton takes most of what it does not know without a word, and then tells nothing; so all is checked here.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from serving.triton.errors import ServerError
from serving.triton.version import Version, describe

# 2.51 has none, and takes the setting without a word.
WITHOUT_HISTOGRAMS = (2, 51)
_NUMBER = r"\d*\.?\d+"
_QUANTILES = re.compile(rf"({_NUMBER}):({_NUMBER})(,({_NUMBER}):({_NUMBER}))*")

Check = tuple[str, Callable[[str], bool]]


def _matches(what: str, pattern: str) -> Check:
    return what, lambda value: re.fullmatch(pattern, value) is not None


def _are_quantiles(value: str) -> bool:
    if not _QUANTILES.fullmatch(value):
        return False
    return all(0 <= float(part) <= 1 for pair in value.split(",") for part in pair.split(":"))


BOOLEAN = _matches("true or false", "true|false")
POSITIVE = _matches("an integer from 1 up", "0*[1-9][0-9]{0,8}")
TEXT = _matches("not empty", ".+")
METRICS: Mapping[str, Check] = {
    "counter_latencies": BOOLEAN,
    "summary_latencies": BOOLEAN,
    "summary_quantiles": ("QUANTILE:ERROR,... with numbers from 0 to 1, such as 0.5:0.05,0.95:0.001", _are_quantiles),
    "histogram_latencies": BOOLEAN,
}
TRACES: Mapping[str, Check] = {
    "mode": _matches("triton or opentelemetry", "triton|opentelemetry"),
    "level": _matches("OFF, TIMESTAMPS or TENSORS", "OFF|TIMESTAMPS|TENSORS"),
    "rate": POSITIVE,
    "count": _matches("-1 for all, or an integer from 0 up", "-1|[0-9]{1,9}"),
    "triton,file": TEXT,
    "triton,log-frequency": _matches("an integer from 0 up", "[0-9]{1,9}"),
    "opentelemetry,url": _matches("http://HOST:PORT/PATH or https://...", r"https?://[^\s/]+\S*"),
    "opentelemetry,resource": _matches("KEY=VALUE", "[^=]+=.+"),
    "opentelemetry,bsp_max_queue_size": POSITIVE,
    "opentelemetry,bsp_schedule_delay": POSITIVE,
    "opentelemetry,bsp_max_export_batch_size": POSITIVE,
}
REPEATED = ("level", "opentelemetry,resource")


def metric_arguments(settings: Iterable[str], version: Version | None) -> list[str]:
    """Triton's arguments for settings NAME=VALUE of its metrics; raises ServerError with what is allowed."""
    given = _read("--metrics-config", settings, METRICS)
    names = [name for name, _ in given]
    if "histogram_latencies" in names and version is not None and version[:2] <= WITHOUT_HISTOGRAMS:
        raise ServerError(
            f"--metrics-config histogram_latencies is nothing to {describe(version)}, which has no histograms: it has "
            "summary_latencies, and medgen_request_seconds is a histogram in all"
        )
    if "summary_quantiles" in names and ("summary_latencies", "true") not in given:
        raise ServerError("--metrics-config summary_quantiles says nothing without summary_latencies=true")
    return [f"--metrics-config={name}={value}" for name, value in given]


def trace_arguments(settings: Iterable[str]) -> list[str]:
    """Triton's arguments for settings [MODE,]NAME=VALUE of its traces; raises ServerError with what is allowed."""
    given = _read("--trace-config", settings, TRACES)
    if not given:
        return []
    mode = dict(given).get("mode", "triton")
    others = [name for name, _ in given if "," in name and not name.startswith(f"{mode},")]
    if others:
        raise ServerError(f"--trace-config {others[0]} is not for mode {mode}; add mode={others[0].partition(',')[0]}")
    if not any(name == "level" and value != "OFF" for name, value in given):
        raise ServerError("--trace-config traces nothing without a level; add level=TIMESTAMPS")
    if mode == "triton" and "triton,file" not in dict(given):
        raise ServerError("--trace-config in mode triton needs triton,file=FILE; mode=opentelemetry sends them instead")
    return [f"--trace-config={name}={value}" for name, value in given]


def _read(option: str, settings: Iterable[str], known: Mapping[str, Check]) -> list[tuple[str, str]]:
    given: list[tuple[str, str]] = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        if name not in known:
            raise ServerError(f"{option} {setting!r} has no known setting; allowed are {', '.join(known)}")
        allowed, is_allowed = known[name]
        if not equals or not is_allowed(value):
            raise ServerError(f"{option} {name} is {value!r}; it must be {allowed}")
        if name in dict(given) and name not in REPEATED:
            raise ServerError(f"{option} {name} is given twice: {dict(given)[name]!r} and {value!r}")
        given.append((name, value))
    return given
