"""The invented sentences in which each mention is marked with what the sentence says of it, and those of languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from imaging.text.document import Assertion, Document

FOLDER = Path(__file__).parent / "data" / "assertion"
_MARK = re.compile(r"\[([-+?]) ([^\]]*)\]")
_MEANT: dict[str, Assertion] = {"+": "present", "-": "absent", "?": "uncertain"}
Marked = tuple[Document, tuple[tuple[int, int, Assertion], ...]]


def marked(name: str) -> Iterator[Marked]:
    """The sentences of one set, `tuning` or `blind`, each as a document with its mentions."""
    for line in _lines(name):
        text, mentions, after = "", [], 0
        for mark in _MARK.finditer(line):
            text += line[after : mark.start()]
            mentions.append((len(text), len(text) + len(mark[2]), _MEANT[mark[1]]))
            text, after = text + mark[2], mark.end()
        yield Document.of(text + line[after:], role="report", source=name), tuple(mentions)


def languages() -> Iterator[tuple[str, str]]:
    """Language and sentence."""
    for line in _lines("languages"):
        language, _, sentence = line.partition("\t")
        yield language, sentence


def _lines(name: str) -> Iterator[str]:
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return (line for line in lines if line and not line.startswith("#"))
