"""What a stranger who reaches the server can do, over either protocol: ask for samples and look, and nothing else."""

import base64
import json
import urllib.error
import urllib.request

import grpc
import pytest
from live import PATIENCE, Live, arguments
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.client import LocalClient
from serving.triton.access import HEADER, RISKS, Access

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OPEN_CALLS = {
    *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("ModelInfer", "ModelStreamInfer"),
}
CODE = "raise RuntimeError('a stranger runs code here')"
UPLOAD = {"config": '{"backend": "python"}', "file:1/model.py": base64.b64encode(CODE.encode()).decode()}
REGION = {"key": "/medgen", "offset": 0, "byte_size": 8}
HTTP_DOORS = [
    ("POST", "repository/index", {}),
    ("POST", "repository/models/tiny/load", {}),
    ("POST", "repository/models/stranger/load", {"parameters": UPLOAD}),
    ("POST", "repository/models/tiny/unload", {}),
    *(("GET", f"{kind}sharedmemory/status", None) for kind in ("system", "cuda")),
    *(("POST", f"{kind}sharedmemory/region/mine/register", REGION) for kind in ("system", "cuda")),
    *(("POST", f"{kind}sharedmemory/unregister", {}) for kind in ("system", "cuda")),
    *((method, path, body) for path in ("trace/setting", "models/tiny/trace/setting", "logging")
      for method, body in (("GET", None), ("POST", {"log_file": "stranger", "trace_file": "stranger"}))),
]  # fmt: skip


@pytest.mark.parametrize("headers", [{}, {HEADER: ""}, {HEADER: "0" * 48}], ids=["no key", "empty key", "wrong key"])
def test_no_door_opens_over_http(live: Live, local: LocalClient, headers: dict[str, str]) -> None:
    for method, path, body in HTTP_DOORS:
        sent = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://{live.url('http')}/v2/{path}", sent, headers, method=method)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(asked, timeout=PATIENCE)
        assert (refusal.value.code, path) == (403, path)
    check_it_serves(live, local, "http")


@pytest.mark.parametrize("metadata", [(), ((f"triton-grpc-protocol-{HEADER}", "0" * 48),)], ids=["no key", "wrong key"])
def test_no_door_opens_over_grpc(live: Live, local: LocalClient, metadata: tuple[tuple[str, str], ...]) -> None:
    """Every call that the protocol has, but those by which one asks for samples and looks."""
    closed = [method for method in SERVICE.methods if method.name not in OPEN_CALLS]
    assert len(closed) >= 11
    with grpc.insecure_channel(live.url("grpc")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for method in closed:
            asked = getattr(service_pb2, method.input_type.name)()
            for field, value in {"model_name": "tiny", "name": "mine", "key": "/medgen", "byte_size": 8}.items():
                if field in asked.DESCRIPTOR.fields_by_name:
                    setattr(asked, field, value)
            with pytest.raises(grpc.RpcError) as refusal:
                getattr(stub, method.name)(asked, timeout=PATIENCE, metadata=metadata)
            assert (refusal.value.code(), method.name) == (grpc.StatusCode.UNAVAILABLE, method.name)
            assert "restricted" in refusal.value.details()
    check_it_serves(live, local, "grpc")


def check_it_serves(live: Live, local: LocalClient, protocol: str) -> None:
    with live.client(protocol) as client:
        assert (client.sample("tiny", 1).arrays["image"] == local.sample("tiny", 1).arrays["image"]).all()


def test_the_list_of_processes_does_not_show_the_key(live: Live) -> None:
    shown = arguments(live.tritonserver()).decode()
    assert shown.count(f":{HEADER}=") == 2
    assert shown.count(f":{HEADER}={'*' * 48}") == 2


def test_what_is_opened_is_open_and_the_rest_stays_closed() -> None:
    http, grpc_ = Access(["trace", "logging"], "secret").arguments()
    assert http == f"--http-restricted-api=model-repository,shared-memory:{HEADER}=secret"
    assert grpc_ == f"--grpc-restricted-protocol=model-repository,shared-memory:{HEADER}=secret"
    assert Access(list(RISKS)).arguments() == []
    assert len({Access().key for _ in range(3)}) == 3
    assert "secret" not in repr(Access(key="secret"))
