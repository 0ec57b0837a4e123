"""Which texts there are to learn from: a CSV of texts with their classes, or sentences with marked mentions.

Invariant: whose a text is never differs between texts that are nearly equal, so that a split by patient keeps them on
one side. No text is in a `repr`, in a message or in a log. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imaging.config import TextConfig
from imaging.errors import ManifestInvalid
from imaging.manifest import patient_problems, rows_of
from imaging.text.likeness import groups_of
from imaging.text.words import Mention

# The files of a folder of marked sentences, and the side each is for.
_SPAN_FILES = {"train.tsv": "train", "devel.tsv": "validation", "test.tsv": "test"}
_SIDES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextCase:
    """A text and what is known of it.

    Attributes
    ----------
    name
        Unique.
    text
        Its words.
    patient
        Whose it is: of all texts that are nearly equal or of one patient, the first name.
    classes
        The name of its class, alone; nothing where it tells none.
    mentions
        What is marked in it; None where nobody looked.
    side
        Where the data set itself puts it; empty where it does not say.
    facts
        Nothing: texts have no subgroups.
    """

    name: str
    text: str = field(repr=False)
    patient: str
    classes: tuple[str, ...] = ()
    mentions: tuple[Mention, ...] | None = None
    side: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def content_sha256(self) -> str:
        """SHA-256 of the text and of all that is known of it."""
        mentions = None if self.mentions is None else [[m.start, m.end, m.kind] for m in self.mentions]
        known = json.dumps([self.text, self.classes, mentions])
        return hashlib.sha256(known.encode()).hexdigest()


def read_texts(root: Path, config: TextConfig) -> tuple[list[TextCase], int]:
    """Read a CSV of texts with their classes, as `data.columns` calls its columns.

    Returns
    -------
    cases, empty
        The texts, and how many were left out because there is no word in them.

    Raises
    ------
    ManifestInvalid
        If it cannot be read, has not the columns, a class that the config does not know, or a name twice.
    """
    columns = config.data.columns
    if not root.is_file():
        raise ManifestInvalid(root, seen="it is no file", expected="a CSV was expected", remedy="Check data.root")
    rows = rows_of(root)
    headings = list(rows[0]) if rows else []
    for heading in (*columns.parts, columns.label):
        if heading not in headings:
            raise ManifestInvalid(root, seen=f"no column {heading!r}", expected="data.columns names what the CSV has")
    for problem in patient_problems(root, rows, columns.patient, named=columns.patient != "patient"):
        raise problem
    found = []
    for number, row in enumerate(rows, start=2):
        text = " ".join(part for part in ((row[name] or "").strip() for name in columns.parts) if part)
        name = (row.get(columns.case) or "").strip() or f"row_{number}"
        side = _side((row.get(columns.split) or "").strip().lower(), f"{root} row {number}")
        classes = _class_of((row[columns.label] or "").strip(), config, f"{root} row {number}")
        if text:
            found.append(TextCase(name, text, (row.get(columns.patient) or "").strip(), classes, None, side))
    twice = [name for name, count in Counter(case.name for case in found).items() if count > 1]
    if twice or not found:
        raise ManifestInvalid(root, seen=f"the case {min(twice)!r} is there more than once" if twice else "no text")
    return _grouped(found, config), len(rows) - len(found)


def _side(told: str, subject: str) -> str:
    if told and told not in _SIDES:
        raise ManifestInvalid(subject, seen="an unknown split", expected="train, validation or test was expected")
    return _SIDES.get(told, "")


def _class_of(word: str, config: TextConfig, subject: str) -> tuple[str, ...]:
    named = [item.name for item in config.classes if word in (item.name, item.title, *item.told_as)]
    named = named or ([config.data.otherwise] if config.data.otherwise is not None and word else [])
    if len(named) != 1:
        known = ", ".join(item.name for item in config.classes)
        # The cell is not told: it may be a whole diagnosis.
        raise ManifestInvalid(subject, seen=f"its label means {len(named)} classes", expected=f"known: {known}",
                              remedy="Correct it, or say by told_as or data.otherwise what it means")  # fmt: skip
    return tuple(named)


def _grouped(cases: Sequence[TextCase], config: TextConfig) -> list[TextCase]:
    """The texts with one owner for all that are nearly equal, or of one patient, or both by way of others."""
    groups = groups_of([case.text for case in cases], alike=config.data.alike, run=config.data.run)
    of_patient: dict[str, int] = {}
    leader = {group: group for group in groups}

    def lead(group: int) -> int:
        while leader[group] != group:
            group = leader[group]
        return group

    for case, group in zip(cases, groups, strict=True):
        if case.patient:
            first, second = sorted((lead(of_patient.setdefault(case.patient, group)), lead(group)))
            leader[second] = first
    together = [lead(group) for group in groups]
    names: dict[int, str] = {}
    for case, group in zip(cases, together, strict=True):
        names[group] = min(names.get(group, case.name), case.name)
    if len(names) < len(cases):
        log.info("%d texts in %d groups of nearly equal ones", len(cases), len(names))
    return [
        TextCase(case.name, case.text, names[group], case.classes, case.mentions, case.side)
        for case, group in zip(cases, together, strict=True)
    ]


def read_spans(root: Path, config: TextConfig) -> list[TextCase]:
    """Read marked sentences: a file in CoNLL's layout, or a folder with one for each side.

    Each sentence is its words with a blank between them. Tags of kinds that the config does not have count as no
    mention.

    Raises
    ------
    ManifestInvalid
        If there is no such file, or a line is not a word and a tag.
    """
    files = [root] if root.is_file() else [root / name for name in _SPAN_FILES if (root / name).is_file()]
    if not files:
        raise ManifestInvalid(root, seen="no train.tsv, devel.tsv or test.tsv",
                              expected="a file of marked sentences, or a folder of such, was expected")  # fmt: skip
    known = {word: at for at, kind in enumerate(config.kinds) for word in (kind.name, kind.title, *kind.told_as)}
    found = []
    for file in files:
        for number, lines in enumerate(_sentences(file), start=1):
            name = f"{root.name}/{file.stem}_{number:05d}"
            side = _SPAN_FILES.get(file.name, "")
            text, mentions = _marked(lines, known)
            found.append(TextCase(name, text, name, (), mentions, side))
    return found


def _sentences(file: Path) -> Iterator[list[tuple[str, str]]]:
    """The words of each sentence with their tags."""
    lines: list[tuple[str, str]] = []
    try:
        rows = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestInvalid(file, seen=f"cannot be read ({type(error).__name__})") from error
    for number, row in enumerate(rows, start=1):
        cells = row.rstrip("\r").split("\t")
        if not row.strip() or cells[0].startswith("-DOCSTART-"):
            if lines:
                yield lines
            lines = []
            continue
        if len(cells) < 2 or cells[-1] != "O" and cells[-1][:2] not in ("B-", "I-"):  # noqa: RUF021
            raise ManifestInvalid(f"{file} line {number}", seen="it is no word and tag",
                                  expected="a word, a tab, and O, B-<kind> or I-<kind> were expected")  # fmt: skip
        lines.append((cells[0], cells[-1]))
    if lines:
        yield lines


def _marked(lines: Sequence[tuple[str, str]], known: Mapping[str, int]) -> tuple[str, tuple[Mention, ...]]:
    mentions: list[Mention] = []
    at, begun = 0, None
    for word, tag in lines:
        kind = known.get(tag[2:]) if tag != "O" else None
        end = at + len(word)
        if kind is not None and tag[0] == "I" and begun == kind:
            mentions[-1] = Mention(mentions[-1].start, end, kind)
        elif kind is not None:
            mentions.append(Mention(at, end, kind))
        begun, at = kind, end + 1
    return " ".join(word for word, _ in lines), tuple(mentions)
