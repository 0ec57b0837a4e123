"""A NIfTI file is read on its own grid in the place that it tells, or refused by name."""

from __future__ import annotations

import errno
import gzip
import os
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from imaging import nifti
from imaging.errors import ImagingError, InputRefused, OutputMismatch, OutputNotWritable
from imaging.files import whole_file
from imaging.nifti import case_name, is_nifti, read_geometry, read_nifti, read_nifti_channels, write_mask, write_volume
from imaging.volume import Volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([-0.8, 1.1, 2.0]), [12.0, -30.5, 7.25]
)
RAMP = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)


def saved(
    folder: Path,
    array: NDArray[np.generic] = RAMP,
    *,
    qform: NDArray[np.float64] | None = OBLIQUE,
    sform: NDArray[np.float64] | None = OBLIQUE,
    unit: str = "mm",
    name: str = "case.nii.gz",
    image_class: type[nib.Nifti1Image] = nib.Nifti1Image,
) -> Path:
    """A file with the given forms; None sets the code to 0."""
    image = image_class(array, None)
    for form, setter in ((qform, image.set_qform), (sform, image.set_sform)):
        setter(np.eye(4) if form is None else form, code=0 if form is None else 1)
    image.header.set_xyzt_units(unit)
    nib.save(image, folder / name)
    return folder / name


def refusal(path: Path) -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        read_nifti(path)
    return caught.value


@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_voxels_and_affine_come_as_they_were_written(
    tmp_path: Path, dtype: type[np.generic], image_class: type[nib.Nifti1Image], name: str
) -> None:
    volume = read_nifti(saved(tmp_path, RAMP.astype(dtype), name=name, image_class=image_class))
    assert volume.array.shape == (1, 4, 5, 6)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], RAMP)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.affine.dtype == np.float64
    assert volume.defects == ()
    assert volume.facts.description == name
    assert volume.sources == ()


def test_a_real_image_has_the_grid_of_its_mask(data: Path) -> None:
    image = next((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    volume = read_nifti(image)
    mask = read_geometry(data / "hippocampus" / "labelsTr" / image.name)
    assert volume.shape == mask.shape
    np.testing.assert_allclose(volume.affine, mask.affine)
    assert volume.array.std() > 0


def test_geometry_is_the_same_with_and_without_the_voxels(tmp_path: Path) -> None:
    path = saved(tmp_path)
    np.testing.assert_array_equal(read_geometry(path).affine, read_nifti(path).affine)
    assert read_geometry(path).shape == (4, 5, 6)


def test_the_scale_of_the_header_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAMP.astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "case.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "case.nii").dataobj.get_unscaled(), RAMP)
    np.testing.assert_allclose(read_nifti(tmp_path / "case.nii").array[0], RAMP * 0.5 - 3)


@pytest.mark.parametrize(("forms", "expected"), [("qform", OBLIQUE), ("sform", OBLIQUE)])
def test_one_form_is_enough(tmp_path: Path, forms: str, expected: NDArray[np.float64]) -> None:
    other = {"qform": "sform", "sform": "qform"}[forms]
    volume = read_nifti(saved(tmp_path, **{other: None}))  # type: ignore[arg-type]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-5)
    assert volume.defects == ()


def test_neither_form_is_refused(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path, qform=None, sform=None)).code == "unsupported_nifti"


def test_forms_that_disagree_are_noted_and_the_sform_is_taken(tmp_path: Path) -> None:
    sform = OBLIQUE.copy()
    sform[:3, 3] += [3, 0, 4]
    volume = read_nifti(saved(tmp_path, sform=sform))
    (defect,) = volume.defects
    assert (defect.code, defect.action) == ("qform_differs", "noted")
    assert defect.error_mm == pytest.approx(5, abs=1e-4)
    np.testing.assert_allclose(volume.affine, sform, atol=1e-5)


def test_forms_that_turn_differently_are_noted_at_the_farthest_corner(tmp_path: Path) -> None:
    volume = read_nifti(saved(tmp_path, qform=np.diag([-1.0, 1, 1, 1]), sform=np.eye(4)))
    assert volume.defects[0].error_mm == pytest.approx(2 * 3)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1)])
@pytest.mark.parametrize("form", ["both", "qform"])
def test_any_unit_becomes_millimetres(tmp_path: Path, unit: str, factor: float, form: str) -> None:
    scale = np.diag([1 / factor] * 3 + [1])
    sform = scale @ OBLIQUE if form == "both" else None
    volume = read_nifti(saved(tmp_path, qform=scale @ OBLIQUE, sform=sform, unit=unit))
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-4, atol=1e-4)
    assert volume.defects == ()


def test_a_unit_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, name="case.nii")
    content = bytearray(path.read_bytes())
    content[123] = 7  # xyzt_units
    path.write_bytes(content)
    assert isinstance(refusal(path), ImagingError)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_one_volume_in_more_dimensions_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = read_nifti(saved(tmp_path, RAMP.reshape(shape)))
    np.testing.assert_array_equal(volume.array[0], RAMP)


