"""Families that learn against a discriminator: what is learnt in which turn, what a run is resumed from, collapse."""

import csv
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import ONE_PASS, SIZE, random_batch, random_condition, random_state, tiny_family
from torch import Tensor, nn
from torch.utils.data import Dataset

from training import adversarial
from training.adversarial import OBJECTIVES, Adversarial, ImagePool, gradient_of, spread
from training.checkpoint import find_checkpoint
from training.fit import Interrupted, Phase, Run, fit, learning_rates, load_training_state
from training.models.cyclegan import CycleGan
from training.models.dcgan import Dcgan
from training.models.pggan import Pggan


@pytest.fixture(params=ONE_PASS, scope="module")
def family(request: pytest.FixtureRequest) -> Adversarial:
    return tiny_family(request.param)


def drawing(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


class Batches(Dataset):
    """Six random pictures of each kind."""

    def __init__(self) -> None:
        batch = random_batch(6)
        self.items = [{name: tensor[k] for name, tensor in batch.items()} for k in range(6)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


class TestTurns:
    def test_each_has_gradients_for_its_own_networks_alone(self, family):
        family = tiny_family(family.name)
        family.train()
        for turn in family.turns("adversarial"):
            family.requires_grad_(False)
            family.zero_grad()
            turn.learns.requires_grad_(True)
            loss, _ = turn.loss(random_batch(4), drawing())
            loss.backward()
            own = {*turn.learns.parameters()}
            learnt = {weight for weight in family.parameters() if weight.grad is not None and weight.grad.any()}
            assert learnt
            assert learnt <= own

    def test_its_loss_depends_on_the_generator_alone(self, family):
        losses = []
        for seed in range(2):
            turns = tiny_family(family.name).turns("adversarial")
            torch.manual_seed(seed)
            untouched = torch.get_rng_state()
            losses.append([turn.loss(random_batch(4), drawing())[0].item() for turn in turns])
            assert torch.equal(torch.get_rng_state(), untouched)
        assert losses[0] == losses[1]

    def test_what_the_log_has_is_measured(self, family):
        found = [name for turn in family.turns("adversarial") for name in turn.loss(random_batch(4), drawing())[1]]
        assert sorted(found) == sorted(family.measures)

    def test_a_discriminator_learns_to_tell_what_it_is_shown(self, family):
        """The same drawn pictures all the time, and the same data."""
        family = tiny_family(family.name, learning_rate=2e-3)
        family.train()
        (turn,) = (turn for turn in family.turns("adversarial") if not turn.averaged)
        if isinstance(family, CycleGan):
            family.translate(random_batch(4), drawing())
        optimizer = torch.optim.Adam(turn.learns.parameters(), 2e-3)
        told = []
        for _ in range(30):
            optimizer.zero_grad()
            loss, measures = turn.loss(random_batch(4), drawing())
            loss.backward()
            optimizer.step()
            told.append(measures["discriminator"].item())
        assert told[-1] < 0.7 * told[0]

    def test_pictures_do_not_depend_on_their_mates(self, family):
        states, others = random_state(family, 3), random_state(family, 3, 1)
        others[1] = states[1]
        conditions = [random_condition(family, 3, seed) for seed in (0, 1)]
        for mixed, condition in zip(*reversed(conditions), strict=True):
            mixed[1] = condition[1]
        with torch.no_grad():
            (one,), (other,) = family.finish(states, *conditions[0]), family.finish(others, *conditions[1])
        torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-6)
        assert (one[0] - other[0]).abs().max() > 2e-5


class TestObjectives:
    @pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.guessing])
    def test_who_guesses_loses_what_is_said(self, name):
        objective = OBJECTIVES[name]
        score = torch.full((5,), {"non_saturating": 0.0, "least_squares": 0.5}[name])
        assert objective.critic(score, score).item() == pytest.approx(objective.guessing)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_each_wants_its_own(self, name):
        score = torch.linspace(-0.5, 0.5, 3).requires_grad_(True)
        (more_real,) = torch.autograd.grad(OBJECTIVES[name].critic(score, torch.zeros(3)), score)
        (more_drawn,) = torch.autograd.grad(OBJECTIVES[name].critic(torch.zeros(3), score + 1), score)
        (deceiving,) = torch.autograd.grad(OBJECTIVES[name].generator(score), score)
        assert (more_real < 0).all()
        assert (more_drawn > 0).all()
        assert (deceiving < 0).all()

    def test_the_penalty_of_a_linear_critic_is_known(self):
        weight = torch.randn(1, 1, SIZE, SIZE, generator=drawing())

        def judged(pictures: Tensor) -> Tensor:
            return (pictures * weight).sum((1, 2, 3))

        real, drawn = random_batch(4)["a"], random_batch(4)["b"]
        assert torch.allclose(gradient_of(judged, real), weight.expand(4, -1, -1, -1))
        r1 = tiny_family("dcgan", penalty=3.0).penalty(judged, real, drawn, drawing())
        assert r1.item() == pytest.approx(1.5 * weight.square().sum().item(), rel=1e-5)
        lengths = tiny_family("dcgan", penalty=3.0, objective="wasserstein").penalty(judged, real, drawn, drawing())
        assert lengths.item() == pytest.approx(3 * (weight.norm().item() - 1) ** 2, rel=1e-5)

    def test_its_gradient_is_learnt_from(self):
        family = tiny_family("pggan", penalty=10.0)
        family.requires_grad_(False)
        family.discriminator.requires_grad_(True)
        real = family.real(random_batch(4))
        family.penalty(family.judged, real, real, drawing()).backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in family.discriminator.parameters())


