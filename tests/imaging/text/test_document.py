"""Offsets lead back to the words; headings are found as they are written; no words in a repr."""

from __future__ import annotations

import hashlib
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.text.document import Document, Section, SectionName, sections_of

WORDS = ["FINDINGS", "Impression", "indication", ":", ".", "\n", "\r\n", " ", "The lungs are clear", "**", "No", "é"]


def parts(text: str) -> list[tuple[str, str]]:
    document = Document.of(text, role="report", source="file report.txt")
    return [(section.name, document.words(section)) for section in document.sections]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t", []),
        ("Lungs are clear.", [("other", "Lungs are clear.")]),
        ("INDICATION: Cough COMPARISON: None FINDINGS: Clear. IMPRESSION: Normal.",
         [("indication", "Cough"), ("comparison", "None"), ("findings", "Clear."), ("impression", "Normal.")]),
        ("Findings:\nClear.\n\nImpression:\n1. Normal.", [("findings", "Clear."), ("impression", "1. Normal.")]),
        ("findings\nClear\n\nimpression\nNormal", [("findings", "Clear"), ("impression", "Normal")]),
        ("Cough. findings: clear. impression: normal",
         [("other", "Cough."), ("findings", "clear."), ("impression", "normal")]),
        ("TECHNIQUE\r\nTwo views\r\nCONCLUSION - normal", [("technique", "Two views"), ("impression", "normal")]),
        ("FINDINGS The lungs are clear.", [("findings", "The lungs are clear.")]),
        ("## Reason for exam\nFever\n**Findings:** clear", [("indication", "Fever"), ("findings", "clear")]),
        ("History and indication: fall", [("history", "fall")]),
        ("Past medical history: asthma", [("history", "asthma")]),
        ("Report: clear\nRecommendation: none", [("findings", "clear"), ("other", "none")]),
        # What only looks like a heading.
        ("FINDINGS ARE STABLE.", [("other", "FINDINGS ARE STABLE.")]),
        ("no acute\nfindings\nare seen", [("other", "no acute\nfindings\nare seen")]),
        ("The clinical impression: flu", [("other", "The clinical impression: flu")]),
        ("Findings suggest flu.", [("other", "Findings suggest flu.")]),
    ],
)  # fmt: skip
def test_sections(text: str, expected: list[tuple[str, str]]) -> None:
    assert parts(text) == expected


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=30).map("".join))
def test_sections_are_ordered_apart_trimmed_and_named(text: str) -> None:
    end = 0
    for section in sections_of(text):
        assert section.name in get_args(SectionName)
        assert end <= section.start < section.end <= len(text)
        words = text[section.start : section.end]
        assert words == words.strip()
        end = section.end


@given(st.text(max_size=40))
def test_a_text_is_kept_as_it_is_with_its_digest(text: str) -> None:
    document = Document.of(text, role="request", source="file request.txt")
    assert document.text == text
    assert document.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_place_has_a_section() -> None:
    document = Document.of("Hello\nFINDINGS: Clear\nIMPRESSION: Normal", role="report", source="file report.txt")
    places = [document.text.index(word) for word in ("Hello", "FINDINGS", "Clear", "Normal")]
    assert [document.section_at(place) for place in places] == ["other", "other", "findings", "impression"]
    assert document.section_at(len(document.text)) == "other"


def test_no_words_in_what_is_printed() -> None:
    document = Document.of("Findings: a secret nodule", role="report", source="file report.txt", language="en")
    assert "secret" not in repr(document) + str(document)
    assert document.sections == (Section("findings", 10, 25),)


@pytest.mark.parametrize("unit", [" ", "\t", "*", "FINDINGS ", "a. ", "Findings \t*", "findings and ", "\n", ". "])
def test_hostile_repetition_stays_quick(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    begin = time.process_time()
    sections_of(text)
    assert time.process_time() - begin < 5
