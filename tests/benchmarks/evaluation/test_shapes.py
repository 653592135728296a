"""Figures of masks whose shapes are known."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

pytest.importorskip("skimage")

from benchmarks.evaluation import measure_quality
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.report import Section, Table
from benchmarks.evaluation.segmentation import RECIPES
from benchmarks.evaluation.shapes import absent, compared_features, features_of
from benchmarks.evaluation.sides import Sides
from benchmarks.evaluation.similarity import VGG, Lpips, likeness, of_other_patients, partners, scales_for
from training.data.classes import HEART, LESION

ROWS, COLUMNS = np.indices((64, 64)) + 0.5


def disc(row: float, column: float, radius: float, stretch: float = 1) -> np.ndarray:
    return np.hypot((ROWS - row) / stretch, COLUMNS - column) < radius


def of(masks: np.ndarray, images: np.ndarray | None = None, labels: tuple[str, ...] = LESION) -> Pairs:
    names = tuple(map(str, range(len(masks))))
    images = np.full(masks.shape, 0.5, np.float32) if images is None else images
    return Pairs("some", images.astype(np.float32), masks.astype(np.uint8), labels, names, names, True)


def test_discs_and_ellipses():
    found = features_of(of(np.stack([disc(16, 32, 10), disc(32, 32, 10, 2), disc(16, 32, 10) | disc(60, 5, 2)])))
    area = np.pi * 100 / 64**2 * 100
    assert found["lesion: pixels %"][0] == pytest.approx(area, rel=0.02)
    assert found["lesion: area"] == pytest.approx([314, 628, 314], rel=0.02)  # of the largest component alone
    assert found["lesion: pixels %"][2] > found["lesion: pixels %"][0]
    assert found["lesion: roundness"][0] == pytest.approx(1, abs=0.05)
    assert found["lesion: roundness"][1] < 0.9
    assert found["lesion: eccentricity"][:2] == pytest.approx([0, 0.75**0.5], abs=0.02)
    assert found["lesion: solidity"][0] > 0.93
    assert found["lesion: components"].tolist() == [1, 1, 2]
    assert (found["lesion: row"][0], found["lesion: column"][0]) == pytest.approx((0.25, 0.5))


def test_a_ring_is_not_solid_and_an_absent_structure_is_counted():
    ring = 2 * (disc(32, 32, 12) & ~disc(32, 32, 8))
    pairs = of(np.stack([ring, 0 * ring]), labels=HEART)
    found = features_of(pairs)
    assert found["MYO: solidity"][0] < 0.6
    assert np.isnan(found["MYO: area"][1])
    assert found["MYO: components"].tolist() == [1, 0]
    assert absent(pairs) == {"LV": 2, "MYO": 1, "RV": 2}


def test_contrast_is_of_the_tissue_around():
    mask = disc(32, 32, 6)
    image = np.random.default_rng(0).normal(0.5, 0.05, mask.shape) + 0.2 * mask
    image[:, :30] = 0
    found = features_of(of(mask[None], image[None]))
    assert found["lesion: contrast"][0] == pytest.approx(4, abs=1)
    assert found["lesion: off the breast %"][0] == pytest.approx(100 * 32 / 112)


def test_larger_lesions_differ_and_the_same_do_not():
    random = np.random.default_rng(1)

    def drawn(low: float, high: float) -> Pairs:
        return of(np.stack([disc(*random.uniform(20, 44, 2), random.uniform(low, high)) for _ in range(40)]))

    small, also_small, large = (drawn(4, 8), drawn(4, 8), drawn(7, 12))
    of_small = features_of(small)
    same = {name: p for name, _, p in compared_features(of_small, features_of(also_small), small.groups)}
    larger = {name: (each, p) for name, each, p in compared_features(of_small, features_of(large), small.groups)}
    assert min(same.values()) > 0.01
    each, p = larger["lesion: area"]
    assert p < 1e-6
    assert each.delta.low > 0.5
    assert larger["lesion: row"][1] > 0.01


def test_d_of_real_halves_stands_beside_d_of_as_many_samples():
    random = np.random.default_rng(3)

    def drawn(count: int, name: str) -> Pairs:
        pairs = of(np.stack([disc(*random.uniform(20, 44, 2), random.uniform(4, 8)) for _ in range(count)]))
        return replace(pairs, name=name, patients=tuple(f"{name} {k // 2}" for k in range(count)))

    one, other, samples = drawn(12, "one"), drawn(12, "other"), drawn(60, "samples")
    as_many, section = samples.at(range(12)), Section("Quality")
    measure_quality._shapes(section, Sides(one, other, samples, True), one, other, as_many, 0)
    table = section.tables[0]
    figures = dict(zip(table.columns, next(row for row in table.rows if row[0] == "lesion: area"), strict=True))
    area = {side.name: features_of(side)["lesion: area"] for side in (one, other, samples)}
    both = np.concatenate([area["one"], area["other"]])
    assert figures["KS D"].value == stats.ks_2samp(both, area["samples"]).statistic
    assert figures["D of as many"].value == stats.ks_2samp(area["one"], area["samples"][:12]).statistic
    assert figures["D of real halves"].value == stats.ks_2samp(area["one"], area["other"]).statistic


def test_pictures_of_the_same_mask_are_compared_once():
    random = np.random.default_rng(2)
    masks = np.stack([disc(20 + k, 32, 6) for k in range(3)] + [disc(0, 0, -1)])
    real = of(masks, random.random(masks.shape))
    synthetic = of(masks[[2, 0, 0, 3]], real.images[[2, 0, 0, 3]])
    assert [rows.tolist() for rows in partners(real, synthetic)] == [[2, 0], [0, 1]]
    rows, drawn = partners(real, synthetic)
    found = likeness(real.at(rows), synthetic.at(drawn))
    assert found["SSIM"] == pytest.approx([1, 1])
    assert found["MS-SSIM"] == pytest.approx([1, 1])
    assert found["PSNR"].min() > 100
    noise = likeness(real.at([0, 1]), of(masks[[0, 1]], real.images[[0, 1]] + 0.1))
    assert noise["PSNR"] == pytest.approx([20, 20], abs=1e-3)
    assert [len(scales_for(size)) for size in (32, 64, 128, 256)] == [2, 3, 4, 4]


def test_samples_under_empty_masks_are_compared_with_their_pictures_or_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_quality, "_extractors", lambda *_: [])
    random = np.random.default_rng(4)
    masks = np.stack([disc(20 + k, 32, 6 if k % 2 else -1) for k in range(6)])
    real, train = (replace(of(masks, random.random(masks.shape)), name=name) for name in ("held out", "train"))
    train = replace(train, names=tuple("abcdef"), patients=tuple("abcdef"))
    samples = of(masks, random.random(masks.shape))
    given = replace(samples, facts={"drawn_under": {"what": "mask", "of": real.name, "count": 6}})

    def table_of(sides: Sides) -> Table:
        return measure_quality.quality(sides, [], None, RECIPES["small"], 0, Cache(tmp_path)).tables[0]

    known = table_of(Sides(train, real, given, True, real))
    assert known.rows[0][1] == 6
    assert known.rows[0][2].value == pytest.approx(likeness(real, samples)["PSNR"].mean())
    found = table_of(Sides(train, real, samples, True))
    assert (found.title, found.rows[0][1]) == (known.title, 3)
    assert "Left out are 3 samples with empty masks, which may be any image's, and 0 others." in found.note


def test_the_floor_of_likeness_is_of_other_patients():
    masks = np.stack([disc(32, 32, 6)] * 5)
    some = replace(of(masks), patients=("a", "a", "a", "b", "c"))
    rows, partners = of_other_patients(some)
    assert len(rows) >= 4
    assert (some.groups[rows] != some.groups[partners]).all()
    assert not len(of_other_patients(replace(some, patients=("a",) * 5))[0])


def test_lpips_is_0_of_a_picture_and_itself_and_names_weights_that_are_none(tmp_path):
    weights, below, place = {}, 3, 0
    for block in VGG:
        for width in block:
            weights[f"features.{place}.weight"] = torch.randn(width, below, 3, 3) * (2 / below / 9) ** 0.5
            weights[f"features.{place}.bias"] = torch.zeros(width)
            below, place = width, place + 2
        place += 1
    torch.save(weights, tmp_path / "vgg16.pth")
    lpips = Lpips(tmp_path / "vgg16.pth")
    one, other = torch.rand(2, 2, 1, 32, 32)
    assert lpips(one, one).tolist() == [0, 0]
    assert (lpips(one, other) > lpips(one, one * 0.98)).all()
    torch.save({"features.0.weight": weights["features.0.weight"]}, tmp_path / "vgg16.pth")
    with pytest.raises(EvaluationError, match=r"no weights of torchvision's vgg16: 'features\.0\.bias'"):
        Lpips(tmp_path / "vgg16.pth")


def of_torchvision(_name: str, _pretrained: bool) -> nn.Sequential:
    """What torchvision's vgg16 calls its features, configuration D of Simonyan and Zisserman (arXiv 1409.1556)."""
    layers, below = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(below, width, 3, padding=1), nn.ReLU(True)] if width else [nn.MaxPool2d(2, 2)]
        below = width or below
    return nn.Sequential(*layers)


def test_lpips_is_that_of_torchmetrics_on_the_same_weights(tmp_path, monkeypatch):
    torchmetrics = pytest.importorskip("torchmetrics.functional.image.lpips")
    if find_spec("torchvision") is None:
        monkeypatch.setattr(torchmetrics, "_get_tv_model_features", of_torchvision)
    torch.manual_seed(0)
    theirs = torchmetrics._LPIPS(net="vgg", pnet_rand=True)  # random weights, the heads of the package
    for layer in theirs.net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    named = {f"features.{name.partition('.')[2]}": each for name, each in theirs.net.state_dict().items()}
    torch.save(named, tmp_path / "vgg16.pth")
    one = torch.rand(20, 1, 40, 40)
    other = (one + torch.linspace(0, 0.3, 20).view(-1, 1, 1, 1) * torch.randn(one.shape)).clamp(0, 1)
    with torch.no_grad():
        expected = theirs(*(each.repeat(1, 3, 1, 1) for each in (one, other)), normalize=True).flatten()
    assert expected[-1] > 10 * expected[1] > 0
    assert Lpips(tmp_path / "vgg16.pth")(one, other).numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-7)
