"""Discriminators at sites: the same weights wherever they are, and no picture in what they say."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey
from tiny import contents
from tiny_families import fields_of, random_batch

from training import CheckpointError
from training.data.dataset import LoadedPairs
from training.federated import client, runs
from training.federated.channel import CHANNEL, ChannelError, check_door, check_free, listen, name_in, write_kits
from training.federated.panel import MessageError, Question, Vote, mean_of
from training.federated.runs import end, free_port, lost, prepared, recorded, simulated_site, split
from training.federated.server import STRIKES, SitesElsewhere
from training.federated.shards import patient, shards
from training.federated.site import Site, SitesHere
from training.federated.terms import Terms
from training.fit import Run, fit
from training.models.dmgan_image import DmGanImage
from training.reconstructions import Pairs

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
TOPICS = ("join", "vote", "saved", "fails")
NAMES = [f"site-{number:02d}" for number in range(1, 11)]


def preset(**fields):
    return DmGanImage.presets["small"].replaced({**fields_of("dmgan_image"), "batch": 2, "steps": [5], **fields})


def terms(**fields) -> Terms:
    return Terms("dmgan_image", preset(**fields), 3, "a prior's digest")


def pairs(seed: int, count: int = 4) -> Pairs:
    """Of noise on top, so that no two rows of pixels in the world are alike."""
    batch = random_batch(count, seed)
    noise = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) / 10
    image = (batch["image"] * 0.9 + noise).clamp(-1, 1)
    return Pairs(image, (image * 0.9 + noise / 2).clamp(-1, 1))


def generator(**fields) -> DmGanImage:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return DmGanImage(preset(**fields))


def question(step: int = 0, seed: int = 9) -> Question:
    made = pairs(seed, 2)
    return Question(step, made.images, made.conditions)


def answer(site: Site, step: int) -> Vote:
    return Vote.from_bytes(site.answer(question(step).to_bytes()))


class TestMessages:
    def test_both_ends_understand_each_other(self) -> None:
        asked = question(7)
        heard = Question.from_bytes(asked.to_bytes())
        assert heard.step == 7
        assert torch.equal(heard.drawn, asked.drawn)
        assert torch.equal(heard.condition, asked.condition)
        for critic in (0.25, None):
            vote = Vote(7, asked.drawn, 1.5, critic, 3)
            found = Vote.from_bytes(vote.to_bytes())
            assert (found.step, found.deceiving, found.critic, found.size) == (7, 1.5, critic, 3)
            assert torch.equal(found.gradient, asked.drawn)

    @pytest.mark.parametrize("message", [b"", b"nonsense", b"\xff" * 64])
    def test_what_is_no_message_is_said_to_be_none(self, message: bytes) -> None:
        with pytest.raises(MessageError, match="cannot be read"):
            Vote.from_bytes(message)

    def test_a_question_of_two_shapes_is_none(self) -> None:
        asked = question()
        with pytest.raises(MessageError, match=r"pictures of .* which must be alike"):
            Question.from_bytes(Question(0, asked.drawn, asked.condition[:1]).to_bytes())

    def test_a_question_that_would_spoil_a_discriminator_is_none(self) -> None:
        spoilt = torch.full((1, 1, SIZE, SIZE), math.nan)
        site = Site("a", pairs(1), terms())
        with pytest.raises(MessageError, match="a question holds NaN or infinity"):
            site.answer(Question(0, spoilt, spoilt).to_bytes())
        assert site.fresh
        with pytest.raises(MessageError, match="a: a vote holds NaN or infinity"):
            SitesHere({"a": Site("a", Pairs(spoilt, spoilt), terms())}).judge(0, question().drawn, question().condition)

    def test_a_message_of_another_kind_is_none(self) -> None:
        with pytest.raises(MessageError, match="wanted are"):
            Vote.from_bytes(question().to_bytes())

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"gradient": torch.full((1, 1, 2, 2), float("nan"))}, "a vote holds NaN or infinity"),
            ({"deceiving": float("inf")}, "a vote holds NaN or infinity"),
            ({"critic": float("inf")}, "a vote says a loss of inf"),
            ({"size": 0}, "on 0 pictures"),
            ({"size": float("inf")}, "on inf pictures"),
            ({"step": -1}, "a message is of step -1"),
        ],
    )
    def test_a_vote_that_would_spoil_the_others_is_none(self, fields: dict, message: str) -> None:
        vote = Vote(0, torch.zeros(1, 1, 2, 2), 0.5, 0.5, 1)
        assert Vote.from_bytes(vote.to_bytes()).size == 1
        with pytest.raises(MessageError, match=message):
            Vote.from_bytes(dataclasses.replace(vote, **fields).to_bytes())

    @pytest.mark.parametrize(("origin", "holder"), [("north", "south"), (None, "south"), ("north", None)])
    def test_nobody_speaks_in_anothers_name(self, origin: str | None, holder: str | None) -> None:
        heard = []
        listening = Listening()
        listen(listening, "vote", lambda name, payload: heard.append((name, payload)))
        listening.called(Request(origin, holder))
        assert not heard
        listening.called(Request("north", "north"))
        assert heard == [("north", b"said")]

    def test_votes_count_alike_or_by_how_many_pictures_are_behind_them(self) -> None:
        one, other = (
            Vote(0, torch.full((1, 1, 2, 2), value), value, value, int(size)) for value, size in ((1.0, 1), (4.0, 2))
        )
        assert mean_of({"a": one, "b": other}, "equal").gradient.unique().item() == pytest.approx(2.5)
        by_size = mean_of({"a": one, "b": other}, "size")
        assert (by_size.gradient.unique().item(), by_size.deceiving, by_size.sites) == pytest.approx((3.0, 3.0, 2))


class Listening:
    """A cell that is only listened at."""

    def register_request_cb(self, channel: str, topic: str, called) -> None:
        self.called = called


class Request:
    """What FLARE hands to who listens: who is said to have sent it, and whose certificate it came under."""

    payload = b"said"

    def __init__(self, origin: str | None, holder: str | None) -> None:
        self.get_header = {MessageHeaderKey.ORIGIN: origin}.get
        self.get_prop = {MessagePropKey.COMMON_NAME: holder}.get


class TestSite:
    def test_what_it_says_is_the_gradient_of_its_loss(self) -> None:
        site, asked = Site("a", pairs(1), terms(critic=0.0)), question()
        vote = answer(site, 0)
        site.critic.double()
        drawn, direction = asked.drawn.double(), torch.randn(asked.drawn.shape).double()

        def loss(pictures):
            return site.objective.generator(site.critic(torch.cat([asked.condition.double(), pictures], 1))).item()

        by_differences = (loss(drawn + 1e-5 * direction) - loss(drawn - 1e-5 * direction)) / 2e-5
        assert (vote.gradient.double() * direction).sum().item() == pytest.approx(by_differences, rel=1e-4)
        assert vote.deceiving == pytest.approx(loss(drawn), rel=1e-4)

    def test_it_goes_on_from_what_it_kept(self, tmp_path: Path) -> None:
        straight, halting = (Site("a", pairs(1), terms(), tmp_path / name) for name in ("straight", "halting"))
        for step in range(4):
            expected = answer(straight, step)
        for step in range(2):
            answer(halting, step)
        halting.save(2)
        again = Site("a", pairs(1), terms(), tmp_path / "halting")
        for step in (2, 3):
            found = answer(again, step)
        assert torch.equal(found.gradient, expected.gradient)
        for step in (2, 3):  # the server went back
            found = answer(again, step)
        assert torch.equal(found.gradient, expected.gradient)

    def test_what_it_kept_is_not_overwritten_by_one_that_has_just_come_back(self, tmp_path: Path) -> None:
        site = Site("a", pairs(1), terms(), tmp_path)
        for step in range(2):
            answer(site, step)
        site.save(2)
        before = contents(tmp_path)
        Site("a", pairs(1), terms(), tmp_path).save(2)
        assert contents(tmp_path) == before
        answer(site, 2)
        site.save(2)  # which it has learnt beyond
        assert contents(tmp_path) == before

    def test_what_is_asked_again_is_not_learnt_again(self) -> None:
        straight, asked_twice = Site("a", pairs(1), terms()), Site("a", pairs(1), terms())
        messages = [question(step).to_bytes() for step in range(3)]
        expected = [Vote.from_bytes(straight.answer(message)).gradient for message in messages]
        for step in (0, 1, 1, 2):
            assert torch.equal(Vote.from_bytes(asked_twice.answer(messages[step])).gradient, expected[step])

    def test_a_run_begun_anew_forgets_what_was_kept_of_the_one_before(self, tmp_path: Path) -> None:
        before = Site("a", pairs(1), terms(), tmp_path)
        for step in range(4, 8):
            before.answer(question(step).to_bytes())
            before.save(step + 1)
        anew, straight = Site("a", pairs(2), terms(), tmp_path), Site("a", pairs(2), terms())
        for step in range(2):
            anew.answer(question(step).to_bytes())
            straight.answer(question(step).to_bytes())
        anew.save(2)
        assert [*anew.kept()] == [2]
        again = Site("a", pairs(2), terms(), tmp_path)
        assert torch.equal(answer(again, 2).gradient, answer(straight, 2).gradient)

    def test_where_it_cannot_go_back_it_says_so(self) -> None:
        site = Site("a", pairs(1), terms())
        for step in (4, 5):
            site.answer(question(step).to_bytes())
        with pytest.raises(CheckpointError, match=r"a cannot go back to the server's step 3: it has kept nothing"):
            site.answer(question(3).to_bytes())

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_server_that_goes_back_beyond_what_is_kept_destroys_nothing(self, restarted: bool, tmp_path: Path):
        site = Site("a", pairs(1), terms(), tmp_path)
        for step in (8, 9):
            site.answer(question(step).to_bytes())
            site.save(step + 1)
        if restarted:
            site = Site("a", pairs(1), terms(), tmp_path)
        with pytest.raises(CheckpointError, match=r"to the server's step 4: it has kept only steps 9, 10\. Resume"):
            site.answer(question(4).to_bytes())
        assert [*site.kept()] == [9, 10]

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_server_that_goes_back_meets_the_site_of_then(self, restarted: bool, tmp_path: Path):
        straight, halting = (Site("a", pairs(1), terms(), tmp_path / name) for name in ("straight", "halting"))
        for step in range(6):
            halting.answer(question(step).to_bytes())
            halting.save(step + 1)
        if restarted:
            halting = Site("a", pairs(1), terms(), tmp_path / "halting")
        for step in range(5):
            expected = answer(straight, step)
        assert torch.equal(answer(halting, 4).gradient, expected.gradient)
        assert [*halting.kept()] == [4], "what the run has forgotten, the site forgets"
        assert halting.behind is None

    def test_a_site_that_is_older_than_the_server_says_so(self, tmp_path: Path):
        said: list[str] = []
        answer(old := Site("a", pairs(1), terms(), tmp_path), 0)
        old.save(1)
        behind = Site("a", pairs(1), terms(), tmp_path, say=said.append)
        answer(behind, 4)
        assert behind.behind == 1
        assert said == ["the server is at step 4: a has kept nothing of step 4 and goes on from step 1"]
        answer(behind, 7)
        assert said[1] == "a has missed 2 steps, up to the server's step 7"
        answer(new := Site("b", pairs(2), terms(), say=said.append), 4)
        assert new.behind == 0
        assert said[2].endswith("b has kept nothing of step 4 and goes on from the beginning")

    @pytest.mark.parametrize("step", [0, 1, 9])
    def test_checkpoints_of_another_run_are_left_alone(self, step: int, tmp_path: Path):
        site = Site("a", pairs(1), terms(), tmp_path)
        for number in (0, 4, 9):
            site.answer(question(number).to_bytes())
            site.save(number + 1)
        files = {file: file.read_bytes() for file in tmp_path.glob("*.pt")}
        with pytest.raises(CheckpointError, match="is of another run than the server's: name another folder"):
            Site("a", pairs(1), terms(l1=1.0), tmp_path).answer(question(step).to_bytes())
        assert {file: file.read_bytes() for file in tmp_path.glob("*.pt")} == files

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path: Path) -> None:
        site = Site("a", pairs(1), terms(), tmp_path)
        site.answer(question().to_bytes())
        site.save(1)
        with pytest.raises(CheckpointError, match="is of another run than the server's"):
            Site("a", pairs(1), terms(l1=1.0), tmp_path).answer(question(1).to_bytes())

    @pytest.mark.parametrize("damage", [b"", b"nonsense", None, math.nan])
    def test_a_damaged_checkpoint_is_named(self, damage: bytes | float | None, tmp_path: Path) -> None:
        site = Site("a", pairs(1), terms(), tmp_path)
        site.answer(question().to_bytes())
        if isinstance(damage, float):
            torch.nn.init.constant_(next(site.critic.parameters()), damage)
        site.save(1)
        (file,) = tmp_path.glob("*.pt")
        if damage is None:
            torch.save({"terms": terms().digest, "critic": {}, "optimizer": {}}, file)
        elif isinstance(damage, bytes):
            file.write_bytes(damage)
        with pytest.raises(CheckpointError, match=f"{file.name} is damaged: remove it"):
            Site("a", pairs(1), terms(), tmp_path).answer(question(1).to_bytes())

    def test_no_data_and_other_sizes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="a has no pictures to learn from"):
            Site("a", pairs(1, 0), terms())
        with pytest.raises(ValueError, match=r"a has pictures of \[1, 32, 32\]; the server's run is of \[1, 64, 64\]"):
            Site("a", pairs(1), terms(size=64))
        larger = Question(0, torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
        with pytest.raises(ValueError, match=r"was sent pictures of \[1, 1, 64, 64\]; its run's have 32 pixels"):
            Site("a", pairs(1), terms()).answer(larger.to_bytes())


class Dying(SitesHere):
    """Sites whose server dies at step 4, before or after they have kept what they learnt."""

    def __init__(self, sites, kept: bool) -> None:
        super().__init__(sites)
        self.kept = kept

    def save(self, step: int) -> None:
        if step != 4 or self.kept:
            super().save(step)
        if step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kept", [False, True])
def test_a_server_that_dies_goes_on_to_the_same_weights(kept: bool, tmp_path: Path) -> None:
    def sites(folder: Path) -> dict[str, Site]:
        return {name: Site(name, pairs(seed), terms(), folder / name) for seed, name in enumerate(NAMES[:2])}

    def fitted(folder: Path, panel, resume: bool = False) -> Path:
        family = generator()
        family.panel = panel
        return fit(family, pairs(8, 6), Run(folder, {"preset_name": "small"}, seed=3, checkpoint_every=2), resume)

    straight = fitted(tmp_path / "straight", SitesHere(sites(tmp_path / "straight")))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "halting", Dying(sites(tmp_path / "halting"), kept))
    again = fitted(tmp_path / "halting", SitesHere(sites(tmp_path / "halting")), resume=True)
    assert (again / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    ends = [
        torch.load(tmp_path / run / "site-01" / "00000005.pt", weights_only=True) for run in ("straight", "halting")
    ]
    assert all(torch.equal(ends[0]["critic"][name], ends[1]["critic"][name]) for name in ends[0]["critic"])


def test_a_server_resumed_from_a_checkpoint_before_its_last_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def fitted(resume: bool) -> bytes:
        family = generator()
        sites = {name: Site(name, pairs(seed), terms(), tmp_path / name) for seed, name in enumerate(NAMES[:2])}
        family.panel = SitesHere(sites)
        run = Run(tmp_path / "run", {"preset_name": "small"}, seed=3, checkpoint_every=2)
        return (fit(family, pairs(8, 6), run, resume) / "model.safetensors").read_bytes()

    straight = fitted(False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000005")
    assert fitted(True) == straight


def test_the_noise_of_each_simulated_site_is_its_own(tmp_path: Path, monkeypatch) -> None:
    """Though all begin with what the process had drawn that they are forked from."""
    monkeypatch.setattr(runs, "run_site", lambda *given: given[-1](np.random.laplace(size=3).tolist()))
    folders = [tmp_path / name for name in ("north", "south")]
    for folder in folders:
        folder.mkdir()
        process = multiprocessing.get_context("fork").Process(target=simulated_site, args=("", folder, folder, {}, 1))
        process.start()
        process.join()
    north, south = ((folder / "log.txt").read_text() for folder in folders)
    assert north.startswith("[")
    assert north != south


class TestShards:
    def test_no_patient_is_in_two(self) -> None:
        names = [f"mdb{number:03d}" for number in range(1, 101)]
        sizes = list(np.random.default_rng(0).uniform(size=100))
        own, others = shards(names, sizes, 10)
        assert sorted([*own, *(index for part in others for index in part)]) == list(range(100))
        people = [{patient(names[index]) for index in part} for part in (own, *others)]
        assert sum(map(len, people)) == len(set.union(*people)) == 50
        assert [len(part) for part in people] == [10] + [4] * 10
        means = [np.mean([sizes[index] for index in part]) for part in others]
        assert means == sorted(means)

    def test_the_server_keeps_its_own_however_many_sites_there_are(self) -> None:
        names = [f"picture{number}" for number in range(30)]
        assert shards(names, None, 1)[0] == shards(names, None, 10)[0]
        assert sorted(shards(names, None, 1)[1][0]) == sorted(
            index for part in shards(names, None, 10)[1] for index in part
        )

    def test_patients_of_ddsm_are_known(self) -> None:
        assert patient("A_1141_1.RIGHT_MLO") == patient("A_1141_1.LEFT_CC") == "A_1141"
        assert patient("A_1141_1") == "A_1141_1"
        names = ["Mass-Training_P_00001_LEFT_CC", "Mass-Training_P_00001_RIGHT_MLO_1", "Calc-Test_P_00001_LEFT_CC"]
        assert {patient(name) for name in names} == {"P_00001"}

    def test_names_that_tell_no_patient_are_said(self) -> None:
        said: list[str] = []
        names = ["A_1141_1.RIGHT_MLO", *(f"scan{k}" for k in range(3))]
        split(LoadedPairs(names, pairs(1).images[:, 0].numpy(), None, ()), pairs(1), 2, said.append)
        assert said[0].startswith("3 of 4 names, such as 'scan0', do not say whose the pictures are: each is taken")

    def test_too_few_patients(self) -> None:
        with pytest.raises(ValueError, match="--sites is 5; of the 5 patients 1 are the server's own, and 4 are left"):
            shards(list("abcde"), None, 5)


class TestElsewhere:
    """Ten processes over TLS, and one run of five steps that everything is asked of."""

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory):
        torch.set_num_threads(1)
        folder, address = tmp_path_factory.mktemp("ten"), f"localhost:{free_port()}"
        shares = [pairs(20 + number) for number in range(10)]
        processes = prepared(folder, NAMES, shares, "key", address, {})
        heard: list[tuple[str, str, bytes]] = []
        family = generator()
        with SitesElsewhere(address, folder / "kits" / "server", terms(), 10, say=lambda _: None) as panel:
            overhear(panel, heard)
            for process in processes:
                process.start()
            family.panel = panel
            fit(family, pairs(1, 6), Run(folder / "run", {"preset_name": "small"}, seed=3))
        end(processes)
        return folder, shares, heard

    def test_one_process_has_the_same_weights_to_the_bit(self, run, tmp_path: Path) -> None:
        folder, shares, _ = run
        family = generator()
        sites = {name: Site(name, share, terms(), tmp_path / name) for name, share in zip(NAMES, shares, strict=True)}
        family.panel = SitesHere(sites)
        fit(family, pairs(1, 6), Run(tmp_path / "run", {"preset_name": "small"}, seed=3))
        files = [where / "run" / "checkpoints" / "00000005" / "model.safetensors" for where in (folder, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes()
        for name in NAMES:
            one, other = (torch.load(where / name / "00000005.pt", weights_only=True) for where in (folder, tmp_path))
            assert all(torch.equal(one["critic"][key], other["critic"][key]) for key in one["critic"])

    def test_what_leaves_a_site_is_gradients_and_losses(self, run) -> None:
        _, shares, heard = run
        told = {topic: [said for where, what, said in heard if (where, what) == (CHANNEL, topic)] for topic in TOPICS}
        votes = told["vote"]
        assert len(votes) == 10 * 5
        for message in votes:
            vote = Vote.from_bytes(message)  # which refuses whatever else is in it
            header = json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])
            assert header.keys() == {"__metadata__", "gradient"}
            assert header["__metadata__"].keys() == {"step", "deceiving", "critic", "size"}
            assert vote.gradient.shape == (2, 1, SIZE, SIZE)
            assert vote.size == 1
        assert {tuple(json.loads(message)) for message in told["join"]} == {("ready", "session")}
        assert [*told["saved"]] == [(5).to_bytes(8, "little")] * 10
        assert not told["fails"]
        assert {what for where, what, _ in heard if where == CHANNEL} == {"join", "vote", "saved"}
        of_flare = [message for where, _, message in heard if where != CHANNEL]
        assert sum(map(len, of_flare)) < 10 * 1000, "FLARE's own messages, of cells that come and go, are short"
        said = b"".join(message for _, _, message in heard)
        for share in shares:
            for row in torch.cat([share.images, share.conditions]).flatten(0, 2).numpy():
                assert row[:8].tobytes() not in said

    def test_nor_is_anything_in_a_vote_like_a_picture(self, run) -> None:
        _, shares, heard = run
        known = torch.cat([torch.cat([share.images, share.conditions]) for share in shares]).flatten(1)
        known = torch.nn.functional.normalize(known - known.mean(1, keepdim=True))
        for _, topic, message in heard:
            if topic == "vote":
                gradient = Vote.from_bytes(message).gradient.flatten(1)
                gradient = torch.nn.functional.normalize(gradient - gradient.mean(1, keepdim=True))
                assert (gradient @ known.T).abs().max() < 0.5


def overhear(panel: SitesElsewhere, heard: list[tuple[str, str, bytes]]) -> None:
    """Keep all that comes in at the server, of whatever channel and topic, as it came: FLARE's own filter."""

    def keep(message):
        where, what = (str(message.get_header(key, "")) for key in (MessageHeaderKey.CHANNEL, MessageHeaderKey.TOPIC))
        said = message.payload
        plain = bytes(said) if isinstance(said, bytes | bytearray | memoryview) else repr(said).encode()
        heard.append((where, what, plain))

    panel.cell.core_cell.add_incoming_filter("*", "*", keep)


