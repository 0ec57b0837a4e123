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
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from imaging.dicom import Policy, load_series
from imaging.errors import ImagingError

POLICIES: tuple[Policy, ...] = ("strict", "repair")


def refusal(folder: Path, policy: Policy = "repair") -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        load_series(folder, policy=policy)
    return caught.value


@pytest.mark.parametrize(
    ("modality", "rescale"),
    [("MR", "none"), ("MR", "constant"), ("MR", "per_slice"), ("CT", "constant"), ("CT", "per_slice")],
)
def test_each_slice_is_scaled_by_its_own_slope(tmp_path: Path, rescale: str, modality: str) -> None:
    phantom = write_series(
        tmp_path, orientation=OBLIQUE, slices=7, rescale=rescale, modality=modality, numbering="scrambled"
    )
    volume = load_series(tmp_path)
    slopes = {float(pydicom.dcmread(path).get("RescaleSlope", 1)) for path in phantom.paths}
    assert len(slopes) == (5 if rescale == "per_slice" else 1)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert volume.array.dtype == np.float32


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("modality", ["CT", "PT"])
def test_a_quantity_without_its_scale_is_refused(tmp_path: Path, modality: str, policy: Policy) -> None:
    phantom = write_series(tmp_path, modality="CT", rescale="none")
    for path in phantom.paths:
        change(path, Modality=modality)
    error = refusal(tmp_path, policy)
    assert error.code == "missing_attribute"
    assert "4 of 4 slices" in error.seen


@pytest.mark.parametrize(
    ("modality", "values", "unit"),
    [
        ("CT", {}, "HU"),
        ("CT", {"RescaleType": None}, "HU"),
        ("MR", {}, ""),
        ("PT", {"Units": "BQML", "RescaleType": None}, "BQML"),
        ("MR", {"RescaleType": "OD"}, "OD"),
    ],
)
def test_the_unit_is_the_headers_own(tmp_path: Path, modality: str, values: dict[str, object], unit: str) -> None:
    phantom = write_series(tmp_path, modality="MR" if modality == "MR" else "CT")
    for path in phantom.paths:
        change(path, Modality=modality, **values)
    assert load_series(tmp_path).unit == unit


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


def test_bits_above_the_high_bit_and_below_the_stored_ones_are_not_part_of_the_value(tmp_path: Path) -> None:
    """12 bits from bit 2 up, with an old overlay in the bits around them."""

    def edit(dataset: Dataset, k: int) -> None:
        stored((RAMP * 100 << 2) | 0xC003, "<u2", 12, signed=False)(dataset, k)
        dataset.HighBit = 13

    write_series(tmp_path, edit=edit)
    np.testing.assert_array_equal(load_series(tmp_path).array[0, :, :, 0], (RAMP * 100).T)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_float_pixels_are_read(tmp_path: Path, keyword: str, dtype: str) -> None:
    values = RAMP / 7 - 2

    def edit(dataset: Dataset, k: int) -> None:
        stored(values, dtype, 8 * np.dtype(dtype).itemsize, signed=False)(dataset, k)
        setattr(dataset, keyword, dataset.PixelData)
        for gone in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, gone)

    write_series(tmp_path, edit=edit)
    np.testing.assert_allclose(load_series(tmp_path).array[0, :, :, 2], values.T, rtol=1e-6)


def test_float_pixels_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        stored(np.where(RAMP == 4, np.nan, RAMP), "<f4", 32, signed=False)(dataset, k)
        dataset.FloatPixelData = dataset.PixelData
        del dataset.PixelData

    write_series(tmp_path, edit=edit)
    assert refusal(tmp_path).code == "not_finite"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"BitsAllocated": 12}, "unsupported_pixels"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "unsupported_pixels"),
        ({"BitsStored": 17}, "unreadable_dicom"),
        ({"BitsStored": 12, "HighBit": 3}, "unreadable_dicom"),
        ({"HighBit": 16}, "unreadable_dicom"),
        ({"SamplesPerPixel": 3}, "unreadable_dicom"),
    ],
    ids=str,
)
def test_a_layout_that_cannot_be_is_refused(tmp_path: Path, values: dict[str, int], code: str) -> None:
    phantom = write_series(tmp_path)
    for path in phantom.paths:
        change(path, **values)
    assert refusal(tmp_path).code == code


# ------------------------------------------------------------------------------------------------------ grey and colour


def test_brightness_stored_inverted_is_inverted_or_refused(tmp_path: Path) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        stored(RAMP * 100, "<u2", 12, signed=False)(dataset, k)
        dataset.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path, edit=edit)
    assert refusal(tmp_path, "strict").code == "monochrome1"
    volume = load_series(tmp_path)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], (4095 - RAMP * 100).T)
    (defect,) = volume.defects
    assert (defect.code, defect.action) == ("monochrome1", "repaired")


