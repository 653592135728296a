"""The gate's errors are counted, and are as few as it says."""

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.evaluation.segmentation import Recipe
from benchmarks.tune import calibration
from benchmarks.tune.calibration import PLANTED, Planted, Rate, calibrated


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RECIPES", {"small": Recipe(filters=(8, 16, 32), epochs=16, batch=16)})


def test_planted_candidates_end_as_they_should() -> None:
    """The reference passes, and nothing that is much worse."""
    (rates,) = calibrated(1, 96, 32, 0)
    ended = {rate.planted.name: rate.verdicts for rate in rates}
    assert ended["the reference again"] == ended["the reference, rounded"] == {"accepted": 1}
    for name in ("noise", "blur, not seed by seed", "masks shuffled, not seed by seed"):
        assert ended[name] == {"refused": 1}


def test_the_share_has_exact_limits() -> None:
    rate = Rate(PLANTED[0], {"accepted": 59})
    assert (rate.accepted.value, rate.accepted.high) == (1.0, 1.0)
    assert 0.95 < rate.accepted.low < 0.951  # 0.05 to the power of 1 / 59


def test_the_command_counts(monkeypatch) -> None:
    again = Planted("again", False, True, lambda pairs, *_: pairs)
    monkeypatch.setattr(calibration.calibrated, "__defaults__", ((again,),))
    result = CliRunner().invoke(main, ["tune-calibrate", "--trials", "1", "--count", "64"])
    assert result.exit_code == 0, result.output
    assert "1 trials of 64 samples" in result.output
    assert result.output.split("again", 1)[1].split()[:4] == ["accepted", "1", "0", "0"]
