"""Data sets of two kinds of images that have no pairs: two folders, two tissues of mini-MIAS, or of phantoms."""

import re
from pathlib import Path

from numpy.random import SeedSequence
from torch import Tensor
from torch.utils.data import Dataset

from training.data.dataset import Unpaired
from training.data.layouts.mini_mias import TISSUES, load_tissue
from training.data.layouts.picture_folder import load_pictures
from training.data.phantom import Phantoms
from training.data.problems import DataError

PHANTOM_COUNT = 2000
FOLDERS = "trainA", "trainB"
ACCEPTED = (
    "a folder with trainA/ and trainB/, the mini-MIAS folder (fatty and dense-glandular breasts), or 'phantom' or "
    "'phantom:COUNT'"
)
# Mean grey levels outside the mass: of 200 phantoms a third is darker than the first, a third brighter than the other
FATTY, DENSE = -0.29, -0.22


def open_unpaired(source: str, size: int, split: str = "train", skip_bad: bool = False) -> Unpaired:
    """Open what ``source`` names: a and b are the images of trainA/ and trainB/, or fatty and dense breasts.

    mini-MIAS is split by patient as ``open_dataset`` does it; its films of fatty-glandular tissue are in neither kind.
    The two folders are scaled each by itself, as they may be of different modalities, and not split.

    Raises:
        DataError: the source is not what is accepted, or its files cannot be used; all of them are listed.
    """
    if phantom := re.fullmatch(r"phantom(?::(\d+))?", source):
        count = int(phantom[1] or PHANTOM_COUNT)
        if not count:
            raise DataError(f"{source!r} asks for no phantoms; COUNT must be 1 or more")
        seed = 1 if split == "validation" else 0
        fatty, dense = (PhantomTissue(count, size, seed, dense) for dense in (False, True))
        return Unpaired(fatty, dense, ("fatty", "dense"))
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source!r} is no folder; accepted are {ACCEPTED}")
    if (folder / "Info.txt").is_file() and any(folder.glob("mdb*.pgm")):
        a, b = (load_tissue(folder, size, tissue, split, skip_bad) for tissue in "FD")
        return Unpaired(a, b, (TISSUES["F"], TISSUES["D"]))
    if not all((folder / name).is_dir() for name in FOLDERS):
        raise DataError(f"{source!r} holds no data set of two kinds; accepted are {ACCEPTED}")
    if split == "validation":
        raise DataError(f"{folder}: two folders are not split; keep images to judge with elsewhere")
    a, b = (load_pictures(folder / name, size, skip_bad) for name in FOLDERS)
    return Unpaired(a, b, FOLDERS)


class PhantomTissue(Dataset[dict[str, Tensor]]):
    """Phantoms with much or little glandular tissue; item i depends on (seed, i, size, dense) alone.

    The first of a stream of phantoms that is bright, or dark, enough outside its mass; one in three is.
    """

    def __init__(self, count: int, size: int, seed: int, dense: bool) -> None:
        self.count, self.size, self.seed, self.dense = count, size, seed, dense

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count} phantoms does not exist")
        (stream,) = SeedSequence(self.seed, spawn_key=(index,)).generate_state(1)
        phantoms = Phantoms(2**31, self.size, int(stream))
        return next(item for item in map(phantoms.__getitem__, range(2**31)) if self.fits(item))

    def fits(self, item: dict[str, Tensor]) -> bool:
        image, mask = item["image"], item["mask"]
        level = float(image[(image > -0.95) & (mask == 0)].mean())
        return level > DENSE if self.dense else level < FATTY
