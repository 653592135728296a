"""TensorRT's plugins, built by TensorRT's own bindings; only the libraries below them do nothing."""

import math

import pytest
from tensorrt_bindings_alone import REGISTRY, PluginBuild, ptx_parameters, tensorrt_bindings_alone

from kernels import attention, group_norm_apply, group_norm_statistics, group_norm_whole, solver_step
from kernels.tensorrt_plugins import register_plugins

IMAGE = ("FLOAT", (-1, 2, 20, 20))
SOLVER_INPUTS = [IMAGE, ("HALF", IMAGE[1]), *[IMAGE] * 4, ("FLOAT", (-1, 12))]
NORM_INPUTS = [("HALF", (-1, 64, 8, 8)), ("HALF", (-1, 64)), ("HALF", (1, 64)), ("HALF", (1, 64))]
LARGE_INPUTS = [("BF16", (-1, 32, 256, 192)), ("BF16", (1, 1)), ("BF16", (1, 32)), ("BF16", (1, 32))]
CASES = {
    "SolverStep": (
        {"clip": math.inf},
        SOLVER_INPUTS,
        [("FLOAT", IMAGE[1])] * 2,
        [(1, 7, 1), (1, 7, 1)],
        solver_step.solver_step_kernel,
    ),
    "PackedAttention": (
        {"scale": 0.25},
        [("BF16", (-1, 100, 3, 2, 40))],
        [("BF16", (-1, 100, 2, 40))],
        [(2, 2, 7), (1, 2, 7), (2, 2, 7), (7, 2, 7)],
        attention.attention_kernel,
    ),
    "GroupNormSilu": (
        {"groups": 16, "eps": 1e-5},
        NORM_INPUTS,
        [NORM_INPUTS[0]],
        [(16, 7, 1)] * 2,
        group_norm_whole.group_norm_silu_kernel,
    ),
    "GroupNormStatistics": (
        {"tiles": 6},
        LARGE_INPUTS[:2],
        [("FLOAT", (-1, 32, 6, 2))],
        [(6, 32, 7)] * 2,
        group_norm_statistics.group_norm_statistics_kernel,
    ),
    "GroupNormSiluApply": (
        {"groups": 32, "eps": 1e-5},
        [*LARGE_INPUTS, ("FLOAT", (-1, 32, 6, 2))],
        [LARGE_INPUTS[0]],
        [(6, 32, 7)] * 2,
        group_norm_apply.group_norm_apply_kernel,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _plugins():
    with tensorrt_bindings_alone():
        register_plugins(90)
        yield


def test_every_plugin_is_where_the_onnx_parser_looks():
    assert {f"medgen::{name}" for name in CASES} == set(REGISTRY.creators)


@pytest.mark.parametrize("name", CASES)
def test_what_an_engine_gets(name):
    import tensorrt.plugin as trtp

    attributes, inputs, outputs, grids, kernel = CASES[name]
    build = PluginBuild(name, attributes, inputs, batch=7)
    tactics = build.tactics()

    assert build.outputs() == outputs
    assert [tactic.grid for tactic in tactics] == grids
    assert len({tactic.ptx for tactic in tactics}) == len(tactics) >= 2
    assert getattr(trtp.op.medgen, name).input_tensor_names == kernel.arg_names[: len(inputs)]
    for tactic in tactics:
        assert f".entry {tactic.kernel}(" in tactic.ptx
        assert ".target sm_90a" in tactic.ptx
        assert ptx_parameters(tactic.ptx) == [".u64"] * (len(inputs) + tactic.extra_arguments + len(outputs))
        assert f".reqntid {tactic.block[0]}" in tactic.ptx
        assert tactic.block[1:] == (1, 1)
        assert tactic.shared_memory <= 48 * 1024


@pytest.mark.parametrize("dtype", ["FLOAT", "HALF", "BF16"])
@pytest.mark.parametrize("name", CASES)
def test_every_type_is_offered(name, dtype):
    attributes, inputs, *_ = CASES[name]
    of_type = {"SolverStep": slice(1, 2), "GroupNormSiluApply": slice(4)}.get(name, slice(None))
    inputs = [*inputs]
    inputs[of_type] = [(dtype, shape) for _, shape in inputs[of_type]]
    assert PluginBuild(name, attributes, inputs, batch=2).is_offered()


def test_mixed_types_are_not_offered():
    inputs = [("FLOAT", NORM_INPUTS[0][1]), *NORM_INPUTS[1:]]
    assert not PluginBuild("GroupNormSilu", CASES["GroupNormSilu"][0], inputs, batch=2).is_offered()


def test_a_dynamic_image_size_is_refused():
    inputs = [("HALF", (-1, 64, -1, -1)), *NORM_INPUTS[1:]]
    with pytest.raises(ValueError, match="only the batch may be dynamic"):
        PluginBuild("GroupNormSilu", CASES["GroupNormSilu"][0], inputs, batch=1).tactics()


def test_a_group_too_large_for_one_program_is_refused():
    with pytest.raises(ValueError, match="a group of 49152 elements"):
        PluginBuild("GroupNormSilu", {"groups": 32, "eps": 1e-5}, LARGE_INPUTS, batch=1).tactics()


def test_a_second_build_is_for_its_own_gpu():
    build = PluginBuild("SolverStep", CASES["SolverStep"][0], SOLVER_INPUTS, batch=2)
    try:
        register_plugins(80)
        assert {".target sm_80" in tactic.ptx for tactic in build.tactics()} == {True}
    finally:
        register_plugins(90)
    assert {".target sm_90a" in tactic.ptx for tactic in build.tactics()} == {True}
