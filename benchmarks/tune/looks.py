"""Which seeds were asked before: they confirm less if something was chosen by them, or if others were asked on them."""

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks.evaluation.pairs import EvaluationError


class Look(NamedTuple):
    """reference: whose seeds they are. asked: what they were to tell. terms: by which limits, real pairs and networks.
    Seeds first to last."""

    reference: str
    asked: str
    terms: str
    first: int
    last: int


class Looks:
    """Kept in a file beside the report, whole at any moment. Raises EvaluationError if it is not such a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._all = [Look(*each) for each in json.loads(file.read_text())] if file.exists() else []
        except (TypeError, ValueError) as error:
            raise EvaluationError(
                f"{file} does not say which seeds were asked: {error}; another --out has none"
            ) from None

    def earlier(self, now: Look) -> list[str]:
        """Of the same reference and some of the same seeds, but this very look."""
        found = [
            f"{each.asked} on {each.first} to {each.last}"
            for each in self._all
            if each.reference == now.reference and each != now and each.first <= now.last and each.last >= now.first
        ]
        return list(dict.fromkeys(found))

    def note(self, now: Look) -> None:
        if now in self._all:
            return
        self._all.append(now)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_name(f".{self._file.name}.writing")
        aside.write_text(json.dumps(self._all, indent=1) + "\n")
        aside.replace(self._file)
