"""What is on the page as a file to take away: what `sample` writes of it."""

import shutil
import tempfile
import time
import zipfile
from pathlib import Path

from serving.page.command_line import stem
from serving.page.drawing import Drawn
from serving.page.settings import KEPT_SECONDS
from serving.writers.layouts import make_layout
from serving.writers.sample_folder import PAIRS, PROVENANCE, write_samples

# What a visitor calls it, and the layout that it is; "" is what `sample` writes in any case.
FORMATS = {"NPZ": "", "PNG": "", "NIfTI": "nifti", "nnU-Net": "nnunet", "DICOM": "dicom", "WebDataset": "webdataset"}


def pack(drawn: Drawn, kind: str, folder: Path) -> Path:
    """One file in the folder: pairs.npz under the samples' name, or a zip with provenance.json in it.

    What was packed there more than KEPT_SECONDS ago is removed. Raises LayoutError, NameClashError and OSError.
    """
    for packed_before in folder.iterdir():
        if time.time() - packed_before.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(packed_before, ignore_errors=True)
    layouts = [make_layout(FORMATS[kind])] if FORMATS[kind] else []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        written = Path(scratch) / stem(drawn)
        write_samples(drawn.samples, written, layouts=layouts, notes=drawn.notes)
        place = Path(tempfile.mkdtemp(dir=folder))
        if kind == "NPZ":
            return (written / PAIRS).rename(place / f"{stem(drawn)}.npz")
        whole = place / f"{stem(drawn)}-{kind}.zip"
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as packed:
            inside = written / FORMATS[kind] if FORMATS[kind] else written
            for file in sorted(path for path in (*inside.rglob("*"), written / PROVENANCE) if path.is_file()):
                if file.name != PAIRS and file.relative_to(written).as_posix() not in packed.namelist():
                    packed.write(file, file.relative_to(written).as_posix())
        return whole
