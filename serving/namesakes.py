"""Other packages that are called as one of ours: an environment has room for one of a name."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

NAMES = ("benchmarks", "export", "kernels", "serving", "training")
OURS = Path(__file__).resolve().parents[1]


class NamesakeError(ImportError):
    """Another package is in the way of one of ours; the message names both, and what helps."""


def check_names() -> None:
    """Raises NamesakeError if another package is, or may be, in the way of one of ours.

    Files of two packages of one name, as Hugging Face's `kernels` and ours, lie in one folder: the second to be
    installed replaces what both have, and uninstalling either takes it from the other.
    """
    for name in NAMES:
        try:
            other = distribution(name)
        except PackageNotFoundError:
            continue
        places = {
            Path(str(other.locate_file(file))).resolve() for file in other.files or () if file.name == "__init__.py"
        }
        if (OURS / name / "__init__.py") in places:
            raise NamesakeError(
                f"the package {name} {other.version} is installed over medgen's own {name}, in {OURS / name}: "
                f"pip uninstall {name}, and install medgen again, or give medgen an environment of its own"
            )
    for name in NAMES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() != OURS / name / "__init__.py":
            raise NamesakeError(
                f"{spec.origin} comes before medgen's own {name}, in {OURS / name}: remove it from the folder or the "
                "environment, or give medgen an environment of its own"
            )
