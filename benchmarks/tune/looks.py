"""Which seeds were asked before: they confirm less if something was chosen by them, or if others were asked on them."""

import json
from pathlib import Path


class Looks:
    """Kept in a file beside the report, whole at any moment."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._all: list[list[object]] = json.loads(file.read_text()) if file.exists() else []

    def earlier(self, reference: str, seeds: range, asked: str) -> list[str]:
        """Of the same reference and some of the same seeds, but what is asked now."""
        found = [
            f"{what} on {first} to {last}"
            for whose, what, first, last in self._all
            if whose == reference and what != asked and int(str(first)) < seeds.stop and int(str(last)) >= seeds.start
        ]
        return list(dict.fromkeys(found))

    def note(self, reference: str, seeds: range, asked: str) -> None:
        entry: list[object] = [reference, asked, seeds.start, seeds.stop - 1]
        if entry in self._all:
            return
        self._all.append(entry)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_name(f".{self._file.name}.writing")
        aside.write_text(json.dumps(self._all, indent=1) + "\n")
        aside.replace(self._file)
