"""Data sets of (image, mask) pairs: folders of four layouts, and phantoms drawn from a seed."""

import re
from pathlib import Path

from training.data.classes import LESION
from training.data.dataset import LoadedPairs
from training.data.layouts import acdc, mnms
from training.data.layouts.mini_mias import load_mias
from training.data.layouts.pair_folder import load_pairs
from training.data.layouts.picture_folder import load_pictures
from training.data.phantom import Phantoms
from training.data.phantom_heart import HeartPhantoms
from training.data.problems import DataError, some

__all__ = ["SPLITS", "DataError", "open_dataset"]

SPLITS = ("train", "validation", "all")
PHANTOM_COUNT = 50_000
PHANTOMS = {kind.labels: kind for kind in (Phantoms, HeartPhantoms)}
ACCEPTED = (
    "a folder of pairs (images/ and masks/, or images/ alone for models that draw no masks), the mini-MIAS folder "
    "(mdbNNN.pgm and Info.txt), ACDC (patientNNN/), M&Ms (Training/ and its CSV), or 'phantom' or 'phantom:COUNT'; "
    "./phantom is a folder of that name"
)


def open_dataset(
    source: str,
    size: int,
    split: str = "train",
    skip_bad: bool = False,
    labels: tuple[str, ...] = LESION,
    masks: bool = True,
) -> LoadedPairs | Phantoms:
    """Open the data set that ``source`` names; a folder is read whole, so its errors come before training.

    Items are {"image": float32 [1, size, size] in [-1, 1], "mask": uint8 [1, size, size]}; masks of lesions hold 0 or
    1, masks of hearts 0 background, 1 LV, 2 MYO or 3 RV, as the data set's ``labels`` say.

    Args:
        source: a folder, recognised by what it holds, "phantom" or "phantom:COUNT".
        size: rows and columns of an item.
        split: "train", "validation" or "all". mini-MIAS, ACDC and M&Ms are split by patient. A folder of pairs says
            nothing of patients: it is not split, and has no "validation". Phantoms are without end: "validation" draws
            as many others, and "all" is "train".
        skip_bad: leave out, and log, files that cannot be used.
        labels: the classes that phantoms show: those of breasts with a lesion, or of hearts. Files have their own.
        masks: whether masks are needed; without, ``images/`` may stand alone, and its items have no "mask".

    Raises:
        DataError: the source is not what is accepted, or its files cannot be used; all of them are listed.
    """
    if split not in SPLITS:
        raise DataError(f"the split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if phantom := re.fullmatch(r"phantom(?::(\d+))?", source):
        count = int(phantom[1] or PHANTOM_COUNT)
        if not count:
            raise DataError(f"{source!r} asks for no phantoms; COUNT must be 1 or more")
        if labels not in PHANTOMS:
            known = " or ".join(", ".join(classes) for classes in PHANTOMS)
            raise DataError(f"there are no phantoms with the classes {', '.join(labels)}; there are some with {known}")
        return PHANTOMS[labels](count, size, seed=1 if split == "validation" else 0)
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source!r} is no folder; accepted are {ACCEPTED}")
    has_masks = (folder / "masks").is_dir()
    layouts = {
        "a folder of pairs": (folder / "images").is_dir() and (has_masks or not masks),
        "mini-MIAS": (folder / "Info.txt").is_file() and any(folder.glob("mdb*.pgm")),
        acdc.NAME: bool(acdc.find_patients(folder)),
        mnms.NAME: mnms.find_table(folder) is not None,
    }
    found = [layout for layout, there in layouts.items() if there]
    if len(found) > 1:
        raise DataError(f"{folder} is {' and '.join(found)} at once; give each a folder of its own")
    if not found:
        if mnms.holds_images(folder):
            tables = some([path.name for path in sorted(folder.glob("*.csv"))]) or "no CSV"
            raise DataError(
                f"{folder} holds images of M&Ms, but no CSV with columns External code, ED and ES; there is {tables}"
            )
        raise DataError(f"{source!r} holds no data set; accepted are {ACCEPTED}")
    if found == ["a folder of pairs"]:
        if split == "validation":
            raise DataError(f"{folder}: a folder of pairs is not split; keep validation pairs in a folder of their own")
        return load_pairs(folder, size, skip_bad) if has_masks else load_pictures(folder / "images", size, skip_bad)
    if found == ["mini-MIAS"]:
        return load_mias(folder, size, split, skip_bad)
    try:
        from training.data.layouts.cardiac import load_cardiac
    except ModuleNotFoundError as missing:
        raise DataError(f"{folder}: NIfTI files need {missing.name}: pip install 'medgen[train]'") from missing
    return load_cardiac(folder, size, split, skip_bad)
