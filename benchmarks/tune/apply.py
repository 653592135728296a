"""The answer, put into the bundle: the default solver and steps, and what they were measured to be worth."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.evaluation.pairs import EvaluationError
from export.card import CARD, model_card
from serving.bundle import MANIFEST, SUMS, Bundle, load_bundle, seal
from serving.folders import replacing


def apply(chosen: Bundle, solver: str, steps: int, evidence: Mapping[str, Any], tuned: Bundle) -> Bundle:
    """Have the chosen bundle, with these defaults, in the place of that which was tuned: whole, or nothing is changed.

    Raises EvaluationError if either was rebuilt since it was loaded, BundleError, OSError or Busy if it cannot be read
    or written.
    """
    manifest = replace(chosen.manifest, default_solver=solver, default_steps=steps, tuned=dict(evidence))
    with replacing(tuned.folder) as (aside,):
        for file in chosen.folder.iterdir():
            if file.name not in (MANIFEST, CARD, SUMS):
                shutil.copyfile(file, aside / file.name)
        (aside / MANIFEST).write_text(manifest.to_json())
        (aside / CARD).write_text(model_card(manifest))
        seal(aside)
        for loaded in (chosen, tuned):
            _check_as_loaded(loaded)
        made = load_bundle(aside)
    return replace(made, folder=tuned.folder)


def _check_as_loaded(bundle: Bundle) -> None:
    if (found := load_bundle(bundle.folder).digest) != bundle.digest:
        raise EvaluationError(
            f"{bundle.folder} was rebuilt meanwhile, and nothing is changed: its sha256 is {found}, what was measured "
            f"had {bundle.digest}"
        )
