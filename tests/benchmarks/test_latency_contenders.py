"""The loops around diffusers' schedulers draw the samples that medgen draws."""

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from exported_once import folder_of_run, sharing

from benchmarks.latency.autograd import Adam, Sgd, SgdInBf16
from benchmarks.latency.bundles import export_bundles
from benchmarks.latency.contenders import NotPossibleError
from benchmarks.latency.masks import discs
from benchmarks.latency.processes import Round
from benchmarks.latency.timing import figures as measured
from benchmarks.latency.with_medgen import InProcess, OnOnnxRuntime, OnOpenVino, OnOpenVinoInBf16, OverTriton
from benchmarks.latency.without_medgen import ChannelsLast, Eager, OnnxRuntimeLoop, PaperSampler
from benchmarks.latency.workload import make_case
from serving.bundle import Condition

SEEDS = [5, 2**62]


def largest_difference(one, other):
    if not isinstance(one, Mapping):
        return np.abs(one - other.astype(float)).max()
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name].astype(float)).max() for name in one)


@pytest.mark.parametrize(
    ("model", "solving", "missing"),
    [
        ("pig", {"solver": "ddim"}, 0),
        ("pig", {"solver": "ddpm"}, 0),
        ("pig", {"solver": "dpmpp_2m"}, 0),
        ("pig", {"solver": "ipndm"}, 1),
        ("cmr_mask", {"solver": "ddpm"}, 0),
        ("cmr_ddpm", {"solver": "ddpm", "mask_solver": "ddim", "mask_steps": 4}, 0),
        ("cmr_ldm", {"solver": "dpmpp_2m"}, 0),
        ("cmr_flow", {"solver": "dpmpp_2m"}, 0),
        ("cmr_flow", {"solver": "midpoint", "mask_solver": "ipndm"}, 2),
        ("cmr_flow_image", {"solver": "euler"}, 0),
    ],
)
def test_eager_draws_what_medgen_draws(case_of, model, solving, missing):
    case = case_of(model, **solving)
    eager = Eager(case)
    assert eager.note.count("medgen's own step") == missing
    assert largest_difference(eager.sample(SEEDS), InProcess(case).sample(SEEDS)) < 1e-4


@pytest.mark.parametrize("row", [ChannelsLast, OnnxRuntimeLoop])
def test_other_loops_draw_it_too(case_of, row):
    case = case_of("cmr_ldm_image")
    assert largest_difference(row(case).sample(SEEDS), InProcess(case).sample(SEEDS)) < 1e-4


OTHERS = [(OnOnnxRuntime, "onnx", 1e-4), (OnOpenVino, "openvino", 1e-4), (OnOpenVinoInBf16, "openvino", 0.2)]


# The third exports one more graph, as test_openvino does of PIG: on demand alone.
@pytest.mark.parametrize(("row", "target", "most"), OTHERS if os.environ.get("MEDGEN_ALL_GRAPHS") else OTHERS[:2])
def test_bundles_are_built_for_other_engines_and_not_kept(case_of, row, target, most, monkeypatch, tmp_path_factory):
    shared = partial(sharing, folder_of_run(tmp_path_factory), export_bundles)
    monkeypatch.setattr("benchmarks.latency.with_medgen.export_bundles", shared)
    case = case_of("cmr_ldm_image")
    with closing(row(case)) as opened:
        (sampler,) = opened.samplers.values()
        assert sampler.bundle.manifest.target["name"] == target
        assert largest_difference(opened.sample(SEEDS), InProcess(case).sample(SEEDS)) < most
        assert opened.repository.is_dir()
    assert not opened.repository.exists()


@pytest.mark.parametrize(("model", "solving"), [("cmr_flow", {"mask_solver": "ddim"}), ("cmr_flow_image", {})])
def test_triton_draws_the_same_bits(case_of, monkeypatch, tmp_path, model, solving):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where the server keeps its links
    case = case_of(model, solver="euler", **solving)
    with closing(OverTriton(case)) as row:
        over_triton = row.sample(SEEDS)
    assert largest_difference(over_triton, InProcess(case).sample(SEEDS)) == 0


