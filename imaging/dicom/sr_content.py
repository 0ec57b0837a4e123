"""What a structured report says, as plain values: the same whether it is about to be written or was read back.

Invariant: `read_content` gives back exactly what a report was written from, or something that differs from it; it
shares nothing with the way out but pydicom. PS3.16 TID 1500 (measurement report) of TID 1501 and TID 1411 groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pydicom

from imaging.config import Code

Item = pydicom.Dataset

FINDING = Code(scheme="DCM", value="121071", meaning="Finding")
COMMENT = Code(scheme="DCM", value="121106", meaning="Comment")
UPPER = Code(value="371886008", meaning="+, range of upper measurement uncertainty")
LOWER = Code(value="371885007", meaning="-, range of lower measurement uncertainty")
# What the items of a group are called that are neither a measurement nor an evaluation.
_TRACKING, _TRACKING_UID = "112039", "112040"
_CATEGORY, _SITE, _SITE_MODIFIER = "276214006", "363698007", "106233006"
_NAME, _VERSION, _PARAMETERS = "111001", "111003", "111002"
_SOURCE, _SEGMENT, _SEGMENTED_SERIES = "121112", "121191", "121232"
_GROUP, _MEASUREMENTS = "125007", "126010"


@dataclass(frozen=True, slots=True)
class Maker:
    """Who made a statement (TID 4019): a model, its version, and what tells this very one from others."""

    name: str
    version: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """A number (TID 300) in its unit, between `low` and `high` where that is known, and who measured it."""

    name: Code
    value: float
    unit: Code
    low: float | None = None
    high: float | None = None
    maker: Maker | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A question and its answer, coded."""

    question: Code
    answer: Code


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment of a SEG by its number, and the series that was segmented."""

    sop_instance_uid: str
    number: int
    series_uid: str


@dataclass(frozen=True, slots=True)
class Group:
    """What is said of one thing: TID 1411 where it has a `segment`, else TID 1501.

    Attributes
    ----------
    tracking_id, tracking_uid
        What it is followed by from study to study; of a segment, the segment's own.
    maker
        Who says it.
    finding, category
        What was found; None where nothing was.
    site, site_modifier
        Where, such as a structure and which part of it.
    measured, evaluations
        What is said of it.
    comments
        The same, and why, in words.
    images
        SOPInstanceUID of each image that it was read from.
    segment
        Where it lies.
    """

    tracking_id: str
    tracking_uid: str
    maker: Maker | None = None
    finding: Code | None = None
    category: Code | None = None
    site: Code | None = None
    site_modifier: Code | None = None
    measured: tuple[Measured, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    comments: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    segment: SegmentRef | None = None


def read_content(dataset: pydicom.Dataset) -> tuple[Group, ...]:
    """The groups of a measurement report.

    Parameters
    ----------
    dataset
        The report, as it was read.
    """
    return tuple(
        _group(item)
        for measurements in _named(dataset, _MEASUREMENTS)
        for item in _named(measurements, _GROUP)
    )  # fmt: skip


def _group(item: Item) -> Group:
    segment, series = next(_named(item, _SEGMENT), None), next(_named(item, _SEGMENTED_SERIES), None)
    site = next(_named(item, _SITE), None)
    known = {_CATEGORY, _SITE, FINDING.value}
    return Group(
        tracking_id=_text(item, _TRACKING),
        tracking_uid=next((str(found.UID) for found in _named(item, _TRACKING_UID)), ""),
        maker=_maker(item),
        finding=_answer(item, FINDING.value),
        category=_answer(item, _CATEGORY),
        site=_answer(item, _SITE),
        site_modifier=None if site is None else _answer(site, _SITE_MODIFIER),
        measured=tuple(_measured(child) for child in _children(item) if child.ValueType == "NUM"),
        evaluations=tuple(
            Evaluation(_code(child.ConceptNameCodeSequence[0]), _code(child.ConceptCodeSequence[0]))
            for child in _children(item)
            if child.ValueType == "CODE" and child.RelationshipType == "CONTAINS" and _value(child) not in known
        ),
        comments=tuple(str(child.TextValue) for child in _named(item, COMMENT.value)),
        images=tuple(str(child.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for child in _named(item, _SOURCE)),
        segment=None if segment is None else _segment(segment, series),
    )


def _segment(item: Item, series: Item | None) -> SegmentRef:
    referenced = item.ReferencedSOPSequence[0]
    return SegmentRef(
        str(referenced.ReferencedSOPInstanceUID),
        int(referenced.ReferencedSegmentNumber),
        "" if series is None else str(series.UID),
    )


def _measured(item: Item) -> Measured:
    value = _number(item)
    lower, upper = (next((_number(found) for found in _named(item, c.value)), None) for c in (LOWER, UPPER))
    return Measured(
        name=_code(item.ConceptNameCodeSequence[0]),
        value=value,
        unit=_code(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]),
        low=None if lower is None else value - lower,
        high=None if upper is None else value + upper,
        maker=_maker(item),
    )


def _maker(item: Item) -> Maker | None:
    name, parameters = _text(item, _NAME), tuple(str(found.TextValue) for found in _named(item, _PARAMETERS))
    return Maker(name, _text(item, _VERSION), parameters) if name else None


def _number(item: Item) -> float:
    """The binary number where there is one: the decimal string has sixteen characters at most."""
    measured = item.MeasuredValueSequence[0]
    return float(measured.get("FloatingPointValue", measured.NumericValue))


def _answer(item: Item, value: str) -> Code | None:
    return next((_code(found.ConceptCodeSequence[0]) for found in _named(item, value)), None)


def _text(item: Item, value: str) -> str:
    return next((str(found.TextValue) for found in _named(item, value)), "")


def _named(item: Item, value: str) -> Iterator[Item]:
    """The items right below this one with this concept name; its value tells it, whatever the scheme."""
    return (child for child in _children(item) if _value(child) == value)


def _children(item: Item) -> list[Item]:
    return list(item.get("ContentSequence", ()))


def _value(item: Item) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _code(item: Item) -> Code:
    return Code(scheme=str(item.CodingSchemeDesignator), value=str(item.CodeValue), meaning=str(item.CodeMeaning))
