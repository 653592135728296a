import dataclasses

import numpy as np
import pytest
from tiny import FLOW, LINEAR, write_tiny_bundle

from serving.bundle import Condition, Student, load_bundle
from serving.sampling.requests import BadRequest, parse_request
from serving.sampling.solvers import SOLVERS, solvers_for

SEED = np.array([[3], [1]])
MASK = np.zeros((2, 1, 16, 16), np.uint8)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("tiny"))).manifest


@pytest.fixture(scope="module")
def conditional(manifest):
    return dataclasses.replace(manifest, condition=Condition("mask", (1, 16, 16), classes=4))


@pytest.fixture(scope="module")
def first(manifest):
    return dataclasses.replace(manifest, outputs=manifest.outputs[:1])


def refusal(*args):
    with pytest.raises(BadRequest) as error:
        parse_request(*args)
    return str(error.value)


def test_defaults_come_from_the_manifest(manifest):
    request = parse_request(manifest, SEED, {})
    assert request.seeds.tolist() == [3, 1]
    assert (request.solver, request.steps, request.condition) == ("dpmpp_2m", 4, None)


@pytest.mark.parametrize("steps", [1, 12, 1000])
def test_parameters_are_taken(manifest, steps):
    request = parse_request(manifest, SEED, {"steps": steps, "solver": "ddim"})
    assert (request.solver, request.steps) == ("ddim", steps)


def test_seeds_reach_from_0_to_2_to_the_63(manifest):
    assert parse_request(manifest, np.array([[0], [2**63 - 1]]), {}).seeds.tolist() == [0, 2**63 - 1]


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (SEED.astype(np.int32), "seed has type int32; it must be int64"),
        (SEED.astype(np.float64), "seed has type float64; it must be int64"),
        (SEED.astype(np.uint64), "seed has type uint64; it must be int64"),
        (np.array([[b"1"]], object), "seed has type object; it must be int64"),
        (np.array([1, 2]), "seed has shape [2]; it must be [N, 1], one row per sample"),
        (np.array([[1, 2]]), "seed has shape [1, 2]; it must be [N, 1], one row per sample"),
        (np.array(1), "seed has shape []; it must be [N, 1], one row per sample"),
        (np.zeros((0, 1), np.int64), "seed has 0 rows; at least 1 is needed, one per sample"),
        (np.array([[4], [-5]]), "seed is -5; it must be from 0 to 9223372036854775807"),
    ],
)
def test_a_bad_seed_is_refused(manifest, seed, message):
    assert refusal(manifest, seed, {}) == message


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (0, "steps is 0; it must be from 1 to 1000"),
        (-1, "steps is -1; it must be from 1 to 1000"),
        (1001, "steps is 1001; it must be from 1 to 1000"),
        (10**9, "steps is 1000000000; it must be from 1 to 1000"),
        pytest.param(10**5000, "steps is an integer of 16610 bits; it must be from 1 to 1000", id="huge"),
        ("8", "steps is '8', a str; it must be an integer from 1 to 1000"),
        ("abc", "steps is 'abc', a str; it must be an integer from 1 to 1000"),
        (True, "steps is True, a bool; it must be an integer from 1 to 1000"),
        (2.5, "steps is 2.5, a float; it must be an integer from 1 to 1000"),
        (20.0, "steps is 20.0, a float; it must be an integer from 1 to 1000"),
        (float("nan"), "steps is nan, a float; it must be an integer from 1 to 1000"),
        (None, "steps is None, a NoneType; it must be an integer from 1 to 1000"),
    ],
)
def test_bad_steps_are_refused(manifest, steps, message):
    assert refusal(manifest, SEED, {"steps": steps}) == message


@pytest.mark.parametrize("steps", [np.int64(12), np.uint8(12)])
def test_steps_are_of_any_integer_type(manifest, steps):
    taken = parse_request(manifest, SEED, {"steps": steps}).steps
    assert (taken, type(taken)) == (12, int)


@pytest.mark.parametrize("solver", ["nope", "euler", "", "DDIM", 3, None, ["ddim"]])
def test_a_bad_solver_is_refused_with_those_the_schedule_allows(manifest, solver):
    message = refusal(manifest, SEED, {"solver": solver})
    assert message.startswith(f"solver is {solver!r}; allowed for tiny are ")
    allowed = message.split(" are ")[1].split(", ")
    assert {"ddpm", "ddim", "dpmpp_2m", "dpmpp_3m", "ipndm"} <= set(allowed)
    assert not {"euler", "midpoint"} & set(allowed)


