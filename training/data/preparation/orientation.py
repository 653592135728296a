"""One orientation for all short-axis stacks, by the directions that their files give."""

from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from training.data.formats.nifti import Volume

# Of a short-axis view as radiologists look at it, in mm towards the patient's right, front and head: columns run to the
# left and back, rows to the feet, slices from apex to base. Orthonormal. Planes are oblique, and the nearest axis of
# the body changes from patient to patient; the nearest of these does not.
COLUMNS = np.array([-0.8, -0.6, 0.0])
ROWS = np.array([0.15, -0.2, -0.97]) / np.linalg.norm([0.15, -0.2, -0.97])
SLICES = np.cross(COLUMNS, ROWS)
ALONG = 1e-3  # what a direction's other parts are at most, where it is an axis of the body


def canonical(volume: Volume) -> Volume:
    """The same voxels as [column, row, slice] of the short-axis view, turned and mirrored by whole axes alone.

    The third axis stays the third. Files that place the same heart in the same way become the same arrays, in whichever
    order they store them; none is mirrored as seen in the patient.
    """
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    slices = _sign(directions[:, 2] @ SLICES)
    choices = []
    for column, row in ((0, 1), (1, 0)):
        for column_sign in (1, -1):
            to_the_right = column_sign * directions[:, column]
            row_sign = _sign(np.cross(slices * directions[:, 2], to_the_right) @ directions[:, row])
            agreement = to_the_right @ COLUMNS + row_sign * directions[:, row] @ ROWS
            choices.append((agreement, column, column_sign, row, row_sign))
    _, column, column_sign, row, row_sign = max(choices)
    orientation = np.empty((3, 2))
    orientation[[column, row, 2]] = [[0, column_sign], [1, row_sign], [2, slices]]
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.voxels.shape[:3])
    voxels = nib.orientations.apply_orientation(volume.voxels, orientation)
    return Volume(np.ascontiguousarray(voxels), affine)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Where the axes of a file run to, such as LPS: left, back and head; of oblique axes, the nearest."""
    return "".join(nib.orientations.aff2axcodes(affine))


def is_nominal(affine: NDArray[np.float64]) -> bool:
    """Whether the axes are those of the body: no short axis is, so the true directions were lost."""
    directions = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    return bool((np.sort(directions, axis=0)[:2] < ALONG).all())


def half_turned(voxels: NDArray[Any]) -> NDArray[Any]:
    """[column, row, ...] turned by 180 degrees in the plane."""
    return np.ascontiguousarray(voxels[::-1, ::-1])


def _sign(value: float) -> int:
    return 1 if value >= 0 else -1
