"""Generators: fitted here or given as checkpoints, and built as they are served."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.dmgan.runs import seconds_in
from benchmarks.evaluation.membership import doubt_of
from benchmarks.evaluation.pairs import Pairs
from benchmarks.papers.amounts import Amounts
from export import ToleranceError
from export.build import build
from export.default_target import default_targets
from export.options import Options
from serving.bundle import BundleError, bundle_folder, load_bundle
from training.checkpoint import (
    CONFIGS,
    CheckpointError,
    find_checkpoint,
    goes_on,
    load_checkpoint,
    read_config,
    unfinished,
)
from training.family import Family
from training.fit import Run, fit
from training.lineage import lineage
from training.models import load_family

OFTEN = 100  # steps, after which a run that is cut short goes on


class Learnt(Dataset[dict[str, Tensor]]):
    """Pairs as ``fit`` takes them."""

    def __init__(self, pairs: Pairs) -> None:
        self.images = torch.from_numpy(pairs.images)[:, None] * 2 - 1
        self.masks = torch.from_numpy(pairs.masks)[:, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "mask": self.masks[index]}


def check_given(given: Mapping[str, Path], models: Iterable[tuple[str, str]]) -> None:
    """models: the names and data sets of those that a run makes.

    Raises CheckpointError if a checkpoint is given for another.
    """
    known = list(dict.fromkeys(name for model, data in models for name in (model, f"{model} of {data}")))
    if unknown := [name for name in given if name not in known]:
        raise CheckpointError(f"--checkpoint {unknown[0]}=... is of no model of this run; it has {', '.join(known)}")


@dataclass(frozen=True)
class Model:
    """A trained generator and its bundle; facts: what the tables and the JSON say of it."""

    family: Family
    config: Mapping[str, Any]
    repository: Path
    digest: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.family.name


@dataclass(frozen=True)
class Workshop:
    """Where models are made: a folder for each, of which what is there already is not made again.

    given: checkpoints by "MODEL" or "MODEL of DATA", which are taken instead.
    """

    out: Path
    amounts: Amounts
    given: Mapping[str, Path]
    seed: int
    say: Callable[[str], object]

    def model(
        self,
        name: str,
        family: str,
        train: Pairs,
        data: str,
        fields: Mapping[str, Any] | None = None,
        init: Path | None = None,
        checkpoint: Path | None = None,
    ) -> Model:
        """name: of the folder and of ``given``. fields: of the preset. init: whose weights it begins with. checkpoint:
        one that is taken as it is.

        Raises CheckpointError if the folder holds another training, BuildError if a bundle cannot be built.
        """
        folder = self.out / data / name
        given = self.given.get(f"{name} of {data}") or self.given.get(name)
        taken = checkpoint or given
        run = taken or self._fitted(folder / "run", family, train, data, fields or {}, init)
        trained, config = load_checkpoint(run)
        if trained.name != family:
            raise CheckpointError(f"{run} holds a {trained.name}; wanted is a {family}")
        if trained.preset.size != train.size:
            raise CheckpointError(f"{run} draws {trained.preset.size} pixels; the tables are of {train.size}")
        for field, value in (fields or {}).items():
            if (there := getattr(trained.preset, field)) != value:
                raise CheckpointError(f"{run} has {field}={there}; wanted is {field}={value}")
        if so_far := unfinished(trained, config):
            raise CheckpointError(f"{run} was trained to {so_far}: go on with {goes_on(config)} first")
        doubt = doubt_of(config, train) if given and not checkpoint else None
        if doubt:
            self.say(f"{run}: {doubt}")
        repository = folder / "repository"
        bundle = self._built(family, run, config["digest"], repository)
        facts = {
            "model": family,
            "learnt": Path(str(config.get("data"))).name if taken else data,
            "begun_from": config.get("init"),
            "given": taken is not None,
            "doubt": doubt,
            "steps": list(trained.preset.steps),
            "batch": trained.preset.batch,
            "size": trained.preset.size,
            "parameters": sum(weight.numel() for weight in trained.parameters()),
            "training_seconds": seconds_in(run),
            "checkpoint_sha256": config["digest"],
            "bundle_sha256": bundle,
        }
        return Model(trained, config, repository, bundle, facts)

    def _fitted(
        self, out: Path, name: str, train: Pairs, data: str, fields: Mapping[str, Any], init: Path | None
    ) -> Path:
        kind = load_family(name)
        preset = kind.presets[self.amounts.preset]
        changed: dict[str, Any] = dict(fields)
        if self.amounts.steps is not None:
            changed["steps"] = [self.amounts.steps] * len(kind.phases)
        if self.amounts.batch is not None:
            changed["batch"] = self.amounts.batch
        preset = preset.replaced(changed)
        torch.manual_seed(self.seed)
        family = kind(preset)
        begun: list[dict[str, Any]] = []
        if init is not None:
            other, config = load_checkpoint(init)
            family.load_state_dict(other.state_dict())
            begun = lineage(config)
        digest = begun[0]["digest"] if begun else None
        described = {"preset_name": self.amounts.preset, "data": data, "seed": self.seed, "init": digest}
        told = {**described, "learnt_sha256": train.digest}
        resume = any(out.glob(CONFIGS))
        if resume:
            there = read_config(find_checkpoint(out))
            wanted = json.loads(json.dumps({**told, "preset": dataclasses.asdict(preset)}))
            if there.get("model") != name or any(there.get(each) != value for each, value in wanted.items()):
                raise CheckpointError(f"{out} holds another training: name another --out")
            if not unfinished(load_checkpoint(out)[0], there):
                return out
        self.say(f"training {name} on {data}: {' + '.join(map(str, preset.steps))} steps of {preset.batch}")
        # Not in what is compared above: the runs of an older medgen have none, and go on.
        config = {**told, **({"ancestors": begun} if begun else {})}
        run = Run(out, config, self.seed, log_every=10, checkpoint_every=OFTEN, preview_every=0)
        fit(family, Learnt(train), run, resume)
        return out

    def _built(self, name: str, run: Path, digest: str, repository: Path) -> str:
        """The bundle's digest."""
        try:
            there = load_bundle(bundle_folder(repository, name))
            if there.manifest.checkpoint.get("digest") == digest:
                return there.digest
        except BundleError:
            pass
        self.say(f"building {name}")
        targets = [target for target, _ in default_targets("fp32")]
        for target in targets:
            try:
                return build(name, run, repository, Options(target)).digest
            except ToleranceError:
                if target == targets[-1]:
                    raise
        raise AssertionError("there is always a target")