def test_a_flow_allows_its_own_solvers(manifest):
    flow = dataclasses.replace(manifest, schedule=FLOW, default_solver="euler")
    allowed = ", ".join(solvers_for(FLOW))
    assert refusal(flow, SEED, {"solver": "ddim"}) == f"solver is 'ddim'; allowed for tiny are {allowed}"
    for solver in solvers_for(FLOW):
        assert parse_request(flow, SEED, {"solver": solver}).solver == solver


def test_an_unknown_parameter_is_refused(manifest):
    expected = "parameter 'guidance' (value 7.5) is unknown; allowed are steps and solver"
    assert refusal(manifest, SEED, {"steps": 4, "guidance": 7.5}) == expected


def test_a_huge_value_is_shortened(manifest):
    for parameters in ({"solver": "x" * 100_000}, {"y" * 100_000: 1}, {"z": "x" * 100_000}, {"steps": "9" * 100_000}):
        assert len(refusal(manifest, SEED, parameters)) < 250


def test_a_model_without_steps_takes_no_parameters(manifest):
    gan = dataclasses.replace(manifest, schedule=None, default_solver=None, default_steps=0)
    request = parse_request(gan, SEED, {})
    assert (request.solver, request.steps) == (None, 0)
    for name, value in {"steps": 4, "solver": "ddim"}.items():
        assert refusal(gan, SEED, {name: value}) == f"{name} is {value!r}; tiny draws in one pass, and takes no steps"
    assert refusal(gan, SEED, {"stepps": 4}) == "parameter 'stepps' (value 4) is unknown; tiny takes none"
    first = dataclasses.replace(gan, outputs=gan.outputs[:1])
    assert refusal(first, SEED, {"mask_steps": 4}) == "mask_steps is 4; tiny draws in one pass, and takes no steps"


def test_the_first_of_a_chain_has_parameters_of_its_own(first):
    request = parse_request(first, SEED, {"steps": 9, "solver": "midpoint", "mask_steps": 3, "mask_solver": "ddim"})
    assert (request.solver, request.steps) == ("ddim", 3)
    request = parse_request(first, SEED, {"steps": 9, "mask_solver": "ddim"})
    assert (request.solver, request.steps) == ("ddim", 9)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "euler"}, "solver is 'euler'; allowed for tiny are {}; mask_solver is for tiny alone"),
        ({"mask_solver": "euler"}, "mask_solver is 'euler'; allowed for tiny are {}"),
        ({"mask_solver": 3, "solver": "ddim"}, "mask_solver is 3; allowed for tiny are {}"),
        ({"steps": 0}, "steps is 0; it must be from 1 to 1000; mask_steps is for tiny alone"),
        ({"mask_steps": 0}, "mask_steps is 0; it must be from 1 to 1000"),
        ({"mask_steps": "3", "steps": 3}, "mask_steps is '3', a str; it must be an integer from 1 to 1000"),
        (
            {"image_steps": 3},
            "parameter 'image_steps' (value 3) is unknown; allowed are steps, solver, mask_steps and mask_solver",
        ),
    ],
)
def test_what_is_wrong_with_them_is_said_by_the_name_that_was_given(first, parameters, message):
    assert refusal(first, SEED, parameters) == message.format(", ".join(solvers_for(LINEAR)))


def test_a_student_that_is_asked_as_one_of_a_chain_says_how_it_is_asked_alone(first):
    student = dataclasses.replace(first, student=Student("0" * 64, 8, "ddim_clipped_trailing", 4))
    advised = "can take no others; mask_solver is for tiny alone; mask_steps is for tiny alone"
    assert refusal(student, SEED, {"steps": 12, "solver": "ddim"}).endswith(advised)
    assert refusal(student, SEED, {"mask_steps": 12, "mask_solver": "ddim"}).endswith("can take no others")
    own = {"mask_steps": 4, "mask_solver": "ddim_clipped_trailing"}
    assert parse_request(student, SEED, {"steps": 12, "solver": "ddim", **own}).steps == 4


