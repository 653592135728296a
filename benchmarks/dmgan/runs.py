"""Everything is trained on one part of the patients and judged on the others, in this process."""

import csv
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.evaluation.reading import has_split
from serving.sampling.noise import draw
from training.checkpoint import CONFIGS, CheckpointError, find_checkpoint, load_checkpoint, read_config, unfinished
from training.data import DataError, open_dataset
from training.data.listing import digest as listing_digest
from training.data.unpaired import open_unpaired
from training.family import Family
from training.federated.privacy import sparse_vector_privacy
from training.federated.runs import names_of
from training.federated.shards import shards
from training.federated.site import Site, SitesHere
from training.federated.terms import Terms
from training.fit import Run, fit
from training.lineage import lineage
from training.models import load_family
from training.reconstructions import Pairs, found_pairs, open_prior

PHANTOMS = 500  # that the prior of other data learns
TIMED = "seconds.json"
THE_DATA = "the data"
ANCESTORS = "ancestors"  # what the prior had learnt: its digest, which is compared, stands for it


@dataclass(frozen=True)
class Prior:
    """A trained pggan, the sha256 of its weights, the seconds of its training, if known, and what it and those before
    it had learnt."""

    model: Family
    digest: str
    seconds: float | None
    lineage: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """``data`` as of fit. ``steps`` of every training, instead of the presets called ``preset``.

    steps_of: by model, instead of ``steps``. prior: of a trained pggan that learnt the data. others: by name, of such
    that learnt other data. given: of dcgan and cyclegan that learnt the data, by these names.
    """

    data: str
    out: Path
    preset: str
    steps: int | None
    skip_bad: bool
    prior: Path | None
    others: Mapping[str, Path]
    given: Mapping[str, Path]
    say: Callable[[str], object]
    steps_of: Mapping[str, int] = field(default_factory=dict)

    def fields(self, model: str) -> dict[str, Any]:
        steps = self.steps_of.get(model, self.steps)
        return {} if steps is None else {"steps": [steps]}

    @property
    def size(self) -> int:
        return load_family("pggan").presets[self.preset].size


class Part(Dataset[dict[str, Tensor]]):
    """Some pictures of a data set, with their names and what is known of their sizes.

    cut_from: the digest of all files, of which others are held out.
    """

    def __init__(self, whole: Any, indices: list[int], cut_from: str | None = None) -> None:
        self.cut_from = cut_from
        self.reading = dict(getattr(whole, "reading", {}))
        self.items = [{"image": whole[index]["image"]} for index in indices]
        self.names = [names_of(whole)[index] for index in indices]
        sizes = getattr(whole, "sizes", None)
        self.sizes = None if sizes is None else [sizes[index] for index in indices]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(self.items[index])


def split(plan: Plan) -> tuple[Part, Part]:
    """What is learnt and what is held out: as the data set's own split has it, or else every fifth patient."""
    learnt = open_dataset(plan.data, plan.size, "train", plan.skip_bad, masks=False)
    if not has_split(plan.data):
        own, (others,) = shards(names_of(learnt), getattr(learnt, "sizes", None), 1)
        return Part(learnt, others, listing_digest(getattr(learnt, "files", {}))), Part(learnt, own)
    held_out = open_dataset(plan.data, plan.size, "validation", plan.skip_bad, masks=False)
    return Part(learnt, list(range(len(learnt)))), Part(held_out, list(range(len(held_out))))


def check_unseen(run: Path, learnt: Part) -> None:
    """Raises CheckpointError if a run learnt the pictures that are held out, as `fit` does where it cannot split."""
    if learnt.cut_from and read_config(find_checkpoint(run)).get("data_digest") == learnt.cut_from:
        raise CheckpointError(
            f"{run} learnt all pictures of the data, those that are held out here too: do not name it, and another is "
            "trained on the others alone (--steps-of gives it as many steps)"
        )


