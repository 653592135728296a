"""The device layer through NVIDIA's own cuda-python, over a driver that only takes notes: names, types and order."""

import os
import subprocess
import sys

import pytest
from tiny import write_tiny_bundle

from serving.engines.memory import TAKE_LESS

pytest.importorskip("cuda.bindings", reason="cuda-python is in the extra gpu")

PROGRAM = """
import sys
import numpy as np
from cuda.core.utils import StridedMemoryView
from serving.bundle import load_bundle
from serving.engines import EngineError, Trajectory
from serving.engines import gpu
from serving.engines.device import Device

class Engine(gpu.GpuEngine):
    def enqueue(self, graph, tensors):
        print(graph, tensors["sample"].shape[0], flush=True)

device = Device()
print(device.name, device.compute_capability, flush=True)
engine = Engine(load_bundle(sys.argv[1]), device, (1, 2, 4))
start = np.arange(3 * 512, dtype=np.float32).reshape(3, 2, 16, 16)
noise = np.ones_like(start)
print("prepare", flush=True)
engine.prepare()
trajectory = Trajectory(start, np.array([6, 6, 6]), np.ones((6, 3, 12), np.float32), lambda row: noise)
print("generate", flush=True)
state, outputs = engine.generate(trajectory)
assert np.array_equal(state, start)
image = engine.outputs["image"]
tensor = StridedMemoryView.from_dlpack(image, stream_ptr=-1)
assert (tensor.ptr, tensor.shape, tensor.dtype, tensor.device_id) == (image.address, (3, 1, 16, 16), np.float32, 0)
capsule = image.__dlpack__(stream=1, max_version=(1, 0))  # as PyTorch asks for it
print("end", flush=True)
del tensor, image, engine
print("held", flush=True)
del capsule
try:
    device._call("cuMemAlloc", 1 << 62)
except EngineError as error:
    print(error)
device.check()
del device
"""

CAPTURE = """\
capture 0x50 mode=1
{}captured 0x50
type of 0xd0
type of 0xd1
instantiate 0xa0 flags=0
destroy 0xa0
"""
PREPARED = """\
set 8192 to 0 0x50
set 8192 to 0 0x50
set 8192 to 0 0x50
set 8192 to 0 0x50
set 8192 to 0 0x50
upload 8192 0x50
wait for mark 0xe0
upload 256 0x50
mark 0xe0 0x50
step 4
finish 4
wait 0x50
step 4
finish 4
wait 0x50
"""
GENERATED = """\
context 0xc0
set 8192 to 0 0x50
set 8192 to 0 0x50
set 8192 to 0 0x50
set 8192 to 0 0x50
set 8192 to 0 0x50
upload 6144 0x50
wait for mark 0xe0
upload 1536 0x50
mark 0xe0 0x50
wait for mark 0xe1
upload 32768 0x50
mark 0xe1 0x50
launch 0xb0 0x50
copy 512 0x50
wait for mark 0xe1
upload 16384 0x50
mark 0xe1 0x50
launch 0xb0 0x50
download 6144 0x50
download 768 0x50
download 3072 0x50
wait 0x50
"""


def test_calls_pass_through_the_real_bindings(tmp_path):
    driver = tmp_path / "libcuda.so.1"
    source = os.path.join(os.path.dirname(__file__), "cuda_driver.c")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", driver, source, "-ldl"], check=True
    )
    bundle = write_tiny_bundle(tmp_path / "bundle", max_batch=4)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, bundle],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    opened, _, rest = done.stdout.partition("prepare\n")
    prepared, _, rest = rest.partition("generate\n")
    generated, _, closed = rest.partition("end\n")
    assert "NVIDIA H200 (9, 0)\n" in opened
    assert "stream flags=1\n" in opened
    assert all(f"event {mark} flags=2\n" in opened for mark in ("0xe0", "0xe1"))  # of coefficients and noise
    rows = ["finish 4\n", *("step 4\n" * k + "finish 4\n" for k in (1, 2, 3)), "step 4\n" * 4]
    assert prepared.endswith(PREPARED + "".join(map(CAPTURE.format, rows)))
    assert generated == GENERATED
    assert closed.count("destroy executable 0xb0\n") == 3 * 5
    assert all(f"destroy event {mark}\n" in closed for mark in ("0xe0", "0xe1"))
    before, _, after = closed.partition("held\n")
    assert before.count("free\n") == 2 + 4 + 1 + 2  # states, ring, mask, and two tables of rows
    assert after.count("free\n") == 1  # the image, once nobody has it
    assert closed.count("free pinned\n") == 2 + 2 + 2  # two tables of rows, start and last state, mask and image
    assert closed.endswith(f"GPU 0: it is out of memory; {TAKE_LESS} (cuMemAlloc)\nwait for all\ndestroy stream 0x50\n")
