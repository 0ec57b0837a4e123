"""What a protocol made different on purpose, and parts that did not come: never mixed, never taken for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from phantom import STUDY_UID, Edit, Floats
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import OphthalmicTomographyImageStorage

from torture_rows.truth import FIELD, Truth, both, expect
from torture_rows.writing import FrameSpec, Row, Writer, item, put, put_on, write, write_enhanced

PROTOCOL = Row("mixed")
CLOCK = Row("4D")
SCALE = Row("stored values")
PARTS = Row("multi-frame")
ASIDE = Row("not a stack")

_ORIGIN = (-31.5, 12.25, 40.0)


def beside(offset: float, edits: Sequence[Edit], names: Sequence[str], **phantom: Any) -> Writer:
    """Stacks of one series, each brighter than the one before and `offset` mm above it."""

    def make(folder: Path) -> Truth:
        volumes = []
        for number, (edit, name) in enumerate(zip(edits, names, strict=True)):
            field = FIELD.plus(40 * number)
            origin = (*_ORIGIN[:2], _ORIGIN[2] + number * offset)
            made = write(folder, series=number + 1, fields=(field,), edit=edit, origin=origin, **phantom)
            volumes.append(expect(made.planes, made.tolerance, codes=["mixed_slices"], fields=(field,), named=name))
        return both(*volumes)

    return make


_ECHOES = [put_on(None, EchoTime=2.5), put_on(None, EchoTime=80)]
for _name, _offset in (
    ("interleaved_evenly", 1.25),
    ("interleaved_unevenly", 0.75),
    ("0.02_mm_beside", 0.02),
    ("0.5_mm_beside", 0.5),
    ("in_two_slabs", 10.0),
):
    PROTOCOL.add(f"echoes_{_name}", beside(_offset, _ECHOES, ["EchoTime=2.5", "EchoTime=80"]))
for _keyword, _values, _modality in (
    ("ConvolutionKernel", ("B30", "B70"), "CT"),
    ("KVP", (80, 140), "CT"),
    ("InversionTime", (100, 900), "MR"),
    ("DiffusionBValue", (0.0, 1000.0), "MR"),
    ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "MR"),
):
    _make = beside(1.25, [put_on(None, **{_keyword: value}) for value in _values], [f"{_keyword}="] * 2,
                   modality=_modality)  # fmt: skip
    PROTOCOL.add(f"{_keyword.lower()}_interleaved_evenly", _make)


def _siemens(number: int) -> Edit:
    """The b-value in the maker's own block, acquired in turn: b=0 first at even places, b=1000 first at odd ones."""

    def edit(dataset: Dataset, k: int) -> None:
        second = number != k % 2
        dataset.ContentTime = f"{120000 + 10 * second + k:06d}"
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", str(1000 * number))

    return edit


def _philips(number: int) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", 1000.0 * number)

    return edit


def _ge(number: int) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        block = dataset.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x39, "IS", [10**9 + 1000 * number, 8, 0, 0])

    return edit


def at_one_place(edits: Sequence[Edit], names: Sequence[str]) -> Writer:
    """The same, all at the same places."""

    def make(folder: Path) -> Truth:
        volumes = []
        for number, (edit, name) in enumerate(zip(edits, names, strict=True)):
            field = FIELD.plus(40 * number)
            made = write(folder, series=number + 1, fields=(field,), edit=edit)
            volumes.append(expect(made.planes, made.tolerance, codes=["duplicate_slices"], fields=(field,), named=name))
        return both(*volumes)

    return make


for _name, _private in (("siemens", _siemens), ("philips", _philips), ("ge", _ge)):
    _names = ["DiffusionBValue=0", "DiffusionBValue=1000"]
    CLOCK.add(f"b_value_as_{_name}_wrote_it", at_one_place([_private(0), _private(1)], _names))


def _at(times: Sequence[str]) -> Edit:
    return lambda dataset, k: setattr(dataset, "AcquisitionTime", times[k])


def _by_clock(*phases: Sequence[str]) -> Writer:
    """Volumes that only the clock tells apart, and it does not."""

    def make(folder: Path) -> Truth:
        for number, times in enumerate(phases):
            write(folder, series=number + 1, fields=(FIELD.plus(40 * number),), edit=_at(times))
        return Truth()

    return make


