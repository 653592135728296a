"""Bundles of which one byte is another: all are refused, and the file is named.

300 bundles in CI; MEDGEN_ENDURANCE=long takes every byte of every file but the graphs, 3,000 of those, and prints how
many were found:

    MEDGEN_ENDURANCE=long python -m pytest tests/endurance/test_bundles.py -s
"""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from endurance import LONG
from tiny import write_tiny_bundle

from serving.bundle import MANIFEST, PARITY, SUMS, BundleError, bundle_folder, load_bundle, seal

FILES = (MANIFEST, PARITY, SUMS, "step.onnx", "finish.onnx")


def flips(files: dict[str, bytes]) -> Iterator[tuple[str, int, int]]:
    """A file's name, a place in it, and what its byte is combined with."""
    dice = random.Random("flips")
    for number in range(0 if LONG else 300):
        name = FILES[number % len(FILES)]
        yield name, dice.randrange(len(files[name])), dice.randint(1, 255)
    for name in FILES if LONG else ():
        everywhere = range(len(files[name]))
        for place in dice.sample(everywhere, min(len(everywhere), 3000)) if name.endswith(".onnx") else everywhere:
            yield name, place, dice.randint(1, 255)


def test_one_flipped_byte_is_found_and_the_file_named(tmp_path: Path) -> None:
    folder = write_tiny_bundle(bundle_folder(tmp_path, "tiny"))
    (folder / PARITY).write_text('{"batch": 3, "step": {"sample_next": 1.5e-06, "prediction": 2.5e-06}}\n')
    seal(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files.keys() == {*FILES}
    found: Counter[str] = Counter()
    for name, place, other in flips(files):
        content = bytearray(files[name])
        content[place] ^= other
        (folder / name).write_bytes(content)
        with pytest.raises(BundleError) as refusal:
            load_bundle(folder)
        assert str(folder / name) in str(refusal.value) or f"{folder}: {name}" in str(refusal.value)
        found[name] += 1
        (folder / name).write_bytes(files[name])
    load_bundle(folder)
    print(f"{found.total()} bundles with one flipped byte, all found and the file named: {dict(found)}")
