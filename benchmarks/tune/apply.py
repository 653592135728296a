"""The answer, put into the bundle: the default solver and steps, and what they were measured to be worth."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.card import CARD, model_card
from serving.bundle import MANIFEST, SUMS, Bundle, load_bundle, seal
from serving.folders import replacing


def apply(chosen: Bundle, solver: str, steps: int, evidence: Mapping[str, Any], place: Path) -> Bundle:
    """Have the chosen bundle, with these defaults, in this place: whole, or what was there stays as it was.

    Raises OSError or Busy if it cannot be written.
    """
    manifest = replace(chosen.manifest, default_solver=solver, default_steps=steps, tuned=dict(evidence))
    with replacing(place) as (aside,):
        for file in chosen.folder.iterdir():
            if file.name not in (MANIFEST, CARD, SUMS):
                shutil.copyfile(file, aside / file.name)
        (aside / MANIFEST).write_text(manifest.to_json())
        (aside / CARD).write_text(model_card(manifest))
        seal(aside)
    return load_bundle(place)
