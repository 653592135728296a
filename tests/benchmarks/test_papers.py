"""The tables of PIG's and the cardiac paper, and ours beside them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.stats import ks_2samp
from tiny_families import FIELDS, tiny_family

from benchmarks.__main__ import main
from benchmarks.evaluation import features
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.features import Extractor
from benchmarks.evaluation.pairs import EvaluationError, drawn_by_patient, halves_by_patient
from benchmarks.evaluation.reading import read_pairs
from benchmarks.evaluation.segmentation import Recipe
from benchmarks.evaluation.shapes import features_of
from benchmarks.evaluation.statistics import Interval, holm
from benchmarks.papers import amounts, comparing, drawing, hearts, mammograms, models, paper, sources, tables
from benchmarks.papers.command import measure
from benchmarks.typed import as_typed
from serving.bundle import file_digest
from training import CheckpointError
from training.checkpoint import find_checkpoint, save_checkpoint, shipped_checkpoint
from training.data.classes import HEART, LESION
from training.data.listing import digest
from training.models import load_family

LESIONS = ("ddpm", "seg_guided", "controlnet", "pig")
HEARTS = ("cmr_mask", "cmr_ddpm_image", "cmr_ldm_image", "cmr_flow_image")
TINY = amounts.Amounts("small", steps=2, batch=2, warm=True, phantoms=8, real=6, ddpm=2, ddim=2, seeds=1, epochs=1,
                       radiomics=False)  # fmt: skip


def drawn_by_torch(client: Any, model: models.Model, seeds: range, given: Any, asked: Mapping[str, Any]) -> Any:
    family, preset = model.family, model.family.preset
    generator = torch.Generator().manual_seed(seeds.start)
    solver, steps = asked["solver"] or preset.default_solver, asked["steps"] or preset.default_steps
    noises = [torch.randn(len(seeds), *family.sample_shape, generator=generator) for _ in range(steps + 1)]
    under = None if given is None else torch.from_numpy(given[seeds.start : seeds.stop])
    arrays = {"mask": given[seeds.start : seeds.stop]} if given is not None else {}
    outputs = family.sample(noises, solver, steps, under)
    arrays |= {output.name: found.numpy() for output, found in zip(family.outputs, outputs, strict=True)}
    return drawing.pictures(arrays, len(seeds))


def test_what_is_printed_of_the_papers_adds_up() -> None:
    dice = {name: row.dice for name, row in paper.PIG_SEGMENTATION.items()}
    assert dice["real + PIG_2048"] - dice["real + SegGuidedDif_2048"] == pytest.approx(2.24)
    assert dice["real + PIG_2048"] - dice["real"] == pytest.approx(8.18)
    assert paper.PIG_FID["DDIM"] - paper.PIG_FID["PIG"] == pytest.approx(15.66)
    values = [row.p for row in paper.MASKS.values()]
    assert (len(values), sum(p < 0.05 for p in values), sum(p < 0.05 for p in holm(values))) == (15, 8, 6)
    for name, row in paper.MASKS.items():
        if name.endswith("pixels %"):
            area = paper.MASKS[name.replace("pixels %", "area")]
            assert 100 * area.real / paper.MASK_SIZE**2 == pytest.approx(row.real, abs=0.01)
            assert 100 * area.generated / paper.MASK_SIZE**2 != pytest.approx(row.generated, abs=0.3)


def test_more_minutes_are_more_of_everything_and_the_same_on_every_machine() -> None:
    assert amounts.within(15) == amounts.within(15)
    short, long = amounts.within(5), amounts.within(30)
    assert short.steps is not None
    assert long.steps is not None
    assert short.real
    assert long.real
    assert short.steps < long.steps
    assert short.real < long.real
    assert short.phantoms < long.phantoms
    assert amounts.Amounts().preset == "paper"
    assert amounts.Amounts().ddpm == paper.PIG_STEPS["DDPM"]


def test_data_sets_are_found_by_what_they_hold(tmp_path: Path) -> None:
    for name in ("mias", "acdc/patient001", "ddsm/fgt_seg"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mias" / "Info.txt").touch()
    (tmp_path / "mias" / "mdb001.pgm").touch()
    (tmp_path / "acdc" / "patient001" / "patient001_frame01.nii.gz").touch()
    (tmp_path / "acdc" / "patient001" / "patient001_frame01_gt.nii.gz").touch()
    found = sources.found_in(tmp_path)
    assert {*found} == {"mini-MIAS", "ACDC", "DDSM"}
    films = [str(tmp_path / name) for name in ("mias", "ddsm")]
    assert [*sources.mammograms(found, 9, with_films=True).values()] == ["phantom:9", *films]
    assert [*sources.mammograms(found, 9, with_films=False)] == ["phantoms"]
    assert [*sources.hearts(found, 9)] == ["ACDC"]
    assert [*sources.hearts({}, 9).values()] == ["phantom:9"]
    (tmp_path / "more").mkdir()
    with pytest.raises(sources.EvaluationError, match="holds neither"):
        sources.found_in(tmp_path / "more")


def films_of_ddsm(folder: Path, patients: int) -> None:
    (folder / "fgt_seg").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(patients):
        for view in ("RIGHT_MLO", "LEFT_MLO"):
            pixels = random.integers(number, 200, (32, 24), np.uint8)
            Image.fromarray(pixels).save(folder / "fgt_seg" / f"A_{number:04}_1.{view}.png")


def test_films_of_ddsm_are_read_without_masks_and_split_by_patient(tmp_path: Path) -> None:
    films_of_ddsm(tmp_path, 10)
    learnt, held_out = sources.read_sides(str(tmp_path), "DDSM", 32, LESION, False)
    assert (len(learnt), learnt.patient_count, len(held_out), held_out.patient_count) == (16, 8, 4, 2)
    assert not {*learnt.patients} & {*held_out.patients}
    assert not learnt.has_masks
    assert 0 <= learnt.images.min() < learnt.images.max() <= 1
    (tmp_path / "fgt_seg" / "notes.txt").touch()
    with pytest.raises(EvaluationError, match=r"notes\.txt"):
        sources.read_sides(str(tmp_path), "DDSM", 32, LESION, False)
    assert len(sources.read_sides(str(tmp_path), "DDSM", 32, LESION, True)[0]) == 16


def test_a_table_as_markdown_and_figures_from_json() -> None:
    told = {"value": 0.5, "low": 0.25, "high": None}
    found = tables.interval(told, 100)
    assert found is not None
    assert found.value == 50
    assert found.low == 25
    assert np.isnan(found.high)
    text = tables.markdown(tables.Table("T", ["", "a"], [["row", found], ["other", None]], "why"))
    assert text.splitlines()[2:4] == ["|  | a |", "|---|---:|"]
    assert "| other |  |" in text
    assert text.rstrip().endswith("why")


def test_a_model_is_built_once_and_draws_under_the_masks_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = load_family("seg_guided").presets
    monkeypatch.setitem(presets, "small", presets["small"].replaced(FIELDS["seg_guided"]))
    said: list[str] = []
    workshop = models.Workshop(tmp_path, TINY, {}, 0, said.append)
    pairs = read_pairs("phantom:5", 32, "train")
    model = workshop.model("seg_guided", "seg_guided", pairs, "phantoms")
    assert model.facts["steps"] == [2]
    assert said == ["training seg_guided on phantoms: 2 steps of 2", "building seg_guided"]
    found = drawing.drawn(model, 7, Cache(tmp_path), pairs)
    assert (found.masks == pairs.masks[[0, 1, 2, 3, 4, 0, 1]]).all()
    assert found.images.std() > 0
    assert found.labels == pairs.labels
    assert found.patients == tuple(pairs.patients[row] for row in (0, 1, 2, 3, 4, 0, 1))
    again = workshop.model("seg_guided", "seg_guided", pairs, "phantoms")
    assert again.digest == model.digest
    assert len(said) == 2
    with pytest.raises(CheckpointError, match="holds another training: name another --out"):
        replace(workshop, seed=1).model("seg_guided", "seg_guided", pairs, "phantoms")
    family = tiny_family("cmr_mask")
    save_checkpoint(tmp_path / "mine", family, family.state_dict(), {"preset_name": "small"})
    with pytest.raises(CheckpointError, match="holds a cmr_mask; wanted is a pig"):
        replace(workshop, given={"pig of phantoms": tmp_path / "mine"}).model("pig", "pig", pairs, "phantoms")


def test_a_given_model_is_doubted_unless_its_config_says_that_it_learnt_these_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.Workshop, "_built", lambda self, name, run, digest, repository: digest)
    phantoms = read_pairs("phantom:5", 32, "train", LESION)
    films = replace(phantoms, facts={"layout": "mini-MIAS", "files_sha256": "films"})
    none = digest({})  # as fit has it of phantoms, however many
    told = {
        "learnt here": ({"learnt_sha256": phantoms.digest}, phantoms, None),
        "learnt elsewhere": ({"learnt_sha256": "others"}, phantoms, "other data"),
        "phantoms": ({"data_digest": none, "data_summary": {"pairs": 5}}, phantoms, None),
        "more phantoms": ({"data_digest": none, "data_summary": {"pairs": 50}}, phantoms, "other data"),
        "films": ({"data_digest": "films", "data_summary": {"pairs": 5}}, films, None),
        "other films": ({"data_digest": "others", "data_summary": {"pairs": 5}}, films, "other data"),
        "nobody knows": ({}, films, "does not say what it learnt"),
    }
    family = tiny_family("seg_guided")
    for name, (config, pairs, doubt) in told.items():
        save_checkpoint(tmp_path / name, family, family.state_dict(), {"preset_name": "small", **config})
        said: list[str] = []
        workshop = models.Workshop(tmp_path / "out", TINY, {"seg_guided": tmp_path / name}, 0, said.append)
        found = workshop.model("seg_guided", "seg_guided", pairs, "phantoms").facts["doubt"]
        assert (found is None) == (doubt is None), name
        assert (doubt or "") in (found or ""), name
        assert len(said) == (doubt is not None), name
    given = {"models": {"SegGuidedDif": {"doubt": None}, "PIG": {"doubt": "unknown"}}}
    (warned,) = tables.warned(given, tables.Table("T", [], [], "note."))
    assert warned.note.startswith("note. WARNING: PIG: unknown; patients that are called held out may be among those")
    given["models"]["PIG"]["doubt"] = None
    assert [table.note for table in tables.warned(given, tables.Table("T", [], [], "note."))] == ["note."]
    family = tiny_family("ddpm", paired=False)
    save_checkpoint(tmp_path / "alone", family, family.state_dict(), {"preset_name": "small"})
    workshop = models.Workshop(tmp_path / "out", TINY, {"ddpm-paired": tmp_path / "alone"}, 0, print)
    taught = {"student": {"teacher": "7" * 64}, "phase": "distillation", "step": 1}
    save_checkpoint(tmp_path / "unfinished", family, family.state_dict(), {"preset_name": "small", **taught})
    given = {"ddpm": tmp_path / "unfinished"}
    with pytest.raises(CheckpointError, match=r"unfinished was trained to step 1 of .* go on with distill --resume"):
        replace(workshop, given=given).model("ddpm", "ddpm", phantoms, "phantoms")
    with pytest.raises(CheckpointError, match="alone has paired=False; wanted is paired=True"):
        workshop.model("ddpm-paired", "ddpm", phantoms, "phantoms", {"paired": True})


def test_what_a_model_began_with_is_said_and_runs_that_do_not_say_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.Workshop, "_built", lambda self, name, run, digest, repository: digest)
    presets = load_family("seg_guided").presets
    monkeypatch.setitem(presets, "small", presets["small"].replaced(FIELDS["seg_guided"]))
    family = load_family("seg_guided")(presets["small"])
    save_checkpoint(tmp_path / "ships", family, family.state_dict(), {"preset_name": "small", "data": "phantom"})
    said: list[str] = []
    pairs = read_pairs("phantom:5", 32, "train")

    def made(steps: int) -> Mapping[str, Any]:
        workshop = models.Workshop(tmp_path / "out", replace(TINY, steps=steps), {}, 0, said.append)
        return workshop.model("seg_guided", "seg_guided", pairs, "phantoms", init=tmp_path / "ships").config

    config = made(2)
    assert config["ancestors"] == [{"digest": config["init"], "data": "phantom"}]
    file = find_checkpoint(tmp_path / "out" / "phantoms" / "seg_guided" / "run") / "config.json"
    older = json.loads(file.read_text())
    del older["ancestors"]
    file.write_text(json.dumps(older))
    assert made(2)["digest"] == config["digest"]
    assert len(said) == 1, "the older run is there already"
    older["preset"]["steps"] = [3]
    file.write_text(json.dumps(older))
    after = made(3)
    assert (after["step"], after["ancestors"]) == (3, config["ancestors"]), "an older run that was cut short goes on"


def test_copies_are_looked_for_in_all_that_was_learnt(tmp_path: Path) -> None:
    learnt, others = (read_pairs("phantom:8", 32, split, HEART) for split in ("train", "validation"))
    rows = hearts.nearness(learnt, others, {"copies": learnt, "new": others}, comparing.Judge(TINY, Cache(tmp_path)))
    assert rows["copies"]["L2"]["value"] == 0
    assert rows["copies"]["NNDR"]["value"] == 0
    assert rows["new"]["L2"]["value"] == rows["new"]["L2 of held out"]["value"] > 0


def test_of_samples_under_masks_as_many_patients_are_compared_as_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[float]] = []

    def extract(images: np.ndarray) -> np.ndarray:
        seen.append({*images[:, 0, 0].tolist()})
        return np.stack([images.mean((1, 2)), images.std((1, 2))], axis=1).astype(np.float64)

    monkeypatch.setattr(comparing.Judge, "extractors", lambda *_: [Extractor("grey", "grey", extract)])
    few, other = (read_pairs("phantom:4", 32, split) for split in ("train", "validation"))
    samples = read_pairs("phantom:12", 32, "train")
    patients = np.repeat(["a", "b", "c", "d"], 3)
    images = np.repeat([0.2, 0.4, 0.6, 0.8], 3)[:, None, None] * np.ones((1, 32, 32))
    samples = replace(samples, images=images.astype(np.float32), patients=tuple(patients.tolist()))
    comparing.Judge(TINY, Cache(tmp_path)).distances(few, other, {"under masks": samples}, 2)
    assert {*np.float32([0.2, 0.4, 0.6, 0.8]).tolist()} in seen


def test_a_run_that_goes_on_measures_by_the_segmenter_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(comparing.RECIPES, "small", Recipe(filters=(4, 8, 8), batch=8))
    one, other, more = (read_pairs(f"phantom:{count}", 32, "train") for count in (4, 5, 6))
    judge = comparing.Judge(TINY, Cache(tmp_path))
    first = judge.distances(one, other, {"more": more}, 2)
    for file in tmp_path.glob("features-*.npz"):
        file.unlink()
    monkeypatch.setattr("benchmarks.evaluation.segmentation.trained", None)
    assert judge.distances(one, other, {"more": more}, 2) == first


def test_noise_has_every_figure_of_table_iv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing.Judge, "extractors", lambda *_: [])
    monkeypatch.setattr(
        comparing.Judge, "lpips", property(lambda _: lambda one, other: (one - other).abs().mean((1, 2, 3)))
    )
    learnt, others = (read_pairs("phantom:5", 32, split, HEART) for split in ("train", "validation"))
    samples = dict.fromkeys(paper.CHAINS, others)
    found = hearts.fidelity(learnt, others, samples, comparing.Judge(TINY, Cache(tmp_path)))
    for metric, sign in (("SSIM", 1), ("MS-SSIM", 1), ("PSNR", 1), ("LPIPS", -1)):
        noise, strangers, same = (
            found[name][metric]["value"] for name in ("noise", "real, other patients", "cmr_ddpm")
        )
        assert sign * noise < sign * strangers < sign * same, metric
    rows = {row[0]: row[-1] for row in tables.table_4({"name": "phantoms", "Table IV": found}).rows}
    assert all(isinstance(rows[metric], Interval) for metric in ("SSIM", "MS-SSIM", "PSNR", "LPIPS"))


def test_nearness_is_of_medians_of_what_a_network_perceives_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt, others = (read_pairs("phantom:3", 32, split, HEART) for split in ("train", "validation"))
    monkeypatch.setattr(comparing.Judge, "lpips", property(lambda _: lambda one, other: torch.tensor([0.1, 0.2, 0.9])))
    rows = hearts.nearness(learnt, others, {"new": others}, comparing.Judge(TINY, Cache(tmp_path)))
    assert rows["new"]["LPIPS"]["value"] == pytest.approx(0.2)


def test_units_and_what_a_figure_is_stand_in_the_tables() -> None:
    figure = {"value": 0.5, "low": None, "high": None}
    means = dict.fromkeys(("Dice", "IoU", "HD95", "ASD"), figure)
    row = {"real": 8, "synthetic": 0, "tested": {"ACDC": {"classes": [], "mean": means}}}
    table_5 = tables.table_5({"name": "ACDC", "Table V": {"ACDC": row}})
    assert [*table_5.columns[3:5]] == ["theirs on M&Ms: HD95 (px)", "theirs on M&Ms: ASD (px)"]
    assert [*table_5.columns[-4:]] == [f"ours on ACDC: {each}" for each in ("Dice", "IoU", "HD95 (mm)", "ASD (mm)")]
    assert "pixels, of 1.25 mm" in table_5.note
    attacked = {"members": 8, "patients": [8, 8], "few": True, "searched": 8}
    found = {"rows": {chain: {"L2": figure, "L2 of held out": figure, "AUC": figure} for chain in paper.CHAINS}}
    hearts_of_76 = {"name": "ACDC", "size": 64, "held_out": {"pairs": 76}, "Table VI": {**attacked, **found}}
    table_6 = tables.table_6(hearts_of_76)
    names = [f"{each} (ours: median)" for each in ("L2", "LPIPS", "NNDR")]
    names += ["AUC", "TPR at 1 % FPR", "L2 of held out (ours: median)"]
    assert [row[0] for row in table_6.rows] == names
    assert "1 % of 76 is less than one, so the TPR is that at no false alarm" in table_6.note
    assert "false alarm" not in tables.table_6({**hearts_of_76, "held_out": {"pairs": 100}}).note
    taught = {"Table VI": {**attacked, **found, "teachers": {"cmr_flow": "7" * 64}}}
    assert "cmr_flow is a student" in (note := tables.table_6({**hearts_of_76, **taught}).note)
    assert f"its teacher has the sha256 {'7' * 64}" in note


def test_table_iii_compares_as_many_masks_on_both_sides_and_real_halves_with_each_other() -> None:
    real = read_pairs("phantom:24", 64, "train", HEART)
    real = replace(real, patients=tuple(f"patient {row // 2}" for row in range(24)))
    alike = read_pairs("phantom:9", 64, "validation", HEART)
    found = hearts.shapes(real, alike, 0)
    assert (found["real"], found["generated"], found["compared"], found["of half"]) == (24, 9, 9, 9)
    area = {name: features_of(side)["LV: area"] for name, side in (("real", real), ("alike", alike))}
    row = found["rows"]["LV: area"]
    assert row["real"]["value"] == pytest.approx(area["real"].mean())
    assert row["generated"]["value"] == pytest.approx(area["alike"].mean())
    some = drawn_by_patient(real, 9, 0)
    assert row["p"] == pytest.approx(ks_2samp(features_of(some)["LV: area"], area["alike"]).pvalue)
    half, other = (drawn_by_patient(each, 9, 0) for each in halves_by_patient(real, 0))
    of_half = features_of(half)["LV: area"]
    assert row["D"]["value"] == ks_2samp(of_half, area["alike"]).statistic
    assert row["D of real halves"]["value"] == ks_2samp(of_half, features_of(other)["LV: area"]).statistic
    assert row["D of noise"]["value"] == 1
    assert "D of noise" not in found["rows"]["LV: pixels %"]
    for figure in ("real", "generated", "D", "D of real halves", "D of noise", "delta"):
        assert row[figure]["low"] is not None, figure
    small = replace(alike, masks=np.where(alike.masks == 1, 0, alike.masks))
    small.masks[:, 30:33, 30:33] = 1
    assert hearts.shapes(real, small, 0)["rows"]["LV: area"]["D"]["value"] == 1
    table_3 = tables.table_3({"name": "phantoms", "size": 64, "Table III": found})
    assert table_3.columns[6:9] == ["D", "D of real halves", "D of noise"]
    assert "between 9 masks of one half of the real patients and as many" in table_3.note
    assert "p and delta are of 9 real masks of all patients and as many generated" in table_3.note


def test_every_figure_of_table_v_has_an_interval_over_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = read_pairs("phantom:5", 32, "validation", HEART, name="ACDC")
    found = test.masks.copy()
    found[0] = np.roll(found[0], 4, 1)  # of one patient everything lies elsewhere
    found[1] = np.where(found[1] == 1, 0, found[1])  # and of another one structure is missed
    monkeypatch.setattr(comparing, "predictions", lambda *_: [found])
    rows = [comparing.Training("ACDC", test, 5, 0)]
    told = comparing.Judge(TINY, Cache(tmp_path)).utility(rows, [test], len(HEART))["ACDC"]["ACDC"]
    assert len(told["classes"]) == 3
    for metric, best in (("Dice", 1), ("IoU", 1), ("HD95", 0), ("ASD", 0)):
        figure = told["mean"][metric]
        assert figure["low"] < figure["value"] < figure["high"], metric
        assert best in (figure["low"], figure["high"]), "three patients of five are found whole"
        assert figure["value"] == pytest.approx(np.mean([each[metric]["value"] for each in told["classes"]])), metric
    row = {"real": 5, "synthetic": 0, "tested": {"ACDC": told}}
    (cells,) = (row for row in tables.table_5({"name": "", "Table V": {"ACDC": row}}).rows if row[0] == "ACDC")
    assert [each.low for each in cells[-4:] if isinstance(each, Interval)] == [
        told["mean"][metric]["low"] for metric in ("Dice", "IoU", "HD95", "ASD")
    ]


def test_the_spread_of_several_seeds_stands_beside_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = read_pairs("phantom:4", 32, "validation", HEART, name="ACDC")
    half = test.masks.copy()
    half[:2] = 0  # this seed finds nothing of two patients
    monkeypatch.setattr(comparing, "predictions", lambda *asked: [test.masks if asked[5] else half])
    rows = [comparing.Training("ACDC", test, 4, 0)]
    judge = comparing.Judge(replace(TINY, seeds=2), Cache(tmp_path))
    told = judge.utility(rows, [test], len(HEART))["ACDC"]["ACDC"]
    deviation = pytest.approx(np.std([0.5, 1], ddof=1))
    assert (told["mean"]["Dice"]["value"], told["mean"]["Dice"]["spread"]) == (0.75, deviation)
    assert told["classes"][0]["Dice"]["spread"] == deviation
    row = {"real": 4, "synthetic": 0}
    table_5 = tables.table_5({"name": "", "Table V": {"ACDC": {**row, "tested": {"ACDC": told}}}})
    assert "0.75 [0.5, 1] ± 0.354" in {*table_5.rows[1]}
    table_2 = tables.table_2({"name": "phantoms", "Table 2": {"real": {**row, **told["classes"][0]}}})
    assert "75 [50, 100] ± 35.4" in {*table_2.rows[0]}
    assert all("± is the deviation of the means of several" in table.note for table in (table_2, table_5))
    alone = comparing.Judge(TINY, Cache(tmp_path)).utility(rows, [test], len(HEART))["ACDC"]["ACDC"]
    assert alone["mean"]["Dice"]["spread"] is None
    assert isinstance(tables.with_spread(alone["mean"]["Dice"]), Interval)


@pytest.mark.parametrize("low", [None, 0.2])
def test_table_2_says_why_figures_have_no_interval_where_some_have_none(low: float | None) -> None:
    figure = {"value": 0.5, "low": low, "high": low and 0.7}
    row = {"real": 8, "synthetic": 0, **dict.fromkeys(("Dice", "IoU", "precision", "recall"), figure)}
    table_2 = tables.table_2({"name": "phantoms", "Table 2": {"real": row}})
    assert "±" not in table_2.note
    assert ("There is no interval where all pictures have the same figure" in table_2.note) == (low is None)


def test_what_is_called_fid_and_why_stands_above_the_tables() -> None:
    figures = {"amounts": TINY.described(), "budget_minutes": 1, "machine": "m", "seed": 0, "found": ["ACDC"]}
    figures |= {"command": None, "versions": {"torch": "2", "radiomics": None}}
    assert tables.head(figures).endswith("Found in --data: ACDC.\n\nVersions: torch 2.")
    assert " inception: sha256 1.\n" in tables.head({**figures, "networks": {"inception": "sha256 1"}})
    assert "\n\nMade by `medgen benchmarks papers`.\n\n" in tables.head(
        {**figures, "command": "medgen benchmarks papers"}
    )


@pytest.mark.parametrize("budget", [None, 15.0])
def test_an_order_may_be_read_of_the_papers_amounts_alone(budget: float | None) -> None:
    side = {"pairs": 8, "patients": None}
    breasts = {"name": "phantoms", "models": {}, "train": side, "held_out": side, "Table 1": {}, "Table 2": {}}
    _, trained, *ours = tables.tables({"mammograms": [breasts], "budget_minutes": budget})
    assert "order" not in trained.note
    assert len(ours) == 2
    for table in ours:
        assert ("side by side for their order alone" in table.note) == (budget is None)
        assert ("nor is any order to be read here" in table.note) == (budget is not None)


@pytest.mark.parametrize("only", ["mammograms", "hearts"])
def test_networks_to_compare_by_are_tried_before_anything_is_trained(tmp_path: Path, only: str) -> None:
    (tmp_path / "mias").mkdir()
    (tmp_path / "mias" / "Info.txt").touch()
    (tmp_path / "mias" / "mdb001.pgm").touch()
    (tmp_path / "not.onnx").touch()
    judge = comparing.Judge(TINY, Cache(tmp_path / "cache"), files=[("mine", tmp_path / "not.onnx")])
    with pytest.raises(EvaluationError, match=r"not\.onnx is no ONNX network"):
        next(measure(tmp_path, only, False, SimpleNamespace(amounts=TINY, given={}), judge, False))


def test_figures_name_the_networks_that_they_were_measured_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ddsm" / "fgt_seg").mkdir(parents=True)
    for model, size in (("pig", 32), ("cmr_mask", 64)):
        presets = load_family(model).presets
        monkeypatch.setitem(presets, "small", presets["small"].replaced({"size": size}))
    monkeypatch.setattr(sources, "read_sides", lambda *_: (None, None))
    for group in (mammograms, hearts):
        monkeypatch.setattr(group, "measure", lambda *_: {})
    judge = SimpleNamespace(networks=lambda size: [SimpleNamespace(name="mine", identity=f"at {size}")])
    found = measure(tmp_path, None, False, SimpleNamespace(amounts=TINY, given={}), judge, False)
    assert [each["networks"] for each in found] == [{"mine": "at 32"}, {"mine": "at 64"}]


def test_files_that_cannot_be_used_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mias").mkdir()
    (tmp_path / "mias" / "Info.txt").write_text("mdb001 G NORM\n")
    (tmp_path / "mias" / "mdb001.pgm").touch()
    judge = comparing.Judge(TINY, Cache(tmp_path / "cache"))
    with pytest.raises(EvaluationError, match="mias: no film of the train split can be used"):
        next(measure(tmp_path, None, True, SimpleNamespace(amounts=TINY, given={}), judge, False))


def test_one_patient_held_out_leaves_the_regression_out(tmp_path: Path) -> None:
    learnt, others = (read_pairs("phantom:4", 32, split, HEART) for split in ("train", "validation"))
    model = models.Model(tiny_family("cmr_flow_image"), {"digest": "weights"}, tmp_path, "bundle", {})
    judge = comparing.Judge(TINY, Cache(tmp_path))
    both = hearts.attacks(model, learnt, others, judge)
    assert "AUC" in both
    kept = [hearts.seen(model.family, side, 0) for side in (learnt, others)]
    expected = hearts.by_features(*kept, learnt.groups, others.groups, 0)
    assert both["TPR at 1 % FPR"] == expected.tpr.as_json()
    assert both["AUC"] == expected.auc.as_json()
    found = hearts.attacks(model, learnt, replace(others, patients=("one",) * 4), judge)
    assert found["AUC by the loss"]["value"] is not None
    assert {*found} == {"AUC by the loss", "TPR at 1 % FPR, by the loss"}


def test_a_student_is_not_attacked(tmp_path: Path) -> None:
    learnt, others = (read_pairs("phantom:4", 32, split, HEART) for split in ("train", "validation"))
    teacher = models.Model(tiny_family("cmr_flow_image"), {"digest": "weights"}, tmp_path, "bundle", {})
    student = replace(teacher, config={"digest": "others", "student": {"teacher": "7" * 64, "steps": 4}})
    judge = comparing.Judge(TINY, Cache(tmp_path))
    assert hearts.attacks(teacher, learnt, others, judge)
    assert hearts.attacks(student, learnt, others, judge) == {}


def test_a_command_is_told_as_it_was_typed_without_folders_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["papers", "--data", "/home/me/data", "--out=/tmp/tables", "--checkpoint", "pig of mini-MIAS=/home/me/run"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/medgen", "benchmarks", *typed, "--features", "inception=here/net.pt"])
    told = "medgen benchmarks papers --data data --out=tables --checkpoint 'pig of mini-MIAS=run'"
    assert as_typed("papers") == f"{told} --features inception=here/net.pt"
    assert as_typed("tune") is None


class TestCommand:
    @pytest.fixture
    def tiny(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in (*LESIONS, *HEARTS):
            presets, phases = load_family(name).presets, load_family(name).phases
            fields = {**FIELDS[name], "steps": [2] * len(phases), "batch": 2, "default_solver": "dpmpp_2m"}
            fields |= {"paired": False} if name == "ddpm" else {}
            for preset in ("small", "paper"):
                monkeypatch.setitem(presets, preset, presets["small"].replaced(fields))

        def shipped(name: str) -> Path:
            folder = tmp_path / "shipped" / name
            if not folder.exists():
                family = load_family(name)(load_family(name).presets["small"])
                save_checkpoint(folder, family, family.state_dict(), {"preset_name": "small", "data": "phantom"})
            return folder

        monkeypatch.setattr(hearts, "shipped_checkpoint", shipped)
        monkeypatch.setattr(mammograms, "shipped_checkpoint", shipped)
        monkeypatch.setattr("benchmarks.papers.command.within", lambda minutes: TINY)
        for preset in ("small", "paper"):
            monkeypatch.setitem(comparing.RECIPES, preset, Recipe(filters=(4, 8, 8), batch=8, epochs=1))
        # No bundles, which take long: PyTorch draws what they would.
        monkeypatch.setattr(models.Workshop, "_built", lambda self, name, run, digest, repository: digest)
        monkeypatch.setattr(drawing, "_draw", drawn_by_torch)

    def run(self, tmp_path: Path, *more: str) -> tuple[int, str]:
        (tmp_path / "data" / "ddsm" / "fgt_seg").mkdir(parents=True, exist_ok=True)
        asked = ["papers", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--budget", "1", *more]
        result = CliRunner().invoke(main, asked)
        return result.exit_code, result.output

    def test_all_tables(self, tiny: None, tmp_path: Path) -> None:
        code, output = self.run(tmp_path)
        assert code == 0, output
        figures = json.loads((tmp_path / "out" / "papers.json").read_text())
        assert str(tmp_path) not in json.dumps(figures)
        (ours,) = figures["mammograms"]
        assert {"DDPM", "DDIM", "PIG", "noise", "real, other patients"} < ours["Table 1"].keys()
        assert {row["pictures"] for row in ours["Table 1"].values()} == {6}
        assert ours["Table 2"]["real + PIG_3072"]["synthetic"] == 9
        assert ours["Table 2"]["real"]["real"] == ours["Table 2"]["real + PIG_2048"]["real"] == 6
        assert "LDM" not in json.dumps([*ours["Table 2"]])
        assert ours["Table 2"]["real, masks shuffled"]["real"] == 6
        assert "phantoms, masks shuffled" in figures["hearts"]["Table V"]
        assert ours["models"]["PIG"]["steps"] == [2, 2]
        assert ours["models"]["PIG"]["parameters"] > 0
        found = figures["hearts"]
        assert found["models"]["cmr_flow"]["begun_from"]
        assert not ours["models"]["DDPM"]["begun_from"]
        assert {*found["Table IV"]} == {*paper.CHAINS, "real, other patients", "noise"}
        assert found["Table IV"]["cmr_ddpm"]["SSIM"]["value"] < 1
        assert {row["synthetic"] for row in found["Table V"].values()} == {0, 6}
        assert len(found["Table V"]["cmr_ldm Full-Syn"]["tested"]["phantoms"]["classes"]) == 3
        assert 0 <= found["Table VI"]["rows"]["cmr_flow"]["AUC"]["value"] <= 1
        assert found["Table VI"]["searched"] == found["train"]["pairs"] == 8  # and not the 6 that are attacked
        assert found["Table VI"]["members"] == 6
        told = " ".join(output.split())
        for words in ("PIG's Table 1", "31.84", "Table III", "1.35e-40", "Not to be compared", "Table VI", "0.6038"):
            assert words in told, words
        written = (tmp_path / "out" / "papers.md").read_text()
        for name, each in (
            ("PIG, phantoms", ours["models"]["PIG"]),
            ("cmr_flow, phantoms", found["models"]["cmr_flow"]),
        ):
            assert f"| {name} | {each['checkpoint_sha256']} | {each['bundle_sha256']} |" in written
        assert f"torch {version('torch')}" in written.partition("###")[0]
        assert "| real + LDM_2048 | 56.91 |" in written
        assert "not run" in written

        trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("model.safetensors")}
        assert len({file.parents[2] for file in trained}) == 9  # of which three have two phases
        assert not [*(tmp_path / "out").rglob("previews")]
        code, again = self.run(tmp_path, "--only", "hearts")
        assert code == 0, again
        assert {file: file.stat().st_mtime_ns for file in trained} == trained
        assert "training cmr" not in again
        second = json.loads((tmp_path / "out" / "papers.json").read_text())
        assert second["hearts"] == found
        assert not second["mammograms"]

        shown = CliRunner().invoke(main, ["papers", "--show", str(tmp_path / "out" / "papers.json")])
        assert shown.exit_code == 0
        assert "Table VI on phantoms" in shown.output
        old = tmp_path / "old.json"
        old.write_text(json.dumps({**figures, "format": 2}))
        shown = CliRunner().invoke(main, ["papers", "--show", str(old)])
        assert shown.exit_code == 1
        assert "has the format 2; this version shows 3: make it again" in " ".join(shown.output.split())

    def test_the_papers_amounts_are_those_without_a_budget(
        self, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        much = partial(amounts.Amounts, phantoms=8, ddpm=2, ddim=2, seeds=2)
        monkeypatch.setattr("benchmarks.papers.command.Amounts", much)
        mean_and_deviation = Extractor("radiomics", "two numbers", lambda images: np.stack(
            [images.mean((1, 2), np.float64), images.std((1, 2), np.float64)], axis=1))  # fmt: skip
        monkeypatch.setattr(features, "has_radiomics", lambda: True)
        monkeypatch.setattr(features, "radiomics", lambda: mean_and_deviation)
        films_of_ddsm(tmp_path / "data" / "ddsm", 10)
        asked = ["papers", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 0, result.output
        figures = json.loads((tmp_path / "out" / "papers.json").read_text())
        assert (figures["budget_minutes"], figures["amounts"]["preset"]) == (None, "paper")
        (ours, films), found = figures["mammograms"], figures["hearts"]
        assert "PIG, as it ships" not in ours["Table 1"]
        assert not found["models"]["cmr_flow"]["begun_from"], "the papers' models begin with nothing"
        assert ours["models"]["PIG"]["steps"] == [*load_family("pig").presets["paper"].steps]  # its own
        assert ours["Table 2"]["real"]["real"] == ours["train"]["pairs"] == 8, "segmenters learn all that is real"
        for fidelity in (ours["Table 1"]["PIG"], found["Table IV"]["cmr_ddpm"]):
            assert fidelity["FRD (Frechet, radiomics)"]["value"] is not None
        assert (films["name"], films["train"]["pairs"], films["held_out"]["patients"]) == ("DDSM", 16, 2)
        assert {*films["Table 1"]} == {"DDPM", "DDIM", "real, other patients", "noise"}
        assert films["Table 1"]["DDIM"]["Frechet (six numbers)"]["value"] is not None
        assert "Table 2" not in films
        for told in (ours["Table 2"]["real + PIG_2048"], found["Table V"]["phantoms"]["tested"]["phantoms"]["mean"]):
            assert told["Dice"]["spread"] is not None
        written = (tmp_path / "out" / "papers.md").read_text()
        assert "the papers' amounts (preset paper)" in written
        assert " ± " in written
        for row in ("| ddpm, paired |  |", "| PIG | 15.88 |"):
            assert f"{row} not run: its masks are of tissue |" in written
        assert "side by side for their order alone" in written
        assert "nor is any order" not in written

    @pytest.mark.parametrize("name", ["pgi", "pig of mini-MIAS", "cmr_mask", "pig-shipped"])
    def test_a_checkpoint_of_no_model_of_the_run_is_refused(self, tmp_path: Path, name: str) -> None:
        code, output = self.run(tmp_path, "--only", "mammograms", "--checkpoint", f"{name}={tmp_path}")
        assert code == 1
        told = " ".join(output.split())
        assert f"--checkpoint {name}=... is of no model of this run; it has ddpm, ddpm of phantoms," in told

    def test_what_was_measured_is_kept_when_a_later_data_set_cannot_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        side = {"pairs": 8, "patients": None}
        figures = {"name": "phantoms", "models": {}, "samplers": {}, "train": side, "held_out": side}
        monkeypatch.setattr(mammograms, "measure", lambda *_: {**figures, "Table 1": {}, "Table 2": {}})

        def cannot(*_: object) -> None:
            raise EvaluationError("no hearts")

        monkeypatch.setattr(hearts, "measure", cannot)
        (tmp_path / "out").mkdir()  # as training does
        code, output = self.run(tmp_path)
        assert (code, "no hearts" in output) == (1, True)
        kept = json.loads((tmp_path / "out" / "papers.json").read_text())
        assert [each["name"] for each in kept["mammograms"]] == ["phantoms"]
        written = (tmp_path / "out" / "papers.md").read_text()
        assert "PIG's Table 2 on phantoms" in written
        assert "Not measured yet: hearts of phantoms." in written

    def test_what_is_missing_is_said(self) -> None:
        result = CliRunner().invoke(main, ["papers"])
        assert result.exit_code == 2
        assert "--data is needed, or --show" in result.output

    def test_tables_come_into_a_folder_of_their_own_where_none_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Path] = []

        def nothing(data: Path, only: str | None, films: bool, workshop: models.Workshop, *_: Any) -> list[Any]:
            asked.append(workshop.out)
            return [{"mammograms": [], "found": []}]

        monkeypatch.setattr("benchmarks.papers.command.measure", nothing)
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(main, ["papers", "--data", str(tmp_path), "--budget", "1"])
        assert result.exit_code == 0, result.output
        assert asked == [Path("papers")]
        assert {file.name for file in (tmp_path / "papers").iterdir()} == {"papers.json", "papers.md"}


def test_the_tables_that_are_shown_are_of_the_weights_that_ship():
    shown = json.loads((Path(__file__).parents[2] / "benchmarks/results/papers-64.json").read_text())
    for trained in shown["hearts"]["models"].values():
        assert trained["begun_from"] == file_digest(shipped_checkpoint(trained["model"]) / "model.safetensors")
    (phantoms,) = (data for data in shown["mammograms"] if data["name"] == "phantoms")
    ships = phantoms["models"]["PIG, as it ships"]
    assert ships["checkpoint_sha256"] == file_digest(shipped_checkpoint("pig") / "model.safetensors")
