"""How often assertion, language and mentions are right, beside libraries that do the same.

    python benchmarks/bench_assertion.py [--reports REPORTS.csv]

Assertion: the invented sentences of tests/data/assertion. `tuning` is what the rules were made on; `blind` was written
before them by the same hand and nothing was changed for it. medspaCy's ConText and negspaCy, where installed, see the
same mentions in the same sentences with the rules that they ship; what ConText calls negated or of the family is
absent here, uncertain or hypothetical is uncertain, historical is present. negspaCy knows negation only, so that what
is uncertain counts against it; the column `absent or not` asks for no more than it knows.

Language: invented sentences, a line each.

Mentions: a CSV of Open-i's chest reports with the columns findings, impression and Problems (its text may not be
copied, so it is not here). What a text mentions as present, or as present or uncertain, beside the report's own index
terms, for the findings that both know. Each different text counts once; the rules and phrases were made while looking
at those whose SHA-256 is even, the figures are of the odd ones.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import machine, versions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from sentences import Marked, languages, marked

from imaging.text.assertion import judged
from imaging.text.document import Assertion, Document
from imaging.text.language import language_of
from imaging.text.mentions import find_mentions

Judge = Callable[[Document, Sequence[tuple[int, int]]], Sequence[Assertion]]
# Index terms of Open-i for each code of the table that they have.
TERMS = {
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Plate-like atelectasis": ("Pulmonary Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Pleural effusion": ("Pleural Effusion",),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax"),
    "Pulmonary edema": ("Pulmonary Edema",),
    "Lung consolidation": ("Consolidation",),
    "Pulmonary emphysema": ("Emphysema", "Pulmonary Emphysema", "Bullous Emphysema"),
    "Fibrosis of lung": ("Pulmonary Fibrosis",),
    "Hiatal hernia": ("Hernia, Hiatal",),
    "Radiologic infiltrate of lung": ("Infiltrate",),
    "Lung mass": ("Mass",),
    "Nodule of lung": ("Nodule",),
    "Pneumonia": ("Pneumonia",),
    "Chronic obstructive pulmonary disease": ("Pulmonary Disease, Chronic Obstructive",),
    "Atherosclerosis": ("Atherosclerosis",),
    "Atherosclerosis of aorta": ("Atherosclerosis",),
    "Kyphosis": ("Kyphosis",),
    "Opacity": ("Opacity",),
    "Bronchiectasis": ("Bronchiectasis",),
    "Pericardial effusion": ("Pericardial Effusion",),
}


def ours(document: Document, places: Sequence[tuple[int, int]]) -> Sequence[Assertion]:
    """The rules of imaging/text/triggers.csv."""
    return [judgement.assertion for judgement in judged(document, places)]


def _spacy_document(nlp: Any, document: Document, places: Sequence[tuple[int, int]]) -> tuple[Any, list[Any]]:
    doc = nlp.make_doc(document.text)
    spans = [doc.char_span(*place, label="FINDING", alignment_mode="expand") for place in places]
    doc.ents = spans
    return nlp.get_pipe("sentencizer")(doc), spans


def medspacy_context() -> Judge:
    """MedspaCy's ConText with the rules that it ships."""
    import spacy
    from medspacy.context import ConText

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    context = ConText(nlp)

    def judge(document: Document, places: Sequence[tuple[int, int]]) -> Sequence[Assertion]:
        doc, spans = _spacy_document(nlp, document, places)
        context(doc)
        return [
            "absent"
            if span._.is_negated or span._.is_family
            else "uncertain"
            if span._.is_uncertain or span._.is_hypothetical
            else "present"
            for span in spans
        ]

    return judge


def negspacy_negex() -> Judge:
    """NegspaCy's NegEx with its clinical terms."""
    import spacy
    from negspacy.negation import Negex
    from negspacy.termsets import termset

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    negex = Negex(nlp, "negex", neg_termset=termset("en_clinical").get_patterns())

    def judge(document: Document, places: Sequence[tuple[int, int]]) -> Sequence[Assertion]:
        doc, _ = _spacy_document(nlp, document, places)
        doc = negex(doc)
        return ["absent" if span._.negex else "present" for span in doc.ents]

    return judge


def judges() -> Iterator[tuple[str, Judge]]:
    """Ourselves and what is installed."""
    yield "imgpipe", ours
    for name, make in (("medspacy", medspacy_context), ("negspacy", negspacy_negex)):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out")
        else:
            yield name, make()


