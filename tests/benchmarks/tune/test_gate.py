"""What the gate lets through, what it refuses, and when it does not know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tiny import write_tiny_bundle
from tiny_texture import TEXTURE

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.segmentation import RECIPES, Segmenter
from benchmarks.evaluation.shapes import features_of
from benchmarks.tune import gate
from benchmarks.tune.candidates import Candidate, Held, ladders
from benchmarks.tune.comparison import Comparison
from benchmarks.tune.drawing import PART
from benchmarks.tune.gate import Followed, Limits, allowed_bad, together
from benchmarks.tune.looks import Look, Looks
from benchmarks.tune.plot import best
from benchmarks.tune.reader import Reader, reader_of
from benchmarks.tune.timing import in_turn
from benchmarks.tune.tune import Judge, Trial, split, tuned, unlike
from export.report import tuning
from serving.bundle import load_bundle
from training.data.classes import HEART, LESION
from training.data.phantom import Phantoms

SIZE, COUNT = 32, 96


def phantoms(first: int, count: int) -> Pairs:
    dataset = Phantoms(first + count, SIZE, seed=3)
    items = [dataset[k] for k in range(first, first + count)]
    images = np.stack([item["image"].numpy()[0] for item in items]) / 2 + 0.5
    masks = np.stack([item["mask"].numpy()[0] for item in items])
    names = tuple(f"seed {k}" for k in range(first, first + count))
    return Pairs("phantoms", images.astype(np.float32), masks, LESION, names, names, True)


@pytest.fixture(scope="module")
def samples() -> Pairs:
    return phantoms(0, 2 * COUNT)


@pytest.fixture(scope="module")
def real() -> Pairs:
    return phantoms(2 * COUNT, COUNT)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("gate")
    return Held(folder, load_bundle(write_tiny_bundle(folder / "bundle")), "")


class Kept:
    """Draws what it was given, by the candidate's steps, in parts; counts what it was asked for."""

    def __init__(self, by_steps: Mapping[int, Pairs], part: int = PART) -> None:
        self.by_steps, self.part, self.drawn = by_steps, part, dict.fromkeys(by_steps, 0)

    def parts(self, candidate: Candidate, seeds: range) -> Iterator[Pairs]:
        for last in [*range(seeds.start + self.part, seeds.stop, self.part), seeds.stop]:
            self.drawn[candidate.steps] = last - seeds.start
            yield self.by_steps[candidate.steps].at(range(seeds.start, last))

    def all(self, candidate: Candidate, seeds: range) -> Pairs:
        *_, last = self.parts(candidate, seeds)
        return last


def clock(candidates: Sequence[Candidate], seeds: range) -> tuple[list[float], dict[str, float]]:
    return [candidate.steps / 1000 for candidate in candidates], {"by hand": 1.0}


def compared(real: Pairs, folder: Path, reader: Reader | None = None) -> Comparison:
    return Comparison(real, [TEXTURE], reader, Limits(), Cache(folder), 0)


@pytest.fixture
def judged(held: Held, samples: Pairs, real: Pairs, tmp_path: Path):
    def trial(other: Pairs, count: int = COUNT, solver: str = "ddim", part: int = PART) -> Trial:
        drawer = Kept({64: samples, 8: other}, part)
        judge = Judge(drawer, Candidate(held, "ddim", 64), compared(real, tmp_path))  # type: ignore[arg-type]
        found = judge.trial(Candidate(held, solver, 8), range(count))
        assert found.verdict == together(found.criteria)
        return found

    return trial


def with_images(pairs: Pairs, images: np.ndarray) -> Pairs:
    return replace(pairs, images=images.clip(0, 1).astype(np.float32))


def verdicts(trial: Trial) -> dict[str, str]:
    return {each.name: each.verdict for each in trial.criteria}


def test_the_binomial_table() -> None:
    assert [allowed_bad(count) for count in (58, 59, 92, 93, 124, 153, 181)] == [-1, 0, 0, 1, 2, 3, 4]
    assert [allowed_bad(count, 0.01) for count in (298, 299)] == [-1, 0]


def test_bad_samples_pass_once_in_twenty() -> None:
    """Of a rate that is just too high, over 20,000 trials of 93; and the verdict is by that number."""
    bad = np.random.default_rng(0).random((20_000, 93)) < 0.05
    assert 0.04 < np.mean(bad.sum(1) <= allowed_bad(93)) < 0.055
    told = [gate.one_by_one(np.arange(93) < hits, Limits()).verdict for hits in (0, 1, 2, 8, 9)]
    assert told == ["accepted", "accepted", "too few samples", "too few samples", "refused"]