_BEFORE = ("235959.0", "235959.2", "235959.4", "235959.6")
CLOCK.refused(
    "acquired_across_midnight", _by_clock(_BEFORE, ("235959.8", "000000.0", "000000.2", "000000.4")), "duplicate_slices"
)
CLOCK.refused(
    "acquired_before_and_after_midnight",
    _by_clock(_BEFORE, ("000000.0", "000000.2", "000000.4", "000000.6")),
    "duplicate_slices",
)
CLOCK.refused(
    "acquired_in_turn_at_each_place",
    _by_clock(("100000", "100003", "100004", "100007"), ("100001", "100002", "100005", "100006")),
    "duplicate_slices",
)


def _phases_that_share_uids(folder: Path) -> Truth:
    for number in (1, 2):
        write(folder / str(number), fields=(FIELD.plus(40 * number),),
              edit=put_on(None, TemporalPositionIdentifier=number))  # fmt: skip
    return Truth()


CLOCK.refused("phases_that_share_their_uids", _phases_that_share_uids, "shared_instance_uid")


def _of_two_studies(folder: Path) -> Truth:
    """Every other slice names another study."""

    def edit(dataset: Dataset, k: int) -> None:
        if k % 2:
            dataset.StudyInstanceUID = "1.2.8"

    made = write(folder, slices=8, edit=edit)
    return Truth((), tuple(expect(made.planes[n::2], made.tolerance, codes=["shared_series"]) for n in (0, 1)))


def _frame_of_reference_in_words(folder: Path) -> Truth:
    made = write(folder, edit=lambda dataset, k: setattr(dataset, "FrameOfReferenceUID", "Doe^Jane") if k > 1 else None)
    return both(expect(made.planes[:2], made.tolerance))


PROTOCOL.add("one_series_of_two_studies", _of_two_studies, strict=["missing_attribute"])
PROTOCOL.refused("frame_of_reference_in_words", _frame_of_reference_in_words, "invalid_uid")


# ---------------------------------------------------------------------------------------------------------------- scale


def one(*codes: str, unit: str | None = None, **more: Any) -> Writer:
    """One volume under both policies."""

    def make(folder: Path) -> Truth:
        made = write(folder, **more)
        return both(expect(made.planes, made.tolerance, codes=codes, unit=unit))

    return make


def none(**more: Any) -> Writer:
    """No volume."""

    def make(folder: Path) -> Truth:
        write(folder, **more)
        return Truth()

    return make


def _empty_table(*, scale: bool) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.ModalityLUTSequence = Items([])
        if not scale:
            del dataset.RescaleSlope, dataset.RescaleIntercept

    return edit


def _table(dataset: Dataset) -> None:
    entries = np.arange(65535, dtype="<u2").tobytes()
    dataset.ModalityLUTSequence = item(LUTDescriptor=[65535, -32768, 16], ModalityLUTType="HU", LUTData=entries)
    dataset.ModalityLUTSequence[0]["LUTData"].VR = "OW"


def _table_in_the_first(dataset: Dataset, k: int) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept
    if k == 0:
        _table(dataset)


SCALE.add("empty_modality_lut_beside_a_rescale", one(modality="CT", unit="HU", edit=_empty_table(scale=True)))
SCALE.refused("empty_modality_lut_alone", none(modality="CT", edit=_empty_table(scale=False)), "missing_attribute")
SCALE.refused("modality_lut_beside_a_rescale", none(modality="CT", edit=lambda dataset, _: _table(dataset)),
              "unreadable_dicom")  # fmt: skip
SCALE.refused("modality_lut_of_one_slice", none(modality="CT", edit=_table_in_the_first), "missing_attribute")
SCALE.refused("no_pixel_representation", none(modality="CT", edit=put_on(None, PixelRepresentation=None)),
              "missing_attribute")  # fmt: skip
SCALE.refused("no_pixel_representation_in_one_slice", none(edit=put_on(2, PixelRepresentation=None)),
              "missing_attribute")  # fmt: skip
SCALE.refused("mr_one_slice_without_a_slope", none(edit=put_on(2, RescaleSlope=None, RescaleIntercept=None)),
              "missing_attribute")  # fmt: skip
SCALE.refused("slope_of_0", none(edit=put_on(None, RescaleSlope=0)), "missing_attribute")
SCALE.add("ct_of_unspecified_type_has_no_hu", one(modality="CT", unit="", edit=put_on(None, RescaleType="US")))


