"""Whether a bundle that is served is still the one on disk."""

import threading
import time

from serving.bundle import MANIFEST, Bundle, file_digest

LOOK_SECONDS = 5.0


class DiskWatch:
    """``seconds`` in which the bundle on disk was another one than this, or gone.

    They are as many as a rebuilt one takes to load; if that fails, they go on until there is one that can be loaded.
    Counted by a thread of its own, since a disk may be slow.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._manifest, self._digest = bundle.folder / MANIFEST, bundle.digest
        self.seconds = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            differs, now = self._differs(), time.monotonic()
            self.seconds += differs * (now - last)
            last = now

    def _differs(self) -> bool:
        try:
            return file_digest(self._manifest) != self._digest
        except OSError:
            return True
