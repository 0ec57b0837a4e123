"""Stored numbers, colours, and the scale of projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phantom import Edit, Floats
from pydicom.dataset import Dataset
from pydicom.pixels import convert_color_space

from torture_rows.truth import Field, Truth, both, expect
from torture_rows.writing import Row, Store, Writer, item, put, put_on, write

NUMBERS = Row("stored values")
COLOUR = Row("photometric")
PROJECTION = Row("projections")


def right(*codes: str, unit: str | None = None, told: dict[str, str] | None = None, **more: Any) -> Writer:
    """One volume under both policies."""

    def make(folder: Path) -> Truth:
        made = write(folder, **more)
        fields = more.get("fields", (Field(),))
        return both(expect(made.planes, made.tolerance, codes=codes, unit=unit, told=told or {}, fields=fields))

    return make


def nothing_right(**more: Any) -> Writer:
    """No volume."""

    def make(folder: Path) -> Truth:
        write(folder, **more)
        return Truth()

    return make


# ---------------------------------------------------------------------------------------------------------------- scale


def _bare(*keywords: str) -> Edit:
    return put_on(None, **dict.fromkeys(keywords, None))


NUMBERS.add("pet_slope_of_each_slice", right(modality="PT", rescale="per_slice", unit="BQML", slices=6))
NUMBERS.add("mr_slope_of_each_slice", right(rescale="per_slice", slices=6, unit=""))
NUMBERS.add("mr_without_a_slope", right(rescale="none", store=partial(put, slope=None), unit="", fields=(
    Field(gradient=(110, 53, -79)),)))  # fmt: skip
NUMBERS.add("ct_unit", right(modality="CT", unit="HU"))
NUMBERS.add("ct_without_rescale_type", right(modality="CT", unit="HU", edit=_bare("RescaleType")))
NUMBERS.add("rescale_type", right(unit="mGy", edit=put_on(None, RescaleType="mGy")))
NUMBERS.add("pet_units_beside_an_unspecified_type", right(modality="PT", unit="BQML",
            edit=put_on(None, RescaleType="US")))  # fmt: skip
_SCALE = ("RescaleSlope", "RescaleIntercept")
for _name, _modality, _edit in (
    ("ct_without_a_slope", "CT", _bare(*_SCALE)),
    ("pet_without_a_slope", "PT", _bare(*_SCALE)),
    ("pet_one_slice_without_a_slope", "PT", put_on(2, RescaleSlope=None, RescaleIntercept=None)),
    ("slope_without_intercept", "MR", _bare("RescaleIntercept")),
    ("intercept_without_slope", "CT", _bare("RescaleSlope")),
    ("empty_slope", "CT", put_on(None, RescaleSlope="")),
    ("nan_slope", "MR", put_on(None, RescaleSlope="NaN")),
):
    NUMBERS.refused(_name, nothing_right(modality=_modality, edit=_edit), "missing_attribute")
NUMBERS.refused("slope_beyond_float32", nothing_right(edit=put_on(None, RescaleSlope="1e38")), "not_finite")


def _lookup_table(dataset: Dataset, values: Floats) -> float:
    """By a Modality LUT with 16-bit entries, that has no slope."""
    put(dataset, values, slope=None)
    table = np.arange(2**12)
    low = int(np.rint(values).min())
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
    stored = (np.rint(values).astype(np.int64) - low) * 3 + 5
    dataset.PixelData = stored.astype("<u2").tobytes()
    entries = ((table - 5) // 3 + low).clip(0, 2**16 - 1)
    dataset.ModalityLUTSequence = item(
        LUTDescriptor=[len(table), 0, 16], ModalityLUTType="OD", LUTData=entries.astype("<u2").tobytes()
    )
    dataset.ModalityLUTSequence[0]["LUTData"].VR = "OW"
    return 0.51


def _falling(dataset: Dataset, values: Floats) -> float:
    error = put(dataset, -values)
    dataset.RescaleSlope, dataset.RescaleIntercept = "-0.1", str(-float(dataset.RescaleIntercept))
    return error


def _icon(dataset: Dataset, _k: int) -> None:
    """A small picture within the header, with pixels of its own before those of the slice."""
    icon = item(Rows=2, Columns=2, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8,
                BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=b"\1\2\3\4")  # fmt: skip
    icon[0]["PixelData"].VR = "OB"
    dataset.IconImageSequence = icon
    dataset["IconImageSequence"].is_undefined_length = True


def _trailing(dataset: Dataset, _k: int) -> None:
    dataset.DataSetTrailingPadding = bytes(300)


NUMBERS.add("negative_slope", right(store=_falling))
NUMBERS.add("icon_within_the_header", right(edit=_icon))
NUMBERS.add("padding_behind_the_pixels", right(edit=_trailing))
NUMBERS.add("modality_lut", right(store=_lookup_table))


# --------------------------------------------------------------------------------------------------------------- layout

_EIGHT: dict[str, Any] = {"allocated": 8, "slope": 0.5}
_TWELVE: dict[str, Any] = {"stored": 12, "slope": 0.05}
_LAYOUTS: dict[str, dict[str, Any]] = {
    "8_bit_unsigned": dict(_EIGHT, signed=False),
    "8_bit_signed": dict(_EIGHT, signed=True),
    "12_bit_unsigned": dict(_TWELVE, signed=False),
    "12_bit_signed": dict(_TWELVE, signed=True),
    "10_of_16_bit_unsigned": {"stored": 10, "slope": 0.2, "signed": False},
    "16_bit_unsigned": {"signed": False, "slope": 0.01},
    "16_bit_signed": {"signed": True, "slope": 0.01},
    "32_bit_unsigned": {"allocated": 32, "signed": False, "slope": 0.001},
    "32_bit_signed": {"allocated": 32, "signed": True, "slope": 0.001},
    "24_of_32_bit": {"allocated": 32, "stored": 24, "signed": False, "slope": 0.001},
    "12_bit_up_to_bit_15": dict(_TWELVE, high=15, signed=False),
    "12_bit_signed_up_to_bit_15": dict(_TWELVE, high=15, signed=True),
    "12_bit_up_to_bit_13_overlays_on_both_sides": dict(_TWELVE, high=13, signed=False, rest=0xC003),
    "overlay_above_12_bit": dict(_TWELVE, signed=False, rest=0xA000),
    "overlay_above_12_bit_signed": dict(_TWELVE, signed=True, rest=0x6000),
    "overlay_below_8_bit_signed": {"stored": 8, "high": 15, "signed": True, "slope": 0.5, "rest": 0x0035},
}
for _name, _layout in _LAYOUTS.items():
    NUMBERS.add(_name, right(store=partial(put, **_layout), rows=6))


def _layout_of_each_slice(folder: Path) -> Truth:
    """Signed and unsigned, 12 and 16 bits, in one series."""
    layouts: tuple[dict[str, Any], ...] = ({"signed": False}, {"signed": True}, dict(_TWELVE, signed=False),
                                           dict(_TWELVE, signed=True, high=15))  # fmt: skip
    count = iter(layouts)
    made = write(folder, store=lambda dataset, values: put(dataset, values, **next(count)))
    return both(expect(made.planes, made.tolerance))


NUMBERS.add("another_layout_in_each_slice", _layout_of_each_slice)


def _floating(keyword: str, dtype: str) -> Store:
    def store(dataset: Dataset, values: Floats) -> float:
        put(dataset, values, slope=None)
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, name)
        dataset.BitsAllocated = 8 * np.dtype(dtype).itemsize
        setattr(dataset, keyword, values.astype(dtype).tobytes())
        return 1e-2

    return store


def _one_nan(dataset: Dataset, values: Floats) -> float:
    values = values.copy()
    error = _floating("FloatPixelData", "<f4")(dataset, values)
    values[1, 1] = np.nan
    dataset.FloatPixelData = values.astype("<f4").tobytes()
    return error


NUMBERS.add("float_pixels", right(store=_floating("FloatPixelData", "<f4")))
NUMBERS.add("double_float_pixels", right(store=_floating("DoubleFloatPixelData", "<f8")))
NUMBERS.refused("float_pixels_with_a_nan", nothing_right(store=_one_nan), "not_finite")
NUMBERS.refused("12_bits_allocated", nothing_right(edit=put_on(None, BitsAllocated=12, BitsStored=12, HighBit=11)),
                "unsupported_pixels")  # fmt: skip
NUMBERS.refused("1_bit_allocated", nothing_right(edit=put_on(None, BitsAllocated=1, BitsStored=1, HighBit=0)),
                "unsupported_pixels")  # fmt: skip
NUMBERS.refused("more_bits_stored_than_allocated", nothing_right(edit=put_on(None, BitsStored=20, HighBit=19)),
                "unreadable_dicom")  # fmt: skip
NUMBERS.refused("high_bit_below_the_stored_bits", nothing_right(edit=put_on(None, BitsStored=12, HighBit=3)),
                "unreadable_dicom")  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- padding


def padded(value: int, limit: int | None, found: Sequence[int], **layout: Any) -> Writer:
    """Padding in the corner of every slice: `found` are the numbers that lie there."""

    def make(folder: Path) -> Truth:
        def edit(dataset: Dataset, k: int) -> None:
            dtype = "<i2" if dataset.PixelRepresentation else "<u2"
            pixels = np.frombuffer(dataset.PixelData, dtype).reshape(dataset.Rows, dataset.Columns).copy()
            for number, pad in enumerate(found):
                pixels[0, number] = pad
            dataset.PixelData = pixels.tobytes()
            dataset.PixelPaddingValue = value
            if limit is not None:
                dataset.PixelPaddingRangeLimit = limit
            for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
                if keyword in dataset:
                    dataset[keyword].VR = "SS" if dataset.PixelRepresentation else "US"

        made = write(folder, store=partial(put, **layout) if layout else None, edit=edit,
                     modality="CT", rescale="per_slice")  # fmt: skip
        masked = np.zeros((len(made.planes), 5, 7), dtype=bool)
        masked[:, 0, : len(found)] = True
        return both(expect(made.planes, made.tolerance, codes=["padding"], masked=masked, unit="HU"))

    return make


NUMBERS.add("padding_value", padded(-32768, None, [-32768, -32768]))
NUMBERS.add("padding_value_unsigned", padded(65535, None, [65535], signed=False, slope=0.01))
NUMBERS.add("padding_value_of_12_bit_signed", padded(-2048, None, [-2048], stored=12, slope=0.05, signed=True))
NUMBERS.add("padding_range", padded(-32768, -32000, [-32768, -32500, -32000]))
NUMBERS.add("padding_range_reversed", padded(32767, 32000, [32767, 32000, 32100]))


def _padded_and_tilted(folder: Path) -> Truth:
    """What a scanner adds around a tilted picture is padding too; none of it may be mixed into a value."""

    def edit(dataset: Dataset, _k: int) -> None:
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns).copy()
        pixels[:2, :3] = dataset.PixelPaddingValue = -2000
        dataset.PixelData = pixels.tobytes()
        dataset["PixelPaddingValue"].VR = "SS"

    made = write(folder, modality="CT", rows=9, columns=9, shift=lambda k: (0.0, 0.55 * k, 0.0), edit=edit)
    masked = np.zeros((4, 9, 9), dtype=bool)
    masked[:, :2, :3] = True
    codes = ["gantry_tilt", "beyond_acquired", "padding"]
    return Truth((), (expect(made.planes, made.tolerance, codes=codes, masked=masked, regridded=True),))


NUMBERS.add("padding_and_tilt", _padded_and_tilted, strict=["gantry_tilt"])
NUMBERS.add("padding_value_that_no_pixel_has", right(modality="CT", edit=put_on(None, PixelPaddingValue=-32768)))


# -------------------------------------------------------------------------------------------------------------- colours


def _turned(low: int, top: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    return lambda whole: low + top - whole


def inverted(**layout: Any) -> Writer:
    """MONOCHROME1 that measures nothing: repair turns brightness round."""

    def store(dataset: Dataset, values: Floats) -> float:
        return put(dataset, values, **layout)

    def make(folder: Path) -> Truth:
        made = write(folder, store=store, edit=put_on(None, PhotometricInterpretation="MONOCHROME1"))
        return Truth((), (expect(made.planes, made.tolerance, codes=["monochrome1"], unit=""),))

    return make


def _inverted_by_slice(folder: Path) -> Truth:
    """No one range turns all slices round."""
    inverted()(folder)
    return Truth((), ())


COLOUR.add("monochrome1_12_bit", inverted(stored=12, signed=False, intercept=200.0, turn=_turned(0, 4095)),
           strict=["monochrome1"])  # fmt: skip
COLOUR.add("monochrome1_signed", inverted(intercept=400.0, turn=_turned(-32768, 32767)), strict=["monochrome1"])
COLOUR.refused("monochrome1_with_a_scale_a_slice", _inverted_by_slice, "monochrome1")
COLOUR.add("monochrome1_with_a_unit", right("monochrome1", modality="CT", unit="HU",
           edit=put_on(None, PhotometricInterpretation="MONOCHROME1")))  # fmt: skip

# Three fields that stay within 8 bits over the phantom; along a row all colours change alike.
_RGB = (Field(220, (2, 1, -1.5)), Field(180, (2, -1, -0.5)), Field(150, (2, 0.5, 1)))


def _colours(photometric: str, *, planar: int = 0, half: bool = False) -> Store:
    def store(dataset: Dataset, values: Floats) -> float:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, photometric, planar
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        samples = np.rint(values)
        assert samples.min() >= 0 and samples.max() <= 255
        pixels = samples.astype(np.uint8)
        if photometric != "RGB":
            pixels = np.asarray(convert_color_space(pixels, "RGB", "YBR_FULL"))
        if half:
            pairs = pixels.reshape(-1, 2, 3).astype(int)
            shared = np.rint(pairs[:, :, 1:].mean(axis=1))
            pixels = np.concatenate([pairs[:, :, 0], shared], axis=1).astype(np.uint8)
        elif planar:
            pixels = np.moveaxis(pixels, 2, 0)
        raw = np.ascontiguousarray(pixels).tobytes()
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
            delattr(dataset, keyword)
        return 0.51 if photometric == "RGB" else 3.0

    return store


def _palette(dataset: Dataset, values: Floats) -> float:
    """16-bit tables by an index that counts the pixels."""
    flat = np.rint(values.reshape(-1, 3))
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    order = np.arange(len(flat))[::-1]
    raw = order.astype(np.uint8).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    for number, colour in enumerate(("Red", "Green", "Blue")):
        table = np.zeros(256)
        table[order] = flat[:, number] * 257
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        delattr(dataset, keyword)
    return 257 * 0.51


def repaired_rgb(folder: Path) -> Truth:
    """Colours move with their slices."""
    made = write(folder, store=_colours("RGB"), fields=_RGB, shift=lambda k: (0.0, 0.55 * k, 0.0))
    codes = ["gantry_tilt", "beyond_acquired"]
    return Truth((), (expect(made.planes, made.tolerance, codes=codes, fields=_RGB, regridded=True),))


COLOUR.add("rgb_by_pixel", right(store=_colours("RGB"), fields=_RGB))
COLOUR.add("rgb_by_plane", right(store=_colours("RGB", planar=1), fields=_RGB))
COLOUR.add("rgb_and_tilt", repaired_rgb, strict=["gantry_tilt"])
COLOUR.add("ybr_full", right(store=_colours("YBR_FULL"), fields=_RGB))
COLOUR.add("ybr_full_by_plane", right(store=_colours("YBR_FULL", planar=1), fields=_RGB))
COLOUR.add("ybr_full_422", right(store=_colours("YBR_FULL_422", half=True), fields=_RGB, columns=8))
COLOUR.refused(
    "ybr_full_422_with_an_odd_row", nothing_right(store=_colours("YBR_FULL_422"), fields=_RGB), "unreadable_dicom"
)


def _by_palette(folder: Path) -> Truth:
    made = write(folder, store=_palette, fields=_RGB)
    fields = tuple(field.times(257) for field in _RGB)
    return both(expect(made.planes, made.tolerance, fields=fields))


COLOUR.add("palette_color", _by_palette)
COLOUR.refused("palette_without_tables", nothing_right(edit=put_on(None, PhotometricInterpretation="PALETTE COLOR")),
               "undecodable_pixels")  # fmt: skip
COLOUR.refused("cmyk", nothing_right(edit=put_on(None, PhotometricInterpretation="CMYK")), "colour_image")
COLOUR.refused("no_photometric_interpretation", nothing_right(edit=_bare("PhotometricInterpretation")), "colour_image")
COLOUR.refused(
    "rgb_with_one_sample", nothing_right(edit=put_on(None, PhotometricInterpretation="RGB")), "unreadable_dicom"
)


# ---------------------------------------------------------------------------------------------------------- projections


def _projected(header: Mapping[str, object], spacing: tuple[float, float], **layout: Any) -> Store:
    """One picture whose true pixel spacing is `spacing`, at the origin, along the patient's own axes."""

    def store(dataset: Dataset, _values: Floats) -> float:
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            delattr(dataset, keyword)
        for keyword, value in header.items():
            setattr(dataset, keyword, value)
        down, along = np.meshgrid(np.arange(dataset.Rows), np.arange(dataset.Columns), indexing="ij")
        points = np.stack([along * spacing[1], down * spacing[0], np.zeros(down.shape)], axis=-1)
        error = put(dataset, Field()(points), **layout)
        del dataset.RescaleType
        return error

    return store


