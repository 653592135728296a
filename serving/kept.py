"""What took long to make, kept in the user's cache folder: without it all goes on as well, and takes longer."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from serving.user import cache_folder


class KeptFile:
    """A file of the cache folder, after the sha256 of its content: a damaged one is as one that is not there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> bytes | None:
        """None if there is none, or it is damaged."""
        try:
            content = (cache_folder() / self._name).read_bytes()
        except OSError:
            return None
        digest, kept = content[:32], content[32:]
        return kept if hashlib.sha256(kept).digest() == digest else None

    def write(self, content: bytes) -> None:
        """Keep it, if that can be; processes that have a number in common, as in containers, may do so at once."""
        with suppress(OSError):
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(dir=folder, prefix=f".{self._name}.")
            os.close(number)
            aside = Path(name)
            try:
                aside.write_bytes(hashlib.sha256(content).digest() + content)
                aside.replace(folder / self._name)
            finally:
                aside.unlink(missing_ok=True)
