"""NIfTI -> the same Volume as from DICOM, and masks back to NIfTI on the grid they came from.

Invariant: the voxel grid is never turned or resampled here; only the affine says where it lies. An image whose place
cannot be known (no qform, no sform) is refused rather than put at the origin.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from imaging.errors import InvalidGeometry, NotFinite, OutputMismatch, UnreadableNifti, UnsupportedNifti
from imaging.files import whole_file
from imaging.volume import Affine, Defect, SeriesFacts, Volume

# NIfTI-1 header field xyzt_units, bits 0-2 (nifti1.h): factor to millimetres; 0 is unknown and by custom mm.
_MILLIMETRES = {"unknown": 1.0, "meter": 1000.0, "mm": 1.0, "micron": 0.001}
_MISPLACED_MM = 0.01
# Of zlib. The fourth packs masks in the time of libdeflate's sixth, which cannot pack piece by piece, and about 10 %
# larger; the first packs float voxels nearly as small as the ninth, at several times its speed.
_MASK_LEVEL, _VOLUME_LEVEL = 4, 1
# Four zeros behind the header (nifti1.h): nothing stands between it and the voxels.
_NO_EXTENSION = bytes(4)
# What some writers leave behind the voxels.
_TRAILING = 1024 * 1024
# Bounds what a lying header can make us allocate: 4 GiB of float32.
_LARGEST_VOXELS = 2**30


def is_nifti(path: Path) -> bool:
    """Whether the name is one that NIfTI files have (`.nii` or `.nii.gz`)."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def case_name(path: Path) -> str:
    """A NIfTI file's name without its ending."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Where the voxels of a NIfTI file lie: shape, affine to RAS+ mm, and what is wrong with it."""

    shape: tuple[int, int, int]
    affine: Affine
    defects: tuple[Defect, ...]


def read_geometry(path: Path) -> Geometry:
    """Read the header of one 3D image; see `read_nifti` for what is raised."""
    return _geometry(_open(path), path, several=False)


def read_nifti(path: Path) -> Volume:
    """Read one 3D image; a file with several volumes is refused, for nothing says what they are.

    Parameters
    ----------
    path
        A `.nii` or `.nii.gz` file; scl_slope and scl_inter are applied.

    Returns
    -------
    Volume
        (1, X, Y, Z) on the file's own grid; `facts.description` is the file's name.

    Raises
    ------
    UnreadableNifti
        If it is not NIfTI, or shorter than its header says.
    UnsupportedNifti
        If it is not one volume of real numbers in a known place.
    InvalidGeometry
        If the affine is not finite or not invertible.
    NotFinite
        If a voxel is NaN or infinite.
    """
    return _read(path, several=False)


def read_nifti_channels(path: Path) -> Volume:
    """Read a 3D image, or a 4D one as a volume with a channel for each place along the last axis.

    Only for data sets that say that they have channels (Medical Segmentation Decathlon, nnU-Net): elsewhere the last
    axis may be time.

    Returns
    -------
    Volume
        (C, X, Y, Z); see `read_nifti` for the rest and for what is raised.
    """
    return _read(path, several=True)


def _read(path: Path, *, several: bool) -> Volume:
    """One volume, or, if there may be `several` of them, all as its channels; nothing is copied to turn the axes."""
    image = _open(path)
    geometry = _geometry(image, path, several=several)
    try:
        array = _voxels(path, image).reshape((*geometry.shape, -1), order="F")
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        raise UnreadableNifti(path, seen=f"the voxels cannot be read ({type(error).__name__})") from error
    array_CXYZ = np.moveaxis(array, 3, 0)
    lost = sum(int(np.count_nonzero(~np.isfinite(array_CXYZ[..., z]))) for z in range(geometry.shape[2]))
    if lost:
        raise NotFinite(path, seen=f"{lost} NaN or infinite voxels")
    return Volume(array_CXYZ, geometry.affine, SeriesFacts(description=path.name), defects=geometry.defects)