def test_a_conditioned_model_leaves_them_to_the_stage_before(conditional):
    request = parse_request(conditional, SEED, {"steps": 2, "mask_steps": 5000, "mask_solver": "euler"}, MASK)
    assert (request.solver, request.steps) == ("dpmpp_2m", 2)
    expected = "parameter 'anatomy_steps' (value 2) is unknown; allowed are steps and solver"
    assert refusal(conditional, SEED, {"anatomy_steps": 2}, MASK) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mask_steps": "9"}, "mask_steps is '9', a str; it must be an integer from 1 up"),
        ({"mask_steps": True}, "mask_steps is True, a bool; it must be an integer from 1 up"),
        ({"mask_steps": 9.0}, "mask_steps is 9.0, a float; it must be an integer from 1 up"),
        ({"mask_steps": 0}, "mask_steps is 0; it must be from 1 up"),
        ({"mask_solver": 3}, "mask_solver is 3; allowed are {}"),
        ({"mask_solver": ["ddim"]}, "mask_solver is ['ddim']; allowed are {}"),
        ({"mask_solver": "magic"}, "mask_solver is 'magic'; allowed are {}"),
    ],
)
def test_a_conditioned_model_refuses_what_no_stage_before_could_take(conditional, parameters, message):
    assert refusal(conditional, SEED, parameters, MASK) == message.format(", ".join(SOLVERS))


def test_a_model_of_several_outputs_is_the_first_of_no_chain(manifest):
    expected = "parameter 'mask_steps' (value 2) is unknown; allowed are steps and solver"
    assert refusal(manifest, SEED, {"mask_steps": 2}) == expected


def test_a_condition_is_taken(conditional):
    assert np.array_equal(parse_request(conditional, SEED, {}, MASK + 3).condition, MASK + 3)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "mask is missing"),
        (MASK.astype(np.int64), "mask has type int64"),
        (np.full(MASK.shape, np.nan, np.float32), "mask has type float32"),
        (MASK[:1], "mask has shape [1, 1, 16, 16]"),
        (MASK[:, 0], "mask has shape [2, 16, 16]"),
        (MASK[..., :15], "mask has shape [2, 1, 16, 15]"),
    ],
)
def test_a_bad_condition_is_refused(conditional, condition, message):
    refused = refusal(conditional, SEED, {}, condition)
    assert refused.startswith(message)
    assert refused.endswith("uint8 of shape [2, 1, 16, 16], class indices from 0 to 3")


def test_a_class_that_is_not_there_is_refused(conditional):
    mask = MASK.copy()
    mask[1, 0, 3, 3] = 4
    assert refusal(conditional, SEED, {}, mask) == "mask holds class 4; allowed are 0 to 3"


PICTURE = np.zeros((2, 1, 16, 16), np.float32)


@pytest.fixture(scope="module")
def under_pictures(manifest):
    return dataclasses.replace(manifest, condition=Condition("photo", (1, 16, 16), low=-1.0, high=1.0))


def test_a_picture_is_taken(under_pictures):
    for value in (-1, 0.25, 1):
        assert np.array_equal(parse_request(under_pictures, SEED, {}, PICTURE + value).condition, PICTURE + value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "photo is missing; tiny needs it as {}"),
        (PICTURE.astype(np.float64), "photo has type float64; it must be {}"),
        (MASK, "photo has type uint8; it must be {}"),
        (PICTURE[:1], "photo has shape [1, 1, 16, 16]; it must be {}"),
    ],
)
def test_a_bad_picture_is_refused(under_pictures, condition, message):
    needed = "float32 of shape [2, 1, 16, 16], values from -1 to 1"
    assert refusal(under_pictures, SEED, {}, condition) == message.format(needed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.5, np.nextafter(np.float32(1), np.float32(2))])
def test_a_value_that_no_picture_holds_is_named_with_its_row(under_pictures, value):
    picture = PICTURE.copy()
    picture[1, 0, 3, 3] = value
    refused = refusal(under_pictures, SEED, {}, picture)
    assert refused == f"photo: row 1 holds {np.float32(value)}; allowed are values from -1 to 1"


def test_an_unwanted_condition_is_refused(manifest):
    assert refusal(manifest, SEED, {}, MASK) == "a condition of shape [2, 1, 16, 16] was given; tiny takes none"
