"""What a volume is: voxels, where they lie in the patient, where each slice came from, and what was wrong with it.

Invariant: `affine` is the truth. It maps voxel indices to RAS+ millimetres (NIfTI's convention); DICOM's LPS+ is turned
into RAS+ once, at the reader, by `lps_to_ras`. Nothing downstream knows of LPS until a result is written as DICOM.

Shapes: ``array`` is (C, X, Y, Z); X runs along a DICOM row (the column index), Y down its columns, Z from slice to
slice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

if TYPE_CHECKING:
    from monai.data import MetaTensor

Affine = NDArray[np.float64]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Defect:
    """A named thing that is wrong with a series, and what was done about it.

    Attributes
    ----------
    code
        Name of the defect, for example ``uneven_positions``.
    action
        *noted*: every picture is as it was sent; *repaired*: the volume differs from what was sent, see `detail`.
    detail
        What was seen, and how it was repaired.
    error_mm
        The largest distance in mm by which a voxel may lie elsewhere than the affine says; None where nobody knows.
    """

    code: str
    action: Literal["noted", "repaired"]
    detail: str
    error_mm: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one slice came from: the frame of a DICOM instance.

    Attributes
    ----------
    sop_instance_uid
        SOPInstanceUID (0008,0018).
    number
        Frame number in the instance, from 1.
    path
        The file it was read from.
    sop_class_uid
        SOPClassUID (0008,0016), the same in every frame of a volume; empty where it is not told.
    """

    sop_instance_uid: str
    number: int
    path: Path
    sop_class_uid: str = ""


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """What a series says of itself; empty where it does not say. No patient data.

    Attributes
    ----------
    study_uid, series_uid, frame_of_reference_uid
        DICOM UIDs; empty for NIfTI.
    modality
        Modality (0008,0060), such as ``MR``; empty when unknown.
    description
        SeriesDescription (0008,103E), or the file name of a NIfTI.
    body_part
        BodyPartExamined (0018,0015).
    number
        SeriesNumber (0020,0011), as the scanner's console shows it.
    volume
        What tells this volume from the others of its series, such as ``EchoTime=4.92``; empty where it is the only one.
    """

    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    modality: str = ""
    description: str = ""
    body_part: str = ""
    number: str = ""
    volume: str = ""

    @property
    def subject(self) -> str:
        """How an error names the series: by its UID, or by the file name of a NIfTI."""
        name = f"series {self.series_uid}" if self.series_uid else self.description
        return f"{name} ({self.volume})" if self.volume else name


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One series as an array with geometry.

    Attributes
    ----------
    array
        float32 (C, X, Y, Z), real-world values (HU for CT), in the series' own grid; one channel, or red, green and
        blue, or those that a data set gives to each case.
    affine
        float64 (4, 4), voxel index (x, y, z) to RAS+ mm.
    facts
        What the series says of itself.
    sources
        For every slice along Z the frame it came from, or the nearest one where the volume is `resampled`; empty for
        NIfTI.
    defects
        What is wrong with the series and what was done.
    unit
        Unit of the values (``HU``), empty when they have none.
    resampled
        Whether the grid is another one than that of the frames.
    keeps
        What must live as long as the files of `sources` are needed: the folder an archive was unpacked into.
    """

    array: NDArray[np.float32]
    affine: Affine
    facts: SeriesFacts = SeriesFacts()
    sources: tuple[Frame, ...] = ()
    defects: tuple[Defect, ...] = ()
    unit: str = ""
    resampled: bool = False
    keeps: tuple[object, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y and Z."""
        _, x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along X, Y and Z in mm."""
        return spacing_of(self.affine)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3: the affine's determinant, right for any orientation."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """The patient direction each axis runs towards, for example ``LPS``."""
        return orientation_of(self.affine)

    def content_sha256(self) -> str:
        """SHA-256 of the grid's size and the values, whatever the file is called or how it is packed."""
        content = hashlib.sha256(repr(self.array.shape).encode())
        content.update(np.ascontiguousarray(self.array).data)
        return content.hexdigest()

    def as_metatensor(self) -> MetaTensor:
        """The same memory as a MONAI MetaTensor (C, X, Y, Z), with the affine; nothing is copied."""
        import torch
        from monai.data import MetaTensor

        return MetaTensor(torch.from_numpy(self.array), affine=torch.from_numpy(self.affine))


def lps_to_ras(affine: Affine) -> Affine:
    """Turn an affine to LPS+ mm (DICOM, PS3.3 C.7.6.2.1.1) into one to RAS+ mm (NIfTI); its own inverse."""
    return _LPS_TO_RAS @ affine


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Length in mm of a step along each voxel axis."""
    x, y, z = voxel_sizes(affine).tolist()
    return x, y, z


def extent_in_ras(shape: tuple[int, int, int], affine: Affine) -> tuple[float, float, float]:
    """Size in mm of the grid along its axes, ordered by the patient axis (R-L, A-P, S-I) that each is closest to."""
    sizes = np.array(shape) * voxel_sizes(affine)
    patient_axes = nib.io_orientation(affine)[:, 0].astype(int)
    right_left, front_back, up_down = sizes[np.argsort(patient_axes)].tolist()
    return right_left, front_back, up_down


def orientation_of(affine: Affine) -> str:
    """The patient direction that each voxel axis is closest to, for example ``RAS`` or ``LPS``."""
    return _codes(np.asarray(affine, dtype=np.float64).tobytes())


@lru_cache(maxsize=64)
def _codes(affine: bytes) -> str:
    """Of one affine it is asked again and again, and takes a singular value decomposition."""
    return "".join(nib.aff2axcodes(np.frombuffer(affine).reshape(4, 4)))
