"""The command that draws again what is on the page."""

import shlex

from serving.client import DEFAULT_URLS
from serving.page.drawing import Drawn


def command_of(drawn: Drawn, url: str) -> str:
    """For a shell; url: HOST:PORT of the server, by gRPC. Files are named as the visitor called them."""
    settings = drawn.settings
    words = ["medgen", "sample"]
    if url != DEFAULT_URLS["grpc"]:
        words += ["--url", url]
    words += ["--model", settings.model, "--count", str(len(drawn.samples)), "--seed", str(settings.seed)]
    for name, value in settings.solving.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    for file in settings.files:
        words += ["--condition", file.name]
    for label in settings.labels:
        words += ["--label", label]
    return shlex.join([*words, "--out", stem(drawn)])


def stem(drawn: Drawn) -> str:
    """What its folder, and a download, is called: the same seed by another solver or in other steps is another."""
    settings = drawn.settings
    return "-".join(map(str, (settings.model, settings.seed, *settings.solving.values())))
