"""Samples as the tar files that WebDataset reads."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from serving.sample_set import Samples
from serving.writers.layout import Layout, Shapes
from serving.writers.npz import bytes_of_arrays, check_name

TAR_BLOCK = 512


class WebDataset(Layout):
    """PART.tar: NAME.OUTPUT.npy for every output of every sample, and NAME.json: what made it, what outputs
    mean, and which were given and not drawn."""

    name = "webdataset"

    def bytes_a_sample(self, shapes: Shapes) -> int:
        return bytes_of_arrays(shapes) + (len(shapes) + 1) * 4 * TAR_BLOCK

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        for output in samples.outputs:
            check_name(output.name)
        given = {"given": list(samples.given)} if samples.given else {}
        described = [dataclasses.asdict(output) for output in samples.outputs]
        with tarfile.open(folder / f"{part}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, name in enumerate(samples.names):
                for kind, values in samples.arrays.items():
                    content = io.BytesIO()
                    np.lib.format.write_array(content, values[row], allow_pickle=False)
                    _add(tar, f"{name}.{kind}.npy", content.getvalue())
                facts = {"provenance": samples.provenance[row], "outputs": described, **given}
                _add(tar, f"{name}.json", json.dumps(facts).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """With the owner and the time that a TarInfo has by itself: nobody, and none."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
