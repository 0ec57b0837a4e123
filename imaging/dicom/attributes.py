"""A header -> the attributes of an instance that ordering, choosing and decoding need.

Invariant: a value that is missing or malformed is `None` (or 0 for sizes), never a guess; whoever needs it says by name
that it is missing. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydicom.uid import UID

from imaging.dicom.header import Header, read_header
from imaging.dicom.values import WANTED, Values, plain
from imaging.errors import MissingAttribute, UnreadableDicom
from imaging.volume import SeriesFacts

# What may tell slices at one place apart, in the order in which it is tried: what a protocol varies on purpose before
# what only the clock says.
MOMENTS = (
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "TriggerTime",
    "FrameReferenceTime",
    "KVP",
    "ConvolutionKernel",
    "ImageType",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
)


@dataclass(frozen=True, slots=True)
class Pixels:
    """How the pixels of a file are stored (PS3.3 C.7.6.3, C.11.1).

    Attributes
    ----------
    tag
        (7FE0,0010), or (7FE0,0008) and (7FE0,0009) for float and double; 0 where there are none.
    offset, length
        Where the value begins in the file and its declared length.
    file_size
        Bytes of the file, or of its inflated data set.
    transfer_syntax
        UID.
    little_endian
        Byte order of native pixels.
    in_words
        Whether native pixels are words by their VR (OW): a big-endian file then holds each two of 8 bits swapped.
    samples, planar, bits_allocated, bits_stored, high_bit, signed
        As the header says; 0 where it does not. `planar` is Planar Configuration: each colour lies by itself.
    is_sign_told
        Whether there is a Pixel Representation, without which nobody knows whether the values have a sign.
    slope, intercept
        Rescale; None where only one of the two is there, or one is malformed.
    rescaled
        Whether the header has them.
    lookup
        Whether the header has a Modality LUT Sequence.
    rescale_type, units
        Rescale Type (0028,1054), and Units (0054,1001) of PET.
    padding, padding_limit
        Pixel Padding Value and Range Limit as stored, or None.
    offset_table
        Extended Offset Table and its Lengths (PS3.3 C.7.6.3.1.8), where the header has them.
    """

    tag: int
    offset: int
    length: int
    file_size: int
    transfer_syntax: str
    little_endian: bool
    in_words: bool
    samples: int
    planar: bool
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    is_sign_told: bool
    slope: float | None
    intercept: float | None
    rescaled: bool
    lookup: bool
    rescale_type: str
    units: str
    padding: int | None
    padding_limit: int | None
    offset_table: tuple[bytes, bytes] | None


@dataclass(frozen=True, slots=True)
class Projection:
    """What the header of an image without a position in the patient says of its scale and its values.

    Attributes
    ----------
    imager_spacing
        Imager Pixel Spacing (0018,1164) in mm at the detector: between rows, between columns.
    magnification
        Estimated Radiographic Magnification Factor (0018,1114).
    calibration
        Pixel Spacing Calibration Type (0028,0A02): ``GEOMETRY``, ``FIDUCIAL`` or empty.
    intent
        Presentation Intent Type (0008,0068): ``FOR PROCESSING``, ``FOR PRESENTATION`` or empty.
    voi
        Whether a window or a VOI LUT is given, which the reader leaves to the viewer.
    number
        Instance Number (0020,0013), to tell the images of a series apart in text; never to order anything.
    """

    imager_spacing: tuple[float, ...] | None
    magnification: float | None
    calibration: str
    intent: str
    voi: bool
    number: str


@dataclass(frozen=True, slots=True)
class Instance:
    """What the header of one file says.

    Attributes
    ----------
    path
        The file.
    sop_class_uid, sop_instance_uid, frame_of_reference_uid
        DICOM UIDs; the frame of reference may be empty.
    study_uid, series_uid
        DICOM UIDs; empty where the header has none.
    modality, image_type, photometric
        Modality, Image Type and Photometric Interpretation.
    rows, columns, frames
        Size of the pixel data; 0 rows where there is none.
    spacing
        Pixel Spacing (0028,0030) in mm: between rows, between columns; None where missing or malformed.
    orientation
        Image Orientation (Patient) (0020,0037): direction cosines in LPS along a row and down a column, or None.
    position
        Image Position (Patient) (0020,0032) in LPS mm of the first pixel's centre, or None.
    moment
        Those of `MOMENTS` that the header has, which tell volumes of one series apart that lie at the same place.
    has_groups
        Whether there are per-frame functional groups, which place each frame.
    has_meta
        Whether a meta header names the transfer syntax.
    version
        Of the file when it was scanned; it is read only while it is the same.
    concatenation
        ConcatenationUID, the part's number and how many there are, where a multi-frame object was cut into parts.
    pixels
        How the pixels are stored.
    projection
        Where there is no position.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    image_type: tuple[str, ...]
    photometric: str
    rows: int
    columns: int
    frames: int
    spacing: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    moment: tuple[tuple[str, str], ...]
    has_groups: bool
    has_meta: bool
    version: tuple[int, int, int]
    concatenation: tuple[str, int, int] | None
    pixels: Pixels
    projection: Projection | None

    @property
    def class_name(self) -> str:
        """The storage class in words (PS3.4 annex B.5)."""
        return _class_name(self.sop_class_uid)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file's instance, and what its study and series take from it."""

    instance: Instance
    series: SeriesFacts
    patient: tuple[str, str, str] = field(repr=False)
    patient_id: str = field(repr=False)
    study_description: str = field(repr=False)
    date: str = field(repr=False)
    accession: str = field(repr=False)