class TestPool:
    def test_a_full_one_gives_its_own_for_about_every_second(self):
        pool, generator = ImagePool(4, (1, 1, 1)), drawing()
        first = torch.arange(4.0).view(4, 1, 1, 1)
        assert torch.equal(pool.swapped(first, generator), first)
        shown = torch.cat([pool.swapped(torch.full((1, 1, 1, 1), number), generator) for number in range(4, 204)])
        kept = [*shown.flatten().tolist(), *pool.held.flatten().tolist()]
        assert sorted(kept) == [*range(204)], "each is given once, or still there"
        own = (shown.flatten() != torch.arange(4, 204)).float().mean()
        assert 0.4 < own < 0.6

    def test_without_room_it_gives_what_comes(self):
        new = torch.rand(3, 1, 2, 2)
        assert torch.equal(ImagePool(0, (1, 2, 2)).swapped(new, drawing()), new)

    def test_it_is_not_handed_on(self):
        assert not [name for name in tiny_family("cyclegan").state_dict() if "pool" in name]


class TestCycle:
    def parts(self, change: nn.Module) -> tuple[float, float]:
        family = tiny_family("cyclegan", cycle=10.0, identity=0.5)
        (turn, _) = family.turns("adversarial")
        adversary = sum(
            OBJECTIVES["least_squares"].generator(family.discriminators[kind](change(random_batch(4)[other])))
            for kind, other in ("ab", "ba")
        )
        family.generators["a_to_b"] = family.generators["b_to_a"] = change
        loss, measures = turn.loss(random_batch(4), drawing())
        return measures["cycle"].item(), (loss - adversary).item()

    def test_that_of_the_identity_is_zero_and_so_is_the_identity_loss(self):
        assert self.parts(nn.Identity()) == (0.0, pytest.approx(0.0, abs=1e-6))

    def test_that_of_halving_is_known(self):
        batch = random_batch(4)
        size = (batch["a"].abs().mean() + batch["b"].abs().mean()).item()
        halving = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(halving.weight, 0.5)
        cycle, rest = self.parts(halving)
        assert cycle == pytest.approx(0.75 * size)
        assert rest == pytest.approx(10 * 0.75 * size + 5 * 0.5 * size, rel=1e-5)

    def test_the_direction_decides_what_is_drawn_from_what(self):
        there, back = (tiny_family("cyclegan", direction=way) for way in ("a_to_b", "b_to_a"))
        (condition,) = random_condition(there, 2)
        with torch.no_grad():
            (one,), (other,) = (each.finish(random_state(each, 2), condition) for each in (there, back))
            expected = there.generators["b_to_a"](condition * 2 - 1) / 2 + 0.5
        assert torch.allclose(other, expected, atol=1e-6)
        assert not torch.allclose(one, other, atol=1e-3)
        assert (there.condition_item, back.condition_item) == ("a", "b")


