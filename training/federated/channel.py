"""NVIDIA FLARE's cells, which carry messages over TLS, and who may hold one: certificates.

Both ends show a certificate that one authority has signed, and FLARE takes a cell for who its certificate says it is. A
kit is a folder with what one end needs: ``rootCA.pem``, and ``server.crt`` and ``.key`` or ``client.crt`` and ``.key``.
"""

import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from serving.folders import replacing

CHANNEL = "medgen"
SERVER = "server"
AUTHORITY = "authority"
VALID_DAYS = 3650
MOMENT = "%Y-%m-%d %H:%M"
NOT_YET_VALID, EXPIRED = 9, 10  # OpenSSL's codes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
MISSING = "sites need NVIDIA FLARE: pip install 'medgen[federated]'"


class ChannelError(Exception):
    """A server or a site cannot be reached, or is not what it must be."""


def check_installed() -> None:
    try:
        import nvflare  # noqa: F401
    except ModuleNotFoundError:
        raise ChannelError(MISSING) from None


def write_kits(out: Path, host: str, sites: Sequence[str]) -> list[Path]:
    """Kits for a server, if ``out`` has none, and for sites. Their authority's key stays in ``out``: keep it there.

    Raises:
        ChannelError: a name cannot be a site's, or has a kit already.
    """
    check_installed()
    from nvflare.lighter import utils

    for name in sites:
        if not NAME.fullmatch(name) or name in (SERVER, AUTHORITY):
            raise ChannelError(f"site {name!r} must be a name of letters, digits, - and _, and not {SERVER}")
        if (out / name).exists():
            raise ChannelError(f"{out / name} is there already: each site has one kit")
    root, key_file = out / AUTHORITY / "rootCA.pem", out / AUTHORITY / "rootCA.key"
    authority = utils.Identity(AUTHORITY)
    if not key_file.exists():
        key, public = utils.generate_keys()
        certificate = utils.generate_cert(authority, authority, key, public, valid_days=VALID_DAYS, ca=True)
        files = {root.name: utils.serialize_cert(certificate), key_file.name: utils.serialize_pri_key(key)}
        _write_kit(out / AUTHORITY, files)
    key, signed = utils.load_private_key_file(str(key_file)), root.read_bytes()
    kits = []
    for name in ([] if (out / SERVER).exists() else [SERVER]) + [*sites]:
        own, public = utils.generate_keys()
        where = host if name == SERVER else None
        certificate = utils.generate_cert(
            utils.Identity(name), authority, key, public, valid_days=VALID_DAYS, server_default_host=where
        )
        role = "server" if name == SERVER else "client"
        pair = {f"{role}.crt": utils.serialize_cert(certificate), f"{role}.key": utils.serialize_pri_key(own)}
        _write_kit(out / name, {"rootCA.pem": signed, **pair})
        kits.append(out / name)
    return kits


def _write_kit(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as (aside,):
        for name, content in files.items():
            (aside / name).write_bytes(content)
            os.chmod(aside / name, 0o600)


def name_in(kit: Path, role: str) -> str:
    """Who a kit says its holder is; ``role`` is "server" or "client"."""
    check_installed()
    from cryptography.exceptions import InvalidSignature
    from nvflare.lighter import utils

    for file in ("rootCA.pem", f"{role}.crt", f"{role}.key"):
        if not (kit / file).is_file():
            raise ChannelError(f"{kit} has no {file}: it must be a kit that python -m training certificates wrote")
    authority, own = (valid_certificate(kit / file) for file in ("rootCA.pem", f"{role}.crt"))
    try:
        own.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, ValueError):
        raise ChannelError(f"{kit / role}.crt is not signed by {kit / 'rootCA.pem'}: both must be of one kit") from None
    credentials(kit, role)
    names = utils.cert_to_dict(own)["subject"]
    if "commonName" not in names:
        raise ChannelError(f"{kit / role}.crt names nobody")
    return str(names["commonName"])


def valid_certificate(file: Path) -> Any:
    """Raises ChannelError if a file holds none, or one that is not valid today."""
    from nvflare.lighter import utils

    try:
        certificate = utils.load_crt(str(file))
    except ValueError as error:
        raise ChannelError(f"{file} is no certificate: {error}") from error
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not since <= (now := datetime.now(timezone.utc)) < until:
        raise ChannelError(
            f"{file} is valid from {since:{MOMENT}} to {until:{MOMENT}}, and here it is {now:{MOMENT}} UTC: ask for a "
            "new kit, or set this machine's clock"
        )
    return certificate


