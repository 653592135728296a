"""The order in which workers take the files, for ``--dist loadfile --no-loadscope-reorder``."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Those that take 20 CPU seconds or more: were a long one the last, all cores but one would wait for it. The second and
# third need no graphs, and what the first exports meanwhile the others read.
FIRST = (
    "export/test_families.py",
    "training/test_fit.py",
    "training/test_families.py",
    "export/test_tensorrt_rtx.py",
    "benchmarks/test_latency_contenders.py",
    "benchmarks/test_gpu_trajectories.py",
    "export/test_openvino.py",
    "export/test_tensorrt.py",
    "export/test_build.py",
    "export/test_precision.py",
    "benchmarks/test_latency_cli.py",
    "benchmarks/test_papers.py",
    "training/test_distill.py",
    "serving/test_deploy.py",
    "serving/triton/test_imported.py",
    "export/test_fuse.py",
    "serving/page/test_page_in_browser.py",
    "serving/page/test_page.py",
    "serving/triton/test_pictures_through_a_chain.py",
    "benchmarks/evaluation/test_commands.py",
    "benchmarks/test_gpu_kernels.py",
    "export/test_parity.py",
    "test_telemetry.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns = {HERE / name: turn for turn, name in enumerate(FIRST)}
    assert all(file.exists() for file in turns)
    items.sort(key=lambda item: turns.get(item.path, len(turns)))
