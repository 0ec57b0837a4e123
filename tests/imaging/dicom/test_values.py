"""Raw header values become text and numbers as their VR says, or nothing; never a guess and never a control sign."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword

from imaging.dicom.header import EXPLICIT_BE, EXPLICIT_LE, Header
from imaging.dicom.values import TAGS, WANTED, Values, plain, told_date
from imaging.errors import InvalidUid


def values_of(values: dict[int, bytes], *, little: bool = True) -> Values:
    syntax = EXPLICIT_LE if little else EXPLICIT_BE
    return Values(Path("one.dcm"), Header(syntax, little, values, 0, 0, 0, b"", 0, True, (0, 0, 0)))


def one(keyword: str, value: bytes) -> Values:
    return values_of({TAGS[keyword]: value})


def test_tags_are_those_of_the_dictionary() -> None:
    assert {keyword: tag_for_keyword(keyword) for keyword in TAGS} == TAGS


@pytest.mark.parametrize("value", [b"1_3\\0.7", b"1_0\\1_0", b"0x1\\1", b"1,3\\0.7", b"\\0.7", b"1.3", b"1\\2\\3"])
def test_what_is_no_two_decimal_strings_is_none(value: bytes) -> None:
    assert one("PixelSpacing", value).numbers("PixelSpacing", 2) is None


@pytest.mark.parametrize("value", [b"1_0", b"1e", b"--1", b"ten"])
def test_what_is_no_decimal_string_is_none_and_what_is_missing_the_default(value: bytes) -> None:
    assert one("RescaleSlope", value).number("RescaleSlope", 1.0) is None
    assert values_of({}).number("RescaleSlope", 1.0) == 1.0
    assert one("RescaleSlope", b" 1.5 ").number("RescaleSlope", 1.0) == 1.5


def test_a_number_with_an_underscore_is_not_told_as_another() -> None:
    assert plain("EchoTime", "1_0") == "1_0"
    assert plain("EchoTime", "10.0") == plain("EchoTime", "1E1") == "10"


@pytest.mark.parametrize(
    ("one_time", "other", "same"),
    [
        ("120000.50", "120000.5", True),
        ("120000.00", "120000", True),
        ("120000", "12", False),
        ("20260101120000.00", "20260101120059.00", False),
        ("20260101120000.000001", "20260101120000.000002", False),
    ],
)
def test_times_keep_all_their_digits(one_time: str, other: str, same: bool) -> None:
    assert (plain("AcquisitionTime", one_time) == plain("AcquisitionTime", other)) == same


@pytest.mark.filterwarnings("ignore")  # pydicom's, of the escapes
@pytest.mark.parametrize("keyword", ["SeriesDescription", "Modality", "PhotometricInterpretation", "ImageType"])
@given(value=st.binary(max_size=20), charset=st.sampled_from([b"", b"ISO_IR 192", b"ISO_IR 100", b"GB18030", b"?"]))
def test_no_text_holds_a_control_sign(keyword: str, value: bytes, charset: bytes) -> None:
    values = values_of({TAGS[keyword]: b"a\x1b]0;b\x07" + value, TAGS["SpecificCharacterSet"]: charset})
    for text in (values.text(keyword), values.raw(keyword)):
        assert text.startswith("a")
        assert not {sign for sign in text if ord(sign) < 32 or 127 <= ord(sign) < 160}


@pytest.mark.parametrize("value", [b"DOE^JANE", b"1.2.", b".12", b"1..2", b"1.2 3", b"1" * 65])
def test_a_uid_that_is_none_is_refused_and_not_repeated(value: bytes) -> None:
    with pytest.raises(InvalidUid) as caught:
        one("FrameOfReferenceUID", value).uid("FrameOfReferenceUID")
    assert value.decode() not in str(caught.value).removeprefix("invalid_uid: ")


SIEMENS = {0x00190010: b"SIEMENS MR HEADER ", 0x0019100C: b"1000"}
GE = {0x00430010: b"GEMS_PARM_01", 0x00431039: b"1000000800\\8\\0\\0"}


def philips(order: str) -> dict[int, bytes]:
    return {0x20010010: b"Philips Imaging DD 001", 0x20011003: struct.pack(f"{order}f", 1500)}


@pytest.mark.parametrize(
    ("values", "b_value"),
    [
        (SIEMENS, "1000"),
        (GE, "800"),
        (GE | {0x00431039: b"0\\8\\0\\0"}, "0"),
        (GE | {0x00431039: b"800\\8"}, "800"),
        (philips("<"), "1500"),
        (SIEMENS | {TAGS["DiffusionBValue"]: struct.pack("<d", 700)}, "700"),
        ({}, ""),
        (SIEMENS | {0x00190010: b"ANOTHER MAKER"}, ""),
        ({0x0019100C: b"1000"}, ""),
        (SIEMENS | {0x0019100C: b"none"}, ""),
        (SIEMENS | {0x0019100C: b""}, ""),
        (philips("<") | {0x20011003: b"ab"}, ""),
    ],
)
def test_a_b_value_is_found_where_its_maker_wrote_it(values: dict[int, bytes], b_value: str) -> None:
    assert set(values) <= WANTED
    assert values_of(values).b_value() == b_value


def test_a_b_value_follows_the_order_of_bytes() -> None:
    assert values_of(philips(">"), little=False).b_value() == "1500"


def test_a_date_is_told_as_people_read_it_and_what_is_none_as_it_is() -> None:
    assert told_date("20261122") == "2026-11-22"
    for other in ("2026.11.22", "202611", "last May", ""):
        assert told_date(other) == other
