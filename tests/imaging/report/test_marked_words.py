"""What is marked in a text is the text, whatever the marks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from reported import EFFUSION, full_report, sentence_of

from imaging.report.marked_words import pieces_of, words_of
from imaging.report.report import SectionEntry, SentenceEntry, SpanEntry, TextEntry

WORDS = "Small effusion, no pneumothorax seen; cannot exclude early consolidation."


def span(start: int, end: int, assertion: str = "present", text: str = "words") -> SpanEntry:
    return SpanEntry.model_validate({"start": start, "end": end, "text": text, "kind": "finding",
                                     "assertion": assertion, "score": 1.0})  # fmt: skip


def text_of(*sentences: SentenceEntry, sections: tuple[SectionEntry, ...] = ()) -> TextEntry:
    return TextEntry(role="report", source="file x", sha256="a" * 64, sentences=sentences, sections=sections)


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(-3, 80), st.integers(-3, 80)), max_size=6))
def test_pieces_put_together_are_the_sentence(at: int, places: list[tuple[int, int]]) -> None:
    spans = tuple(span(max(0, at + start), max(0, at + end)) for start, end in places)
    pieces = pieces_of(SentenceEntry(start=at, end=at + len(WORDS), text=WORDS, spans=spans))
    assert "".join(piece.text for piece in pieces) == WORDS


def test_mention_is_cut_out_at_its_place() -> None:
    sentence = SentenceEntry(start=100, end=100 + len(WORDS), text=WORDS, spans=(span(119, 131, "absent"),))
    before, mention, after = pieces_of(sentence)
    assert (before.text, mention.text, after.text[:5]) == ("Small effusion, no ", "pneumothorax", " seen")
    assert mention.span is not None and mention.span.assertion == "absent" and before.span is after.span is None


def test_of_mentions_that_overlap_the_first_and_longest_is_marked_and_all_are_listed() -> None:
    spans = (span(6, 14, text="effusion"), span(0, 14, text="Small effusion"), span(8, 20, text="fusion, no"))
    entry = text_of(sentence_of(WORDS, *spans))
    words = words_of(entry)
    marked = [piece.text for piece in words.shown[0].pieces if piece.span]
    assert marked == ["Small effusion"]
    assert words.mentions == (("present", ("effusion", "Small effusion", "fusion, no")),)


def test_mentions_are_listed_once_by_what_is_said_of_them_with_their_codes() -> None:
    coded = span(6, 14, "absent", "effusion").model_copy(update={"code": EFFUSION})
    first = sentence_of(WORDS, coded, span(19, 31, "uncertain", "Alzheimer disease"))
    entry = text_of(first, sentence_of(WORDS, coded, span(40, 57, "uncertain", "alzheimer disease")))
    listed = (("absent", ("Pleural effusion (SCT 60046008)",)), ("uncertain", ("Alzheimer disease",)))
    assert words_of(entry).mentions == listed


def test_sentence_that_the_picture_contradicts_is_told_and_only_in_that_text() -> None:
    report = full_report()
    (entry,) = report.texts
    assert [said.disputed for said in words_of(entry, report.disagreements).shown] == [True]
    other = entry.model_copy(update={"sha256": "b" * 64})
    assert [said.disputed for said in words_of(other, report.disagreements).shown] == [False]


def test_section_is_named_where_it_begins_unless_the_sentence_holds_its_heading() -> None:
    parts = [(0, 10, "FINDINGS: "), (10, 20, "One here. "), (20, 30, "Two here. "), (30, 40, "Three now.")]
    sentences = [SentenceEntry(start=start, end=end, text=text) for start, end, text in parts]
    sections = (SectionEntry(name="findings", start=5, end=30), SectionEntry(name="impression", start=30, end=40))
    shown = words_of(text_of(*sentences, sections=sections)).shown
    told = [(said.begins, said.section) for said in shown]
    assert told == [(True, ""), (False, ""), (False, ""), (True, "impression")]


def test_long_text_is_cut_and_nothing_lost() -> None:
    words = words_of(text_of(*(sentence_of(f"Sentence {number}.") for number in range(95))))
    assert len(words.shown) == 40 and len(words.further) == 55
