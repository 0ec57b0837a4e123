"""Several slices at one place, volumes in time, what is no slice, and what does not belong together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from phantom import AXIAL, OBLIQUE, ORIENTATIONS, PATIENT_ID, STUDY_UID, Edit, header
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    XRayRadiationDoseSRStorage,
)

from torture_rows.truth import FIELD, Expected, Truth, both, expect
from torture_rows.writing import Row, Writer, Written, put_on, write

DUPLICATE = Row("duplicate position")
TIME = Row("4D")
ASIDE = Row("not a stack")
MIXED = Row("mixed")


# ----------------------------------------------------------------------------- copies and different slices at one place


def _resent(folder: Path) -> Truth:
    made = write(folder, slices=5)
    shutil.copy(made.paths[2], folder / "again.dcm")
    return both(expect(made.planes, made.tolerance, codes=["duplicate_slices"]))


def _all_resent(folder: Path) -> Truth:
    made = write(folder / "first", slices=5)
    shutil.copytree(folder / "first", folder / "second")
    return both(expect(made.planes, made.tolerance, codes=["duplicate_slices"]))


def _copied_under_a_new_uid(folder: Path) -> Truth:
    made = write(folder, slices=5)
    dataset = pydicom.dcmread(made.paths[2])
    name = f"{STUDY_UID}.1.99"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(name)
    dataset.save_as(folder / "again.dcm")
    planes = [plane.same((name, 1)) if k == 2 else plane for k, plane in enumerate(made.planes)]
    return both(expect(planes, made.tolerance, codes=["duplicate_slices"]))


DUPLICATE.add("one_file_twice", _resent)
DUPLICATE.add("series_sent_twice", _all_resent)
DUPLICATE.add("same_pixels_under_two_uids", _copied_under_a_new_uid)


def phases(edits: Sequence[Edit], names: Sequence[str], *, slices: int = 4, **phantom: Any) -> Writer:
    """One series with a volume for each edit, all at the same places, each brighter than the one before."""

    def make(folder: Path) -> Truth:
        volumes = []
        for number, (edit, name) in enumerate(zip(edits, names, strict=True), start=1):
            field = FIELD.plus(40 * number)
            made = write(folder, fields=(field,), edit=edit, series=number, slices=slices, **phantom)
            volumes.append(_phase(made, field.offset, name))
        return both(*volumes)

    return make


def _phase(made: Written, offset: float, name: str) -> Expected:
    field = FIELD.plus(offset - FIELD.offset)
    return expect(made.planes, made.tolerance, codes=["duplicate_slices"], fields=(field,), named=name)


def by(keyword: str, *values: object) -> Writer:
    """Volumes told apart by the values of one attribute."""
    edits = [put_on(None, **{keyword: value}) for value in values]
    names = [f"{keyword}={value:g}" if isinstance(value, float) else f"{keyword}={value}" for value in values]
    return phases(edits, names)


def ranked(keyword: str, *values: Callable[[int], object]) -> Writer:
    """Volumes told apart by the rank of a time that differs a little from slice to slice."""

    def edit(value: Callable[[int], object]) -> Edit:
        return lambda dataset, k: setattr(dataset, keyword, value(k))

    return phases([edit(value) for value in values], [f"{keyword}#{number}" for number in range(1, len(values) + 1)])


def _clock(start: float) -> Callable[[int], str]:
    return lambda k: f"{120000 + start + 0.35 * k:.2f}"


for _name, _make in {
    "echo_time": by("EchoTime", 2.5, 5, 10.25),
    "b_value": by("DiffusionBValue", 0.0, 1000.0),
    "temporal_position": by("TemporalPositionIdentifier", 1, 2),
    "acquisition_number": by("AcquisitionNumber", 1, 2),
    "trigger_time_by_rank": ranked("TriggerTime", lambda k: 12 + 0.7 * k, lambda k: 340 + 0.9 * k),
    "acquisition_time": by("AcquisitionTime", "120000", "120030.5"),
    "acquisition_time_by_rank": ranked("AcquisitionTime", _clock(0), _clock(10)),
    "content_time_by_rank": ranked("ContentTime", _clock(0), _clock(10)),
}.items():
    DUPLICATE.add(f"differ_by_{_name}", _make)


def _diffusion(b_value: float, direction: Sequence[float] | None) -> Edit:
    values: dict[str, object] = {"DiffusionBValue": b_value}
    if direction is not None:
        values["DiffusionGradientOrientation"] = list(direction)
    return put_on(None, **values)


_DIRECTIONS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.6, 0.8))
_DIRECTED = [_diffusion(1000.0, direction) for direction in _DIRECTIONS]
DUPLICATE.add("differ_by_b_value_and_direction", phases([_diffusion(0.0, (0.0, 0.0, 0.0)), *_DIRECTED], [""] * 4))
DUPLICATE.add("differ_by_direction_that_b0_lacks", phases([_diffusion(0.0, None), *_DIRECTED], [""] * 4))


def _indistinct(folder: Path) -> Truth:
    write(folder, series=1)
    write(folder, series=2, fields=(FIELD.plus(40),))
    return Truth()


def _indistinct_one(folder: Path) -> Truth:
    write(folder, series=1, slices=5)
    write(folder, series=2, fields=(FIELD.plus(40),), keep=[2])
    return Truth()


def _rank_with_a_hole(folder: Path) -> Truth:
    """With one slice of one phase lost, the rank says nothing about who is who."""
    write(folder, series=1, edit=lambda dataset, k: setattr(dataset, "TriggerTime", 12 + 0.7 * k))
    write(folder, series=2, fields=(FIELD.plus(40),), keep=[0, 1, 3],
          edit=lambda dataset, k: setattr(dataset, "TriggerTime", 340 + 0.9 * k))  # fmt: skip
    return Truth()


def _shared_uid(folder: Path) -> Truth:
    write(folder, edit=put_on(None, SOPInstanceUID="1.2.3.4"))
    return Truth()


def _two_pictures_under_one_uid(folder: Path) -> Truth:
    """A slice that was sent again with other pixels; nobody can say which is right."""
    write(folder, series=1, slices=5)
    write(folder, series=2, fields=(FIELD.plus(40),), keep=[2], edit=put_on(None, SOPInstanceUID=f"{STUDY_UID}.1.3"))
    return Truth()


DUPLICATE.refused("sent_again_with_other_pixels", _two_pictures_under_one_uid, "duplicate_slices")
DUPLICATE.refused("nothing_differs", _indistinct, "duplicate_slices")
DUPLICATE.refused("nothing_differs_at_one_place", _indistinct_one, "duplicate_slices")
DUPLICATE.refused("rank_with_a_hole", _rank_with_a_hole, "duplicate_slices")
DUPLICATE.refused("different_slices_under_one_uid", _shared_uid, "shared_instance_uid")


# ------------------------------------------------------------------------------------------------------------------- 4D

for _name, _make in {
    "dce": by("TemporalPositionIdentifier", 1, 2, 3, 4),
    "multi_echo": by("EchoNumbers", 1, 2),
    "inversion_times": by("InversionTime", 100, 400),
    "cardiac_phases_by_trigger_time": by("TriggerTime", 0, 350, 700),
    "cardiac_phases_by_percentage": by("NominalPercentageOfCardiacPhase", 0.0, 50.0),
    "ct_kernels": by("ConvolutionKernel", "B30f", "B70f"),
    "dual_energy": by("KVP", 80, 140),
    "magnitude_and_phase": by("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    "dynamic_pet": ranked("FrameReferenceTime", lambda k: 10.0 + k, lambda k: 500.0 + k),
}.items():
    if _name != "magnitude_and_phase":
        TIME.add(_name, _make)
TIME.add(
    "magnitude_and_phase",
    phases([put_on(None, ImageType=["ORIGINAL", "PRIMARY", kind]) for kind in "MP"], ["ImageType", "ImageType"]),
)
TIME.add(
    "echoes_of_magnitude_and_phase",
    phases(
        [put_on(None, EchoTime=e, ImageType=["ORIGINAL", "PRIMARY", kind]) for e in (2.5, 5) for kind in "MP"],
        [f"EchoTime={e}" for e in (2.5, 2.5, 5, 5)],
    ),
)


def _unfinished(folder: Path) -> Truth:
    """A dynamic series that was stopped in its third phase."""
    volumes = []
    for number, keep in enumerate(([0, 1, 2, 3], [0, 1, 2, 3], [0, 1]), start=1):
        field = FIELD.plus(40 * number)
        made = write(folder, fields=(field,), series=number, keep=keep,
                     edit=put_on(None, TemporalPositionIdentifier=number))  # fmt: skip
        volumes.append(_phase(made, field.offset, f"TemporalPositionIdentifier={number}"))
    return both(*volumes)


def _phase_with_a_hole(folder: Path) -> Truth:
    whole = write(folder, fields=(FIELD.plus(40),), series=1, slices=6, edit=put_on(None, EchoTime=2))
    holed = write(folder, fields=(FIELD.plus(80),), series=2, keep=[0, 1, 2, 4, 5], edit=put_on(None, EchoTime=4))
    first = _phase(whole, FIELD.offset + 40, "EchoTime=2")
    second = expect(holed.planes[:3], holed.tolerance, codes=["duplicate_slices", "missing_slices"],
                    fields=(FIELD.plus(80),), named="EchoTime=4")  # fmt: skip
    return Truth((first,), (first, second))


def _overlapping_acquisitions(folder: Path) -> Truth:
    """Two acquisitions of one series that overlap by two slices."""
    volumes = []
    for number, keep in ((1, [0, 1, 2, 3, 4]), (2, [3, 4, 5, 6, 7])):
        field = FIELD.plus(40 * number)
        made = write(folder, fields=(field,), series=number, keep=keep, edit=put_on(None, AcquisitionNumber=number))
        volumes.append(_phase(made, field.offset, f"AcquisitionNumber={number}"))
    return both(*volumes)


def _echo(*spellings: str) -> Edit:
    """One echo time, which each slice writes in its own way."""
    return lambda dataset, k: setattr(dataset, "EchoTime", spellings[k % len(spellings)])


TIME.add("acquisitions_that_overlap", _overlapping_acquisitions)
TIME.add("echo_times_spelled_differently", phases([_echo("2.5", "2.50", "2.5E0"), _echo("5", "5.0")], ["EchoTime"] * 2))
TIME.add("unfinished_last_phase", _unfinished)
TIME.add("one_phase_with_a_hole", _phase_with_a_hole, strict=["missing_slices"])


# ----------------------------------------------------------------------------------------------------- what is no slice


def _with(stranger: Callable[[Path], object], **phantom: Any) -> Writer:
    """A good stack with something else in its folder."""

    def make(folder: Path) -> Truth:
        made = write(folder, **phantom)
        stranger(folder)
        return both(expect(made.planes, made.tolerance))

    return make


def _without_pixels(sop_class: str, modality: str, *, series: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        dataset = header("CT", STUDY_UID, series, 50, PATIENT_ID)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
        dataset.Modality = modality
        for keyword in ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(dataset, keyword)
        del dataset.PixelRepresentation
        dataset.save_as(folder / f"no_pixels_{series}.dcm")

    return make


def _scout(dataset: Dataset, _k: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def _screenshot(dataset: Dataset, _k: int) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, keyword)


def _segmentation(dataset: Dataset, _k: int) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    dataset.Modality = "SEG"


def _other(edit: Edit, *, in_series: bool, **phantom: Any) -> Callable[[Path], object]:
    uid = f"{STUDY_UID}.{1 if in_series else 5}"
    return lambda folder: write(folder, edit=edit, series=5, series_uid=uid, **phantom)


_SAGITTAL = ORIENTATIONS["sagittal"]
_DOSE = str(XRayRadiationDoseSRStorage)
for _name, _stranger, _code in (
    ("localizer_in_the_series", _other(_scout, in_series=True, orientation=_SAGITTAL, slices=1), "localizer"),
    ("localizers_across_the_stack", _other(_scout, in_series=True, slices=2), "localizer"),
    ("localizer_in_the_folder", _other(_scout, in_series=False, orientation=_SAGITTAL, slices=3), "localizer"),
    ("screenshot_in_the_series", _other(_screenshot, in_series=True, slices=1), "secondary_capture"),
    ("screenshot_in_the_folder", _other(_screenshot, in_series=False, slices=2), "secondary_capture"),
    ("segmentation_in_the_folder", _other(_segmentation, in_series=False, slices=2), "not_an_image"),
    ("dose_report_in_the_series", _without_pixels(_DOSE, "SR", series=1), "not_an_image"),
    ("dose_report_in_the_folder", _without_pixels(_DOSE, "SR", series=6), "not_an_image"),
    ("report_in_the_folder", _without_pixels(str(BasicTextSRStorage), "SR", series=6), "not_an_image"),
    (
        "presentation_state_in_the_folder",
        _without_pixels(str(GrayscaleSoftcopyPresentationStateStorage), "PR", series=6),
        "not_an_image",
    ),
):
    ASIDE.refused(_name, _with(_stranger, modality="CT", slices=5), _code)

_MPR = put_on(None, ImageType=["DERIVED", "SECONDARY", "MPR"])
_MIP = put_on(None, ImageType=["DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"])


def _two(first: dict[str, Any], second: dict[str, Any], *codes: str, named: str = "") -> Writer:
    """Two stacks that must come out as two volumes."""

    def make(folder: Path) -> Truth:
        one = write(folder, series=1, **first)
        other = write(folder, series=2, **second)
        return both(*(expect(made.planes, made.tolerance, codes=codes, named=named) for made in (one, other)))

    return make


ASIDE.add("reformatted_series_alone", _with(lambda _: None, edit=_MPR, orientation=OBLIQUE))
ASIDE.add("mpr_in_the_series", _two({}, {"edit": _MPR, "orientation": _SAGITTAL}, "mixed_slices"))
ASIDE.add("mpr_among_the_slices", _two({}, {"edit": _MPR, "origin": (-31.5, 12.25, 41.0)}, "mixed_slices"))
ASIDE.add("mpr_in_the_folder", _two({}, {"edit": _MPR, "orientation": _SAGITTAL, "series_uid": "1.2.9"}))


def _with_mip(folder: Path) -> Truth:
    made = write(folder)
    write(folder, edit=_MIP, series=2, slices=1, origin=(-31.5, 12.25, 41.0))
    return both(expect(made.planes, made.tolerance, codes=["mixed_slices"]))


ASIDE.refused("mip_in_the_series", _with_mip, "too_few_slices")


# -------------------------------------------------------------------------------------------- what does not go together

MIXED.add("two_series", _two({}, {"series_uid": "1.2.9"}))
MIXED.add("two_patients", _two({}, {"patient_id": "OTHER-1", "study_uid": "1.2.8", "series_uid": "1.2.8.1"}))
MIXED.add("two_studies_of_one_patient", _two({}, {"study_uid": "1.2.8", "series_uid": "1.2.8.1"}))
MIXED.add(
    "two_frames_of_reference",
    _two({}, {"edit": put_on(None, FrameOfReferenceUID="1.2.7")}, "mixed_slices", named="FrameOfReferenceUID="),
)
MIXED.add(
    "two_frames_of_reference_interleaved",
    _two({"slice_spacing": 5.0}, {"slice_spacing": 5.0, "origin": (-31.5, 12.25, 42.5),
                                  "edit": put_on(None, FrameOfReferenceUID="1.2.7")}, "mixed_slices"),
)  # fmt: skip
MIXED.add("two_matrix_sizes", _two({}, {"rows": 7, "columns": 9}, "mixed_slices", named="Rows="))
MIXED.add(
    "two_orientations",
    _two({}, {"orientation": OBLIQUE}, "mixed_slices", named="ImageOrientationPatient="),
)
MIXED.add(
    "three_planes_of_a_survey",
    lambda folder: both(
        *(
            expect(made.planes, made.tolerance, codes=["mixed_slices"])
            for number, orientation in enumerate((AXIAL, _SAGITTAL, ORIENTATIONS["coronal"]), start=1)
            for made in [write(folder, series=number, orientation=orientation, slices=3)]
        )
    ),
)
MIXED.add("two_pixel_spacings", _two({}, {"pixel_spacing": (0.7, 1.3)}, "mixed_slices", named="PixelSpacing="))
MIXED.add("two_modalities_under_one_uid", _two({}, {"modality": "CT"}, "mixed_slices", named="Modality="))


def _two_units(folder: Path) -> Truth:
    one = write(folder, series=1, modality="PT", slices=3)
    other = write(folder, series=2, modality="PT", slices=3, origin=(-31.5, 12.25, 47.5),
                  edit=put_on(None, Units="CNTS"))  # fmt: skip
    return both(
        *(expect(made.planes, made.tolerance, codes=["mixed_slices"], unit=unit)
          for made, unit in ((one, "BQML"), (other, "CNTS")))
    )  # fmt: skip


def _two_patients_of_one_study(folder: Path) -> Truth:
    write(folder, series=1)
    write(folder, series=2, series_uid="1.2.9", patient_id="OTHER-1")
    return Truth()


MIXED.add("two_units_in_one_series", _two_units)
MIXED.refused("two_patients_of_one_study", _two_patients_of_one_study, "mixed_patients")

ROWS: tuple[Row, ...] = (DUPLICATE, TIME, ASIDE, MIXED)