def measure_assertion(sets: dict[str, list[Marked]]) -> None:
    """A row for each judge and set."""
    print(
        "\n| judge | set | mentions | right | of present | of absent | of uncertain | absent or not | ms a sentence |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, judge in judges():
        for title, sentences in sets.items():
            pairs: Counter[tuple[Assertion, Assertion]] = Counter()
            begin = time.perf_counter()
            for document, mentions in sentences:
                said = judge(document, [(start, end) for start, end, _ in mentions])
                pairs.update((meant, is_said) for (_, _, meant), is_said in zip(mentions, said, strict=True))
            taken = (time.perf_counter() - begin) / len(sentences) * 1e3
            whole = pairs.total()
            shares = [
                _share(pairs[kind, kind], sum(n for (meant, _), n in pairs.items() if meant == kind))
                for kind in ("present", "absent", "uncertain")
            ]
            right = sum(n for (meant, is_said), n in pairs.items() if meant == is_said)
            denied = sum(n for (meant, is_said), n in pairs.items() if (meant == "absent") == (is_said == "absent"))
            row = (name, title, whole, _share(right, whole), *shares, _share(denied, whole), f"{taken:.2f}")
            print(f"| {' | '.join(map(str, row))} |")


def measure_language() -> None:
    """How many English sentences are refused, and how many others are taken."""
    told = [(language, language_of(sentence)) for language, sentence in languages()]
    english = [answer for language, answer in told if language == "en"]
    others = [answer for language, answer in told if language != "en"]
    refused = sum(answer not in ("", "en") for answer in english)
    print(f"\nlanguage: {len(english)} English sentences, {refused} refused; {len(others)} others, ", end="")
    print(
        f"{sum(answer not in ('', 'en') for answer in others)} refused, {others.count('')} too short to tell, ", end=""
    )
    print(f"{others.count('en')} taken as English")


def measure_mentions(reports: Path) -> None:
    """Precision and recall of findings beside the index terms."""
    counts: dict[tuple[str, ...], Counter[str]] = {terms: Counter() for terms in TERMS.values()}
    normal: Counter[str] = Counter()
    for document, indexed in _reports(reports):
        spans = [span for span in find_mentions(document) if span.code is not None]
        if indexed == {"normal"}:
            normal["reports"] += 1
            normal["told"] += any(span.assertion != "absent" for span in spans)
        for terms, count in counts.items():
            of_these = [s.assertion for s in spans if s.code and TERMS.get(s.code.meaning) == terms]
            truth = bool(indexed & set(terms))
            for title, taken in (("present", {"present"}), ("any", {"present", "uncertain"})):
                count[f"{title} {'right' if truth else 'wrong'}"] += bool(taken & set(of_these))
            count["indexed"] += truth
    print("\n| finding | reports | present: precision | recall | present or uncertain: precision | recall |")
    print("| --- | --- | --- | --- | --- | --- |")
    total = sum(counts.values(), Counter[str]())
    for name, count in [*((" / ".join(terms), count) for terms, count in counts.items()), ("all together", total)]:
        cells = [
            cell
            for kind in ("present", "any")
            for cell in (
                _share(count[f"{kind} right"], count[f"{kind} right"] + count[f"{kind} wrong"]),
                _share(count[f"{kind} right"], count["indexed"]),
            )
        ]
        print(f"| {name} | {count['indexed']} | {' | '.join(cells)} |")
    print(
        f"\n{normal['reports']} reports indexed as normal, {normal['told']} with a coded finding present or uncertain"
    )


def _reports(path: Path) -> Iterator[tuple[Document, set[str]]]:
    seen: set[str] = set()
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            text = f"FINDINGS: {row['findings']}\n\nIMPRESSION: {row['impression']}"
            digest = hashlib.sha256(text.encode()).hexdigest()
            indexed = {term.strip() for term in row["Problems"].split(";")}
            if digest not in seen and int(digest, 16) % 2 and "No Indexing" not in indexed:
                seen.add(digest)
                yield Document.of(text, role="report", source=path.name), indexed
    print(f"\nmentions: {len(seen)} different texts")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path)
    arguments = parser.parse_args()
    print(machine())
    print(versions(["medspacy", "negspacy", "spacy"]))
    measure_assertion({name: list(marked(name)) for name in ("tuning", "blind")})
    measure_language()
    if arguments.reports:
        measure_mentions(arguments.reports)


if __name__ == "__main__":
    main()