def trained(
    family: Family, dataset: Dataset[Any], out: Path, plan: Plan, seed: int = 0, **told: Any
) -> tuple[Family, float]:
    """The trained model and the seconds it took; of one that is there already, those it took then.

    told: what its config says beside the preset, the data and the seed.

    Raises CheckpointError if one is there that is not whole, of another preset, or of other data, pictures, or terms.
    """
    config = {"data": plan.data, "seed": seed, **told, "learnt_sha256": pictures_digest(dataset)}
    if any(out.glob(CONFIGS)):
        found, there = load_checkpoint(out)
        wanted = json.loads(json.dumps(config))
        if others := [name for name in wanted if name != ANCESTORS and there.get(name) != wanted[name]]:
            was, now = ({name: each.get(name) for name in others} for each in (there, wanted))
            raise CheckpointError(f"{out} holds a training of {was}, and wanted is one of {now}: name another --out")
        if found.preset != family.preset or unfinished(found, there) or not (out / TIMED).is_file():
            raise CheckpointError(f"{out} holds another training, or one that is not through: name another --out")
        return found, float(json.loads((out / TIMED).read_text()))
    plan.say(f"training {out.name}")
    began = time.perf_counter()
    fit(
        family,
        dataset,
        Run(out, {"preset_name": plan.preset, **config}, seed, checkpoint_every=10**9, preview_every=10**9),
    )
    seconds = time.perf_counter() - began
    (out / TIMED).write_text(json.dumps(seconds))
    found, _ = load_checkpoint(out)
    return found, seconds


