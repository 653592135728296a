"""Triton's language where Triton is installed. Elsewhere kernels can still be imported, though not launched."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

jit: Callable[[Any], Any]
tl: Any

try:
    import triton
    import triton.language
except ImportError:
    INSTALLED = False
    jit, tl = lambda function: function, SimpleNamespace(constexpr=object)
else:
    INSTALLED = True
    jit, tl = triton.jit, triton.language
