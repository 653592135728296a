"""One discriminator and the data that it alone sees."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from training import CheckpointError
from training.adversarial import OBJECTIVES, gradient_of
from training.federated.panel import MessageError, Question, Verdict, Vote, mean_of
from training.federated.terms import Terms
from training.fit import Shuffled, learning_rates
from training.state_dict import read_published
from training.translators import PatchCritic

KEPT = 3  # checkpoints; a run keeps 2, and a site may be one ahead
Filter = Callable[[Vote], Vote]
PairData = Dataset[dict[str, Tensor]]


class Site:
    """Answers questions; all that it learns stays in ``folder``.

    name: unlike the other sites'. data: items are {"image": float32 [1, S, S], "condition": the same}, in [-1, 1].
    folder: where its checkpoints are; None for none. private: what becomes of its votes before they leave.
    """

    def __init__(
        self,
        name: str,
        data: PairData,
        terms: Terms,
        folder: Path | None = None,
        private: Filter | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.name, self.data, self.terms, self.folder, self.private, self.say = name, data, terms, folder, private, say
        self.count = len(data)  # type: ignore[arg-type]
        if not self.count:
            raise ValueError(f"{name} has no pictures to learn from")
        preset = terms.preset
        if tuple(self.data[0]["image"].shape) != (shape := (1, preset.size, preset.size)):
            found = list(self.data[0]["image"].shape)
            raise ValueError(f"{name} has pictures of {found}; the server's run is of {list(shape)}")
        # Sites draw numbers of their own; a run's seed and the name decide them.
        self.seed = int.from_bytes(hashlib.sha256(f"{terms.seed}:{name}".encode()).digest()[:4], "little")
        self.objective = OBJECTIVES[preset.objective]
        self.behind: int | None = None  # the step that it goes on from, if it has not that of the server
        self.begin()

    def begin(self) -> None:
        preset = self.terms.preset
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.critic: nn.Module = PatchCritic(preset.critic_width, channels=1 + preset.sees_condition)
        self.optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=preset.learning_rate, betas=preset.betas, weight_decay=preset.weight_decay
        )
        self.rate = learning_rates(preset, self.optimizer, preset.steps[0]).lr_lambdas[0]  # type: ignore[attr-defined]
        self.step = 0
        self.fresh = True
        self.asked = self.said = b""

    def judged(self, pictures: Tensor, condition: Tensor) -> Tensor:
        seen = torch.cat([condition, pictures], dim=1) if self.terms.preset.sees_condition else pictures
        scores: Tensor = self.critic(seen)
        return scores.float()

    def answer(self, message: bytes) -> bytes:
        """A question's vote; the same bytes again where it is asked again, as after an answer that came too late.

        Raises:
            MessageError: the message is no question.
            ValueError: its pictures are of another size than the run's.
            CheckpointError: a server has gone back to where this site kept nothing, or what it kept is of another run.
        """
        if message == self.asked and not self.fresh:
            return self.said
        question = Question.from_bytes(message)
        size = self.terms.preset.size
        for tensor in (question.drawn, question.condition):
            if tensor.shape[1:] != (1, size, size):
                raise ValueError(f"{self.name} was sent pictures of {list(tensor.shape)}; its run's have {size} pixels")
        self.go_to(question.step)
        self.learn(question)
        vote = self.judge(question)
        self.step, self.fresh = question.step + 1, False
        if self.private is not None:
            vote = self.private(vote)
        self.asked, self.said = message, vote.to_bytes()
        return self.said

    def learn(self, question: Question) -> None:
        preset = self.terms.preset
        batch = next(iter(Shuffled(self.count, preset.batch, self.seed, question.step, 0, 1)))
        items = [self.data[index] for index in batch]
        image, condition = (torch.stack([item[name] for item in items]) for name in ("image", "condition"))
        for group in self.optimizer.param_groups:
            group["lr"] = preset.learning_rate * self.rate(question.step)
        self.optimizer.zero_grad()
        real, drawn = self.judged(image, condition), self.judged(question.drawn, question.condition)
        loss = self.objective.critic(real, drawn)
        penalty = torch.zeros(())
        if preset.penalty:  # R1, see Adversarial.penalty
            gradient = gradient_of(lambda pictures: self.judged(pictures, condition), image)
            penalty = preset.penalty / 2 * gradient.square().sum((1, 2, 3)).mean()
        (preset.critic * (loss + penalty)).backward()
        self.optimizer.step()
        self.critic_loss = loss.item()

    def judge(self, question: Question) -> Vote:
        drawn = question.drawn.clone().requires_grad_(True)
        loss = self.objective.generator(self.judged(drawn, question.condition))
        (gradient,) = torch.autograd.grad(loss, drawn)
        size = self.count if self.terms.preset.site_weights == "size" else 1
        return Vote(question.step, gradient, loss.item(), self.critic_loss, size)

    # --- to resume from ---

    def go_to(self, step: int) -> None:
        """Have what was learnt before a server's step: what a run that goes back has forgotten, a site forgets too."""
        if not self.fresh and self.step <= step:
            if self.step < step:
                self.say(f"{self.name} has missed {step - self.step} steps, up to the server's step {step}")
            return
        kept = self.kept()
        before = [number for number in kept if number <= step]
        if before:
            self.load(kept[before[-1]])
        elif step and (kept or not self.fresh):
            steps = f"only steps {', '.join(map(str, kept))}" if kept else "nothing of before"
            raise CheckpointError(
                f"{self.name} cannot go back to the server's step {step}: it has kept {steps}. Resume the server at a "
                "step that was kept, or begin anew in another folder"
            )
        else:
            if kept:
                self.read(kept[max(kept)])  # of another run, nothing is removed
            self.begin()
        for number in kept:
            if number > step:
                kept[number].unlink()  # of a run that went back, or that was begun anew
        if self.step < step:
            self.behind = self.step
        if kept or step:
            self.say(f"the server is at step {step}: {self.name} {going_on(self.step, step)}")

    def kept(self) -> dict[int, Path]:
        """Checkpoints by their steps, the first first."""
        files = self.folder.glob("*.pt") if self.folder is not None and self.folder.is_dir() else ()
        return {int(file.stem): file for file in sorted(files) if re.fullmatch(r"\d{8}", file.stem)}

    def save(self, step: int) -> None:
        """Keep what was learnt before a server's step; not of a site that has just begun or come back, which has learnt
        nothing since, nor what was learnt of that step."""
        if self.folder is None or (self.fresh and step) or self.step > step:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{step:08d}.pt"
        aside = file.with_name(f".{file.name}.writing")
        state = {
            "terms": self.terms.digest,
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, aside)
        aside.replace(file)
        for old in list(self.kept().values())[:-KEPT]:
            old.unlink()

    def read(self, file: Path) -> Mapping[str, Any]:
        damaged = f"{file} is damaged: remove it to go on from the one before"
        try:
            state: Mapping[str, Any] = read_published(file)
            of_run = state["terms"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(damaged) from error
        if of_run != self.terms.digest:
            raise CheckpointError(f"{file} is of another run than the server's: name another folder")
        return state

    def load(self, file: Path) -> None:
        state = self.read(file)
        self.begin()
        try:
            self.critic.load_state_dict(state["critic"])
            self.optimizer.load_state_dict(state["optimizer"])
            if not all(weight.isfinite().all() for weight in self.critic.parameters()):
                raise ValueError("NaN or infinity")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged: remove it to go on from the one before") from error
        self.step, self.fresh = int(file.stem), False


def going_on(at: int, step: int) -> str:
    """What a site says that has ``at``, where the server is at ``step``."""
    if at == step:
        return f"goes on from step {at}"
    return f"has kept nothing of step {step} and goes on from {f'step {at}' if at else 'the beginning'}"


class SitesHere:
    """A panel in this process. Its sites are asked as others are, by messages."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = dict(sites)
        (any_site, *_) = self.sites.values()
        self.site_weights = any_site.terms.preset.site_weights

    def judge(self, step: int, drawn: Tensor, condition: Tensor) -> Verdict:
        message = Question(step, drawn, condition).to_bytes()
        votes = {}
        for name, site in self.sites.items():
            try:
                votes[name] = Vote.from_bytes(site.answer(message))
            except MessageError as error:
                raise MessageError(f"{name}: {error}") from error
        return mean_of(votes, self.site_weights)

    def save(self, step: int) -> None:
        for site in self.sites.values():
            site.save(step)
