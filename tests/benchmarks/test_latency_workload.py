"""What is timed where nothing else is asked for."""

from dataclasses import replace
from pathlib import Path

from tiny import write_tiny_bundle

from benchmarks.latency.workload import with_defaults
from serving.bundle import Student, load_bundle

USUAL = {"steps": 8, "solver": "dpmpp_2m"}
LEARNT = {"steps": 4, "solver": "ddim_clipped_trailing"}
OF_THE_MASK = {f"mask_{name}": value for name, value in LEARNT.items()}


def test_a_student_takes_its_own_steps(tmp_path: Path) -> None:
    trained = load_bundle(write_tiny_bundle(tmp_path)).manifest
    taught = replace(trained, student=Student("0" * 64, 16, "ddim_clipped_trailing", 4))
    assert with_defaults({}, [trained, trained]) == USUAL
    assert with_defaults({}, [taught]) == LEARNT
    assert with_defaults({}, [taught, trained]) == {**OF_THE_MASK, **USUAL}
    assert with_defaults({"steps": 12}, [taught, trained]) == {**OF_THE_MASK, **USUAL, "steps": 12}
    assert with_defaults({}, [taught, taught]) == {**OF_THE_MASK, **LEARNT}
    assert with_defaults({}, [trained, taught]) == {"mask_steps": 8, "mask_solver": "dpmpp_2m", **LEARNT}
    assert with_defaults({"steps": 4}, [trained, taught]) == {"mask_solver": "dpmpp_2m", **LEARNT}
    assert with_defaults({"mask_steps": 6}, [taught, trained])["mask_steps"] == 6, (
        "which is then refused with the reason"
    )
