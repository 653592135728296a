"""TensorRT for RTX itself, which the extra `dev` installs on x86-64 Linux; tests that need it are skipped elsewhere."""

import importlib
import platform
import sys
from types import ModuleType

import pytest


def real_tensorrt_rtx() -> ModuleType:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the extra dev has TensorRT for RTX on x86-64 Linux alone", allow_module_level=True)
    return importlib.import_module("tensorrt_rtx")
