"""Graphs of every family, in each precision that ONNX Runtime's CPU has, are PyTorch within its limits."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from real_tensorrt_rtx import real_tensorrt_rtx
from tiny_families import EXPORTED, MADE, random_condition, tiny_family

from export import BuildError
from export.build import build
from export.graphs import step_graph
from export.options import Options
from export.tensorrt_libraries import LIBRARIES
from export.tensorrt_parser import read
from serving.bundle import Bundle
from serving.engines import open_engine
from serving.sampling.loop import Loop
from serving.sampling.noise import draw
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.scheduler import Cost
from serving.sampling.solvers import solver_table, solvers_for
from training.checkpoint import save_checkpoint

# Of the networks that `cmr_ldm_image` has, those of the other hearts are parts; test_tensorrt_rtx reads them in bf16.
ON_DEMAND = () if os.environ.get("MEDGEN_ALL_GRAPHS") else ("cmr_mask", "cmr_ddpm_image", "cmr_flow_image")
IN_HALF = [name for name in EXPORTED if name not in (*MADE, *ON_DEMAND)]


@pytest.fixture(scope="module", params=EXPORTED)
def bundle(request: pytest.FixtureRequest, built: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return (
        built if request.param == "pig" else build_tiny(request.param, tmp_path_factory.mktemp(request.param), "fp32")
    )


def build_tiny(name: str, home: Path, precision: str) -> Bundle:
    family = tiny_family(name)
    save_checkpoint(home / "checkpoint", family, family.state_dict(), {"preset_name": "small"})
    return build(name, home / "checkpoint", home / "repository", Options(precision=precision, max_batch=4))


def test_every_figure_is_measured_and_small(bundle):
    figures = bundle.manifest.parity
    ends = {"state", *(output.name for output in bundle.manifest.outputs)}
    schedule = bundle.manifest.schedule
    names = {"sample_next", "prediction"} if schedule else set()
    if schedule and schedule.process == "descent":
        names |= {"gradient"}
        ends |= {"loss"}
        assert 0 < figures["random"]["gradient"] < 1e-4
    assert figures["end_to_end"].keys() == ends
    assert figures["random"].keys() == figures["step"].keys() == names
    for kind in ("random", "step"):
        assert 0 < figures[kind].get("sample_next", 1e-6) < 1e-4


def test_the_manifest_says_what_the_family_does(bundle):
    family = tiny_family(bundle.manifest.model)
    assert bundle.manifest.condition == family.condition
    assert bundle.manifest.outputs == family.outputs
    assert bundle.manifest.noise_channels == family.noise_channels
    assert bundle.manifest.notices == family.notices
    assert sorted(bundle.manifest.engines) == ["finish", *(["step"] if family.preset.schedule else [])]
    graphs = [onnx.load(bundle.engine_path(name)).graph for name in bundle.manifest.engines]
    for graph in graphs:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        assert {weight.name for weight in graph.initializer} <= used, "ONNX Runtime complains of what nothing uses"
    names = {node.name for graph in graphs for node in graph.input}
    assert ("condition" in names) == (family.condition is not None)


def test_the_parser_of_tensorrt_reads_the_graphs(bundle):
    """As trtexec or a provider of ONNX Runtime would: with no plugins of ours."""
    assert_parsed(bundle)


def assert_parsed(bundle: Bundle) -> None:
    real_tensorrt_rtx()
    for name in bundle.manifest.engines:
        read(onnx.load(bundle.engine_path(name)), name, LIBRARIES["tensorrt-rtx"])


def test_a_samples_bits_do_not_depend_on_its_mates(bundle):
    manifest, sampler = bundle.manifest, Sampler(bundle)
    masks = [mask.numpy() for mask in random_condition(tiny_family(manifest.model), 4)]
    seeds = np.array([[3], [0], [2**63 - 1], [8]])
    (together,) = sampler.sample([parse_request(manifest, seeds, {}, *masks)])
    for row in range(4):
        mask = [mask[row : row + 1] for mask in masks]
        (alone,) = sampler.sample([parse_request(manifest, seeds[row : row + 1], {}, *mask)])
        for output in manifest.outputs:
            assert together[output.name][row].tobytes() == alone[output.name][0].tobytes()


def test_a_samples_bits_are_the_same_in_flight(bundle):
    """Requests of other rows, solvers and steps come and go meanwhile."""
    manifest, engine = bundle.manifest, open_engine(bundle)
    under = [values.numpy() for values in random_condition(tiny_family(manifest.model), 4)]
    loop = Loop(bundle, engine, Cost({1: 1.0, 2: 1.1, 4: 1.2}))
    requests, answers = [], {}
    solvers = solvers_for(manifest.schedule) if manifest.schedule else [None]
    for number, rows in enumerate([[0, 1], [2], [3, 0, 1], [2, 2]]):
        how = {"solver": solvers[number % len(solvers)], "steps": 1 + number} if manifest.schedule else {}
        given = [values[rows] for values in under]
        requests.append(parse_request(manifest, np.array(rows)[:, None], how, *given))
        loop.submit(requests[-1], partial(answers.__setitem__, number))
        loop.turn()
    while len(answers) < len(requests):
        loop.turn()
    for number, request in enumerate(requests):
        (alone,) = Sampler(bundle, engine).sample([request])
        for output in manifest.outputs:
            assert answers[number][output.name].tobytes() == alone[output.name].tobytes()


def test_samples_are_pytorchs(bundle):
    """Seed 3 through the bundle, and by hand in PyTorch on the noise that serving draws."""
    family, manifest = tiny_family(bundle.manifest.model), bundle.manifest
    condition = random_condition(family, 1)
    request = parse_request(manifest, np.array([[3]]), {}, *(mask.numpy() for mask in condition))
    (sampled,) = Sampler(bundle).sample([request])
    schedule = manifest.schedule
    rows = len(solver_table(manifest.default_solver, schedule, manifest.default_steps)) if schedule else 0
    noises = [torch.empty(1, *family.sample_shape) for _ in range(rows + 1)]
    for number, noise in enumerate(noises):
        draw(3, family.name, number, out=noise.numpy()[0])
    drawn = family.sample(noises, manifest.default_solver, manifest.default_steps, *condition)
    for output, expected in zip(family.outputs, drawn, strict=True):
        if output.labels:
            assert (sampled[output.name] == expected.numpy()).mean() > 0.999
            assert len(np.unique(sampled[output.name])) > 1
        else:
            assert np.abs(sampled[output.name] - expected.numpy()).max() < 1e-4 * (output.high - output.low)
            assert len(output.shape) < 3 or sampled[output.name].std() > 1e-6


@pytest.mark.parametrize("name", IN_HALF)
def test_half_precision_keeps_its_limits(name, tmp_path):
    bundle = build_tiny(name, tmp_path, "fp16")
    graph = onnx.load(bundle.engine_path("step" if bundle.manifest.schedule else "finish")).graph
    assert onnx.TensorProto.FLOAT16 in {weight.data_type for weight in graph.initializer}
    kind, figure = (
        ("step", "sample_next") if bundle.manifest.schedule else ("end_to_end", bundle.manifest.outputs[0].name)
    )
    assert bundle.manifest.parity[kind][figure] > 1e-6
    assert_parsed(bundle)


def test_gradients_are_too_small_for_fp16(tmp_path):
    with pytest.raises(BuildError, match="computes a gradient, whose values are too small for fp16: use bf16"):
        build_tiny("mganprior", tmp_path, "fp16")


def test_the_parser_of_tensorrt_reads_a_graph_that_is_told_a_class():
    network = tiny_family("imported").preset.network
    config = {**network["config"], "in_channels": 1, "num_class_embeds": 3}
    fields = {"network": {**network, "config": config}, "classes": ["a", "b", "c"]}
    family = tiny_family("imported", labels=[], mask_encoding=None, **fields)
    graph = step_graph(family, precision="fp16")
    given = {node.name: node.type.tensor_type.elem_type for node in graph.graph.input}
    assert given["condition"] == onnx.TensorProto.INT64
    real_tensorrt_rtx()
    read(graph, "step", LIBRARIES["tensorrt-rtx"])