def _with_an_underscore(folder: Path) -> Truth:
    """Python reads ``1_3`` as 13."""
    for path in write(folder).paths:
        content = path.read_bytes()
        assert b"1.3\\0.7" in content
        path.write_bytes(content.replace(b"1.3\\0.7", b"1_3\\0.7"))
    return Truth()


SCALE.refused("underscore_in_a_number", _with_an_underscore, "missing_attribute")


def _dark(slopes: Sequence[float], stored: Sequence[int]) -> Writer:
    """MONOCHROME1 whose slices have ranges of their own."""

    def make(folder: Path) -> Truth:
        def edit(dataset: Dataset, k: int) -> None:
            dataset.PhotometricInterpretation = "MONOCHROME1"
            dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, stored[k], stored[k] - 1
            dataset.RescaleSlope, dataset.RescaleIntercept = slopes[k], 0
            dataset.PixelData = np.full((5, 7), 100, "<u2").tobytes()

        write(folder, edit=edit)
        return Truth()

    return make


SCALE.refused("monochrome1_with_two_slopes", _dark([1, 2, 1, 2], [12] * 4), "monochrome1")
SCALE.refused("monochrome1_with_two_depths", _dark([1] * 4, [12, 16, 12, 16]), "monochrome1")


def _same_bytes_with_a_sign(folder: Path) -> Truth:
    """The bytes of a picture, once signed and once not, are two pictures."""

    def store(dataset: Dataset, values: Floats) -> float:
        return put(dataset, values, slope=None)

    write(folder, series=1, store=store)
    write(folder, series=2, store=store, edit=put_on(None, PixelRepresentation=0))
    return Truth()


SCALE.refused("same_bytes_with_and_without_a_sign", _same_bytes_with_a_sign, "duplicate_slices")


# ---------------------------------------------------------------------------------------------------------------- parts


def _frames(count: int = 4) -> list[FrameSpec]:
    return [FrameSpec(k) for k in range(count)]


def _without_intercepts(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence[0].RescaleIntercept


def _half_a_scale(folder: Path) -> Truth:
    write_enhanced(folder, _frames(), modality="CT", edit=_without_intercepts)
    return Truth()


def _first_part(folder: Path) -> Truth:
    """The first of three parts of a concatenation."""

    def edit(dataset: Dataset) -> None:
        dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = f"{STUDY_UID}.6", 0
        dataset.InConcatenationNumber, dataset.InConcatenationTotalNumber = 1, 3

    made = write_enhanced(folder, _frames(), edit=edit)
    told = {"missing_slices": "1 of 3"}
    return Truth((), (expect(made.planes, made.tolerance, codes=["missing_slices"], told=told),))


def _all_parts(folder: Path) -> Truth:
    def edit_of(number: int) -> Any:
        def edit(dataset: Dataset) -> None:
            dataset.SeriesInstanceUID = f"{STUDY_UID}.1"
            dataset.ConcatenationUID, dataset.ConcatenationFrameOffsetNumber = f"{STUDY_UID}.6", 3 * (number - 1)
            dataset.InConcatenationNumber, dataset.InConcatenationTotalNumber = number, 2

        return edit

    parts = [
        write_enhanced(folder, [FrameSpec(3 * (n - 1) + k) for k in range(3)], series=n, edit=edit_of(n))
        for n in (1, 2)
    ]
    return both(expect([plane for part in parts for plane in part.planes], parts[0].tolerance))


PARTS.refused("enhanced_ct_slope_without_intercept", _half_a_scale, "missing_attribute")
PARTS.add("enhanced_one_of_three_parts", _first_part, strict=["missing_slices"])
PARTS.add("enhanced_both_parts", _all_parts)


def _projected(folder: Path) -> Truth:
    """A projection among the slices, which calls itself ORIGINAL."""
    made = write(folder, edit=lambda dataset, k: setattr(dataset, "ImageType", _MIP) if k == 3 else None)
    return both(expect(made.planes[:3], made.tolerance, codes=["mixed_slices"]))


_MIP = ["ORIGINAL", "PRIMARY", "MIP"]
_EYE = put_on(None, SOPClassUID=OphthalmicTomographyImageStorage)
ASIDE.refused("mip_that_says_original", _projected, "too_few_slices")
ASIDE.add("ophthalmic_tomography", one(edit=_EYE))

ROWS = (PROTOCOL, CLOCK, SCALE, PARTS, ASIDE)