def test_signed_brightness_is_inverted_within_its_own_range(tmp_path: Path) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        stored(RAMP - 17, "<i2", 12, signed=True)(dataset, k)
        dataset.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path, edit=edit)
    np.testing.assert_array_equal(load_series(tmp_path).array[0, :, :, 0], (-1 - (RAMP - 17)).T)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_quantity_to_be_shown_inverted_stays_as_it_is(tmp_path: Path, policy: Policy) -> None:
    phantom = write_series(tmp_path, modality="CT")
    for path in phantom.paths:
        change(path, PhotometricInterpretation="MONOCHROME1")
    volume = load_series(tmp_path, policy=policy)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert [(defect.code, defect.action) for defect in volume.defects] == [("monochrome1", "noted")]


COLOURS = np.random.default_rng(5).integers(0, 256, (5, 8, 3), dtype=np.uint8)


def coloured(photometric: str, pixels: bytes, *, planar: int = 0) -> Edit:
    """The same 5 x 8 picture in every slice."""

    def edit(dataset: Dataset, _k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = photometric, 3
        dataset.PlanarConfiguration, dataset.PixelRepresentation = planar, 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.Rows, dataset.Columns, dataset.PixelData = 5, 8, pixels

    return edit


def in_ybr_422() -> bytes:
    pairs = convert_color_space(COLOURS, "RGB", "YBR_FULL").reshape(-1, 2, 3)
    return bytes(np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=1).tobytes())


@pytest.mark.parametrize(
    ("photometric", "pixels", "planar"),
    [
        ("RGB", COLOURS.tobytes(), 0),
        ("RGB", np.moveaxis(COLOURS, 2, 0).tobytes(), 1),
        ("YBR_FULL", convert_color_space(COLOURS, "RGB", "YBR_FULL").tobytes(), 0),
        ("YBR_FULL_422", in_ybr_422(), 0),
    ],
    ids=["rgb", "planar", "ybr_full", "ybr_422"],
)
def test_colour_has_three_channels_as_pydicom_decodes_them(
    tmp_path: Path, photometric: str, pixels: bytes, planar: int
) -> None:
    phantom = write_series(tmp_path, edit=coloured(photometric, pixels, planar=planar))
    volume = load_series(tmp_path)
    assert volume.array.shape == (3, 8, 5, 4)
    expected = pixel_array(phantom.paths[0])
    for k in range(4):
        np.testing.assert_array_equal(np.moveaxis(volume.array[..., k], 0, 2), expected.transpose(1, 0, 2))
    if photometric != "YBR_FULL_422":
        assert int(np.abs(expected.astype(int) - COLOURS).max()) <= 2


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    table = np.random.default_rng(6).integers(0, 2**16, (3, 35), dtype=np.uint16)

    def edit(dataset: Dataset, k: int) -> None:
        stored(RAMP, "u1", 8, signed=False)(dataset, k)
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        for colour, entries in zip(("Red", "Green", "Blue"), table, strict=True):
            setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [35, 0, 16])
            setattr(dataset, f"{colour}PaletteColorLookupTableData", entries.tobytes())

    write_series(tmp_path, edit=edit)
    volume = load_series(tmp_path)
    for channel in range(3):
        np.testing.assert_array_equal(volume.array[channel, :, :, 1], table[channel][RAMP].T)


def test_a_palette_without_its_table_is_refused(tmp_path: Path) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        stored(RAMP, "u1", 8, signed=False)(dataset, k)
        dataset.PhotometricInterpretation = "PALETTE COLOR"

    write_series(tmp_path, edit=edit)
    assert refusal(tmp_path).code == "undecodable_pixels"


# ----------------------------------------------------------------------------------------------------- how it is stored


