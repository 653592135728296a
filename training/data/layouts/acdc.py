"""Where ACDC (Bernard et al. 2018) keeps its images, masks and labels on disk."""

import re
from pathlib import Path

from training.data.layouts.recording import Recording
from training.data.problems import Problems

NAME = "ACDC"
LABELS = (0, 3, 2, 1)  # what a value in a mask file becomes


def find_patients(folder: Path) -> list[Path]:
    """The folders of patients in ACDC, in a part of it, or in the folders of several sites that hold such."""
    paths = sorted(path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}patient*"))
    return [path for path in paths if re.fullmatch(r"patient\d{3}", path.name) and path.is_dir()]


def find_recordings(folder: Path, problems: Problems) -> list[Recording]:
    """Every image or mask at end-diastole or end-systole that is there or should be; nothing of it is read yet."""
    return [recording for patient in find_patients(folder) for recording in _recordings_of(patient, problems)]


def _recordings_of(patient: Path, problems: Problems) -> list[Recording]:
    """The frames in a patient's folder, with or without ``_gt``, and those that its ``Info.cfg`` names."""
    names = [re.fullmatch(r"patient\d{3}_frame(\d+)(?:_gt)?\.nii\.gz", path.name) for path in patient.iterdir()]
    numbers = {int(name[1]) for name in names if name}
    info = patient / "Info.cfg"
    if info.is_file():
        named = re.findall(r"^E[DS]\s*:\s*(\d+)\s*$", info.read_text(errors="replace"), re.MULTILINE)
        if len(named) != 2:
            problems.add(info, "does not name the frames ED and ES")
        numbers |= {int(number) for number in named}
    elif not numbers:
        problems.add(patient, "holds no frame")
    return [
        Recording(patient.name, patient / f"{stem}.nii.gz", patient / f"{stem}_gt.nii.gz", {stem: None}, LABELS)
        for stem in (f"{patient.name}_frame{number:02d}" for number in sorted(numbers))
    ]
