"""What seeds may be given as; whatever else is given is named."""

import numpy as np
import pytest

from serving.sampling.requests import BadRequest
from serving.sampling.seeds import LAST, seed_column


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        ({"count": 3}, [0, 1, 2]),
        ({"count": np.uint8(2), "seed": np.int16(300)}, [300, 301]),
        ({"count": 1, "seed": LAST}, [LAST]),
        ({"seeds": [7, 8, 7]}, [7, 8, 7]),
        ({"seeds": (np.int32(1), np.uint64(LAST))}, [1, LAST]),
        ({"seeds": range(9, 0, -4)}, [9, 5, 1]),
        ({"seeds": range(LAST - 2, LAST + 1, 2)}, [LAST - 2, LAST]),
        ({"seeds": np.arange(3)}, [0, 1, 2]),
        ({"seeds": np.array([200, 3], np.uint8)}, [200, 3]),
        ({"seeds": np.array([2**63 - 1], np.uint64)}, [LAST]),
        ({"seeds": np.array([4, np.int8(5)], object)}, [4, 5]),
    ],
)
def test_whole_numbers_of_any_integer_type(asked: dict[str, object], seeds: list[int]) -> None:
    column = seed_column(**asked)
    assert (column.dtype, column.shape) == (np.int64, (len(seeds), 1))
    assert column[:, 0].tolist() == seeds


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seeds": [1, 1.5]}, "seeds[1] is 1.5, a float; it must be an integer from 0 to 9223372036854775807"),
        ({"seeds": [2.0]}, "seeds[0] is 2.0, a float; it must be"),
        ({"seeds": [0, True]}, "seeds[1] is True, a bool; it must be"),
        ({"seeds": [np.bool_(True)]}, "a bool_; it must be" if np.__version__ < "2" else "a bool; it must be"),
        ({"seeds": ["7"]}, "seeds[0] is '7', a str; it must be"),
        ({"seeds": [None]}, "seeds[0] is None, a NoneType; it must be"),
        ({"seeds": [[1]]}, "seeds[0] is [1], a list; it must be"),
        ({"seeds": np.array([1.0])}, "seeds is float64 [1]; it must be an array [N] of integers"),
        ({"seeds": np.array([True])}, "seeds is bool [1]; it must be"),
        ({"seeds": np.array([[1], [2]])}, "seeds is int64 [2, 1]; it must be"),
        ({"seeds": np.array(1)}, "seeds is int64 []; it must be"),
        ({"seeds": np.array([1, 1.5], object)}, "seeds[1] is 1.5, a float; it must be"),
        ({"seeds": "12"}, "seeds is '12', a str; it must be a list, an array or a range of whole numbers"),
        ({"seeds": b"12"}, "seeds is b'12', a bytes; it must be"),
        ({"seeds": 12}, "seeds is 12, a int; it must be"),
        ({"seeds": {1, 2}}, "seeds is {1, 2}, a set; it must be"),
        ({"seeds": iter([1])}, "a list_iterator; it must be"),
        ({"seeds": np.arange(0)}, "seeds is empty; at least 1 is needed"),
        ({"seeds": range(2**200, 2**200 + 1)}, "; it must be from 0 to"),
        ({"seeds": range(-1, 10**15)}, "seed is -1; it must be from 0 to"),
        ({"seeds": np.array([2**63], np.uint64)}, "seed is 9223372036854775808; it must be from 0 to"),
        ({"seeds": np.array([-3], np.int8)}, "seed is -3; it must be from 0 to"),
        ({"count": 2.0}, "count is 2.0, a float; it must be an integer of at least 1"),
        ({"count": True}, "count is True, a bool; it must be"),
        ({"count": "2"}, "count is '2', a str; it must be"),
        ({"count": 1, "seed": 1.5}, "seed is 1.5, a float; it must be an integer from 0 to"),
        ({"count": 1, "seed": False}, "seed is False, a bool; it must be"),
        ({"count": 10**5000}, "seed is an integer of 16610 bits; it must be from 0 to"),
    ],
)
def test_all_else_is_refused_by_name(asked: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest) as error:
        seed_column(**asked)
    assert message in str(error.value)
