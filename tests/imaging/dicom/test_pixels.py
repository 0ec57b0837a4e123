"""Stored values become real-world values, each slice by its own rescale; what is not as declared is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike
from phantom import OBLIQUE, Edit, change, write_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from imaging.dicom import load_series
from imaging.errors import ImagingError


def refusal(folder: Path) -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        load_series(folder)
    return caught.value


@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("rescale", ["none", "constant", "per_slice"])
def test_each_slice_is_scaled_by_its_own_slope(tmp_path: Path, rescale: str, modality: str) -> None:
    phantom = write_series(
        tmp_path, orientation=OBLIQUE, slices=7, rescale=rescale, modality=modality, numbering="scrambled"
    )
    volume = load_series(tmp_path)
    slopes = {float(pydicom.dcmread(path).get("RescaleSlope", 1)) for path in phantom.paths}
    assert len(slopes) == (5 if rescale == "per_slice" else 1)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert volume.array.dtype == np.float32


def stored(values: np.ndarray, dtype: DTypeLike, bits_stored: int, *, signed: bool) -> Edit:
    """The same 5 x 7 pixels in every slice, with another layout and no rescale."""

    def edit(dataset: Dataset, _k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        dataset.BitsAllocated = np.dtype(dtype).itemsize * 8
        dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
        dataset.PixelRepresentation = int(signed)
        content = values.astype(dtype).tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)

    return edit


RAMP = np.arange(35).reshape(5, 7)


@pytest.mark.parametrize(
    ("values", "dtype", "bits_stored", "signed"),
    [
        (RAMP * 7, np.uint8, 8, False),
        (RAMP * 1872, "<u2", 16, False),
        (RAMP * 1872 - 32000, "<i2", 16, True),
        (RAMP * 117, "<u2", 12, False),
        (RAMP - 17, "<i2", 12, True),
        (RAMP * 100_000, "<u4", 32, False),
    ],
    ids=["uint8_odd_length", "uint16", "int16", "uint12", "int12", "uint32"],
)
def test_every_layout_of_stored_values_is_read(
    tmp_path: Path, values: np.ndarray, dtype: DTypeLike, bits_stored: int, signed: bool
) -> None:
    write_series(tmp_path, edit=stored(values, dtype, bits_stored, signed=signed))
    array = load_series(tmp_path).array
    for k in range(4):
        np.testing.assert_array_equal(array[0, :, :, k], values.T)


def test_unused_bits_are_not_part_of_the_value(tmp_path: Path) -> None:
    signed_12 = np.array(RAMP * 100 - 2000)
    dirty = (signed_12 & 0x0FFF) | 0x7000
    write_series(tmp_path, edit=stored(dirty, "<u2", 12, signed=True))
    np.testing.assert_array_equal(load_series(tmp_path).array[0, :, :, 0], signed_12.T)


def to_syntax(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax

    return edit


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_transfer_syntaxes_give_the_same_values(tmp_path: Path, syntax: str) -> None:
    phantom = write_series(tmp_path, edit=to_syntax(syntax))
    assert pydicom.dcmread(phantom.paths[0]).file_meta.TransferSyntaxUID == syntax
    assert phantom.worst_error(load_series(tmp_path)) <= phantom.tolerance


def garbage(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([b"this is no code stream of any kind"])
        dataset["PixelData"].VR = "OB"

    return edit


@pytest.mark.parametrize(
    ("syntax", "code"),
    [
        (JPEG2000Lossless, "unsupported_transfer_syntax"),
        ("1.2.840.10008.1.2.4.100", "unsupported_transfer_syntax"),  # MPEG2
        ("1.2.840.113619.5.2", "unsupported_transfer_syntax"),  # GE private
    ],
)
def test_what_cannot_be_decoded_is_refused_with_its_uid(tmp_path: Path, syntax: str, code: str) -> None:
    folder = tmp_path
    write_series(folder, edit=garbage(JPEG2000Lossless))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(_padded(JPEG2000Lossless), _padded(syntax)))
    error = refusal(folder)
    assert error.code == code
    assert syntax in error.seen


def _padded(uid: str) -> bytes:
    """The element (0002,0010) with a UID, as it stands in a file."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value


def test_deflated_data_sets_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    write_series(tmp_path, edit=to_syntax("1.2.840.10008.1.2.1.99"))
    assert refusal(tmp_path).code == "unsupported_transfer_syntax"