def pictures_digest(dataset: Dataset[Any]) -> str:
    """The sha256 of all that a data set shows: names stay where pictures change."""
    digest = hashlib.sha256()
    for k in range(len(dataset)):  # type: ignore[arg-type]  # Dataset has no length, and each of these has
        for name, tensor in sorted(dataset[k].items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def untrained(name: str, fields: Mapping[str, Any], preset: str, seed: int = 0) -> Family:
    torch.manual_seed(seed)
    family = load_family(name)
    return family(family.presets[preset].replaced(fields))


def priors(plan: Plan, learnt: Part) -> dict[str, Prior]:
    """Of other data and of these: the model, its weights' digest, and the seconds of its training, if known."""
    given = {**plan.others, **({} if plan.prior is None else {THE_DATA: plan.prior})}
    found: dict[str, Prior] = {}
    for name in [*(plan.others or ["phantoms"]), THE_DATA]:
        if name in given:
            if name == THE_DATA:
                check_unseen(given[name], learnt)
            out, seconds = given[name], seconds_in(given[name])
        else:
            out = plan.out / f"pggan of {name}"
            source = plan.data if name == THE_DATA else f"phantom:{PHANTOMS}"
            shown = learnt if name == THE_DATA else open_dataset(source, plan.size)
            _, seconds = trained(untrained("pggan", plan.fields("pggan"), plan.preset), shown, out, plan, data=source)
        model, digest = open_prior(out, "dmgan_image", "--prior" if name == THE_DATA else f"--other-prior {name}=")
        if model.preset.size != plan.size:
            raise CheckpointError(f"{out} draws {model.preset.size} pixels; wanted is a pggan of {plan.size}")
        config = read_config(find_checkpoint(out))
        found[name] = Prior(model, digest, seconds, lineage({**config, "digest": digest}))
    return found


def seconds_in(run: Path) -> float | None:
    """What a run's log says that its training took."""
    try:
        with (run / "log.csv").open() as log:
            rows = [(int(row["step"]), float(row["samples_per_second"])) for row in csv.DictReader(log)]
        batch = int(read_config(find_checkpoint(run))["preset"]["batch"])
        steps = [step - before for (step, _), before in zip(rows, [0, *(step for step, _ in rows)], strict=False)]
        return sum(count * batch / rate for count, (_, rate) in zip(steps, rows, strict=True))
    except (CheckpointError, KeyError, OSError, TypeError, ValueError, ZeroDivisionError):
        return None


def found_again(plan: Plan, part: Part, what: str, prior: Prior, preset: Any) -> Pairs:
    file = plan.out / "reconstructions" / f"{what}.safetensors"
    return found_pairs(file, part, prior.model, prior.digest, preset, [*part.names, pictures_digest(part)])


def refined(
    plan: Plan,
    pairs: Pairs,
    learnt: Part,
    prior: Prior,
    count: int,
    seed: int,
    private: Mapping[str, Any] | None = None,
) -> tuple[Family, float]:
    """G2 with so many discriminators; what it learns from is the same however many there are."""
    own, parts = shards(learnt.names, learnt.sizes, count)
    family: Any = untrained("dmgan_image", plan.fields("dmgan_image"), plan.preset, seed)
    terms = Terms(family.name, family.preset, seed, prior.digest)
    noisy = sparse_vector_privacy(private) if private else None
    family.panel = SitesHere({
        f"site-{k:02d}": Site(f"site-{k:02d}", Pairs(pairs.images[part], pairs.conditions[part]), terms, private=noisy)
        for k, part in enumerate(parts, 1)
    })  # fmt: skip
    name = f"dm-GAN of {count} sites, seed {seed}" + (" private" if private else "")
    shown = Pairs(pairs.images[own], pairs.conditions[own])
    told = {"learnt_through": prior.digest, "sites": count, "private": private or None, ANCESTORS: prior.lineage}
    return trained(family, shown, plan.out / name, plan, seed, **told)


@torch.no_grad()
def refine(family: Family, conditions: Tensor) -> Tensor:
    """Reconstructions in [-1, 1] -> what G2 makes of them, in [0, 1]."""
    (pictures,) = family.finish(torch.zeros(len(conditions), 1, 1, 1), (conditions / 2 + 0.5).clamp(0, 1))
    return pictures


@torch.no_grad()
def drawn(family: Family, count: int) -> Tensor:
    noise = np.empty((count, *family.sample_shape), np.float32)
    for seed, row in enumerate(noise):
        draw(seed, family.name, 0, out=row)
    (pictures,) = family.sample([torch.from_numpy(noise)], None, 0)
    return pictures


def given_or_trained(name: str, dataset: Any, plan: Plan) -> tuple[Family, float | None]:
    if name in plan.given and isinstance(dataset, Part):
        check_unseen(plan.given[name], dataset)
    if name not in plan.given:
        return trained(untrained(name, plan.fields(name), plan.preset), dataset, plan.out / name, plan)
    model, config = load_checkpoint(plan.given[name])
    if model.preset.size != plan.size or (so_far := unfinished(model, config)):
        state = f"draws {model.preset.size} pixels" if model.preset.size != plan.size else f"was trained to {so_far}"
        raise CheckpointError(
            f"{plan.given[name]} {state}; wanted is a {name} of {plan.size} pixels whose training is through"
        )
    return model, seconds_in(plan.given[name])


def others(plan: Plan, learnt: Part, held_out: Part) -> dict[str, tuple[Family, Tensor, float | None] | str]:
    """DCGAN and CycleGAN, as many pictures as are held out, and the seconds of the training; or why not."""
    dcgan, seconds = given_or_trained("dcgan", learnt, plan)
    found: dict[str, tuple[Family, Tensor, float | None] | str] = {
        "DCGAN": (dcgan, drawn(dcgan, len(held_out)), seconds)
    }
    try:
        kinds = open_unpaired(plan.data, plan.size, "train", plan.skip_bad)
        unseen = open_unpaired(plan.data, plan.size, "validation", plan.skip_bad)
    except DataError as error:
        return {**found, "CycleGAN": f"not run: {str(error).splitlines()[0]}"}
    cyclegan, seconds = given_or_trained("cyclegan", kinds, plan)
    sources = torch.stack([unseen.a[k % len(unseen.a)]["image"] for k in range(min(len(held_out), len(unseen.a)))])
    with torch.no_grad():
        (pictures,) = cyclegan.finish(torch.zeros(len(sources), 1, 1, 1), (sources / 2 + 0.5).clamp(0, 1))
    return {**found, "CycleGAN": (cyclegan, pictures, seconds)}