def test_the_reference_itself_is_accepted(judged, samples: Pairs) -> None:
    trial = judged(samples)
    assert trial.verdict == "accepted"
    assert {*verdicts(trial).values()} == {"accepted"}
    assert trial.figures["rms"].value == 0
    assert trial.figures["Dice"].value == 1


def test_what_differs_by_rounding_is_accepted(judged, samples: Pairs) -> None:
    rounding = 1e-3 * np.random.default_rng(1).standard_normal(samples.images.shape)
    assert judged(with_images(samples, samples.images + rounding)).verdict == "accepted"


def test_noise_is_refused(judged, samples: Pairs) -> None:
    noise = np.random.default_rng(1).standard_normal(samples.images.shape)
    assert judged(with_images(samples, samples.images + 0.1 * noise)).verdict == "refused"
    faint = verdicts(judged(with_images(samples, samples.images + 0.03 * noise)))
    assert (faint["seed by seed"], faint["kernel distance (texture)"]) == ("accepted", "refused")


def test_a_blur_is_refused_though_no_seed_is_far(judged, samples: Pairs) -> None:
    blurred = with_images(samples, ndimage.gaussian_filter(samples.images, (0, 1.5, 1.5)))
    trial = judged(blurred, solver="ddpm", part=COUNT)  # is not compared seed by seed
    assert "seed by seed" not in verdicts(trial)
    assert trial.verdict == "refused"
    assert verdicts(trial)["kernel distance (texture)"] == "refused"


def test_shuffled_masks_are_refused(judged, samples: Pairs) -> None:
    masks = samples.masks[np.random.default_rng(2).permutation(len(samples))]
    assert verdicts(judged(replace(samples, masks=masks)))["seed by seed"] == "refused"
    trial = judged(replace(samples, masks=masks), solver="ddpm", part=COUNT)
    assert verdicts(trial)["shapes"] == "refused"  # by what the masks have to do with the pictures
    assert trial.verdict == "refused"


def followed(own: np.ndarray, strangers: float = 0.05) -> Followed:
    return Followed(own, np.full(len(own), strangers))


