"""One NIfTI file as it is stored."""

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from training.data.problems import BadFileError

MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
AGREEING = 0.01  # how far lengths may be apart, as a share, and cosines of directions


class Volume(NamedTuple):
    """``voxels`` [i, j, k] or [i, j, k, time] of any type, and the ``affine`` [4, 4] from (i, j, k, 1) to mm.

    mm are counted towards the patient's right, front and head (RAS), as NIfTI has it.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]


def read_nifti(path: Path) -> Volume:
    """Read a file; lengths in metres or micrometres become mm, and those of an unknown unit are mm.

    Raises:
        BadFileError: it is missing or broken, holds no numbers, or its header contradicts itself.
    """
    if not path.is_file():
        raise BadFileError("is missing")
    try:
        file: Any = nib.load(path)
        voxels = np.asanyarray(file.dataobj)
        affine = _affine(file.header) * np.array([[MILLIMETRES[file.header.get_xyzt_units()[0]]]] * 3 + [[1.0]])
    except BadFileError:
        raise
    except Exception as error:  # a decoder raises anything on a broken file
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise BadFileError(f"cannot be read ({reason})") from error
    if voxels.dtype.kind not in "buif":
        raise BadFileError(f"holds {voxels.dtype} values, not numbers")
    return Volume(voxels, affine)


def _affine(header: Any) -> NDArray[np.float64]:
    """What the header says in its own unit: by its sform, else by its qform, else by the voxels' sides alone.

    Files of ACDC have an sform of directions without lengths. Without either form the axes are taken as ITK takes
    them: towards the patient's left, back and head.
    """
    sides = np.array(header.get_zooms()[:3], np.float64)
    forms = [form for form in (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]) if form is not None]
    if not forms:
        return np.diag([-sides[0], -sides[1], sides[2], 1.0])
    affine, *others = (np.array(form, np.float64) for form in forms)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(lengths, 1, atol=AGREEING):
        affine[:3, :3] *= sides / lengths
    elif not np.allclose(lengths, sides, rtol=AGREEING):
        raise BadFileError(f"says that its voxels are {_by(sides)} by pixdim, but {_by(lengths)} by its affine")
    for other in others:
        if np.abs(_directions(affine) - _directions(other)).max() > AGREEING:
            raise BadFileError("is turned one way by its sform and another way by its qform")
    return affine


def _directions(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), np.finfo(float).tiny)


def _by(lengths: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)