def read_facts(path: Path) -> FileFacts:
    """Read what one file's header says.

    Raises
    ------
    NotDicom, UnreadableDicom, UnsupportedTransferSyntax
        If the file cannot be walked.
    MissingAttribute, InvalidUid
        If it does not say what it is (SOPClassUID, SOPInstanceUID), or a UID is none.
    """
    header = read_header(path, WANTED)
    values = Values(path, header)
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not values.uid(keyword):
            raise MissingAttribute(path, seen=f"{keyword} is missing or empty")
    instance = _instance(path, header, values)
    if not header.pixel_tag and "Image Storage" in instance.class_name:
        raise UnreadableDicom(path, seen="the file ends before its pixel data")
    series = SeriesFacts(
        study_uid=instance.study_uid,
        series_uid=instance.series_uid,
        frame_of_reference_uid=instance.frame_of_reference_uid,
        modality=instance.modality,
        description=values.text("SeriesDescription"),
        body_part=values.text("BodyPartExamined"),
        number=values.text("SeriesNumber"),
    )
    return FileFacts(
        instance,
        series,
        _patient(values),
        values.text("PatientID"),
        values.text("StudyDescription"),
        values.text("StudyDate"),
        values.text("AccessionNumber"),
    )


@cache
def _class_name(sop_class_uid: str) -> str:
    return UID(sop_class_uid).name


def _instance(path: Path, header: Header, values: Values) -> Instance:
    position = values.numbers("ImagePositionPatient", 3)
    told = {keyword: values.told(keyword) for keyword in MOMENTS if values.has(keyword)}
    told["DiffusionBValue"] = values.b_value()
    moment = ((keyword, plain(keyword, told[keyword])) for keyword in MOMENTS if told.get(keyword))
    return Instance(
        path=path,
        sop_class_uid=values.uid("SOPClassUID"),
        sop_instance_uid=values.uid("SOPInstanceUID"),
        study_uid=values.uid("StudyInstanceUID"),
        series_uid=values.uid("SeriesInstanceUID"),
        frame_of_reference_uid=values.uid("FrameOfReferenceUID"),
        modality=values.text("Modality"),
        image_type=tuple(part for part in values.text("ImageType").split("\\") if part),
        photometric=values.text("PhotometricInterpretation"),
        rows=values.whole("Rows") or 0,
        columns=values.whole("Columns") or 0,
        frames=values.count("NumberOfFrames"),
        spacing=values.numbers("PixelSpacing", 2),
        orientation=values.numbers("ImageOrientationPatient", 6),
        position=position,
        moment=tuple((keyword, value) for keyword, value in moment if value),
        has_groups=values.has("PerFrameFunctionalGroupsSequence"),
        has_meta=header.has_meta,
        version=header.version,
        concatenation=_concatenation(values),
        pixels=_pixels(header, values),
        projection=_projection(values) if position is None or values.has("PerFrameFunctionalGroupsSequence") else None,
    )


def _concatenation(values: Values) -> tuple[str, int, int] | None:
    """PS3.3 C.7.6.16.2.2.4; the total may be left out, and is then the number of parts that came."""
    uid = values.uid("ConcatenationUID")
    number = values.whole("InConcatenationNumber") or 0
    return (uid, number, values.whole("InConcatenationTotalNumber") or 0) if uid else None


def _patient(values: Values) -> tuple[str, str, str]:
    """Whose file it is; without an id only name and birth date can tell two people apart."""
    if values.text("PatientID"):
        return "id", values.text("PatientID"), values.text("IssuerOfPatientID")
    return "no id", values.text("PatientName").rstrip("^ ").upper(), values.text("PatientBirthDate")


def _projection(values: Values) -> Projection:
    number = values.raw("InstanceNumber")
    return Projection(
        imager_spacing=values.numbers("ImagerPixelSpacing", 2),
        magnification=values.number("EstimatedRadiographicMagnificationFactor", 1.0),
        calibration=values.raw("PixelSpacingCalibrationType"),
        intent=values.raw("PresentationIntentType"),
        voi=bool(values.raw("WindowCenter")) or values.has("VOILUTSequence"),
        number=number if number.isdigit() else "",
    )


def _pixels(header: Header, values: Values) -> Pixels:
    allocated = values.whole("BitsAllocated") or 0
    stored = values.whole("BitsStored") or allocated
    representation = values.whole("PixelRepresentation")
    signed = representation == 1
    high = values.whole("HighBit")
    slope, intercept = values.raw("RescaleSlope"), values.raw("RescaleIntercept")
    # One without the other (PS3.3 C.11.1 requires both) leaves the scale unknown.
    half = bool(slope) != bool(intercept)
    table = values.bytes("ExtendedOffsetTable"), values.bytes("ExtendedOffsetTableLengths")
    return Pixels(
        tag=header.pixel_tag,
        offset=header.pixel_offset,
        length=header.pixel_length,
        file_size=header.size,
        transfer_syntax=header.transfer_syntax,
        little_endian=header.little_endian,
        in_words=header.pixel_vr == b"OW",
        samples=values.whole("SamplesPerPixel") or 1,
        planar=values.whole("PlanarConfiguration") == 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high is None else high,
        signed=signed,
        is_sign_told=representation in (0, 1),
        slope=None if half else values.number("RescaleSlope", 1.0),
        intercept=None if half else values.number("RescaleIntercept", 0.0),
        rescaled=bool(slope and intercept),
        lookup=values.has("ModalityLUTSequence"),
        rescale_type=values.raw("RescaleType"),
        units=values.raw("Units"),
        padding=values.whole("PixelPaddingValue", signed=signed),
        padding_limit=values.whole("PixelPaddingRangeLimit", signed=signed),
        offset_table=table if table[0] else None,
    )
