"""Bundles in object storage, each under its digest: ``push`` and ``pull``.

A bundle is at URL/MODEL/DIGEST, where DIGEST is the sha256 of its manifest.json, which every sample names; the manifest
has the digests of what draws, and SHA256SUMS those of all files. fsspec reads and writes: file://, s3:// (with the
package s3fs), gs:// (gcsfs), az:// (adlfs), and what else it knows.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.bundle import (
    MANIFEST,
    SUMS,
    TEMPLATES,
    Bundle,
    BundleError,
    bundle_folder,
    file_digest,
    load_bundle,
    stream_digest,
    sums_in,
)
from serving.chain import read_chain
from serving.folders import Busy, replacing
from serving.repository import prepare_repository

BLOCK = 1 << 20
PLACE = re.compile(r".+/(?P<model>\w[\w.-]*)/(?P<digest>[0-9a-f]{64})/?", re.ASCII)


class StoreError(Exception):
    """A bundle cannot be pushed or pulled; the message says where, and why."""


def push(repository: Path, model: str, url: str) -> str:
    """Copy a model's bundle, once it is checked, to URL/MODEL/DIGEST, and return that address.

    SHA256SUMS goes last: without it nobody takes the rest for a bundle. A second push reads what is there and writes
    what is not as it should be, which mends one that was cut short or damaged; a good one is not touched.

    Raises BundleError if the bundle is none or damaged, StoreError if the model is a chain, if it cannot be written
    there, or if there is another under the digest, of the same engines with other papers.
    """
    if chain := read_chain(repository, model):
        raise StoreError(f"{model} is a chain: push {', '.join(stage.model for stage in chain.stages)}, its stages")
    bundle = load_bundle(bundle_folder(repository, model))
    address = f"{url.rstrip('/')}/{bundle.manifest.model}/{bundle.digest}"
    sums = (bundle.folder / SUMS).read_bytes()
    with _opened(address) as (system, place):
        there = system.cat_file(f"{place}/{SUMS}") if system.exists(f"{place}/{SUMS}") else b""
        if not sums.startswith(there):
            raise StoreError(f"{address} holds a bundle with other files beside the same {MANIFEST}; it is kept")
        system.makedirs(place, exist_ok=True)
        for name, sha256 in sums_in(bundle.folder).items():
            if _digest(system, f"{place}/{name}") == sha256:
                continue
            with (bundle.folder / name).open("rb") as ours, system.open(f"{place}/{name}", "wb") as theirs:
                shutil.copyfileobj(ours, theirs, BLOCK)
        if there != sums:
            system.pipe_file(f"{place}/{SUMS}", sums)
    return address


def _digest(system: Any, path: str) -> str | None:
    """The sha256 of a file in a storage; None if there is none."""
    if not system.exists(path):
        return None
    with system.open(path, "rb") as stream:
        return stream_digest(stream)


def pull(address: str, repository: Path) -> Bundle:
    """Put the bundle at URL/MODEL/DIGEST into a model repository, in the place of the one there, if all of it is good.

    The repository gets the model's folder as medgen has it, if it has none.

    Raises StoreError if there is no bundle or it cannot be read, BundleError if a file is not the one that was pushed
    or this medgen cannot read the bundle. Then the repository's bundle stays as it was.
    """
    found = PLACE.fullmatch(address)
    if found is None:
        raise StoreError(f"{address!r} does not end in /MODEL/DIGEST, 64 hexadecimal digits; push says it")
    model, digest = found["model"], found["digest"]
    place_here = bundle_folder(repository, model)
    try:
        with _opened(address) as (system, place):
            try:  # to ask whether it is there would be answered with no where nobody answers
                sums = system.cat_file(f"{place}/{SUMS}")
            except FileNotFoundError:
                raise StoreError(
                    f"{address} holds no bundle, or one whose push was cut short: it has no {SUMS}"
                ) from None
            manifest = system.cat_file(f"{place}/{MANIFEST}")
            if (is_ := hashlib.sha256(manifest).hexdigest()) != digest:
                raise StoreError(f"{address}: {MANIFEST} is not the one that was pushed: its sha256 is {is_}")
            prepare_repository(repository, model)
            with replacing(place_here) as (new,):
                (new / SUMS).write_bytes(sums)
                for name, sha256 in sums_in(new).items():
                    with system.open(f"{place}/{name}", "rb") as theirs, (new / name).open("wb") as ours:
                        shutil.copyfileobj(theirs, ours, BLOCK)
                    if (is_ := file_digest(new / name)) != sha256:
                        raise StoreError(f"{address}/{name} is not the file that was pushed: its sha256 is {is_}")
                copied = load_bundle(new)
                if (copied.manifest.model, copied.digest) != (model, digest):
                    raise StoreError(f"{address} holds {copied.digest} of {copied.manifest.model}")
    except Busy as error:
        raise StoreError(str(error)) from None
    return replace(copied, folder=place_here.absolute())


def complete_chains(repository: Path, model: str) -> list[str]:
    """Give the repository those of medgen's chains that have this model as a stage, and all stages; returns them.

    Raises StoreError if somebody else is at it for long.
    """
    chains = (read_chain(TEMPLATES, folder.name) for folder in sorted(TEMPLATES.iterdir()))
    found = []
    for chain in filter(None, chains):
        stages = {stage.model for stage in chain.stages}
        if model in stages and all((bundle_folder(repository, stage) / MANIFEST).exists() for stage in stages):
            try:
                prepare_repository(repository, chain.model)
            except Busy as error:
                raise StoreError(str(error)) from None
            found.append(chain.model)
    return found


@contextmanager
def _opened(address: str) -> Iterator[tuple[Any, str]]:
    """The file system of an address, and the path in it; what it raises inside becomes a StoreError."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise StoreError("this needs the package fsspec, which is not installed: pip install 'medgen[store]'") from None
    try:
        yield url_to_fs(address)
    except (BundleError, StoreError, Busy):
        raise
    except ImportError as error:  # of a protocol's package, which it names
        raise StoreError(f"{address}: {error}") from None
    except Exception as error:  # every storage has errors of its own
        raise StoreError(f"{address}: {type(error).__name__}: {error}") from None
