"""The raw values that a header walk keeps -> text and numbers, as their VR says (PS3.5 section 6.2).

Invariant: a value that is missing or malformed is empty or `None`, never a guess. Imports no torch.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from pathlib import Path

from pydicom.charset import convert_encodings, decode_bytes, python_encoding

from imaging.dicom.header import Header
from imaging.errors import InvalidUid

# PS3.5 section 9.1. Components with a leading zero break the rule and are common; they are safe as file names.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# Tags by keyword (PS3.6). Kept as numbers, so that nothing is looked up while thousands of files are read.
TAGS = {
    "SpecificCharacterSet": 0x00080005,
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "AcquisitionTime": 0x00080032,
    "PresentationIntentType": 0x00080068,
    "ContentTime": 0x00080033,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "StudyDescription": 0x00081030,
    "SeriesDescription": 0x0008103E,
    "PatientName": 0x00100010,
    "PatientID": 0x00100020,
    "PatientBirthDate": 0x00100030,
    "IssuerOfPatientID": 0x00100021,
    "BodyPartExamined": 0x00180015,
    "KVP": 0x00180060,
    "EchoTime": 0x00180081,
    "InversionTime": 0x00180082,
    "EchoNumbers": 0x00180086,
    "TriggerTime": 0x00181060,
    "EstimatedRadiographicMagnificationFactor": 0x00181114,
    "ImagerPixelSpacing": 0x00181164,
    "ConvolutionKernel": 0x00181210,
    "DiffusionBValue": 0x00189087,
    "DiffusionGradientOrientation": 0x00189089,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SeriesNumber": 0x00200011,
    "ConcatenationUID": 0x00209161,
    "InConcatenationNumber": 0x00209162,
    "InConcatenationTotalNumber": 0x00209163,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "NominalPercentageOfCardiacPhase": 0x00209241,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "PlanarConfiguration": 0x00280006,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
    "PixelSpacingCalibrationType": 0x00280A02,
    "WindowCenter": 0x00281050,
    "ModalityLUTSequence": 0x00283000,
    "VOILUTSequence": 0x00283010,
    "FrameReferenceTime": 0x00541300,
    "Units": 0x00541001,
    "PerFrameFunctionalGroupsSequence": 0x52009230,
    "ExtendedOffsetTable": 0x7FE00001,
    "ExtendedOffsetTableLengths": 0x7FE00002,
}
# PS3.10 table 7.1-1: the meta header repeats these two; some writers leave only that copy.
_IN_META = {"SOPClassUID": 0x00020002, "SOPInstanceUID": 0x00020003}
# Where makers wrote the b-value before DICOM had an attribute for it: the block's creator, its value, and its VR.
_B_VALUES = (
    (0x00190010, b"SIEMENS MR HEADER", 0x0019100C, "IS"),
    (0x20010010, b"Philips Imaging DD 001", 0x20011003, "FL"),
    (0x00430010, b"GEMS_PARM_01", 0x00431039, "IS"),
)
# GE adds this to the b-value.
_GE_ADDS = 10**9
WANTED = (
    frozenset(TAGS.values())
    | frozenset(_IN_META.values())
    | {tag for creator, _, value, _ in _B_VALUES for tag in (creator, value)}
)
# Bytes of a number where the VR is FD or FL.
_BINARY = {"DiffusionBValue": 8, "DiffusionGradientOrientation": 8, "NominalPercentageOfCardiacPhase": 4}


# TM, or DT where a frame says it: digits that are no number.
_TIMES = frozenset(("AcquisitionTime", "ContentTime"))
# The files of a series say mostly the same: what was said before is kept, once.
_REMEMBERED = 4096


def _number(part: str) -> float:
    """A DS; Python's own reading of ``1_3`` as 13 is none of DICOM's."""
    if "_" in part:
        raise ValueError(part)
    return float(part)


@lru_cache(_REMEMBERED)
def _stripped(value: bytes) -> str:
    return _printable(value.rstrip(b"\0 ").lstrip(b" ").decode("latin-1"))


def _printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return text if text.isprintable() else _CONTROL.sub("", text)


@lru_cache(_REMEMBERED)
def is_uid(value: str) -> bool:
    """Whether it is a UID by PS3.5 section 9.1."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def told_date(da: str) -> str:
    """A date (DA) as people read it, ``2026-11-22``; what is none stays as it is."""
    return f"{da[:4]}-{da[4:6]}-{da[6:]}" if len(da) == 8 and da.isdigit() else da


