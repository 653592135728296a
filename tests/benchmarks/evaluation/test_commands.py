"""The commands from folders to pages."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_families import tiny_family

from benchmarks.__main__ import main
from benchmarks.evaluation import features
from benchmarks.evaluation.pairs import EvaluationError
from training.checkpoint import save_checkpoint
from training.data.classes import HEART
from training.data.phantom import Phantoms

SIZE = 32


def folder_of(place: Path, phantoms: range, **others: np.ndarray) -> Path:
    place.mkdir()
    dataset = Phantoms(max(phantoms) + 1, SIZE, seed=5)
    items = [dataset[k] for k in phantoms]
    arrays = {
        "image": np.stack([item["image"].numpy() for item in items]) / 2 + 0.5,
        "mask": np.stack([item["mask"].numpy() for item in items]),
        "seed": np.array(phantoms),
        "mask_labels": np.array(["background", "lesion"]),
    }
    np.savez(place / "pairs.npz", **{**arrays, **others})
    made = [{"model": "mganprior", "bundle": "b" * 64, "seed": seed} for seed in phantoms]
    (place / "provenance.json").write_text(json.dumps({"samples": made}))
    return place


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "drawn", range(20))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code != 0
    return result.stderr


def test_a_report_has_all_three_on_a_page_without_a_network(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    family = tiny_family("pig")
    save_checkpoint(tmp_path / "pig", family, family.state_dict(), {"preset_name": "small", "step": 7, "data": "x"})
    asked = ["report", "phantom:16", drawn, "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1]
    output = run(*asked, "--checkpoint", tmp_path / "pig")
    assert "Nearest neighbours in the training set" in output
    page = (tmp_path / "out/report.html").read_text()
    assert not re.search(r'(src|href)=(?!"data:)', page)
    assert page.count("<img") > 10
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["facts"]["versions"]["torch"]
    quality, privacy, utility = report["sections"]
    assert [section["title"] for section in report["sections"]] == ["Quality", "Privacy", "Utility"]
    assert quality["facts"]["synthetic"]["drawn_by"]["bundle"] == "b" * 64
    assert not re.search(r"FID|KID", json.dumps(quality["tables"]))
    (by_segmenter,) = [table for table in quality["tables"] if table["title"] == "By segmenter"]
    assert [row[0] for row in by_segmenter["rows"]] == ["synthetic", "real, other patients", "noise"]
    assert {row[1] for row in by_segmenter["rows"]} == {16}
    assert any("radiomics are left out" in line for line in quality["warnings"])
    assert by_segmenter["rows"][0][2].keys() == {"value", "low", "high"}
    rows = [row[0] for row in utility["tables"][0]["rows"]]
    assert rows == ["real", "synthetic", "real + 0.5x", "real + 1x", "synthetic, masks shuffled"]
    assert any("20 samples are too few for mixtures of 1.5, 2" in line for line in utility["warnings"])
    assert any("mganprior draws nothing new" in line for line in privacy["warnings"])
    assert any("not that the model keeps its secrets" in line for line in privacy["warnings"])
    assert privacy["tables"][1]["rows"][0][0] == "threshold on the loss"

    # What was measured is not measured again.
    for what in ("measure_quality.trained", "utility.trained", "measure_privacy.seen"):
        monkeypatch.setattr(f"benchmarks.evaluation.{what}", None)
    run(*asked, "--checkpoint", tmp_path / "pig")
    again = json.loads((tmp_path / "out/report.json").read_text())
    assert again["sections"] == report["sections"]


def test_copies_are_told(tmp_path):
    train, other = (folder_of(tmp_path / name, span) for name, span in (("train", range(20)), ("other", range(20, 40))))
    copies = folder_of(tmp_path / "copies", range(12))
    output = run(
        *("privacy", other, copies, "--train", train, "--out", tmp_path / "out", "--epochs", 1),
    )
    assert "Nearest neighbours" in output
    (section,) = json.loads((tmp_path / "out/privacy.json").read_text())["sections"]
    assert "12 of 12 samples are training pictures, bit for bit." in section["text"]
    assert any("100% of the samples are nearer to a training picture" in line for line in section["warnings"])
    pixels = section["tables"][0]["rows"][0]
    assert pixels[3]["value"] == 0  # NNDR
    assert pixels[7]["value"] == 1  # AUC


def test_what_cannot_be_compared_is_refused(drawn, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "give either SYNTHETIC" in refused("quality", "phantom:8", *out)
    assert "holds no data set" in refused("quality", tmp_path, drawn, *out)
    real = folder_of(tmp_path / "real", range(20, 30))
    assert "name the first with --train" in refused("privacy", real, drawn, *out)
    assert "10 patients are both in real, trained on and in real, held out" in refused(
        "privacy", real, drawn, "--train", folder_of(tmp_path / "same", range(20, 30)), *out
    )
    hearts = folder_of(tmp_path / "hearts", range(4), mask_labels=np.array(HEART))
    assert "LV, MYO, RV" in refused("quality", real, hearts, *out)
    assert "is not NAME=PATH" in refused("quality", real, drawn, "--features", "inception", *out)
    assert not (tmp_path / "out").exists()


def test_a_network_of_the_user_gives_distances_of_its_name(tmp_path):
    import torch

    class Wide(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, width, 3, stride=16)

        def forward(self, colours: torch.Tensor) -> torch.Tensor:
            return self.layer(colours)

    from benchmarks.evaluation.cache import Cache
    from benchmarks.evaluation.reading import read_pairs

    pairs = read_pairs(str(folder_of(tmp_path / "some", range(5))))
    for width in (7, 2048):
        torch.jit.script(Wide(width)).save(str(tmp_path / f"{width}.pt"))
    own = features.of_network("mine", tmp_path / "7.pt")
    assert own.of(pairs, Cache(tmp_path / "cache")).shape == (5, 7)
    assert (own.frechet_name(), own.kernel_name()) == ("Frechet (mine)", "kernel distance (mine)")
    with pytest.raises(EvaluationError, match="called inception has 7 features"):
        features.of_network("inception", tmp_path / "7.pt").of(pairs, Cache(tmp_path / "cache"))
    inception = features.of_network("inception", tmp_path / "2048.pt")
    assert inception.of(pairs.at([0]), Cache(tmp_path / "cache")).shape == (1, 2048)
    assert (inception.frechet_name(), inception.kernel_name()) == ("FID", "KID")
    (tmp_path / "not.pt").write_text("no network")
    with pytest.raises(EvaluationError, match="is no TorchScript network"):
        features.of_network("mine", tmp_path / "not.pt")


def test_radiomics_are_of_the_picture_alone(tmp_path):
    pytest.importorskip("radiomics")
    random = np.random.default_rng(0)
    images = random.random((2, SIZE, SIZE), np.float32)
    found = features.radiomics().extract(images[[0, 1, 0]])
    assert found.shape[1] > 80
    assert np.isfinite(found).all()
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()
    flat = features.radiomics().extract(np.full((1, SIZE, SIZE), 0.5, np.float32))
    assert np.isfinite(flat).all()
