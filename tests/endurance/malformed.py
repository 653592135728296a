"""Requests that nobody should send, from a seed: HTTP ones as bytes, gRPC ones as messages.

Those that end Triton 2.51 are left out, as serving/README.md says: shapes far larger than their data, and depth.
"""

import json
import random
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2

NAMES: list[Any] = [
    *("", "seed", "Seed", "mask", "\x00", "\N{GRINNING FACE}", "../../etc/passwd", "a" * 5000, "%s%n", "'; drop table"),
    *(None, 7),
]
TYPES = ["INT64", "INT32", "UINT64", "FP32", "FP64", "BYTES", "BOOL", "FP16", "", "int64", "COMPLEX", None, 3]
SHAPES: list[Any] = [
    *([1, 1], [1], [], [0, 1], [2, 1], [1, 2], [9, 1], [1, 1, 1], [-1, 1], [-1, -1], [1000, 1000]),
    *([1.5, 1], ["1", 1], "11", None, {}, [[1, 1]], [None], [0, 0], [1] * 100),
]
HUGE_SHAPES = [[1, 2**62], [2**63 - 1, 1], [10**6, 10**6]]
DATA: list[Any] = [
    *([7], [], [[7]], [[[[7]]]], ["7"], [None], [1.5], [True], [-1], [2**63 - 1], [2**63], [10**30], [7] * 1000),
    *("7", 7, None, {}, {"a": 7}, [{}], [7, "7"], [1e308], ["\x00"], [[7], 8]),
]
PARAMETERS: list[Any] = [
    *({}, None, [], 7, "steps", {"steps": None}, {"steps": []}, {"steps": {}}, {"steps": -1}, {"steps": 10**30}),
    *({"steps": 0}, {"steps": "4"}, {"steps": 1e308}, {"solver": 7}, {"solver": "\x00"}, {"solver": "a" * 5000}),
    *({"": 1}, {"a" * 5000: 1}, {f"p{n}": n for n in range(500)}, {"binary_data_output": 7}, {"sequence_id": 7}),
    *({"sequence_id": "x", "sequence_start": True}, {"priority": -1}, {"timeout": -1}, {"shared_memory_region": "x"}),
    *({"classification": 3}, {"binary_data_size": 8}, {"binary_data_size": -8}, {"binary_data_size": 2**62}),
]
PATHS = [
    *(
        "models/tiny/infer",
        "models/tiny/versions/1/infer",
        "models/tiny/versions/2/infer",
        "models/tiny/versions/x/infer",
    ),
    *("models//infer", "models/nothing/infer", "models/%00/infer", "models/..%2f..%2f/infer", "models/tiny/generate"),
    *("models/tiny", "models/tiny/config", "models/tiny/stats", "health/ready", "", "models/" + "a" * 4000 + "/infer"),
]
HEADERS = [
    *({}, {"Content-Type": "text/html"}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}),
    *({"Content-Encoding": "br"}, {"Accept-Encoding": "gzip"}, {"Expect": "100-continue"}, {"X": "a" * 5000}),
    *({"Inference-Header-Content-Length": length} for length in ("0", "-1", "7", "x", "", "2147483647", "1e3")),
]


