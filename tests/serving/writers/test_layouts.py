"""What `sample` and `draw` ask of every layout."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import contents
from tiny_samples import pairs

from serving.sample_set import Samples
from serving.writers.layout import LayoutError
from serving.writers.layouts import BESIDE_OTHERS, LAYOUTS, make_layout
from serving.writers.npz import NameClashError
from serving.writers.sample_folder import filling, write_samples


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_take_no_more_than_was_said(name: str, tmp_path: Path) -> None:
    """Of noise, which nothing compresses."""
    samples = pairs("pig", "MG", ("background", "lesion"), None)
    samples.arrays["image"][:] = np.random.default_rng(0).random(samples.arrays["image"].shape)
    make_layout(name).write(samples, tmp_path, "part")
    taken = sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file())
    shapes = {output.name: (np.dtype(output.dtype), output.shape) for output in samples.outputs}
    assert taken <= len(samples) * make_layout(name).bytes_a_sample(shapes) + 8192


def test_parts_of_a_folder_are_the_folder(heart: Samples, tmp_path: Path) -> None:
    layouts = [make_layout(name) for name in BESIDE_OTHERS if name != "webdataset"]
    write_samples(heart, tmp_path / "whole", layouts=layouts)
    with filling(tmp_path / "parts", layouts=layouts) as add:
        for row in range(2):
            arrays = {name: values[row : row + 1] for name, values in heart.arrays.items()}
            add(Samples(arrays, heart.provenance[row : row + 1], heart.outputs))
            (unfinished,) = tmp_path.glob(".parts.new")
            assert (unfinished / "images" / f"{heart.names[row]}.png").is_file(), "it waits in memory"
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    del whole["sheet.png"], parts["sheet.png"]  # which shows the first part
    assert parts == whole
    with filling(tmp_path / "twice") as add:
        add(heart)
        with pytest.raises(NameClashError, match="samples of 000007 are there already"):
            add(heart)


def test_a_part_that_another_model_drew_is_refused(heart: Samples, tmp_path: Path) -> None:
    """As where a server loads a bundle anew between two parts."""
    mask, image = heart.outputs
    later = [{**facts, "seed": facts["seed"] + 100} for facts in heart.provenance]
    for other in (replace(mask, labels=mask.labels[::-1]), replace(mask, spacing=(9.0, 9.0))):
        with filling(tmp_path / "folder") as add:
            add(heart)
            with pytest.raises(LayoutError, match="from 000107 on samples have other outputs, classes, ranges or spac"):
                add(Samples(heart.arrays, later, (other, image)))
        shutil.rmtree(tmp_path / "folder")


def test_options_that_are_not_for_a_layout_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LayoutError, match="--add-to is for the layout nnunet, and this is npz"):
        make_layout("npz", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LayoutError, match=r"DICOM files need pydicom: pip install 'medgen\[dicom\]'"):
        make_layout("dicom")


def test_samples_of_two_bundles_are_not_one_folder(heart: Samples, tmp_path: Path) -> None:
    other = [{**facts, "bundle": "c" * 64, "seed": facts["seed"] + 2} for facts in heart.provenance]
    with filling(tmp_path / "folder") as add:
        add(heart)
        with pytest.raises(LayoutError, match="000009 and those with it were drawn by another bundle: the model was"):
            add(replace(heart, provenance=other))
    mixed = [heart.provenance[0], other[1]]
    with pytest.raises(LayoutError, match="000007 and those with it were drawn by another bundle"):
        write_samples(replace(heart, provenance=mixed), tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
