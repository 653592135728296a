"""What Triton's log says, in words for the person who started it."""

import json
import re
import signal
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

_LOAD_FAILED = re.compile(
    r"\"(?:failed to load|Poll failed for model directory) '(?P<model>[^']+)'(?: version \d+)?: (?:Internal: )?"
    r"(?P<reason>.*?)(?:\\n|\"$)"
)
_NOT_FOUND = re.compile(r"\"failed to poll model '(?P<model>[^']+)': (?P<reason>.*?)\"$")
_LINE = re.compile(r"(?P<level>[IWEF])\d{4} \S+ \d+ (?P<source>\S+:\d+)\] (?P<text>.*)")
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "fatal"}
_REQUEST = re.compile(r"\[request id: (?P<id>[^\]]+)\] ")
_INFORMATION = re.compile(r"I\d{4} ")
# Addresses of a crash, tables, and what every start without a GPU says.
_NOISE = re.compile(
    r"\s*\d+# |Signal \(\d+\) received|\s*$|[|+]|.*(?:NVML|DCGM|CUDA driver|CudaDriverHelper|no pinned memory pool)"
)


def is_worth_showing(line: str) -> bool:
    """Warnings, errors and what models print, but no addresses of a crash and no tables."""
    return not (_INFORMATION.match(line) or _NOISE.match(line))


def as_json(line: str, level: str = "info") -> str:
    """A line of Triton's log, or of ours, as an object: time (when it was shown, UTC), level, message, source (file and
    line, of Triton's alone) and request_id, of what is about one request. level: of a line that is not Triton's.
    """
    found = _LINE.match(line)
    text = found["text"] if found else line
    try:
        message = json.loads(text) if found else text
    except ValueError:
        message = text
    request = _REQUEST.search(str(message))
    fields = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "level": _LEVELS[found["level"]] if found else level,
        "message": str(message),
        **({"source": found["source"]} if found else {}),
        **({"request_id": request["id"]} if request and request["id"] != "<id_unknown>" else {}),
    }
    return json.dumps(fields, ensure_ascii=False)


def load_failures(log: Iterable[str]) -> dict[str, str]:
    """Why models could not be loaded, by model."""
    found = (_LOAD_FAILED.search(line) or _NOT_FOUND.search(line) for line in log)
    return {match["model"]: match["reason"] for match in found if match}


def why_ended(log: Iterable[str], code: int) -> str:
    """Why tritonserver ended with an exit code, or with minus a signal's number; in one line."""
    lines = list(log)
    if failures := load_failures(lines):
        return explained(failures)
    told = [line.strip() for line in lines if is_worth_showing(line)]
    uncaught = [number for number, line in enumerate(told) if line.startswith("terminate called")]
    last = told[uncaught[-1] :] if uncaught else told[-3:]
    return f"tritonserver ended with code {code}{_signal_name(code)}: {' '.join(last) or 'it said nothing'}"


def explained(failures: Mapping[str, str]) -> str:
    return "; ".join(f"model {model} cannot be loaded: {reason}" for model, reason in failures.items())


def _signal_name(code: int) -> str:
    try:
        return f" ({signal.Signals(-code).name})"
    except ValueError:
        return ""