class HttpRequest(NamedTuple):
    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def http_request(dice: random.Random) -> HttpRequest:
    tensor = {"name": "seed", "datatype": "INT64", "shape": [1, 1], "data": [7]}
    body: Any = {"inputs": [tensor], "parameters": {"steps": 1}}
    path, headers, method = "models/tiny/infer", {}, "POST"
    for _ in range(dice.randint(1, 3)):
        change = dice.choice(
            ["field", "field", "field", "parameters", "tensors", "outputs", "path", "headers", "method"]
        )
        if change == "field":
            field, values = dice.choice([("name", NAMES), ("datatype", TYPES), ("shape", SHAPES), ("data", DATA)])
            tensor[field] = dice.choice(values)
            if dice.random() < 0.1:
                del tensor[field]
        elif change == "parameters":
            dice.choice([body, tensor])["parameters"] = dice.choice(PARAMETERS)
        elif change == "tensors":
            body["inputs"] = dice.choice(
                [[], [tensor] * 2, [tensor] * 200, [{}], [None], [7], "seed", None, {}, tensor]
            )
        elif change == "outputs":
            name, kind = dice.choice(NAMES), dice.choice(PARAMETERS)
            body["outputs"] = dice.choice([[], [{"name": name}], [{"name": "image", "parameters": kind}], [7], None, 7])
        elif change == "path":
            path = dice.choice(PATHS)
        elif change == "headers":
            headers = dice.choice(HEADERS)
        else:
            method = dice.choice(["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "POST"])
    sent = json.dumps(body).encode()
    if dice.random() < 0.3:
        sent = _torn(sent, dice)
    return HttpRequest(method, f"/v2/{path}", sent, headers)


def _torn(sent: bytes, dice: random.Random) -> bytes:
    kind = dice.choice(["cut", "flip", "noise", "nothing", "nested", "twice"])
    if kind == "cut":
        return sent[: dice.randrange(len(sent))]
    if kind == "flip":
        torn = bytearray(sent)
        for _ in range(dice.randint(1, 8)):
            torn[dice.randrange(len(torn))] = dice.randrange(256)
        return bytes(torn)
    if kind == "noise":
        return dice.randbytes(dice.choice([1, 10, 1000, 100_000]))
    if kind == "nested":
        return b"[" * dice.choice([1, 10, 100]) + sent
    return b"" if kind == "nothing" else sent * 2


def grpc_request(dice: random.Random) -> Any:
    request = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="seed", datatype="INT64", shape=[1, 1])
    request.raw_input_contents.append((7).to_bytes(8, "little"))
    for _ in range(dice.randint(1, 3)):
        change = dice.choice(["name", "datatype", "shape", "raw", "typed", "model", "parameters", "tensors", "outputs"])
        if change == "name":
            tensor.name = str(dice.choice([name for name in NAMES if isinstance(name, str)]))
        elif change == "datatype":
            tensor.datatype = str(dice.choice([kind for kind in TYPES if isinstance(kind, str)]))
        elif change == "shape":
            sizes = dice.choice([*HUGE_SHAPES, *(shape for shape in SHAPES if isinstance(shape, list))])
            tensor.shape[:] = [size for size in sizes if isinstance(size, int)]
        elif change == "raw":
            del request.raw_input_contents[:]
            lengths = [dice.choice([0, 1, 7, 8, 9, 64, 10_000]) for _ in range(dice.randint(0, 3))]
            request.raw_input_contents.extend(dice.randbytes(length) for length in lengths)
        elif change == "typed":
            tensor.contents.int64_contents.extend([7] * dice.choice([0, 1, 2, 1000]))
            tensor.contents.bytes_contents.extend([b"x"] * dice.choice([0, 1]))
        elif change == "model":
            request.model_name = str(dice.choice([name for name in NAMES if isinstance(name, str)]))
            request.model_version = dice.choice(["", "1", "2", "-1", "x", "9" * 40])
        elif change == "parameters":
            target = dice.choice([request, tensor])
            reserved = ["sequence_id", "priority", "timeout", "shared_memory_region"]
            name = dice.choice(["steps", "solver", "", "a" * 5000, *reserved])
            values: list[tuple[str, Any]] = [
                *(("int64_param", -(2**63)), ("string_param", "\x00x"), ("bool_param", True), ("double_param", 1e308))
            ]
            kind, value = dice.choice(values)
            setattr(target.parameters[name], kind, value)
        elif change == "tensors":
            request.inputs.extend([tensor] * dice.choice([1, 200]))
        else:
            request.outputs.add(name=dice.choice(["", "image", "nothing", "a" * 5000]))
    return request
