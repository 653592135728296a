"""The kernels' half of `medgen benchmarks gpu`, as far as a machine without a GPU can go."""

import json

import pytest
import torch
from click.testing import CliRunner
from tiny_families import STEPPING, tiny_family

from benchmarks.__main__ import main
from benchmarks.gpu import kernel_shapes, kernel_timing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases():
    """Every kind of case, at the shapes of tiny families."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_shapes, "paper", lambda name: tiny_family(name).to("meta") if name in STEPPING else None)
        return list(kernel_shapes.cases())


def test_without_a_gpu_it_says_so_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(main, ["gpu"])
    assert result.exit_code == 0
    assert result.output == "No GPU that PyTorch can use: nothing was measured.\n"


def test_the_shapes_are_the_models_own(cases):
    found = {(case.kernel, case.shape[1:]) for case in cases}
    assert {("solver_step", shape) for shape in [(2, 32, 32), (4, 32, 32), (1, 32, 32), (4, 16, 16)]} <= found
    assert {("attention", (256, 2, 8)), ("attention", (64, 2, 8))} <= found
    assert {("group_norm_silu", (8, 32, 32)), ("group_norm_silu", (16, 16, 16))} <= found
    assert any(case.detail.endswith("embedding") for case in cases)


@pytest.mark.parametrize("name", STEPPING)
def test_the_networks_of_every_denoiser_hold_both_kernels(name):
    found = {kernel for kernel, *_ in kernel_shapes.operators(tiny_family(name).to("meta"))}
    assert found == {"attention", "group_norm_silu"}


def test_every_denoiser_has_a_preset_of_its_paper_on_no_memory():
    for name in STEPPING:
        family = kernel_shapes.paper(name)
        assert family.preset == family.presets["paper"]
        assert {weight.device.type for weight in family.parameters()} == {"meta"}


def test_what_is_compared_is_the_same_thing(cases):
    for case in cases:
        inputs = [tensor.float() for tensor in case.inputs(CPU)]
        expected = case.reference(*inputs)
        for function in (case.ours, case.theirs):
            torch.testing.assert_close(function(*inputs), expected, atol=1e-4, rtol=1e-4, msg=f"{case}")


def test_the_bytes_are_those_of_the_tensors_that_matter():
    case = kernel_shapes.solver_step_case((2, 1, 4, 4), used=("p", "q", "a", "b", "m", "d1"), detail="")
    *_, coeffs = case.inputs(CPU)
    assert coeffs[:, [5, 6, 8, 10, 11]].abs().max() == 0
    assert coeffs[:, [1, 2, 3, 4, 7, 9]].abs().min() > 0
    assert case.bytes == 5 * 2 * 16 * 4
    assert kernel_shapes.attention_case((2, 64, 3, 8), torch.float16).bytes == 4 * 2 * 2 * 64 * 3 * 8
    assert kernel_shapes.attention_case((2, 64, 3, 8), torch.float16).operations == 4 * 2 * 3 * 64 * 64 * 8
    assert kernel_shapes.group_norm_silu_case((2, 8, 4, 4), torch.float32, 2, False).bytes == 2 * 4 * 2 * 8 * 16


def test_the_most_telling_cases_come_first(cases):
    order = kernel_timing.most_telling_first(cases)
    assert sorted(map(id, order)) == sorted(map(id, cases))
    assert {case.kernel for case in order[:3]} == set(kernel_shapes.KERNELS)
    for kernel in ("attention", "group_norm_silu"):
        of_kernel = [case for case in order if case.kernel == kernel]
        types = [case.dtype for case in of_kernel]
        assert types == sorted(types, key=[torch.float16, torch.float32, torch.bfloat16].index)
        assert of_kernel[0].bytes == max(case.bytes for case in of_kernel if case.dtype == torch.float16)


def test_the_bandwidth_is_the_best_of_several_ways(monkeypatch):
    """The driver's copy is slower on an H200 than kernels that read and write."""
    calls = []

    def seconds(function, sets):
        (inputs,) = sets
        calls.append(function(*inputs))
        return {1: 2.0, 2: 1.0}[len(inputs)]

    monkeypatch.setattr(kernel_timing, "seconds", seconds)
    found = kernel_timing.bandwidths(CPU, 64)
    assert found["copy of float32"] == found["product of float16"] == 2 * 64 / 2
    assert found["sum of float16"] == 3 * 64
    assert {(call.dtype, call.nbytes) for call in calls} == {(torch.float32, 64), (torch.float16, 64)}


def test_a_wrong_kernel_is_seen(cases):
    case = cases[0]
    assert kernel_timing.distance(case, CPU) < 1e-5

    def unwritten(*inputs):
        sample_next, prediction = case.reference(*inputs)
        return sample_next, torch.empty_like(prediction)

    object.__setattr__(case, "ours", unwritten)
    assert not kernel_timing.distance(case, CPU) <= 1e-5


def test_report(cases, monkeypatch, tmp_path):
    """The command with a GPU that takes no time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr("kernels.language.INSTALLED", True)
    monkeypatch.setattr(kernel_timing, "cases", lambda only: [case for case in cases if case.kernel in only])
    ceilings = kernel_timing.Ceilings(4e12, dict.fromkeys(kernel_timing.TOLERANCE, 1e15))
    monkeypatch.setattr(kernel_timing, "measure_ceilings", lambda: ceilings)
    monkeypatch.setattr(kernel_timing, "measure", row)
    out = tmp_path / "new" / "gpu.json"

    result = CliRunner().invoke(main, ["gpu", "--only", "attention", "--out", str(out)])

    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["gpu"] == "NVIDIA Test"
    assert {found["kernel"] for found in report["kernels"]} == {"attention"}
    assert list(out.parent.iterdir()) == [out]

    result = CliRunner().invoke(main, ["gpu", "--only", "attention", "--out", str(out), "--minutes", "0"])
    assert "rows of kernels not measured, as there was no time left" in result.output

    monkeypatch.setattr(kernel_timing, "measure", lambda case, ceilings: row(case, ceilings) | {"wrong": True})
    result = CliRunner().invoke(main, ["gpu", "--only", "attention", "--out", str(out)])
    assert result.exit_code == 1
    assert "further from the reference" in result.output


def row(case, ceilings):
    return {
        "kernel": case.kernel,
        "shape": case.shape,
        "detail": case.detail,
        "dtype": "float16",
        "ours": 1e-5,
        "theirs": 2e-5,
        "floor": ceilings.floor(case),
        "error": 1e-4,
        "wrong": False,
    }
