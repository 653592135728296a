"""The checkpoints that come with medgen draw no more than one faulty sample in a hundred, as they are served."""

import os
from importlib.util import find_spec

import pytest

from benchmarks.quality.figures import faults_of
from export.build import build
from export.options import Options
from serving.client import LocalClient
from training.checkpoint import shipped_checkpoint

COUNT = 512
MOST = 5  # one in a hundred

pytestmark = pytest.mark.skipif("MEDGEN_ALL_SAMPLES" not in os.environ, reason="MEDGEN_ALL_SAMPLES is not set")


@pytest.mark.parametrize("model", ["pig", "cmr_mask"])
def test_at_most_one_sample_in_a_hundred_is_faulty(model, tmp_path):
    options = Options(target="openvino" if find_spec("openvino") else "onnx", precision="fp32")
    build(model, shipped_checkpoint(model), tmp_path, options)
    with LocalClient(tmp_path) as client:
        samples = client.sample(model, COUNT)
    labels = tuple(next(output.labels for output in samples.outputs if output.name == "mask"))
    found = faults_of(labels, samples.arrays.get("image"), samples.arrays["mask"])
    faulty = {seed: wrong for seed, wrong in zip(samples.seeds, found, strict=True) if wrong}
    assert len(found) == COUNT
    assert len(faulty) <= MOST, faulty