def cut(count: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:-count])


def pad(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    change(path, PixelData=dataset.PixelData + b"\0" * 32)


@pytest.mark.parametrize(
    "damage",
    [cut(1), cut(2), cut(40), cut(70), pad],
    ids=["one_byte", "one_pixel", "most", "all", "too_long"],
)
def test_pixels_of_another_length_are_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    phantom = write_series(tmp_path)
    damage(phantom.paths[2])
    error = refusal(tmp_path)
    assert error.code == "truncated_pixels"
    assert error.subject == str(phantom.paths[2])


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[2], PixelData=None)
    assert refusal(tmp_path).code in {"truncated_pixels", "unreadable_dicom"}


@pytest.mark.parametrize(
    "size",
    [{"Rows": 4}, {"Rows": 6}, {"Columns": 6}, {"Rows": 20_000, "Columns": 20_000}],
    ids=["fewer_rows", "more_rows", "fewer_columns", "enormous"],
)
def test_a_size_that_lies_is_refused(tmp_path: Path, size: dict[str, int]) -> None:
    phantom = write_series(tmp_path, slices=2)
    for path in phantom.paths:
        change(path, **size)
    assert refusal(tmp_path).code == "truncated_pixels"


def test_a_size_beyond_any_scanner_is_refused(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    for path in phantom.paths:
        change(path, Rows=65_535, Columns=65_535)
    assert refusal(tmp_path).code == "invalid_geometry"


@pytest.mark.parametrize("values", [{"RescaleSlope": "inf"}, {"RescaleIntercept": "NaN"}])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, values: dict[str, str]) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[1], **values)
    assert refusal(tmp_path).code == "not_finite"


@pytest.mark.parametrize(
    "values",
    [
        {"RescaleSlope": ""},
        {"RescaleIntercept": ""},
        {"RescaleSlope": ["1", "2"]},
        {"RescaleSlope": None},
        {"RescaleIntercept": None},
    ],
    ids=["slope_empty", "intercept_empty", "two_slopes", "no_slope", "no_intercept"],
)
def test_half_a_rescale_is_never_passed_over(tmp_path: Path, values: dict[str, object]) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[1], **values)
    assert refusal(tmp_path).code in {"unreadable_dicom", "missing_attribute"}


def test_a_lookup_table_is_applied(tmp_path: Path) -> None:
    table = np.arange(35)[::-1] * 3 + 11

    def edit(dataset: Dataset, k: int) -> None:
        stored(RAMP, "<u2", 16, signed=False)(dataset, k)
        item = Dataset()
        item.LUTDescriptor = [35, 0, 16]
        item.ModalityLUTType = "US"
        item.add_new("LUTData", "US", table.tolist())
        dataset.ModalityLUTSequence = [item]

    write_series(tmp_path, edit=edit)
    np.testing.assert_array_equal(load_series(tmp_path).array[0, :, :, 1], table[RAMP].T)


@pytest.mark.parametrize("k", [0, 2])
def test_padding_is_told(tmp_path: Path, k: int) -> None:
    def edit(dataset: Dataset, slice_number: int) -> None:
        if slice_number == k:
            dataset.add_new("PixelPaddingValue", "SS", -2000)

    write_series(tmp_path, edit=edit)
    (defect,) = load_series(tmp_path).defects
    assert (defect.code, defect.action) == ("padding", "noted")
    assert "-2000" in defect.detail


@settings(max_examples=60, deadline=None, derandomize=True)
@given(slice_number=st.integers(0, 2), damage=st.data())
def test_a_damaged_file_is_read_or_refused_by_name(slice_number: int, damage: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        phantom = write_series(Path(folder), slices=3, rows=3, columns=3)
        path = phantom.paths[slice_number]
        content = bytearray(path.read_bytes())
        for _ in range(damage.draw(st.integers(1, 3))):
            content[damage.draw(st.integers(132, len(content) - 1))] = damage.draw(st.integers(0, 255))
        path.write_bytes(content[: damage.draw(st.sampled_from([len(content), len(content) // 2]))])
        try:
            volume = load_series(Path(folder))
        except ImagingError:
            return
    assert volume.shape == (3, 3, 3)
    assert np.isfinite(volume.array).all()