def write_mask(path: Path, mask_XYZ: NDArray[np.uint8], affine: Affine) -> None:
    """Write label ids as uint8 NIfTI, read back and compared before they land, whole or not at all.

    Parameters
    ----------
    path
        Where it goes; see `write_volume`.
    mask_XYZ
        Label ids on the grid of `affine`.
    affine
        Voxel index to RAS+ mm; NIfTI keeps it in float32.

    Raises
    ------
    OutputMismatch
        If the bytes, read back, do not hold the mask in its place to within 0.01 mm; nothing is written.
    OutputNotWritable
        If it cannot be written.
    """
    _write(path, mask_XYZ, affine, _header(mask_XYZ, affine), level=_MASK_LEVEL)


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume as float32 NIfTI, read back and compared before it lands, whole or not at all.

    Parameters
    ----------
    path
        Where it goes; ``.nii.gz`` is compressed, ``.nii`` is not. What is compressed holds no time stamp, so that the
        same voxels have the same bytes.
    volume
        (C, X, Y, Z); three channels become NIfTI's fifth axis with the intent of an RGB vector.

    Raises
    ------
    OutputMismatch
        If the bytes, read back, do not hold the voxels in their place to within 0.01 mm; nothing is written.
    OutputNotWritable
        If it cannot be written.
    """
    array = volume.array[0] if volume.array.shape[0] == 1 else np.moveaxis(volume.array, 0, 3)[:, :, :, np.newaxis, :]
    _write(path, array, volume.affine, _header(array, volume.affine), level=_VOLUME_LEVEL)


def _header(array: NDArray[Any], affine: Affine) -> bytes:
    """All that stands before the voxels, as nibabel writes it; of an image of one voxel, for the whole may be large."""
    image = nib.Nifti1Image(np.zeros((1,) * array.ndim, array.dtype), affine)
    image.header.set_xyzt_units("mm")
    if array.ndim == 5:
        image.header.set_intent("NIFTI_INTENT_RGB_VECTOR")
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(image.to_bytes()))
    header.set_data_shape(array.shape)
    return bytes(header.binaryblock) + _NO_EXTENSION


def _write(path: Path, array: NDArray[Any], affine: Affine, header: bytes, *, level: int) -> None:
    """Write an image slice by slice, and read it back from where it was written; neither is ever in memory whole."""
    is_packed = path.name.lower().endswith(".gz")
    with whole_file(path) as stream:
        parts = itertools.chain([header], (array[index].tobytes(order="F") for index in _places(array.shape)))
        for part in _packed(parts, level) if is_packed else parts:
            stream.write(part)
        stream.seek(0)
        with gzip.open(stream) if is_packed else nullcontext(stream) as written:
            _check(path, written, array, affine)


def _packed(parts: Iterable[bytes], level: int) -> Iterator[bytes]:
    """As a gzip file of one member, which every reader takes, without a time stamp."""
    packer = zlib.compressobj(level, wbits=16 + zlib.MAX_WBITS)
    for part in parts:
        yield packer.compress(part)
    yield packer.flush()


def _check(path: Path, written: BinaryIO | gzip.GzipFile, array: NDArray[Any], affine: Affine) -> None:
    """Read an image to its end, where the checksum of what is packed lies.

    Raises
    ------
    OutputMismatch
        If it is not the one that was meant.
    """
    try:
        image = nib.Nifti1Image.from_file_map({"image": nib.FileHolder(fileobj=cast(io.IOBase, written))})
        apart = float(np.linalg.norm((image.affine - affine) @ [*array.shape[:3], 1]))
        same = image.shape == array.shape and all(
            np.array_equal(np.asarray(image.dataobj[index]), array[index]) for index in _places(array.shape)
        )
        ended = not written.read(1)
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile, nib.spatialimages.HeaderDataError) as error:
        raise OutputMismatch(path.name, seen=f"it cannot be read ({type(error).__name__})") from error
    if apart > _MISPLACED_MM or not same or not ended:
        raise OutputMismatch(path.name, seen=f"other voxels, or a place {apart:.3f} mm off")


def _places(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """The slices of an array in the order in which they lie in a file."""
    for last in np.ndindex(*shape[:1:-1]):
        yield (slice(None), slice(None), *last[::-1])


def _voxels(path: Path, image: Any) -> NDArray[np.float32]:
    """All voxels, of the image's own shape; slice by slice, for nibabel scales a whole one in float64."""
    if not path.name.lower().endswith(".gz"):
        return _slices(image)
    with gzip.open(path) as stream:
        array = _slices(type(image).from_file_map({"image": nib.FileHolder(fileobj=stream)}))
        # Only at the end lies the checksum, and nibabel stops before it.
        stream.read(_TRAILING)
        if stream.read(1):
            raise ValueError("more than the header declares")
    return array


def _slices(image: Any) -> NDArray[np.float32]:
    """The slices of an image in the order in which they lie in its file."""
    array = np.empty(image.shape, dtype=np.float32, order="F")
    for index in _places(image.shape):
        array[index] = image.dataobj[index]
    return array


def _open(path: Path) -> Any:
    try:
        image = nib.load(path)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
    ) as error:
        raise UnreadableNifti(path, seen=f"cannot be opened ({type(error).__name__})") from error
    if not isinstance(image, nib.Nifti1Image):
        raise UnreadableNifti(path, seen=f"is {type(image).__name__}")
    return image


def _geometry(image: Any, path: Path, *, several: bool) -> Geometry:
    """Where the voxels lie; with `several`, there may be several volumes along one last axis."""
    shape = tuple(int(size) for axis, size in enumerate(image.shape) if axis < 3 or size != 1)
    axes = (3, 4) if several else (3,)
    if len(shape) not in axes or min(shape) < 1 or np.prod(shape, dtype=np.float64) > _LARGEST_VOXELS:
        raise UnsupportedNifti(path, seen=f"the shape {tuple(image.shape)}")
    if image.get_data_dtype().kind not in "iuf":
        raise UnsupportedNifti(path, seen=f"the data type {image.get_data_dtype()}")
    affine, defects = _affine(image, path)
    return Geometry((shape[0], shape[1], shape[2]), affine, defects)


def _affine(image: Any, path: Path) -> tuple[Affine, tuple[Defect, ...]]:
    """The affine in RAS+ mm; the sform where there is one, else the qform (nifti1.h, methods 3 and 2)."""
    try:
        q_affine, q_code = image.get_qform(coded=True)
        s_affine, s_code = image.get_sform(coded=True)
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise InvalidGeometry(path, seen="the qform cannot be computed") from error
    if not q_code and not s_code:
        raise UnsupportedNifti(path, seen="neither qform nor sform says where the voxels lie")
    try:
        factor = _MILLIMETRES[image.header.get_xyzt_units()[0]]
    except KeyError as error:
        raise UnsupportedNifti(path, seen="an unknown unit of length") from error
    scale = np.diag([factor, factor, factor, 1.0])
    affine = scale @ np.asarray(s_affine if s_code else q_affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InvalidGeometry(path, seen="an affine that is not finite or not invertible")
    if not (q_code and s_code):
        return affine, ()
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [
        *(np.array(image.shape[:3]) - 1),
        1,
    ]
    apart = float(np.linalg.norm((corners @ (affine - scale @ q_affine).T)[:, :3], axis=1).max())
    if apart < 0.01:
        return affine, ()
    detail = f"qform and sform put the corners up to {apart:.3f} mm apart; the sform is used"
    return affine, (Defect("qform_differs", "noted", detail, error_mm=apart),)
