"""What is said of a mention: in sentences that the rules were made on, in those that they were not, at any place."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentences import marked

from imaging.text import assertion
from imaging.text.assertion import judged, sentences
from imaging.text.document import ASSERTIONS, Document

WORDS = [
    "No",
    "no",
    "effusion",
    "possible",
    ",",
    ".",
    " ",
    "\n",
    "but",
    "or",
    "?",
    "1.",
    "FINDINGS:",
    "Dr.",
    "not seen",
    "ö",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=40).map(" ".join)
TABLE = Path(assertion.__file__).with_name("triggers.csv")


def document(text: str) -> Document:
    return Document.of(text, role="report", source="file report.txt")


def said(text: str, mention: str) -> str:
    start = text.index(mention)
    return judged(document(text), [(start, start + len(mention))])[0].assertion


@pytest.mark.parametrize(("name", "least", "share"), [("tuning", 150, 0.98), ("blind", 60, 0.95)])
def test_invented_sentences_are_judged_as_marked(name: str, least: int, share: float) -> None:
    wrong, count, lines = [], 0, 0
    for text, mentions in marked(name):
        lines += 1
        found = judged(text, [(start, end) for start, end, _ in mentions])
        for (start, end, meant), judgement in zip(mentions, found, strict=True):
            count += 1
            if judgement.assertion != meant:
                wrong.append((text.text, text.text[start:end], meant, judgement.assertion))
    assert lines >= least
    assert len(wrong) <= (1 - share) * count, wrong


@pytest.mark.parametrize("meant", ASSERTIONS)
def test_both_sets_have_enough_of_each(meant: str) -> None:
    for name in ("tuning", "blind"):
        assert sum(kind == meant for _, mentions in marked(name) for _, _, kind in mentions) >= 20


@pytest.mark.parametrize(
    ("text", "mention", "meant"),
    [
        ("No effusion. Pneumothorax on the left.", "Pneumothorax", "present"),
        ("No effusion\n\nPneumothorax", "Pneumothorax", "present"),
        ("1. No effusion 2. Pneumothorax", "Pneumothorax", "present"),
        ("NO EVIDENCE OF\r\n  PNEUMONIA", "PNEUMONIA", "absent"),
        ("FINDINGS: No\nIMPRESSION: Effusion", "Effusion", "present"),
        ("No definite interstitial changes of edema.", "edema", "absent"),
        ("Two or three nodules.", "nodules", "present"),
        ("Scar or nodule.", "nodule", "uncertain"),
        ("No scar or nodule.", "nodule", "absent"),
        ("Nodule which may be a scar versus granuloma.", "Nodule", "present"),
        ("The noble effusion.", "effusion", "present"),
    ],
)
def test_where_a_trigger_ends(text: str, mention: str, meant: str) -> None:
    assert said(text, mention) == meant


def texts(text: str) -> list[str]:
    whole = document(text)
    return [whole.text[start:end] for start, end in sentences(whole)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Clear. Normal", ["Clear.", "Normal"]),
        ("Seen by Dr. Smith. A 2.5 cm mass vs. Scar.", ["Seen by Dr. Smith.", "A 2.5 cm mass vs. Scar."]),
        ("1. Clear.\n2. Normal.", ["1. Clear.", "2. Normal."]),
        ("1. Clear 2. Normal", ["1. Clear", "2. Normal"]),
        ("- Clear\n- Normal", ["- Clear", "- Normal"]),
        ("The lungs\nare clear. (Normal)", ["The lungs\nare clear.", "(Normal)"]),
        ("FINDINGS: Clear\nIMPRESSION: Normal", ["Clear", "Normal"]),
        ("Clear\n\nNormal", ["Clear", "Normal"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


@given(TEXTS)
def test_sentences_are_in_order_within_sections_and_leave_no_word_out(text: str) -> None:
    whole = document(text)
    found, end = sentences(whole), 0
    for start, after in found:
        assert end <= start < after <= len(text)
        assert whole.text[start:after] == whole.text[start:after].strip()
        assert any(part.start <= start and after <= part.end for part in whole.sections)
        end = after
    of_sections = "".join(whole.words(part) for part in whole.sections)
    assert "".join("".join(texts(text)).split()) == "".join(of_sections.split())


@given(TEXTS, st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6))
def test_any_place_of_any_text_has_a_judgement_and_a_sentence(text: str, places: list[tuple[int, int]]) -> None:
    given_places = [(min(start, len(text)), min(start + length, len(text))) for start, length in places]
    found = judged(document(text), given_places)
    assert len(found) == len(places)
    for (start, _), (kind, sentence) in zip(given_places, found, strict=True):
        assert kind in ASSERTIONS
        assert sentence[0] <= start <= sentence[1]


@given(TEXTS, TEXTS)
def test_what_stands_in_another_sentence_changes_nothing(before: str, after: str) -> None:
    middle = "There is no nodule, but an effusion."
    text = f"{before}\n\n{middle}\n\n{after}"
    start = text.index(middle, len(before))
    places = [(start + middle.index(word), start + middle.index(word) + len(word)) for word in ("nodule", "effusion")]
    assert [judgement.assertion for judgement in judged(document(text), places)] == ["absent", "present"]


def test_table_of_triggers_is_whole() -> None:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) > 100
    assert {row["sense"] for row in rows} == {"absent", "uncertain", "present", "end"}
    assert {row["reach"] for row in rows} == {"forward", "backward", "both", "list", ""}
    assert all((row["reach"] == "") == (row["sense"] in ("present", "end")) for row in rows)
    assert len({(row["pattern"], row["sense"]) for row in rows}) == len(rows)


@pytest.mark.parametrize("unit", ["no ", "no effusion, ", "a", "effusion? ", "no (", "versus ", "1. A"])
def test_long_texts_take_time_by_their_length(unit: str) -> None:
    whole = document(unit * (60_000 // len(unit)))
    begin = time.process_time()
    judged(whole, [(place, place + 3) for place in range(0, 60_000, 40)])
    assert time.process_time() - begin < 10
    assert max(end - start for start, end in sentences(whole)) <= 1500


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("No resolution of pneumonia.", "present"),
        ("Without interval resolution of the pneumonia.", "present"),
        ("Resolution of pneumonia.", "absent"),
        ("Pneumonia ruled out.", "absent"),
        ("Pneumonia excluded", "absent"),
        ("Pneumonia is to be excluded.", "uncertain"),
        ("Pneumonia cannot be excluded.", "uncertain"),
        ("Atelectasis rather than pneumonia.", "uncertain"),
    ],
)
def test_what_has_not_gone_is_there_and_what_is_ruled_out_is_not(text: str, meant: str) -> None:
    assert said(text, next(word for word in ("pneumonia", "Pneumonia") if word in text)) == meant