@pytest.mark.parametrize("shape", [(4, 5, 3, 2), (2, 5, 6, 1, 2), (20, 6), (120,)])
@pytest.mark.parametrize("sform", [OBLIQUE, None], ids=["both", "qform"])
def test_what_is_not_one_3d_volume_is_refused(
    tmp_path: Path, shape: tuple[int, ...], sform: NDArray[np.float64] | None
) -> None:
    error = refusal(saved(tmp_path, RAMP.reshape(shape), sform=sform))
    assert error.code == "unsupported_nifti"
    assert str(shape) in error.seen


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), RAMP.astype(np.complex64)],
    ids=["rgb", "complex"],
)
def test_what_is_not_real_numbers_is_refused(tmp_path: Path, array: NDArray[np.generic]) -> None:
    assert refusal(saved(tmp_path, array)).code == "unsupported_nifti"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, bad: float) -> None:
    array = RAMP.copy()
    array[1, 2, 3] = array[0, 0, 0] = bad
    error = refusal(saved(tmp_path, array))
    assert error.code == "not_finite"
    assert error.seen.startswith("2 ")


@pytest.mark.parametrize(
    "sform", [np.diag([1.0, 1, 0, 1]), np.diag([np.nan, 1, 1, 1]), np.zeros((4, 4))], ids=["flat", "nan", "zero"]
)
def test_an_affine_that_cannot_be_inverted_is_refused(tmp_path: Path, sform: NDArray[np.float64]) -> None:
    path = saved(tmp_path, qform=None, name="case.nii")
    content = bytearray(path.read_bytes())
    content[280:328] = sform[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(content)
    assert refusal(path).code == "invalid_geometry"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["case.nii", "case.nii.gz"])