class TestSettled:
    """A generator with batch norms draws with the statistics of the weights that it draws with."""

    def test_what_is_drawn_is_what_a_large_batch_would_be(self):
        family = tiny_family("dcgan", batch=64)
        with torch.no_grad():
            for norm in family.generator.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean.fill_(3.0)  # of other weights
            family.settle("adversarial")
            latents = random_state(family, 512)
            alone = family.generator(latents)
            together = family.train().generator(latents)
        assert (alone - together).abs().mean() < 0.05 * together.std()

    def test_training_does_not_notice(self, accelerator):
        family = tiny_family("dcgan", steps=[3], batch=4, ema_decay=0.5)
        phase = Phase(family, "adversarial", accelerator, None)
        phase.step(random_batch(4), drawing())
        before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
        with phase.averaged():
            inside = {name: tensor.clone() for name, tensor in family.state_dict().items()}
        after = family.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        changed = {name for name in before if not torch.equal(before[name], inside[name])}
        assert {name for name in changed if "running_mean" in name}
        assert not {name for name in changed if name.startswith("discriminator")}


@pytest.fixture
def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_a_rate_that_falls_from_half_way_on():
    preset = tiny_family("cyclegan").preset
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=preset.learning_rate)
    schedule = learning_rates(preset, optimizer, 8)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0] / preset.learning_rate)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


class TestResume:
    """Everything that a run knows is in its checkpoints."""

    def run(self, name: str, out: Path, stop_at: int | None = None) -> None:
        family = tiny_family(name, steps=[8], batch=2, ema_decay=0.9)
        advance, calls = family.advance, iter(range(99))

        def stopping(phase: str) -> None:
            if next(calls) + 1 == stop_at:
                signal.raise_signal(signal.SIGINT)
            advance(phase)

        family.advance = stopping
        run = Run(out, {"preset_name": "small"}, checkpoint_every=3, log_every=2, preview_every=99)
        resume = any(out.glob("checkpoints/[0-9]*"))
        if stop_at:
            with pytest.raises(Interrupted):
                fit(family, Batches(), run, resume)
        else:
            fit(family, Batches(), run, resume)

    def test_both_optimisers_the_pool_and_the_stage_go_on(self, family, tmp_path):
        self.run(family.name, tmp_path / "straight")
        for step in (3, 1, 2):  # before and after the border of a stage, and of a pool that is full
            self.run(family.name, tmp_path / "halting", stop_at=step)
        self.run(family.name, tmp_path / "halting")
        one, other = (load_training_state(find_checkpoint(tmp_path / name)) for name in ("straight", "halting"))
        assert_equal(one, other)
        assert len(one["turns"]) == 2
        assert all(state["optimizer"]["state"] for state in one["turns"].values())
        assert [bool("ema" in state) for state in one["turns"].values()].count(True) == 1
        ends = [find_checkpoint(tmp_path / name) / "model.safetensors" for name in ("straight", "halting")]
        assert ends[0].read_bytes() == ends[1].read_bytes()
        logs = [
            [row[:4] + row[5:] for row in csv.reader((tmp_path / name / "log.csv").open())]
            for name in ("straight", "halting")
        ]
        assert {tuple(row) for row in logs[0] if row[0] == "8"} <= {tuple(row) for row in logs[1]}
        if family.name == "cyclegan":
            assert one["memories"]["pool_b.filled"] == 3
            assert one["memories"]["pool_b.pictures"].any()


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        for item, its_other in zip(one, other, strict=True):
            assert_equal(item, its_other)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