def test_a_loop_without_its_scheduler_is_refused(case_of):
    with pytest.raises(NotPossibleError, match="midpoint of cmr_flow_image"):
        ChannelsLast(case_of("cmr_flow", solver="midpoint", mask_solver="ddim"))


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_the_networks_are_all_that_is_timed(case_of, solver):
    case = case_of("cmr_flow_image", solver=solver)
    for row in (Eager(case), InProcess(case)):
        assert row.networks.seconds == 0
        row.sample(SEEDS)
        assert row.networks.seconds > 0


def test_the_paper_s_sampler(case_of):
    row = PaperSampler(case_of("cmr_flow", solver="euler", mask_solver="ddim"))
    assert [len(stage.table) for stage, _ in row.stages] == [1000, 2 * 50]
    assert "cmr_mask ddpm 1000 steps, cmr_flow_image midpoint 50 steps: other samples" in row.note
    assert "midpoint of cmr_flow_image does; this is medgen's own step" in row.note


def test_a_model_of_one_pass_draws_the_same_in_every_row(built):
    case = replace(make_case("pggan", [], built("pggan"), 2, {}), threads=1)
    assert [(stage.solver, stage.steps) for stage in case.stages] == [(None, 0)]
    medgen = InProcess(case)
    drawn = medgen.sample(SEEDS)
    assert medgen.networks.seconds > 0
    for row in (Eager, ChannelsLast, OnnxRuntimeLoop):
        assert largest_difference(row(case).sample(SEEDS), drawn) < 1e-4
    with pytest.raises(NotPossibleError, match="pggan draws in one pass, in its paper too"):
        PaperSampler(case)
    with pytest.raises(NotPossibleError, match="pggan goes down no loss"):
        Sgd(case)


def test_an_inversion_is_measured_beside_the_optimisers_of_pytorch(built, tmp_path):
    np.save(tmp_path / "given.npy", np.linspace(0, 255, 3 * 32 * 32).reshape(3, 32, 32).astype(np.uint8))
    repository = built("mganprior")
    case = make_case("mganprior", [], repository, 2, {"steps": 3}, [tmp_path / "given.npy"])
    case = replace(case, threads=1)
    assert [(stage.solver, stage.steps) for stage in case.stages] == [("heavy_ball", 3)]
    assert case.pictures.shape == (2, 1, 32, 32)
    drawn = InProcess(case).sample(SEEDS)
    assert largest_difference(Eager(case).sample(SEEDS)["reconstruction"], drawn["reconstruction"]) < 1e-3
    plain = make_case("mganprior", [], repository, 2, {"steps": 3, "solver": "gd"})
    assert largest_difference(Sgd(plain).sample(SEEDS), InProcess(plain).sample(SEEDS)) < 1e-3
    assert Adam(case).sample(SEEDS)["psnr"].shape == (2, 1)
    rounded, exact = (row(plain).sample(SEEDS)["reconstruction"] for row in (SgdInBf16, Sgd))
    assert 1e-5 < np.sqrt(np.square(rounded - exact).mean()) < 0.1
    assert [stage.stage.steps for stage, _ in PaperSampler(case).stages] == [3000]
    figures = measured("medgen", case, [Round(1.0, None, drawn, 1.0)], [Round(2.0, None, drawn, 1.0)], "")
    assert figures.numbers == {"psnr": pytest.approx(drawn["psnr"].mean())}
    assert case.descends
    assert not replace(case, stages=()).descends
    assert largest_difference(InProcess(case.of_steps(2)).sample(SEEDS), drawn) > 1e-3
    with pytest.raises(ValueError, match="--condition has 3 pictures; a batch has 4 samples"):
        make_case("mganprior", [], repository, 4, {}, [tmp_path / "given.npy"])
    with pytest.raises(ValueError, match="--condition is for models that draw under pictures; pggan does not"):
        make_case("pggan", [], built("pggan"), 2, {}, [tmp_path / "given.npy"])


def test_the_mask_is_a_heart():
    first, second = discs(Condition("mask", (1, 64, 64), 4), 2)[:, 0]
    assert (first == second).all()
    assert np.unique(first).tolist() == [0, 1, 2, 3]
    ventricle = first == 1
    beside = np.logical_or.reduce([np.roll(ventricle, shift, axis) for shift in (-1, 1) for axis in (0, 1)])
    assert set(first[beside & ~ventricle]) == {2}