def credentials(kit: Path, role: str) -> ssl.SSLContext:
    """What an end of a connection shows and whom it trusts; raises ChannelError if a kit's parts do not fit."""
    try:
        context = ssl.create_default_context(cafile=str(kit / "rootCA.pem"))
        context.load_cert_chain(kit / f"{role}.crt", kit / f"{role}.key")
    except ssl.SSLError as error:
        raise ChannelError(f"{kit} holds no certificates and key that fit ({error.reason or error})") from None
    return context


def open_cell(name: str, address: str, kit: Path, role: str, say: Callable[[str], object] | None = None) -> Any:
    """A FLARE cell, not started yet; ``say`` is for a server, and is told who is not let in."""
    from nvflare.fuel.f3.cellnet.cell import Cell

    logging.getLogger("nvflare").setLevel(logging.CRITICAL)  # what goes wrong is said here, in one line
    files = {"ca_cert": "rootCA.pem", f"{role}_cert": f"{role}.crt", f"{role}_key": f"{role}.key"}
    credentials = {what: str(kit / file) for what, file in files.items()}
    if say is not None:
        from training.federated.door import watch

        watch(host_and_port(address)[1], say)
    return Cell(name, f"stcp://{address}", secure=True, credentials=credentials)


def close_cell(cell: Any) -> None:
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.stats_pool import StatsPoolManager

    cell.stop()
    CoreCell.ALL_CELLS.pop(cell.get_fqcn(), None)  # else the process could never open one of that name again
    if not CoreCell.ALL_CELLS:
        StatsPoolManager.pools.clear()


def message(payload: Any) -> Any:
    from nvflare.fuel.f3.message import Message

    return Message(None, payload)


def tell(cell: Any, topic: str, targets: Sequence[str], payload: Any) -> None:
    """Send without an answer; who is not there does not get it."""
    cell.fire_and_forget(CHANNEL, topic, list(targets), message(payload), optional=True)


def listen(cell: Any, topic: str, heard: Callable[[str, Any], Any]) -> None:
    """Call ``heard`` with the name of the sender and the payload; what it returns is the answer to a request.

    What somebody sends in another's name, or through the server, is not heard: the sender is who the certificate at the
    other end of the connection names.
    """
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey

    def called(request: Any) -> Any:
        sender = request.get_header(MessageHeaderKey.ORIGIN)
        if not sender or sender != request.get_prop(MessagePropKey.COMMON_NAME):
            return None
        answer = heard(str(sender), bytes(request.payload))
        return None if answer is None else message(answer)

    cell.register_request_cb(CHANNEL, topic, called)


def host_and_port(address: str) -> tuple[str, int]:
    """Raises ChannelError if an address is none."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise ChannelError(f"{address!r} is no address; it must be HOST:PORT, with a port from 1 to 65535")
    return host, int(port)


def check_free(address: str) -> None:
    """Raises ChannelError if a server cannot listen at an address."""
    try:
        with socket.create_server(host_and_port(address)):
            pass
    except (OSError, OverflowError) as error:
        raise ChannelError(f"{address} cannot be listened at: {getattr(error, 'strerror', None) or error}") from None


def check_door(address: str, kit: Path) -> bool:
    """Whether a server listens at an address; raises ChannelError if one of the two does not trust the other."""
    host, port = host_and_port(address)
    context = credentials(kit, "client")
    context.check_hostname = False  # FLARE looks at the name in the certificate, which is "server"
    try:
        with (
            socket.create_connection((host, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            shown: Any = secure.getpeercert() or {}
            name = dict(pair for (pair,) in shown.get("subject", ())).get("commonName")
            if name != SERVER:
                raise ChannelError(f"{address} shows a certificate of {name!r}, which is no server's")
            secure.settimeout(0.5)
            with suppress(TimeoutError):
                secure.recv(1)  # a refused certificate is said after the handshake
        return True
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (NOT_YET_VALID, EXPIRED):
            raise ChannelError(
                f"{address} shows a certificate that is not valid today ({error.verify_message}): the server needs a "
                "new kit, or a machine's clock is wrong"
            ) from None
        raise ChannelError(
            f"{address} shows a certificate that {kit / 'rootCA.pem'} has not signed ({error.verify_message}): is it "
            "another server, or is this kit another authority's?"
        ) from None
    except ssl.SSLError as error:
        raise ChannelError(f"{address} does not take the certificate in {kit} ({error.reason or error})") from None
    except OSError:
        return False
