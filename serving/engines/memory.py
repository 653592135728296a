"""A GPU that is out of memory, in the words of the runtimes that find it out, and in plain ones."""

import re

TAKE_LESS = "end what else uses it, or build the bundle with a smaller --max-batch"
SIGNS = r"out of memory|OutOfMemory|could not be allocated|Failed to allocate memory|ALLOC_FAILED"


def in_plain_words(said: str, remedy: str = TAKE_LESS) -> str:
    """What a runtime said, after what it means if it is about memory."""
    if re.search(SIGNS, said, re.IGNORECASE):
        return f"the GPU is out of memory; {remedy} ({said})"
    return said or "it does not say why"
