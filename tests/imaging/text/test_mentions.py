"""Findings are found by their names and other words, once, whole, with the table's code and what is said of them."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.codes import code_of, shipped_codes
from imaging.text import mentions
from imaging.text.assertion import sentences
from imaging.text.document import Document
from imaging.text.mentions import find_mentions, is_general
from imaging.text.region import Region

TABLE = Path(mentions.__file__).with_name("phrases.csv")
WORDS = ["effusion", "pleural", "pericardial", "No", "masses", "the heart is enlarged", ".", ",", "\n", "nodule-", "TB"]


def found(text: str, region: Region | None = None) -> list[tuple[str, str, str]]:
    document = Document.of(text, role="report", source="file report.txt")
    return [
        (text[span.start : span.end], span.assertion, span.code.meaning if span.code else "")
        for span in find_mentions(document, region=region)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pleural effusion or pneumothorax.",
         [("pleural effusion", "absent", "Pleural effusion"), ("pneumothorax", "absent", "Pneumothorax")]),
        ("Pericardial effusion.", [("Pericardial effusion", "present", "Pericardial effusion")]),
        ("Possible pneumonia", [("pneumonia", "uncertain", "Pneumonia")]),
        ("The heart is not enlarged.", [("enlarged", "absent", "Cardiomegaly")]),
        ("Heart size is mildly enlarged.", [("enlarged", "present", "Cardiomegaly")]),
        ("Borderline heart size.", [("heart size", "uncertain", "Cardiomegaly")]),
        ("PLEURAL EFFUSIONS", [("PLEURAL EFFUSIONS", "present", "Pleural effusion")]),
        ("Two masses, ground-glass\nopacities", [("masses", "present", "Lung mass"),
                                                 ("ground-glass\nopacities", "present", "Ground glass opacity")]),
        ("Atelectases", [("Atelectases", "present", "Atelectasis")]),
        # What has a longer name, or a like one, is something else.
        ("Inguinal hernia", [("Inguinal hernia", "present", "")]),
        ("Subcutaneous emphysema", [("Subcutaneous emphysema", "present", "")]),
        ("Massive amasser of consolidationism", []),
        ("Healed rib fractures", [("fractures", "present", "")]),
        ("", []),
    ],
)  # fmt: skip
def test_findings_and_what_is_said_of_them(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert found(text) == expected


def test_every_finding_of_the_table_is_found_by_each_of_its_names() -> None:
    findings = [entry for entry in shipped_codes().entries if entry.category == "finding"]
    assert len(findings) > 15
    for entry in findings:
        for name in (entry.name.replace("_", " "), entry.code.meaning, *entry.synonyms):
            for spelled in (name, name.upper()):
                ((words, kind, meaning),) = found(f"There is {spelled} today")
                assert (words, kind) == (spelled, "present")
                assert code_of(name).meaning == meaning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A mass in the frontal lobe with edema.", [("mass", "present", "Mass"), ("edema", "present", "Edema")]),
        ("Two masses of the liver, no nodules.", [("masses", "present", "Mass"), ("nodules", "absent", "Nodule")]),
        ("Small effusion of the knee; fibrotic changes.",
         [("effusion", "present", "Effusion"), ("fibrotic changes", "present", "Fibrosis")]),
        # What has no code that says nothing of the chest has none; what names its place has its own.
        ("A hernia.", [("hernia", "present", "")]),
        ("Infiltrates of the marrow.", [("Infiltrates", "present", "")]),
        ("Bilateral pleural effusion and a pulmonary nodule.",
         [("Bilateral pleural effusion", "present", "Pleural effusion"),
          ("pulmonary nodule", "present", "Nodule of lung")]),
        ("Hiatal hernia. Renal mass.", [("Hiatal hernia", "present", "Hiatal hernia"), ("Renal mass", "present", "")]),
    ],
)  # fmt: skip
def test_outside_the_chest_a_bare_word_is_no_finding_of_the_chest(
    text: str, expected: list[tuple[str, str, str]]
) -> None:
    assert found(text, "elsewhere") == expected


def test_every_bare_word_of_the_chest_has_its_meaning_elsewhere() -> None:
    placed = re.compile(r"lung|pulmon|pleura|air ?space|diaphragm|hiat", re.I)
    for entry in (entry for entry in shipped_codes().entries if entry.category == "finding"):
        for name in entry.synonyms:
            ((_, _, meaning),) = found(f"There is {name} today", "elsewhere")
            if meaning and placed.search(meaning):
                assert placed.search(name), f"{name} became {meaning}"


def test_general_codes_are_those_of_no_place() -> None:
    assert is_general(code_of("any_mass")) and not is_general(code_of("lung_mass"))


def test_earlier_images_and_technique_are_no_findings() -> None:
    text = "COMPARISON: CT with nodule\nTECHNIQUE: mass\nINDICATION: rule out pneumonia\nFINDINGS: Effusion"
    assert found(text) == [("pneumonia", "uncertain", "Pneumonia"), ("Effusion", "present", "Pleural effusion")]


def test_phrases_name_findings_of_the_table() -> None:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["pattern"] for row in rows}) == len(rows) > 50
    names = {entry.name for entry in shipped_codes().entries if entry.category == "finding"}
    assert {row["name"] for row in rows} - {""} <= names
    with TABLE.with_name("elsewhere.csv").open(encoding="utf-8", newline="") as stream:
        general = {row["name"] for row in csv.DictReader(stream)} - {""}
    assert general == {entry.name for entry in shipped_codes().entries if entry.category == "morphology"}
    for row in rows:
        assert re.compile(row["pattern"]).groups <= 1


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=30).map(" ".join))
def test_spans_are_in_order_apart_and_in_their_sentence(text: str) -> None:
    document = Document.of(text, role="report", source="file report.txt")
    bounds, end = set(sentences(document)), 0
    for span in find_mentions(document):
        assert end <= span.start < span.end <= len(text)
        assert span.sentence in bounds
        assert span.sentence[0] <= span.start < span.sentence[1]
        words = text[span.start : span.end]
        assert words == words.strip()
        assert (span.kind, span.score) == ("finding", 1.0)
        end = span.end


@given(st.sampled_from(["Effusion is seen.", "No nodule.", "Possible mass."]), st.text(alphabet="äx \n.", max_size=20))
def test_offsets_count_code_points(sentence: str, before: str) -> None:
    text = f"{before}\U0001f600\n\n{sentence}"
    document = Document.of(text, role="report", source="file report.txt")
    (span,) = find_mentions(document)
    assert text[span.start : span.end].lower() in {"effusion", "nodule", "mass"}


@pytest.mark.parametrize("unit", ["mass ", "heart ", "no effusion, ", "enlarged heart is ", "-"])
def test_long_texts_take_time_by_their_length(unit: str) -> None:
    document = Document.of(unit * (60_000 // len(unit)), role="report", source="file report.txt")
    begin = time.process_time()
    find_mentions(document)
    assert time.process_time() - begin < 10
