"""How much of everything: as the papers have it, on a GPU, or as much as goes into some minutes of one CPU core."""

from dataclasses import asdict, dataclass
from typing import Any

QUARTER = 15.0  # minutes that the figures in ``within`` are of


@dataclass(frozen=True)
class Amounts:
    """preset: of generators and of segmenters. steps: of each phase of a generator's training, and batch; None: the
    preset's. warm: whether models of the heart begin from the checkpoints that ship, which learnt phantoms. phantoms:
    that stand for mammograms, learnt and held out. real: pairs that a segmenter is trained on, at most; None: all.
    ddpm, ddim: steps of Table 1's samplers. seeds, epochs: of segmenters. radiomics: whether there are distances of
    these."""

    preset: str = "paper"
    steps: int | None = None
    batch: int | None = None
    warm: bool = False
    phantoms: int = 2048
    real: int | None = None
    ddpm: int = 1024
    ddim: int = 256
    seeds: int = 3
    epochs: int | None = None
    radiomics: bool = True

    def described(self) -> dict[str, Any]:
        return asdict(self)


def within(minutes: float) -> Amounts:
    """Sized for so long on one idle core: the same amounts on every machine, for figures to be made again."""
    share = minutes / QUARTER
    pairs = max(16, round(64 * share))
    return Amounts(
        preset="small",
        steps=max(1, round(60 * share)),
        batch=8,
        warm=True,
        phantoms=pairs,
        real=pairs,
        ddpm=50,
        ddim=20,
        seeds=1,
        epochs=15,
        radiomics=False,
    )