@lru_cache(_REMEMBERED)
def _numbers(value: str, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(_number(part) for part in value.split("\\"))
    except ValueError:
        return None
    return numbers if len(numbers) == count else None


@lru_cache(_REMEMBERED)
def plain(keyword: str, text: str) -> str:
    """A value in one spelling: numbers (``2.50``, ``2.5E0``) and times without what does not change them."""
    if keyword in _TIMES:
        return text.rstrip("0").rstrip(".") if "." in text else text
    return "\\".join(_plain(part) for part in text.split("\\"))


def _plain(part: str) -> str:
    try:
        return f"{_number(part):.15g}"
    except ValueError:
        return part


class Values:
    """The raw values of one header, read as their VR says.

    Parameters
    ----------
    path
        The file, for messages.
    header
        Its header, read with `WANTED`.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header, self._values = path, header, header.values
        self._order = "<" if header.little_endian else ">"

    def raw(self, keyword: str) -> str:
        """The value's bytes as Latin-1 without padding: for what is ASCII by its VR."""
        value = self._values.get(TAGS[keyword])
        return _stripped(value) if value else ""

    def text(self, keyword: str) -> str:
        """A string in the header's Specific Character Set."""
        value = self._values.get(TAGS[keyword], b"").strip(b"\0 ")
        if not value:
            return ""
        if value.isascii() and b"\x1b" not in value:
            return _printable(value.decode("ascii"))
        terms = self.raw("SpecificCharacterSet").split("\\")
        # pydicom warns of a term that it does not know, with the term.
        if not set(terms) <= python_encoding.keys():
            return _printable(value.decode("latin-1"))
        try:
            return _printable(decode_bytes(value, convert_encodings(terms), {0x5C}).strip())
        except (LookupError, UnicodeError, ValueError):
            return _printable(value.decode("latin-1"))

    def has(self, keyword: str) -> bool:
        """Whether the attribute is there with a value, or a sequence with an item."""
        return bool(self._values.get(TAGS[keyword]))

    def bytes(self, keyword: str) -> bytes:
        """The value as it stands in the file."""
        return self._values.get(TAGS[keyword], b"")

    def uid(self, keyword: str) -> str:
        """A UID, empty where it is missing.

        Raises
        ------
        InvalidUid
            If it breaks PS3.5 section 9.1.
        """
        value = self.raw(keyword)
        if not value and keyword in _IN_META:
            value = self._values.get(_IN_META[keyword], b"").rstrip(b"\0 ").decode("latin-1")
        if value and not is_uid(value):
            raise InvalidUid(self._path, seen=f"{keyword} is not a UID")
        return value

    def told(self, keyword: str) -> str:
        """The value as text, whether it is a string or (FD, FL) binary numbers."""
        size = _BINARY.get(keyword)
        if size is None:
            return self.raw(keyword)
        value = self.bytes(keyword)
        if not value or len(value) % size:
            return ""
        numbers = struct.unpack(f"{self._order}{len(value) // size}{'fd'[size // 8]}", value)
        return "\\".join(f"{number:g}" for number in numbers)

    def b_value(self) -> str:
        """Diffusion b-value (0018,9087), else the one that the maker wrote into a block of his own; empty if none."""
        if self.has("DiffusionBValue"):
            return self.told("DiffusionBValue")
        for creator, name, tag, vr in _B_VALUES:
            value = self._values.get(tag, b"")
            if not value or self._values.get(creator, b"").strip(b"\0 ") != name:
                continue
            if vr == "FL":
                return f"{struct.unpack(f'{self._order}f', value)[0]:g}" if len(value) == 4 else ""
            first = value.split(b"\\")[0].strip(b"\0 ")
            return str(int(first) % _GE_ADDS) if first.isdigit() else ""
        return ""

    def whole(self, keyword: str, *, signed: bool = False) -> int | None:
        """A US, or an SS where `signed`."""
        value = self._values.get(TAGS[keyword], b"")
        if len(value) != 2:
            return None
        return int.from_bytes(value, "little" if self._order == "<" else "big", signed=signed)

    def count(self, keyword: str) -> int:
        """An IS that counts: 1 where it is missing, 0 where it is none."""
        value = self.raw(keyword)
        if not value:
            return 1
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0

    def number(self, keyword: str, default: float) -> float | None:
        """A DS: `default` where it is missing, None where it is malformed."""
        return self._float(self.raw(keyword)) if self.raw(keyword) else default

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """A DS with `count` values, or None."""
        return _numbers(self.raw(keyword), count)

    @staticmethod
    def _float(part: str) -> float | None:
        try:
            return _number(part)
        except ValueError:
            return None