def projection(
    modality: str, spacing: tuple[float, float], origin: str, *codes: str, images: int = 1, **header: object
) -> Callable[[Path], Truth]:
    """Pictures without a position: each is a volume of its own, of one slice."""

    def make(folder: Path) -> Truth:
        store = _projected(header, spacing, signed=False, stored=14, slope=0.05)
        made = write(folder, store=store, modality=modality, slices=images)
        told = {"spacing_origin": origin} if origin else {}
        kinds = ["no_patient_position", *(["spacing_origin"] if origin else []), *codes]
        volumes = []
        for number, plane in enumerate(made.planes, start=1):
            lies = type(plane)(plane.names, np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), spacing, 5, 7)
            named = f"InstanceNumber={number}" if images > 1 else ""
            volumes.append(expect([lies], made.tolerance, codes=kinds, told=told, named=named))
        return both(*volumes)

    return make


_DETECTOR, _PATIENT = [0.4, 0.5], [0.3, 0.375]
_AT_DETECTOR, _AT_PATIENT = (0.4, 0.5), (0.3, 0.375)
_MAGNIFIED = (0.4 / 1.25, 0.5 / 1.25)
for _modality in ("CR", "DX", "MG"):
    _case = partial(projection, _modality)
    for _name, _make in {
        "pixel_spacing_alone": _case(_AT_PATIENT, "not said how", PixelSpacing=_PATIENT),
        "imager_spacing_alone": _case(_AT_DETECTOR, "at the detector", ImagerPixelSpacing=_DETECTOR),
        "both_spacings_equal": _case(
            _AT_DETECTOR, "at the detector", PixelSpacing=_DETECTOR, ImagerPixelSpacing=_DETECTOR
        ),
        "both_spacings_differ": _case(
            _AT_PATIENT, "not said how", PixelSpacing=_PATIENT, ImagerPixelSpacing=_DETECTOR
        ),
        "calibrated_by_geometry": _case(
            _AT_PATIENT, "geometry", PixelSpacing=_PATIENT, ImagerPixelSpacing=_DETECTOR,
            PixelSpacingCalibrationType="GEOMETRY",
        ),
        "magnified": _case(
            _MAGNIFIED, "magnification 1.25", ImagerPixelSpacing=_DETECTOR,
            EstimatedRadiographicMagnificationFactor=1.25,
        ),
    }.items():  # fmt: skip
        PROJECTION.add(f"{_modality.lower()}_{_name}", _make)
