"""Tar files, read with WebDataset."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import webdataset

from serving.sample_set import Samples
from serving.writers.webdataset import WebDataset


def test_webdataset_reads_them(heart: Samples, tmp_path: Path) -> None:
    WebDataset().write(heart, tmp_path, "part-000000")
    read = [*webdataset.WebDataset(str(tmp_path / "part-000000.tar"), shardshuffle=False).decode()]
    assert [sample["__key__"] for sample in read] == heart.names
    for row, sample in enumerate(read):
        for name in ("mask", "image"):
            assert sample[f"{name}.npy"].dtype == heart.arrays[name].dtype
            np.testing.assert_array_equal(sample[f"{name}.npy"], heart.arrays[name][row])
        assert sample["json"]["provenance"] == heart.provenance[row]
        assert sample["json"]["outputs"][0]["labels"] == ["background", "LV", "MYO", "RV"]
        assert "given" not in sample["json"]


def test_what_was_given_is_said_to_be(heart: Samples, tmp_path: Path) -> None:
    WebDataset().write(replace(heart, given=("mask",)), tmp_path, "part-000000")
    read = webdataset.WebDataset(str(tmp_path / "part-000000.tar"), shardshuffle=False).decode()
    assert [sample["json"]["given"] for sample in read] == [["mask"]] * 2
