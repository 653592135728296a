"""What the weights had learnt that a training began with, or was taught by: a config's "ancestors", nearest first."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serving.bundle import Manifest

RECORDED = ("digest", "data", "data_digest", "data_summary", "learnt_sha256", "elsewhere", "imported")


def lineage(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ancestors of what comes from a checkpoint, whose config is as ``load_checkpoint`` gives it."""
    itself = {key: config[key] for key in RECORDED if config.get(key) is not None}
    return [itself, *ancestors(config)]


def ancestors(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a checkpoint; of those that an older medgen did not write down nothing is known but a digest."""
    if "ancestors" in config:
        return list(config["ancestors"])
    student = config.get("student") or {}
    digests = (student.get("teacher"), config.get("init"), config.get("learnt_through"))
    return [{"digest": digest} for digest in digests if digest]


def line(config: Mapping[str, Any]) -> list[str]:
    """The sha256 of a checkpoint's weights, of those that they were packed from, and of those that taught them."""
    student = config.get("student") or {}
    digests = (config.get("digest"), config.get("packed_from"), student.get("teacher"), *student.get("line", ()))
    return list(dict.fromkeys(digest for digest in digests if digest))


def no_phantoms(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is not known to have learnt phantoms alone: of the checkpoint itself, and of its ancestors."""
    return [each for each in (config, *ancestors(config)) if not phantoms_alone(each)]


def phantoms_alone(config: Mapping[str, Any]) -> bool:
    """Whether that is all that a checkpoint learnt, but for its ancestors."""
    is_phantoms = re.fullmatch(r"phantom(:\d+)?", str(config.get("data"))) is not None
    return is_phantoms and not config.get("imported") and not config.get("elsewhere")


def origin_of(manifest: Manifest) -> dict[str, Any]:
    """What a bundle says of its checkpoint, as the checkpoint's config has it."""
    return {"student": manifest.student and asdict(manifest.student), **manifest.checkpoint}
