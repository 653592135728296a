"""Which of Triton's APIs a stranger may use: none with which one can change or run anything but inference."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

# What each lets anyone do who can reach the server.
RISKS = {
    "model-repository": "load and unload models, and so run code",
    "shared-memory": "read and write this machine's shared memory, that of the models included",
    "trace": "write files by the server's user",
    "logging": "write files by the server's user, and silence the log",
}
HEADER = "medgen-key"


@dataclass(frozen=True)
class Access:
    """The APIs that are open to anyone, and the key that opens the others; it never leaves this process and Triton."""

    open: Collection[str] = ()
    key: str = field(default_factory=lambda: secrets.token_hex(24), repr=False)

    def arguments(self) -> list[str]:
        closed = ",".join(api for api in RISKS if api not in self.open)
        options = ("--http-restricted-api", "--grpc-restricted-protocol")
        return [f"{option}={closed}:{HEADER}={self.key}" for option in options] if closed else []
