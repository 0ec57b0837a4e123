"""Bytes are read within a bound, decoded as they say, and refused by name without a word of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.errors import ImagingError, NothingFound, NotPlainText, TextEmpty, TextEncoding, TextLanguage, TextTooLarge
from imaging.text.plain import LARGEST_TEXT, checked, decoded, read_bounded

REPORT = "The lungs are clear. No XANTHIPPE is seen. 37 °C"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_and_utf8_are_understood(encoding: str) -> None:
    assert decoded(REPORT.encode(encoding), "a text") == REPORT


def test_a_declared_encoding_is_used_and_none_is_guessed() -> None:
    assert decoded(REPORT.encode("latin-1"), "a text", encoding="iso-8859-1") == REPORT
    with pytest.raises(TextEncoding, match="not utf-8 at byte"):
        decoded(REPORT.encode("latin-1"), "a text")
    with pytest.raises(TextEncoding, match="not known"):
        decoded(b"clear", "a text", encoding="no-such")


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"%PDF-1.7 XANTHIPPE", "a PDF document"),
        (b"{\\rtf1 XANTHIPPE}", "an RTF document"),
        (b"PK\x03\x04XANTHIPPE", "a ZIP archive or office document"),
        (b"The lungs\0XANTHIPPE", "binary data"),
        (bytes(range(16)), "binary data"),
    ],
)
def test_what_is_no_plain_text_is_named(data: bytes, seen: str) -> None:
    with pytest.raises(NotPlainText, match=seen) as raised:
        decoded(data, "a text")
    assert "XANTHIPPE" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", TextEmpty),
        (" \n\t\r\n", TextEmpty),
        ("12.5 ... 3", TextEmpty),
        ("clear\x1b[31m XANTHIPPE", NotPlainText),
        ("<html><body>XANTHIPPE</body></html>", NotPlainText),
        ('<?xml version="1.0"?><DiagnosticReport/>', NotPlainText),
        ("clear \ud800 XANTHIPPE", TextEncoding),
        ("clear \ufffd XANTHIPPE", TextEncoding),
        ("Kein Nachweis von XANTHIPPE in der Lunge.", TextLanguage),
        ("Лёгкие без очаговых изменений XANTHIPPE", TextLanguage),
        ("clear " * (LARGEST_TEXT // 6 + 1), TextTooLarge),
    ],
    ids=["nothing", "blank", "numbers", "escape", "html", "xml", "surrogate", "lost", "german", "russian", "large"],
)
def test_texts_that_cannot_be_read_are_refused_by_name(text: str, error: type[ImagingError]) -> None:
    with pytest.raises(error) as raised:
        checked(text, "a text")
    assert "XANTHIPPE" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_english_is_told_and_too_little_is_not() -> None:
    assert checked(REPORT, "a text") == "en"
    assert checked("Cough.", "a text") == ""


def test_a_large_file_is_never_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.txt"
    with path.open("wb") as stream:
        stream.truncate(10_000_000)
    with pytest.raises(TextTooLarge, match="10000000 bytes"):
        read_bounded(path, LARGEST_TEXT)
    # One that grows after it was asked for its size is cut off, too.
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: os.stat_result([*real(number)[:6], 10, *real(number)[7:10]]))
    with pytest.raises(TextTooLarge, match="more than 1000 bytes"):
        read_bounded(path, 1000)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, error in (("pipe", NotPlainText), (".", NotPlainText), ("none.txt", NothingFound)):
        with pytest.raises(error):
            read_bounded(tmp_path / name, 1000)


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        text = decoded(data, "a text")
        checked(text, "a text")
    except ImagingError:
        return
    assert text.encode().decode() == text
    assert any(letter.isalpha() for letter in text)