PROJECTION.add(
    "dx_calibrated_by_fiducial",
    projection("DX", _AT_PATIENT, "fiducial", PixelSpacing=_PATIENT, ImagerPixelSpacing=_DETECTOR,
               PixelSpacingCalibrationType="FIDUCIAL"),
)  # fmt: skip
PROJECTION.add(
    "dx_for_processing",
    projection("DX", _AT_PATIENT, "", "spacing_origin", "for_processing", PixelSpacing=_PATIENT,
               PresentationIntentType="FOR PROCESSING"),
)  # fmt: skip
PROJECTION.add(
    "dx_for_presentation",
    projection("DX", _AT_PATIENT, "", "spacing_origin", PixelSpacing=_PATIENT,
               PresentationIntentType="FOR PRESENTATION"),
)  # fmt: skip
PROJECTION.add(
    "cr_with_a_window",
    projection("CR", _AT_PATIENT, "", "spacing_origin", "voi_not_applied", PixelSpacing=_PATIENT,
               WindowCenter=500, WindowWidth=900),
)  # fmt: skip
PROJECTION.add(
    "mg_with_a_voi_lut",
    projection("MG", _AT_PATIENT, "", "spacing_origin", "voi_not_applied", PixelSpacing=_PATIENT,
               VOILUTSequence=item(LUTDescriptor=[2, 0, 16], LUTData=b"\0\0\1\0", LUTExplanation="x")),
)  # fmt: skip
PROJECTION.add("mg_two_views", projection("MG", _AT_PATIENT, "", "spacing_origin", images=2, PixelSpacing=_PATIENT))