class TestAway:
    @pytest.fixture
    def two(self, tmp_path: Path):
        address = f"localhost:{free_port()}"
        said: list[str] = []
        processes = prepared(tmp_path, NAMES[:2], [pairs(1), pairs(2)], "key", address, {})
        with SitesElsewhere(
            address,
            tmp_path / "kits" / "server",
            terms(),
            2,
            60.0,
            said.append,
            lost=lambda: lost(processes, tmp_path),
        ) as panel:
            for process in processes:
                process.start()
            yield panel, processes, said, tmp_path
        end(processes)
        ended = [process.exitcode for process in processes]
        assert set(ended) <= {0, -signal.SIGKILL}, "who was left out hears of the end too"

    def test_a_killed_site_is_missed_and_comes_back(self, two) -> None:
        panel, processes, said, folder = two
        asked = question()
        assert panel.judge(0, asked.drawn, asked.condition).sites == 2
        panel.save(1)
        assert [(folder / name / "00000001.pt").is_file() for name in NAMES[:2]] == [True, True]
        os.kill(processes[0].pid, signal.SIGKILL)
        verdict = panel.judge(1, asked.drawn, asked.condition)
        assert verdict.sites == 1
        assert any(line.startswith("site-01 is left out from step 1 on: ") for line in said)
        expected = Site("site-02", pairs(2), terms())
        expected.answer(question(0).to_bytes())
        assert torch.equal(verdict.gradient, Vote.from_bytes(expected.answer(question(1).to_bytes())).gradient)
        (again,) = prepared(folder, NAMES[:1], [pairs(1)], "key", panel.address, {})
        again.start()
        deadline = time.monotonic() + 60
        while "site-01" not in panel.there and time.monotonic() < deadline:
            time.sleep(0.1)
        assert panel.judge(2, asked.drawn, asked.condition).sites == 2
        end([again])
        behind = "site-01 has kept nothing of step 2 and goes on from step 1"
        assert f"the server is at step 2: {behind}" in (folder / "site-01" / "log.txt").read_text()
        assert behind in said

    def test_a_site_that_sends_nan_is_struck_out_after_three_times_and_nothing_else(self, tmp_path: Path) -> None:
        address, said = f"localhost:{free_port()}", list[str]()
        spoilt = Pairs(torch.full_like(pairs(1).images, math.nan), pairs(1).conditions)
        processes = prepared(tmp_path, NAMES[:2], [spoilt, pairs(2)], "key", address, {})
        say = recorded(said.append, tmp_path / "log.txt")
        server, asked = tmp_path / "kits" / "server", question()
        alone = Site("site-02", pairs(2), terms(steps=[100]))
        gone = partial(lost, processes, tmp_path)
        with SitesElsewhere(address, server, terms(steps=[100]), 2, 60.0, say, lost=gone) as panel:
            for process in processes:
                process.start()
            step, deadline = 0, time.monotonic() + 120
            while not panel.struck_out and time.monotonic() < deadline:
                verdict = panel.judge(step, asked.drawn, asked.condition)
                expected = answer(alone, step)
                assert verdict.sites == 1
                assert torch.equal(verdict.gradient, expected.gradient)
                step += 1
                while "site-01" not in panel.there | panel.struck_out and time.monotonic() < deadline:
                    time.sleep(0.1)
            assert step == STRIKES == 3
            nan = "its answer is none: a vote holds NaN or infinity"
            of_it = [line for line in said if line.startswith("site-01") and "is there" not in line]
            assert of_it == [
                f"site-01 is left out from step 0 on: {nan}",
                f"site-01 is left out from step 1 on: {nan}",
                f"site-01 is struck out at step 2, after 3 such answers: {nan}",
            ]
            panel.vote("site-01", Vote(step, asked.drawn, 0.5, 0.5, 1).to_bytes())
            assert panel.judge(step, asked.drawn, asked.condition).sites == 1
            processes[0].join(60)
            assert processes[0].exitcode == 0
            assert panel.gone == {"site-01"}
            os.kill(processes[1].pid, signal.SIGKILL)
            with pytest.raises(ChannelError, match="no site is left; go on with --resume"):
                panel.judge(step + 1, asked.drawn, asked.condition)
        end(processes)
        told = (tmp_path / "site-01" / "log.txt").read_text()
        assert "StruckOut: the server has struck this site out: 3 of its answers held NaN" in told
        assert [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == said

    def test_a_slow_site_is_left_out_until_it_has_answered(self, two) -> None:
        panel, processes, said, _ = two
        asked = question()
        panel.judge(0, asked.drawn, asked.condition)
        os.kill(processes[0].pid, signal.SIGSTOP)
        panel.timeout = 0.5
        try:
            assert panel.judge(1, asked.drawn, asked.condition).sites == 1
        finally:
            os.kill(processes[0].pid, signal.SIGCONT)
        assert "site-01 is left out from step 1 on: no answer within 0.5 s" in said
        deadline = time.monotonic() + 30
        while "site-01" not in panel.there and time.monotonic() < deadline:
            time.sleep(0.1)
        panel.timeout = 20.0
        assert panel.judge(2, asked.drawn, asked.condition).sites == 2
        panel.vote("site-01", Vote(2, asked.drawn[:1], 0.5, 0.5, 1).to_bytes())
        assert said[-1].startswith("site-01 is left out from step 2 on: its answer is none: a gradient of [1, 1, 32")
        refused = panel.join("site-02", json.dumps({"ready": True, "session": "another process"}).encode())
        assert json.loads(refused) == {"refused": "a site called site-02 is there already"}
        panel.fails("site-02", b"")
        assert said[-1] == "site-02 is left out from step 2 on: it has failed, and says there why"
        assert "terms" in json.loads(panel.join("site-02", json.dumps({"ready": True, "session": "new"}).encode()))

    def test_one_that_is_killed_before_the_first_step_is_not_waited_for(self, two) -> None:
        panel, processes, said, _ = two
        asked = question()
        os.kill(processes[0].pid, signal.SIGKILL)
        assert panel.judge(0, asked.drawn, asked.condition).sites == 1
        assert "1 of 2 sites are there; the others cannot come any more" in said
        os.kill(processes[1].pid, signal.SIGKILL)
        with pytest.raises(ChannelError, match="no site is left; go on with --resume"):
            panel.judge(1, asked.drawn, asked.condition)

    @pytest.mark.parametrize(
        ("now", "message"), [(None, "has been away for 1 s"), (terms(l1=1.0), "is at another run now: begin anew")]
    )
    def test_a_server_that_changed_while_a_site_made_ready(
        self, now, message: str, tmp_path: Path, monkeypatch
    ) -> None:
        cell = SimpleNamespace(register_request_cb=lambda *_: None, start=lambda: None)
        stubs = {"name_in": "north", "wait_for_door": None, "open_cell": cell, "close_cell": None}
        for name, value in stubs.items():
            monkeypatch.setattr(client, name, lambda *_, value=value: value)
        monkeypatch.setattr(client, "join", lambda cell, session, patience, ready: now if ready else terms())
        with pytest.raises(ChannelError, match=message):
            client.run_site("localhost:1", tmp_path, tmp_path, lambda _: pairs(1), patience=1.0, say=lambda _: None)

    def test_what_was_not_kept_is_said(self, two, monkeypatch) -> None:
        panel, _, said, _ = two
        asked = question()
        panel.judge(0, asked.drawn, asked.condition)
        panel.timeout = 0.1
        with monkeypatch.context() as patched:
            late = (0).to_bytes(8, "little")  # of the save before
            patched.setattr("training.federated.server.tell", lambda *_: panel.note_saved("site-01", late))
            panel.save(1)
        assert said[-2:] == [
            f"{name} has not kept what it learnt before step 1: resumed there, it goes on from earlier"
            for name in NAMES[:2]
        ]

    def test_one_that_cannot_begin_says_why(self, tmp_path: Path) -> None:
        failed, killed = (SimpleNamespace(name=name, exitcode=code) for name, code in (("site-01", 1), ("site-02", -9)))
        assert lost([killed], tmp_path) == {"site-02"}
        with pytest.raises(ChannelError, match=r"site-01 has ended: it could not begin \(.*log.txt\)"):
            lost([killed, failed], tmp_path)
        (tmp_path / "site-01").mkdir()
        (tmp_path / "site-01" / "log.txt").write_text("joined\nValueError: no pictures\n")
        with pytest.raises(ChannelError, match="site-01 has ended: ValueError: no pictures"):
            lost([failed], tmp_path)


class TestCertificates:
    def test_a_kit_says_whose_it_is_and_is_written_once(self, tmp_path: Path) -> None:
        kits = write_kits(tmp_path, "localhost", ["north", "south"])
        assert [name_in(kit, "server" if kit.name == "server" else "client") for kit in kits] == [
            "server",
            "north",
            "south",
        ]
        assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.rglob("*.key"))
        assert [kit.name for kit in write_kits(tmp_path, "localhost", ["east"])] == ["east"]
        with pytest.raises(ChannelError, match="north is there already"):
            write_kits(tmp_path, "localhost", ["north"])
        with pytest.raises(ChannelError, match="'server' must be a name of letters"):
            write_kits(tmp_path, "localhost", ["server"])

    @pytest.mark.parametrize("address", ["here", ":1", "here:", "here:zero", "here:0", "here:65536"])
    def test_what_is_no_address(self, address: str, tmp_path: Path) -> None:
        for check in (check_free, lambda address: check_door(address, tmp_path)):
            with pytest.raises(ChannelError, match=f"'{address}' is no address; it must be HOST:PORT"):
                check(address)

    def test_a_key_of_another_kit_is_refused(self, tmp_path: Path) -> None:
        write_kits(tmp_path, "localhost", ["north", "south"])
        (tmp_path / "north" / "client.key").write_bytes((tmp_path / "south" / "client.key").read_bytes())
        with pytest.raises(ChannelError, match="north holds no certificates and key that fit"):
            check_door("localhost:1", tmp_path / "north")

    def test_what_is_no_kit_is_said(self, tmp_path: Path) -> None:
        ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
        for folder in (ours, theirs):
            write_kits(folder, "localhost", ["north"])
        for role, kit in (("server", ours / "server"), ("client", ours / "north")):
            with pytest.raises(ChannelError, match=r"has no .*: it must be a kit that"):
                name_in(kit, "client" if role == "server" else "server")
            (kit / "rootCA.pem").write_bytes((theirs / "server" / "rootCA.pem").read_bytes())
            with pytest.raises(
                ChannelError, match=rf"{role}.crt is not signed by .*rootCA.pem: both must be of one kit"
            ):
                name_in(kit, role)
            (kit / f"{role}.crt").write_bytes(b"nothing")
            with pytest.raises(ChannelError, match=rf"{role}.crt is no certificate: "):
                name_in(kit, role)
        kit, other = theirs / "north", theirs / "server"
        (kit / "client.key").write_bytes((other / "server.key").read_bytes())
        with pytest.raises(ChannelError, match="north holds no certificates and key that fit"):
            name_in(kit, "client")

    def test_certificates_that_have_expired_are_said_at_both_ends(self, tmp_path: Path, monkeypatch) -> None:
        write_kits(tmp_path, "localhost", ["north"])
        shutil.move(tmp_path / "server", tmp_path / "good")
        monkeypatch.setattr("training.federated.channel.VALID_DAYS", 0)
        write_kits(tmp_path, "localhost", ["south"])
        for kit, role in (("south", "client"), ("server", "server")):
            with pytest.raises(ChannelError, match=rf"{role}.crt is valid from .* and here it is .* ask for a new kit"):
                name_in(tmp_path / kit, role)
        with pytest.raises(ChannelError, match=r"server.crt is valid from"):
            SitesElsewhere("localhost:1", tmp_path / "server", terms(), 1)
        address = f"localhost:{free_port()}"
        panel = SitesElsewhere(address, tmp_path / "good", terms(), 1, say=lambda _: None)
        with panel, pytest.raises(ChannelError, match=r"not take the certificate in .*south \(.*CERTIFICATE_EXPIRED\)"):
            client.wait_for_door(address, tmp_path / "south", 30.0, lambda _: None)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # FLARE's would not begin
        context.load_cert_chain(tmp_path / "server" / "server.crt", tmp_path / "server" / "server.key")
        with socket.create_server(("localhost", 0)) as door, ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: context.wrap_socket(door.accept()[0], server_side=True))
            with pytest.raises(
                ChannelError, match=r"a certificate that is not valid today .*: the server needs a new kit"
            ):
                check_door(f"localhost:{door.getsockname()[1]}", tmp_path / "north")

    def test_strangers_are_not_let_in(self, tmp_path: Path) -> None:
        ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
        for folder in (ours, theirs):
            write_kits(folder, "localhost", ["north"])
        address = f"localhost:{free_port()}"
        assert not check_door(address, ours / "north")
        with SitesElsewhere(address, ours / "server", terms(), 1, say=lambda _: None):
            deadline = time.monotonic() + 30
            while not check_door(address, ours / "north") and time.monotonic() < deadline:
                time.sleep(0.1)
            with pytest.raises(ChannelError, match=f"{address} cannot be listened at: Address already in use"):
                SitesElsewhere(address, ours / "server", terms(), 1)
            with pytest.raises(ChannelError, match=r"shows a certificate that .*rootCA.pem has not signed"):
                check_door(address, theirs / "north")
            mixed = tmp_path / "mixed"  # it trusts the server, which does not trust it
            mixed.mkdir()
            for file in ("client.crt", "client.key"):
                (mixed / file).write_bytes((theirs / "north" / file).read_bytes())
            (mixed / "rootCA.pem").write_bytes((ours / "north" / "rootCA.pem").read_bytes())
            with pytest.raises(ChannelError, match="does not take the certificate in"):
                check_door(address, mixed)