class TestFollowing:
    """Whether pictures follow their masks."""

    def test_too_much_lost_passes_once_in_twenty(self) -> None:
        """As if one picture in twenty were of another mask, over 300 trials."""
        random, taken = np.random.default_rng(0), 0
        for _ in range(300):
            hard = random.normal(0.85, 0.08, 128)  # of a mask, whoever draws under it
            before, after = hard + random.normal(0, 0.03, 128), hard - 0.04 + random.normal(0, 0.03, 128)
            found = gate.following(followed(before), after, np.arange(128), Limits(), 0)
            assert found.limit == pytest.approx(0.05 * (before.mean() - 0.05))
            taken += found.verdict == "accepted"
        assert 5 <= taken <= 25

    def test_patients_are_drawn_and_not_their_slices(self) -> None:
        """Of four patients, whose pictures lose alike, as little is known as of four pictures."""
        before, groups = np.full(80, 0.85), np.repeat(np.arange(4), 20)
        after = before - np.repeat([0.0, 0.0, 0.06, 0.06], 20)
        assert gate.following(followed(before), after, np.arange(80), Limits(), 0).verdict == "accepted"
        assert gate.following(followed(before), after, groups, Limits(), 0).verdict == "too few samples"

    def test_by_how_much_decides(self) -> None:
        before = np.random.default_rng(0).normal(0.85, 0.08, 128)
        one_each = np.arange(128)
        told = [gate.following(followed(before), before - lost, one_each, Limits(), 0) for lost in (0.0, 0.02, 0.06)]
        assert [each.verdict for each in told] == ["accepted", "accepted", "refused"]
        noisy = before - 0.035 + np.random.default_rng(1).normal(0, 0.1, 128)
        assert gate.following(followed(before), noisy, one_each, Limits(), 0).verdict == "too few samples"
        assert told[0].what == (
            f"Dice {before.mean():.3f} with what a segmenter finds, the reference {before.mean():.3f}, in others' "
            "pictures 0.050"
        )

    def test_who_sees_nothing_says_nothing(self) -> None:
        """Neither if it finds nothing, nor if it finds the same in every picture."""
        one_each = np.arange(128)
        for level in (0.0, 0.4):
            blind = followed(np.full(128, level), strangers=level)
            assert gate.following(blind, blind.own, one_each, Limits(), 0).verdict == "too few samples"
        nothing = Followed(np.full(128, np.nan), np.full(128, np.nan))
        found = gate.following(nothing, nothing.own, one_each, Limits(), 0)
        assert (found.verdict, found.limit) == ("too few samples", 0.0)

    def test_empty_masks_do_not_hide_what_others_lose(self) -> None:
        before = np.where(np.arange(300) < 270, np.nan, 0.8)
        found = gate.following(followed(before), before - 0.15, np.arange(300), Limits(), 0)
        assert (found.verdict, found.value.value) == ("refused", pytest.approx(0.15))

    def test_masks_that_are_gone_are_lost(self) -> None:
        before = np.full(100, 0.9)
        after = np.where(np.arange(100) < 60, np.nan, 0.9)
        found = gate.following(followed(before), after, np.arange(100), Limits(), 0)
        assert (found.verdict, found.value.value) == ("refused", pytest.approx(0.54))

    def test_what_is_invented_where_masks_are_empty_is_lost(self) -> None:
        before = np.where(np.arange(300) < 60, np.nan, 0.9)
        after = np.where(np.arange(300) < 60, 0.0, 0.9)
        found = gate.following(followed(before), after, np.arange(300), Limits(), 0)
        assert (found.verdict, found.value.value) == ("refused", pytest.approx(0.2))

    def test_masks_agree_by_the_classes_that_either_has(self) -> None:
        first, second = np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8), np.uint8)
        first[1, :4], second[1, :2] = 1, 1
        first[2, :4], first[2, 4:], second[2, :4] = 1, 2, 1
        second[3, 0, 0] = 3
        agreed = gate.agreement(first, second)
        assert np.isnan(agreed[0])
        assert agreed[1:].tolist() == [pytest.approx(2 / 3), 0.5, 0.0]
        assert np.isnan(gate.agreement(first[:1], second[:1])).all()

    def test_a_picture_of_another_mask_is_refused(
        self, samples: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a network that learnt phantoms; it is kept, and reads every picture once. A few samples are enough."""
        recipe = replace(RECIPES["small"], filters=(8, 16, 32), epochs=24)
        cache = Cache(tmp_path)
        learnt = Segmenter(phantoms(3 * COUNT, 64), recipe, len(LESION), 0, cache)
        asked, reader = [], reader_of(learnt)

        def read(images: np.ndarray) -> np.ndarray:
            asked.append(len(images))
            return reader.read(images)

        comparison = compared(samples.at(range(COUNT, 2 * COUNT)), tmp_path, replace(reader, read=read))
        few = samples.at(range(32))
        known, swapped = comparison.known(few), replace(few, images=np.roll(few.images, 1, axis=0))
        for drawn, verdict in ((few, "accepted"), (swapped, "refused")):
            criteria, _ = comparison.criteria(known, drawn, is_paired=False)
            (found,) = (each for each in criteria if each.name == "pictures follow masks")
            assert found.verdict == verdict, found
        assert asked == [32, 32]
        assert known.followed is not None
        assert known.followed.own.mean() > known.followed.others.mean() + 0.3
        known = comparison.known(samples.at(range(64)))
        assert comparison.lost(known, few, is_paired=False) is None
        assert comparison.lost(known, swapped, is_paired=False) is not None
        monkeypatch.setattr(Segmenter, "_trained", None)  # it is kept
        assert reader_of(replace(learnt)).identity == reader.identity
        assert "64 of phantoms, split all; Dice 0." in reader.told(few, cache)

    def test_masks_alone_are_not_read(self, samples: Pairs, real: Pairs, tmp_path: Path) -> None:
        comparison = compared(real, tmp_path)
        criteria, _ = comparison.criteria(comparison.known(samples), samples, is_paired=False)
        assert "pictures follow masks" not in {each.name for each in criteria}


def test_masks_that_are_given_have_one_shape(samples: Pairs, tmp_path: Path) -> None:
    """However many slices a patient has: the reference, under the same masks, is not another distribution."""
    uneven = np.sort(np.concatenate([np.repeat(np.arange(30), 2), np.repeat(np.arange(30, 35), 12)]))
    given = replace(samples.at(range(120)), patients=tuple(f"patient {number}" for number in uneven))
    comparison = compared(samples.at(range(COUNT, 2 * COUNT)), tmp_path)
    criteria, _ = comparison.criteria(comparison.known(given), given, is_paired=False)
    assert {each.verdict for each in criteria} == {"accepted"}


class TestReal:
    """What the real pairs must be."""

    def test_few_pictures_leave_the_margin_too_wide(self, samples: Pairs, real: Pairs, tmp_path: Path) -> None:
        some = samples.at(range(COUNT))
        for count, verdict in ((gate.ENOUGH, "accepted"), (gate.ENOUGH - 1, "too few samples")):
            comparison = compared(real.at(range(count)), tmp_path)
            criteria, _ = comparison.criteria(comparison.known(some), some, is_paired=True)
            (found,) = (each for each in criteria if each.name.startswith("kernel"))
            assert found.verdict == verdict
        assert f"which {gate.ENOUGH - 1} real pictures leave too wide" in found.what

    def test_six_patients_are_too_few(self, real: Pairs, tmp_path: Path) -> None:
        """Halves have three each: how far they may be apart is not known, and that is said before anything is drawn."""
        six = replace(real, patients=tuple(f"patient {row % 6}" for row in range(len(real))))
        with pytest.raises(EvaluationError, match=r"of 6 patients; the margin .* needs at least 8, 4 in each half"):
            compared(six, tmp_path)


def test_other_shapes_and_masks_that_cannot_be_are_refused(judged, samples: Pairs) -> None:
    swollen = np.stack([ndimage.binary_dilation(mask, iterations=2) for mask in samples.masks]).astype(np.uint8)
    assert verdicts(judged(replace(samples, masks=swollen), solver="ddpm", part=COUNT))["shapes"] == "refused"
    second = samples.masks.copy()
    second[::3, :2, :2] = 1
    trial = judged(replace(samples, masks=second), solver="ddpm", part=COUNT)
    assert verdicts(trial)["pairs that cannot be"] == "refused"


def test_few_samples_say_nothing(judged, samples: Pairs) -> None:
    trial = judged(samples, count=24)
    assert trial.verdict == "too few samples"
    assert "24" in trial.why
    assert verdicts(trial)["seed by seed"] == "too few samples"


def test_a_clear_loser_is_given_up(judged, samples: Pairs) -> None:
    trial = judged(with_images(samples, 1 - samples.images))
    assert (trial.verdict, trial.was_given_up, trial.count) == ("refused", True, PART)
    assert f"refused early after {PART} samples" in trial.why


def test_a_clear_loser_is_given_up_though_its_seeds_are_others(judged, samples: Pairs) -> None:
    """By its faults or its shapes, as many samples of the first part show them."""
    none = replace(samples, masks=samples.masks * 0)
    trial = judged(none, solver="ddpm")
    assert (trial.verdict, trial.was_given_up, trial.count) == ("refused", True, PART)
    assert "seed by seed" not in verdicts(trial)
    assert "draws noise on the way" in trial.unpaired
    assert trial.figures == {}
    assert trial.as_json()["not_seed_by_seed"] == trial.unpaired


def test_the_reference_on_other_seeds_is_not_given_up(judged, samples: Pairs) -> None:
    rolled = samples.at(np.roll(np.arange(len(samples)), COUNT))
    trial = judged(rolled, solver="ddpm")
    assert (trial.was_given_up, trial.count) == (False, COUNT)


def test_another_first_noise_is_another_sample(held: Held) -> None:
    manifest = replace(held.bundle.manifest, sample_shape=(4, 8, 8), noise_channels=4)
    other = replace(held, bundle=replace(held.bundle, manifest=manifest))
    one = Candidate(held, "ddim", 8)
    assert unlike(one, Candidate(held, "dpmpp_2m", 4)) == ""
    assert "begins with noise of [4, 8, 8]" in unlike(Candidate(other, "ddim", 8), one)
    assert "ddpm draws noise" in unlike(one, Candidate(held, "ddpm", 8))


def test_hearts_are_judged_as_hearts() -> None:
    mask = np.zeros((2, 16, 16), np.uint8)
    mask[:, 4:12, 4:12], mask[:, 6:10, 6:10] = 2, 1
    mask[1, 5, 5] = 0
    mask[1, 4:8, 4:8] = 1
    names = ("a", "b")
    pairs = Pairs("hearts", np.zeros(mask.shape, np.float32), mask, HEART, names, names, True)
    assert [bool(each) for each in gate.wrong_with(pairs, {}, of_phantoms=False)] == [False, True]


def test_breasts_are_judged_as_phantoms_where_phantoms_were_learnt(samples: Pairs) -> None:
    """A second mass in the picture is seen there alone; without phantoms it is by the masks."""
    few = samples.at(range(8))
    images = few.images.copy()
    images[0, few.masks[0] > 0] = np.median(images[0, few.masks[0] == 0])
    faded, features = with_images(few, images), features_of(few)
    assert gate.wrong_with(few, features, of_phantoms=True) == [[]] * 8
    assert gate.wrong_with(faded, features, of_phantoms=True) == [["lesion not in the image"], *[[]] * 7]
    assert gate.wrong_with(faded, features, of_phantoms=False) == [[]] * 8
    none = replace(few, masks=few.masks * 0)
    assert gate.wrong_with(none, features_of(none), of_phantoms=False) == [["no lesion"]] * 8


def test_faults_are_counted_by_kind() -> None:
    wrong = [["no lesion"], ["2 lesions", "mass without a mask"], ["2 lesions"], *[[]] * 97]
    found = gate.faultless([[]] * 100, wrong, Limits())
    assert found.verdict == "too few samples"
    assert found.what == "3 of 100 (2 lesions: 2, no lesion: 1, mass without a mask: 1), the reference 0"
    assert gate.faultless(wrong, wrong, Limits()).verdict == "accepted"


class TestTuned:
    """The order of trials, the end of a ladder, and the second look at the winner."""

    def answer(self, held: Held, real: Pairs, by_steps: dict[int, Pairs], folder: Path, count: int = COUNT):
        drawer = Kept(by_steps)
        judge = Judge(drawer, Candidate(held, "ddim", 64), compared(real, folder))  # type: ignore[arg-type]
        steps = [count for count in by_steps if count != 64]
        self.judge = judge
        looks, said = Looks(folder / "looks.json"), self.said.append
        return tuned(judge, list(ladders([held], ["ddim"], steps)), 0, count, self.clock, looks, said), drawer

    @pytest.fixture(autouse=True)
    def timed(self) -> None:
        self.clock, self.said = clock, []

    def test_the_fastest_that_passed_is_confirmed(self, held, samples, real, tmp_path) -> None:
        bad = with_images(samples, 1 - samples.images)
        answer, drawer = self.answer(held, real, {64: samples, 32: samples, 16: samples, 8: bad, 4: samples}, tmp_path)
        assert answer.verdict == "accepted"
        assert answer.winner.candidate.steps == 16
        assert [trial.candidate.steps for trial in answer.trials] == [64, 32, 16, 8]
        assert [(each.steps, why) for each, why in answer.untried] == [(4, "ddim 8 was not accepted")]
        assert drawer.drawn[4] == 0
        assert answer.evidence["seeds"] == [[0, COUNT - 1], [COUNT, 2 * COUNT - 1]]
        assert answer.evidence["times_as_fast"] == pytest.approx(4)
        assert answer.evidence["seconds_per_sample"] == {"reference": 0.064, "chosen": 0.016, "by hand": 1.0}
        assert [trial.seconds for trial in answer.trials] == [0.064, 0.032, 0.016, 0.008]
        used = answer.evidence["used"]
        assert used == split(self.judge, range(COUNT), range(COUNT, 2 * COUNT), [])
        assert used["real pairs"] == f"{COUNT} of phantoms, split all"
        assert used["kernel distance"] == f"to all {COUNT} of them; its floor is that of halves, 5 ways"
        assert used["seeds to confirm by"] == f"{COUNT} to {2 * COUNT - 1}, of reference and winner, drawn once"

    def test_seeds_that_were_asked_before_are_said_to_be(self, held, samples, real, tmp_path) -> None:
        """By another winner, by other limits, or where something was chosen by them; the same run again asks nothing
        new, and a bundle that has another default since is the same."""
        by_steps = {64: samples, 16: samples, 8: samples}
        for default in (3, 5):
            manifest = replace(held.bundle.manifest, default_steps=default)
            same = replace(held, bundle=replace(held.bundle, manifest=manifest, digest=str(default)))
            answer, _ = self.answer(same, real, by_steps, tmp_path)
            assert (answer.winner.candidate.steps, answer.earlier) == (8, [])
        answer, _ = self.answer(held, real, {64: samples, 16: samples}, tmp_path)
        (earlier,) = answer.earlier
        assert earlier == f"ddim 8, onnx fp32, of weights {held.weights} on {COUNT} to {2 * COUNT - 1}"
        assert answer.evidence["earlier"] == [earlier]
        assert answer.evidence["used"]["seeds to confirm by"].endswith(f"winner, not fresh: {earlier}")
        assert any("these seeds are not fresh" in line for line in self.said)
        assert "64 others, which had been asked before;" in tuning({**answer.evidence, "confirmed": {"samples": 64}})
        other = with_images(real, np.roll(real.images, 1, axis=2))
        elsewhere, _ = self.answer(held, other, {64: samples, 16: samples}, tmp_path)
        assert f"ddim 16, onnx fp32, of weights {held.weights} on {COUNT} to {2 * COUNT - 1}" in elsewhere.earlier
        fewer, _ = self.answer(held, real, by_steps, tmp_path, count=COUNT - 10)
        assert f"to choose by on 0 to {COUNT - 1}" in fewer.earlier
        assert len(fewer.earlier) == 3
        look = Look("whose", "ddim 8", "limits", 10, 19)
        (looks := Looks(tmp_path / "others.json")).note(look)
        asked = look, look._replace(terms="others"), look._replace(first=20, last=29)
        assert [looks.earlier(each) for each in asked] == [[], ["ddim 8 on 10 to 19"], []]
        (tmp_path / "others.json").write_text("{")
        with pytest.raises(EvaluationError, match="does not say which seeds were asked"):
            Looks(tmp_path / "others.json")

    def test_where_the_reference_itself_is_not_accepted_nothing_is_tried(self, held, samples, real, tmp_path) -> None:
        answer, drawer = self.answer(held, real, {64: samples, 8: samples}, tmp_path, count=24)
        assert drawer.drawn[8] == 0
        ((_, why),) = answer.untried
        assert why.startswith("the reference itself: too few samples (seed by seed: 0 of 24 beyond the limits")
        assert replace(answer, trials=[replace(answer.trials[0], verdict="refused")]).verdict == "refused"

    def test_a_winner_that_is_no_faster_is_refused(self, held, samples, real, tmp_path) -> None:
        self.clock = lambda *_: ([1.0, 5.0], {})
        answer, _ = self.answer(held, real, {64: samples, 8: samples}, tmp_path)
        assert (answer.winner.verdict, answer.verdict) == ("accepted", "refused")
        assert answer.confirmed.why == "time: no faster than that"
        assert answer.evidence["times_as_fast"] == pytest.approx(0.2)
        assert answer.evidence["verdict"] == answer.evidence["confirmed"]["verdict"] == "refused"

    def test_a_winner_by_luck_is_not_confirmed(self, held, samples, real, tmp_path) -> None:
        images = samples.images.copy()
        images[COUNT:] = 1 - images[COUNT:]
        answer, _ = self.answer(held, real, {64: samples, 8: with_images(samples, images)}, tmp_path)
        assert answer.winner.verdict == "accepted"
        assert answer.verdict == "refused"

    def test_nobody_passes(self, held, samples, real, tmp_path) -> None:
        bad = with_images(samples, 1 - samples.images)
        assert self.answer(held, real, {64: samples, 8: bad}, tmp_path / "bad")[0].verdict == "refused"
        answer, _ = self.answer(held, real, {64: samples, 8: samples}, tmp_path / "few", count=24)
        assert (answer.verdict, answer.winner) == ("too few samples", None)


def test_paretos_front() -> None:
    assert best([(1.0, 0.0), (0.5, 0.1), (0.6, 0.2), (0.1, 0.4), (0.1, 0.4)]) == [True, True, False, True, True]


def test_rounds_take_turns() -> None:
    order: list[str] = []
    seconds = in_turn([lambda seeds, name=name: order.append(f"{name}{len(seeds)}") for name in "ab"], range(4), 3)
    assert order == ["a4", "b4"] * 3
    assert all(0 <= each < 1 for each in seconds)


def test_what_takes_minutes_is_timed_once(monkeypatch) -> None:
    now, order = [0.0], []

    def taking(name: str, seconds: float):
        def draw(seeds: range) -> None:
            order.append(name)
            now[0] += seconds

        return draw

    monkeypatch.setattr("benchmarks.tune.timing.time.perf_counter", lambda: now[0])
    seconds = in_turn([taking("quick", 4.0), taking("slow", 600.0)], range(4), 3)
    assert order == ["quick", "slow", "quick", "quick"]
    assert seconds == [1.0, 150.0]