def to_syntax(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = UID(syntax)

    return edit


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_transfer_syntaxes_give_the_same_values(tmp_path: Path, syntax: str) -> None:
    phantom = write_series(tmp_path, edit=to_syntax(syntax))
    assert pydicom.dcmread(phantom.paths[0]).file_meta.TransferSyntaxUID == syntax
    assert phantom.worst_error(load_series(tmp_path)) <= phantom.tolerance


def garbage(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.PixelData = encapsulate([b"this is no code stream of any kind"])
        dataset["PixelData"].VR = "OB"

    return edit


@pytest.mark.parametrize(
    ("syntax", "code"),
    [
        (JPEG2000Lossless, "undecodable_pixels"),
        ("1.2.840.10008.1.2.4.100", "unsupported_transfer_syntax"),  # MPEG2
        ("1.2.840.113619.5.2", "unsupported_transfer_syntax"),  # GE private
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(tmp_path: Path, syntax: str, code: str) -> None:
    folder = tmp_path
    write_series(folder, edit=garbage(JPEG2000Lossless))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(_padded(JPEG2000Lossless), _padded(syntax)))
    error = refusal(folder)
    assert error.code == code
    if code == "unsupported_transfer_syntax":
        assert syntax in error.seen


def _padded(uid: str) -> bytes:
    """The element (0002,0010) with a UID, as it stands in a file."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value


def test_a_deflated_data_set_that_inflates_beyond_its_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enlarge(dataset: Dataset, k: int) -> None:
        to_syntax(DeflatedExplicitVRLittleEndian)(dataset, k)
        dataset.add_new(0x00420011, "OB", bytes(4 * 2**20))

    phantom = write_series(tmp_path, slices=2, edit=enlarge)
    assert phantom.worst_error(load_series(tmp_path)) <= phantom.tolerance
    monkeypatch.setattr("imaging.dicom.header._LARGEST_INFLATED", 2**20)
    error = refusal(tmp_path)
    assert error.code == "unreadable_dicom"
    assert "larger than" in error.seen


def cut(count: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:-count])


def pad(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    change(path, PixelData=dataset.PixelData + b"\0" * 32)


@pytest.mark.parametrize(
    "damage",
    [cut(1), cut(2), cut(40), cut(70), pad],
    ids=["one_byte", "one_pixel", "most", "all", "too_long"],
)
def test_pixels_of_another_length_are_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    phantom = write_series(tmp_path)
    damage(phantom.paths[2])
    error = refusal(tmp_path)
    assert error.code == "truncated_pixels"
    assert error.subject == str(phantom.paths[2])


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[2], PixelData=None)
    assert refusal(tmp_path, "strict").code == "unreadable_dicom"
    assert any(defect.detail.startswith("unreadable_dicom: ") for defect in load_series(tmp_path).defects)


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
    assert refusal(tmp_path).code == "truncated_pixels"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"RescaleSlope": "inf"}, "missing_attribute"),
        ({"RescaleIntercept": "NaN"}, "missing_attribute"),
        ({"RescaleSlope": "1e37"}, "not_finite"),
        ({"RescaleIntercept": "-1e39"}, "not_finite"),
    ],
    ids=str,
)
def test_a_scale_that_is_no_number_or_leads_beyond_float32_is_refused(
    tmp_path: Path, values: dict[str, str], code: str
) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[1], **values)
    assert refusal(tmp_path).code == code


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


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("signed", "value", "limit"), [(True, -2000, None), (False, 63536, None), (True, -2100, -1990)]
)
def test_padding_is_masked_and_told(
    tmp_path: Path, signed: bool, value: int, limit: int | None, policy: Policy
) -> None:
    """As a CT writes it: the corners outside the field of view, far below any HU."""
    vr = "SS" if signed else "US"
    body = RAMP * 10 + 7
    corner = RAMP % 7 == 0

    def edit(dataset: Dataset, k: int) -> None:
        values = np.where(corner & (k != 1), value if limit is None else -2000, body)
        stored(values, "<i2" if signed else "<u2", 16, signed=signed)(dataset, k)
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1024
        dataset.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", vr, limit)

    write_series(tmp_path, edit=edit)
    volume = load_series(tmp_path, policy=policy)
    smallest = 2 * 7 - 1024  # the body's own, in the slice without padding
    for k in range(4):
        expected = np.where(corner & (k != 1), smallest, 2 * body - 1024)
        np.testing.assert_array_equal(volume.array[0, :, :, k], expected.T)
    (defect,) = volume.defects
    assert (defect.code, defect.action) == ("padding", "noted")
    assert defect.detail.startswith("15 pixels")
    assert str(value) in defect.detail and f"{smallest}" in defect.detail


def test_a_padding_value_that_no_pixel_has_is_no_padding(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, edit=lambda dataset, _: dataset.add_new("PixelPaddingValue", "SS", -32000))
    volume = load_series(tmp_path)
    assert volume.defects == ()
    assert phantom.worst_error(volume) <= phantom.tolerance


def test_padding_everywhere_is_refused(tmp_path: Path) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        stored(0 * RAMP - 5, "<i2", 16, signed=True)(dataset, k)
        dataset.add_new("PixelPaddingValue", "SS", -5)

    write_series(tmp_path, edit=edit)
    assert refusal(tmp_path).code == "not_finite"


def test_padding_is_masked_before_brightness_is_inverted_and_never_interpolated(tmp_path: Path) -> None:
    distances = [0, 0.4, 0, 0.4, 0, 0.4]

    def edit(dataset: Dataset, k: int) -> None:
        stored(np.where(RAMP == 0, 0, 1000), "<u2", 12, signed=False)(dataset, k)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.add_new("PixelPaddingValue", "US", 0)

    write_series(tmp_path, slices=6, slice_spacing=1.0, edit=edit, shift=lambda k: (0.0, 0.0, distances[k]))
    volume = load_series(tmp_path)
    assert {defect.code for defect in volume.defects} >= {"padding", "monochrome1", "variable_spacing"}
    np.testing.assert_array_equal(volume.array, np.float32(4095 - 1000))


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
    assert volume.shape == (3, 3, 3) or volume.defects, "a changed volume without a word"
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
    assert min(volume.spacing) > 0
    assert len(volume.sources) == volume.shape[2]
