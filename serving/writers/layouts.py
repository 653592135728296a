"""The layouts that there are, by their names."""

from pathlib import Path

from serving.writers.dicom import Dicom
from serving.writers.layout import Layout, LayoutError
from serving.writers.nifti import Nifti
from serving.writers.nnunet import NnUnet
from serving.writers.npz import Npz
from serving.writers.png import Png
from serving.writers.webdataset import WebDataset

LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (Npz, Png, Nifti, NnUnet, WebDataset, Dicom)}
BESIDE_OTHERS = ("nifti", "nnunet", "webdataset", "dicom")  # `sample` writes what the first two are in any case


def make_layout(name: str, real: Path | None = None) -> Layout:
    """A layout that can be written here; raises LayoutError, as it does if real is given to another than nnunet."""
    if real is not None and name != NnUnet.name:
        raise LayoutError(f"--add-to is for the layout nnunet, and this is {name}")
    layout = NnUnet(real) if name == NnUnet.name else LAYOUTS[name]()
    layout.check()
    return layout


def part_name(number: int) -> str:
    return f"part-{number:06d}"