def test_a_file_cut_short_is_unreadable(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    path = saved(tmp_path, noise, name=name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).code == "unreadable_nifti"


@pytest.mark.parametrize("offset", [1e4, 1e30, np.nan])
def test_voxels_that_begin_beyond_the_file_are_unreadable(tmp_path: Path, offset: float) -> None:
    path = saved(tmp_path, name="case.nii")
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(offset).tobytes()  # vox_offset
    path.write_bytes(content)
    assert refusal(path).code == "unreadable_nifti"


@pytest.mark.parametrize("at", [12, 60, 400], ids=["early", "header", "voxels"])
def test_a_damaged_archive_is_unreadable(tmp_path: Path, at: int) -> None:
    noise = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    path = saved(tmp_path, noise)
    content = bytearray(path.read_bytes())
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    assert refusal(path).code == "unreadable_nifti"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.nii", b"a text file\n" * 60),
        ("short.nii", b"a"),
        ("empty.nii", b""),
        ("empty.nii.gz", b""),
        ("text.nii.gz", b"a text file\n" * 60),
        ("inside.nii.gz", gzip.compress(b"a text file\n" * 60, mtime=0)),
    ],
)
def test_what_is_not_nifti_is_unreadable(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert error.code == "unreadable_nifti"
    assert error.subject == str(path)


def test_no_file_is_unreadable(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.nii.gz").code == "unreadable_nifti"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_read_or_refused_by_name(damage: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder), name="case.nii")
        content = bytearray(path.read_bytes())
        for at, value in damage:
            content[at] = value
        path.write_bytes(content)
        try:
            volume = read_nifti(path)
        except ImagingError:
            return
    assert np.isfinite(volume.array).all()
    assert abs(np.linalg.det(volume.affine)) > 0


@pytest.mark.parametrize(
    ("name", "taken"), [("a.nii", True), ("a.nii.gz", True), ("A.NII.GZ", True), ("a.gz", False), ("nii", False)]
)
def test_nifti_is_told_by_its_name(name: str, taken: bool) -> None:
    assert is_nifti(Path(name)) is taken


@pytest.mark.parametrize("name", ["/x/case_1.nii", "case_1.nii.gz", "case_1.NII.GZ", "case_1.Nii"])
def test_a_case_has_the_name_of_its_file_without_the_ending(name: str) -> None:
    assert case_name(Path(name)) == "case_1"


MASK = (RAMP % 3).astype(np.uint8)


def test_a_mask_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    write_mask(path, MASK, OBLIQUE)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), MASK)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    volume = read_nifti(path)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-5)
    assert volume.defects == ()
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([-1.0, -1, 1, 1]), np.diag([1.0, 1, -1, 1])])
def test_every_handedness_is_kept(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    write_mask(tmp_path / "mask.nii.gz", MASK, affine)
    np.testing.assert_allclose(read_nifti(tmp_path / "mask.nii.gz").affine, affine, atol=1e-5)


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_full_disk_keeps_the_old_mask_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    path = tmp_path / "mask.nii.gz"
    write_mask(path, MASK, OBLIQUE)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, no_room)
        with pytest.raises(OutputNotWritable):
            write_mask(path, np.zeros_like(MASK), OBLIQUE)
    np.testing.assert_array_equal(read_nifti(path).array[0], MASK)
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_the_same_mask_has_the_same_bytes(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.nii.gz", MASK, OBLIQUE)
    write_mask(tmp_path / "b.nii.gz", np.asfortranarray(MASK), OBLIQUE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_mask_that_nifti_would_misplace_is_not_written(tmp_path: Path) -> None:
    far = OBLIQUE.copy()
    far[:3, 3] += 1e6 + 0.03  # float32 steps by 0.06 there
    with pytest.raises(OutputMismatch):
        write_mask(tmp_path / "mask.nii.gz", MASK, far)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable):
        write_mask(tmp_path / "file" / "mask.nii.gz", MASK, OBLIQUE)


def test_a_flipped_bit_in_a_gzip_file_is_refused_wherever_it_is(data: Path, tmp_path: Path) -> None:
    whole = (data / "hippocampus/imagesTr/hippocampus_001.nii.gz").read_bytes()
    expected = read_nifti(data / "hippocampus/imagesTr/hippocampus_001.nii.gz").array
    path = tmp_path / "rotten.nii.gz"
    for place in range(20, len(whole) - 4, len(whole) // 25):
        rotten = bytearray(whole)
        rotten[place] ^= 0x10
        path.write_bytes(rotten)
        with suppress(InputRefused):
            assert np.array_equal(read_nifti(path).array, expected), place


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("several", [False, True], ids=["volume", "channels"])
def test_slices_are_read_as_the_whole_is(tmp_path: Path, name: str, several: bool) -> None:
    shape = (4, 5, 6, 3) if several else (4, 5, 6)
    image = nib.Nifti1Image(np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(0.1, -3.7)
    nib.save(image, tmp_path / name)
    expected = np.asarray(nib.load(tmp_path / name).dataobj, dtype=np.float32).reshape(4, 5, 6, -1)
    read = (read_nifti_channels if several else read_nifti)(tmp_path / name)
    np.testing.assert_array_equal(read.array, np.moveaxis(expected, 3, 0))


def test_reading_takes_little_beside_the_volume(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((160, 160, 160), dtype=np.int16), OBLIQUE), tmp_path / "a.nii.gz")
    tracemalloc.start()
    try:
        volume = read_nifti(tmp_path / "a.nii.gz")
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 1.2 * volume.array.nbytes


def as_nibabel_writes(array: NDArray[Any]) -> bytes:
    """The whole file at once, in memory."""
    image = nib.Nifti1Image(array, OBLIQUE)
    image.header.set_xyzt_units("mm")
    if array.ndim == 5:
        image.header.set_intent("NIFTI_INTENT_RGB_VECTOR")
    return bytes(image.to_bytes())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_slice_by_slice_is_what_nibabel_writes_at_once(
    tmp_path: Path, channels: int, suffix: str
) -> None:
    array_CXYZ = np.random.default_rng(0).standard_normal((channels, 7, 6, 5)).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    write_volume(path, Volume(array_CXYZ, OBLIQUE))
    meant = array_CXYZ[0] if channels == 1 else np.moveaxis(array_CXYZ, 0, 3)[:, :, :, np.newaxis]
    content = path.read_bytes()
    assert (gzip.decompress(content) if suffix == ".nii.gz" else content) == as_nibabel_writes(meant)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), meant)


def test_a_mask_is_one_gzip_member_that_itk_reads_too(tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    path, affine = tmp_path / "mask.nii.gz", np.diag([-0.5, 0.5, 2.0, 1.0])
    write_mask(path, MASK, affine)
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    assert len(member.decompress(path.read_bytes())) == 352 + MASK.size
    assert member.eof and member.unused_data == b""
    read = itk.ReadImage(str(path))
    np.testing.assert_array_equal(itk.GetArrayFromImage(read).T, MASK)
    assert read.GetSpacing() == (0.5, 0.5, 2.0)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_not_on_the_disk_as_it_was_meant_is_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    volume = Volume(np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), OBLIQUE)

    class Damaging:
        """A disk that does not keep what it was given."""

        def __init__(self, stream: BinaryIO) -> None:
            self._stream = stream

        def write(self, part: bytes) -> int:
            return self._stream.write(part[:-2] + bytes(2))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    @contextmanager
    def damaging(target: Path) -> Iterator[BinaryIO]:
        with whole_file(target) as stream:
            yield cast(BinaryIO, Damaging(stream))

    monkeypatch.setattr(nifti, "whole_file", damaging)
    with pytest.raises(OutputMismatch):
        write_volume(path, volume)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_writing_takes_the_memory_of_a_slice(tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, 64, 64, 400), np.float32), OBLIQUE)
    tracemalloc.start()
    try:
        write_volume(tmp_path / "a.nii.gz", volume)
        write_mask(tmp_path / "b.nii.gz", volume.array[0].astype(np.uint8), OBLIQUE)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < volume.array.nbytes // 2
