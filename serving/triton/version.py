"""Which Triton this is, and how far beyond this machine it may be reached."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import replace

from serving.triton.address import LOOPBACK, Address
from serving.triton.installation import Installation
from serving.triton.processes import tied_to_us

Version = tuple[int, int, int]

# The first without a known way to end it, or to run code in it, by a request: the container 26.09. README.md has the
# list.
MENDED, MENDED_CONTAINER = (2, 73, 0), "26.09"
PROBE_SECONDS = 60
# Nothing to serve and nowhere to listen: it says its version and ends.
NOTHING = [
    "--model-repository=/",
    "--model-control-mode=explicit",
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
]
_VERSION = re.compile(r"server_version\s*\|\s*(\d+)\.(\d+)\.(\d+)")


def find_version(installation: Installation) -> Version | None:
    """The version that the program itself names, or None if it names none."""
    command = [*tied_to_us(str(installation.program)), *installation.arguments, *NOTHING]
    with subprocess.Popen(
        command,
        env=installation.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        end = threading.Timer(PROBE_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        end.start()
        try:
            return read_version(process.stdout)
        finally:
            end.cancel()
            os.killpg(process.pid, signal.SIGKILL)


def read_version(log: Iterable[str]) -> Version | None:
    """The version in Triton's log, or None if the log ends without one."""
    for line in log:
        if match := _VERSION.search(line):
            major, minor, patch = map(int, match.groups())
            return major, minor, patch
    return None


def describe(version: Version | None) -> str:
    """Its name and number, or that the number is unknown."""
    return f"Triton {'of an unknown version' if version is None else '.'.join(map(str, version))}"


def permitted(address: Address, version: Version | None, accepted: str | None) -> Address:
    """The address, narrowed to this machine as far as a Triton with known holes must not be reached from others.

    accepted: "grpc" or "http", if the user wants it reached by gRPC, or by both, all the same.
    """
    if address.is_loopback or accepted == "http" or (version is not None and version >= MENDED):
        return address
    return replace(address, http_host=LOOPBACK) if accepted == "grpc" else replace(address, host=LOOPBACK)


def narrowed(asked: Address, given: Address, version: Version | None) -> str:
    """Why the server listens elsewhere than was asked for, and what to do about it."""
    listens = "HTTP and metrics listen" if given.host == asked.host else "it listens"
    return (
        f"{describe(version)} can be ended, or worse, by a request, so {listens} on {LOOPBACK} alone, not on "
        f"{asked.host}. For other machines run NVIDIA's container {MENDED_CONTAINER} or newer, or see "
        "--accept-known-vulnerabilities"
    )