class TestCollapse:
    @pytest.mark.parametrize("pool", [0, 3])
    def test_translations_that_are_all_alike_are_seen_without_a_pool_too(self, pool):
        family = tiny_family("cyclegan", pool=pool)
        assert isinstance(family, CycleGan)
        batch = random_batch(4)
        family._drawn = {kind: torch.zeros_like(batch[kind]) for kind in "ab"}
        _, measures = family.tell_apart(batch, drawing())
        assert measures["spread"] == 0

    def train(self, family: Adversarial, out: Path) -> list[dict[str, str]]:
        fit(family, Batches(), Run(out, {}, log_every=1, checkpoint_every=9, preview_every=9))
        return list(csv.DictReader((out / "log.csv").open()))

    def test_a_healthy_run_says_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(adversarial, "WARM", 0)
        family = tiny_family("pggan", steps=[3], batch=4)
        family.grown = 1.0
        rows = self.train(family, tmp_path)
        assert [row["warning"] for row in rows] == ["", "", ""]
        assert "collapsed" not in capsys.readouterr().out

    def test_pictures_that_are_all_one_are_said_once_and_in_every_row(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(adversarial, "WARM", 2)
        family = tiny_family("dcgan", steps=[4], batch=4, learning_rate=0.0)
        for weight in family.generator[-2].parameters():
            nn.init.zeros_(weight)
        rows = self.train(family, tmp_path)
        warnings = [row["warning"] for row in rows]
        assert warnings[0] == ""
        assert all("collapsed: its pictures differ by 0 % of what the data do" in warning for warning in warnings[1:])
        assert re.findall(r"step (\d): the generator has collapsed", capsys.readouterr().out) == ["2"]

    def test_so_is_a_discriminator_that_is_never_wrong(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(adversarial, "WARM", 0)
        monkeypatch.setattr(adversarial, "SAME", 0)
        family = tiny_family("dcgan", steps=[2], batch=4, learning_rate=0.0)
        shown = iter((20.0, -20.0, -20.0) * 2)
        family.judged = lambda pictures: family.discriminator(pictures) * 0 + next(shown)
        rows = self.train(family, tmp_path)
        assert all("the discriminator is never wrong" in row["warning"] for row in rows)
        assert "step 1: the discriminator is never wrong" in capsys.readouterr().out

    def test_how_far_pictures_differ_is_measured(self):
        assert spread(torch.ones(4, 1, 8, 8)) == 0
        apart = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
        assert spread(apart).item() == pytest.approx(2**0.5)


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "fields", "message"),
        [
            ("dcgan", {"size": 64}, "'size' is 64; 3 widths make 32"),
            ("dcgan", {"batch": 1}, "'batch' is 1; batch norms need at least 2"),
            ("dcgan", {"penalty": -1.0}, "'penalty' is -1.0; it must be at least 0"),
            ("dcgan", {"betas": [0.5, 1.0]}, "'betas' is .0.5, 1.0.; both must be"),
            ("dcgan", {"schedule": {"kind": "flow"}}, "'schedule'"),
            ("dcgan", {"objective": "hinge"}, "'objective' is 'hinge'; it must be Literal"),
            ("pggan", {"size": 64}, "'size' is 64; 4 widths make 32"),
            ("pggan", {"batch": 1}, "'batch' is 1; the deviation of a batch needs at least 2"),
            ("cyclegan", {"size": 30}, "'size' is 30; it must be a multiple of 4"),
            ("cyclegan", {"pool": -1}, "'pool' is -1; it must be at least 0"),
            ("cyclegan", {"direction": "b"}, "'direction' is 'b'"),
        ],
    )
    def test_what_cannot_be_is_named(self, name, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_family(name, **fields)


def test_types():
    kinds = {"dcgan": Dcgan, "pggan": Pggan, "cyclegan": CycleGan}
    assert {name: type(tiny_family(name)) for name in ONE_PASS} == kinds