def without_spacing(modality: str) -> Writer:
    """Nothing says how large a pixel is."""
    return lambda folder: Truth((), projection(modality, (1.0, 1.0), "", "unknown_spacing")(folder).repair)


def _bright_on_dark(folder: Path) -> Truth:
    """CR as it is mostly sent: what is bright in life is dark in numbers."""
    header = {"PixelSpacing": _PATIENT, "PhotometricInterpretation": "MONOCHROME1"}
    store = _projected(header, _AT_PATIENT, signed=False, stored=14, slope=0.05, turn=_turned(0, 2**14 - 1))
    made = write(folder, store=store, modality="CR", slices=1)
    plane = made.planes[0]
    lies = type(plane)(plane.names, np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), _AT_PATIENT, 5, 7)
    codes = ["no_patient_position", "spacing_origin", "monochrome1"]
    return Truth((), (expect([lies], made.tolerance, codes=codes),))


for _modality in ("CR", "US"):
    PROJECTION.add(f"{_modality.lower()}_without_spacing", without_spacing(_modality), strict=["missing_attribute"])
PROJECTION.add("cr_monochrome1", _bright_on_dark, strict=["monochrome1"])
for _name, _spacing in {"zero": [0, 0.4], "negative": [0.4, -0.4], "nan": ["NaN", 0.4], "huge": [1e6, 0.4]}.items():
    _store = _projected({"ImagerPixelSpacing": _spacing}, (1.0, 1.0))
    PROJECTION.refused(f"dx_spacing_{_name}", nothing_right(store=_store, modality="DX", slices=1), "invalid_geometry")

ROWS = (NUMBERS, COLOUR, PROJECTION)
