"""What things are called in reports, coded: one table, `codes.csv`, and what DICOM's own dictionary has.

Invariant: a code comes from the table, from a table that the user names, or from DICOM PS3.16 as pydicom ships it, and
always with the meaning that it has there; nothing is made up, and what has no code that could be verified has no row.
`source` says where each one was looked up:

- ``PS3.16``: DICOM PS3.16, the dictionary of pydicom 3; a test compares each.
- ``HPO``: cross-references to SNOMED CT of the Human Phenotype Ontology, release 2025-01-16.
- ``FHIR``: HL7 FHIR R4, example FamilyMemberHistory; ``HL7-GENOMICS``: HL7 FHIR Genomics Reporting, example lung mass.
- ``OMOP``: the standardised vocabularies of OHDSI; ``UMLS``: SNOMEDCT_US in UMLS 2016AA; ``SNOMED-AU``: SNOMED CT-AU of
  2023-07-31.

`radlex` has RadLex's id where two published mappings agree on it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from imaging.config import Code, NetworkConfig, SegmentConfig
from imaging.errors import CodesInvalid, UnknownCode

_TABLE = Path(__file__).with_name("codes.csv")
_NEEDED = ("name", "scheme", "value", "meaning", "source")
_COLUMNS = (*_NEEDED, "synonyms", "category", "radlex")
# SNOMED CT's own tags, such as "(disorder)", at the end of a name.
_TAG = re.compile(r"\s*\([^()]*\)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table.

    Attributes
    ----------
    name
        What configs and people call it.
    code
        Scheme, value and meaning.
    synonyms
        What else it is called, such as in public data sets.
    category
        ``finding``, ``morphology`` (of a finding wherever it lies), ``assessment``, ``assertion``, ``anatomy``,
        ``modifier``, ``category``, ``measurement``, ``unit``, ``concept``, ``document`` or ``section``.
    radlex
        RadLex's id; empty where none could be verified.
    source
        Where the code was looked up.
    """

    name: str
    code: Code
    synonyms: tuple[str, ...]
    category: str
    radlex: str
    source: str


class Codes:
    """Entries by what they are called.

    Parameters
    ----------
    entries
        Where two are called the same, the earlier one is meant.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._by_name: dict[str, Entry] = {}
        self._called: dict[str, list[Entry]] = {}
        for entry in self.entries:
            self._by_name.setdefault(_plain(entry.name), entry)
            for word in {_plain(word) for word in (entry.name, *entry.synonyms)}:
                self._called.setdefault(word, []).append(entry)

    def find(self, name: str) -> Entry | None:
        """The entry of this name, or else the first one that has it as a synonym; case and blanks do not count."""
        word = _plain(name)
        return self._by_name.get(word) or next(iter(self._called.get(word, ())), None)

    def code_of(self, name: str) -> Code:
        """The code of a name.

        Raises
        ------
        UnknownCode
            If the table has no such name.
        """
        entry = self.find(name)
        if entry is None:
            raise UnknownCode(name, seen="no code has this name or synonym")
        return entry.code

    def check(self, subject: str, code: Code) -> None:
        """Refuse a code that neither the table nor DICOM's dictionary has with this meaning.

        Raises
        ------
        UnknownCode
            If so, with what the code means instead.
        """
        own = [entry.code.meaning for entry in self.entries if _same(entry.code, code)]
        synonyms = [word for entry in self.entries if _same(entry.code, code) for word in entry.synonyms]
        theirs = _dicom(code.scheme).get(code.value, ())
        if _meaning(code.meaning) in {_meaning(meaning) for meaning in (*own, *synonyms, *theirs)}:
            return
        meant = next(iter((*own, *theirs)), None)
        known = f"it means {meant!r}" if meant else "neither the table nor DICOM PS3.16 has this code"
        raise UnknownCode(subject, seen=f"{code.scheme} {code.value} {code.meaning!r}; {known}")

    def check_named(self, subject: str, name: str, code: Code) -> None:
        """Refuse a code other than the table's for a finding or an assessment that the table has by its name.

        Structures are not held to it: there are many heads and left sides.

        Raises
        ------
        UnknownCode
            If it is called as one thing of the table and coded as another.
        """
        called = [
            entry for entry in self._called.get(_plain(name), ()) if entry.category not in {"anatomy", "modifier"}
        ]
        if called and not any(_same(entry.code, code) for entry in called):
            meant = called[0].code
            raise UnknownCode(
                subject,
                seen=f"{code.scheme} {code.value} {code.meaning!r}",
                expected=f"{meant.scheme} {meant.value} {meant.meaning!r} was expected for this name",
            )


@cache
def shipped_codes() -> Codes:
    """The table that comes with imgpipe."""
    return Codes(read_codes(_TABLE))


def codes_with(own: Path | None) -> Codes:
    """The table that comes with imgpipe, and before it the user's own.

    Raises
    ------
    CodesInvalid
        If the user's table cannot be used.
    """
    return shipped_codes() if own is None else Codes((*read_codes(own), *shipped_codes().entries))


def code_of(name: str) -> Code:
    """The code of a name in the table that comes with imgpipe.

    Raises
    ------
    UnknownCode
        If it has no such name.
    """
    return shipped_codes().code_of(name)


def read_codes(path: Path) -> tuple[Entry, ...]:
    """Read a table of codes.

    Parameters
    ----------
    path
        A CSV in UTF-8 with the columns name, scheme, value, meaning and source, and optionally synonyms (with ``|``
        between them), category and radlex.

    Raises
    ------
    CodesInvalid
        If a column or a cell is missing, a code is none, or a name is there twice.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CodesInvalid(path, seen=f"cannot be read ({type(error).__name__})") from error
    headings = set(rows[0]) if rows else set()
    if set(_NEEDED) - headings or headings - set(_COLUMNS):
        raise CodesInvalid(path, seen=f"columns {', '.join(sorted(map(str, headings))) or 'none'}")
    entries = tuple(_entry(path, number, row) for number, row in enumerate(rows, start=2))
    twice = {entry.name for entry in entries if [e.name for e in entries].count(entry.name) > 1}
    if twice:
        raise CodesInvalid(path, seen=f"{min(twice)!r} is there twice", expected="each name once was expected")
    return entries


def _entry(path: Path, number: int, row: Mapping[str, str | None]) -> Entry:
    cells = {column: (row.get(column) or "").strip() for column in _COLUMNS}
    empty = [column for column in _NEEDED if not cells[column]]
    if empty:
        raise CodesInvalid(path, seen=f"row {number}: {empty[0]} is empty")
    try:
        code = Code(scheme=cells["scheme"], value=cells["value"], meaning=cells["meaning"])
    except ValidationError as error:
        problem = error.errors()[0]
        raise CodesInvalid(path, seen=f"row {number}: {problem['loc'][0]}: {problem['msg']}") from error
    if code.scheme == "SCT" and not is_snomed_id(code.value):
        raise CodesInvalid(
            path, seen=f"row {number}: {code.value!r} is no SNOMED CT identifier: its check digit is wrong"
        )
    synonyms = tuple(word.strip() for word in cells["synonyms"].split("|") if word.strip())
    return Entry(cells["name"], code, synonyms, cells["category"], cells["radlex"], cells["source"])


def check_config(config: NetworkConfig) -> None:
    """Refuse a config whose labels or classes have a code that is not known with its meaning.

    Raises
    ------
    UnknownCode
        If a code is unknown, means something else, or is another one than the table has for the label's name.
    CodesInvalid
        If the config names a table of codes that cannot be used.
    """
    codes = codes_with(Path(config.data.codes) if config.data.codes else None)
    named = config.labels if isinstance(config, SegmentConfig) else config.classes
    for item in named:
        kind = "label" if isinstance(config, SegmentConfig) else "class"
        modifier = getattr(item, "modifier", None)
        for code in (item.category, item.code, *((modifier,) if modifier else ())):
            codes.check(f"{kind} {item.name}", code)
        codes.check_named(f"{kind} {item.name}", item.name, item.code)


def is_snomed_id(value: str) -> bool:
    """Whether a number has the check digit of SNOMED CT's identifiers (Verhoeff's, over the dihedral group D5)."""
    if not re.fullmatch(r"[1-9]\d{5,17}", value):
        return False
    check = 0
    for place, digit in enumerate(reversed(value)):
        check = _product(check, _permuted(place, int(digit)))
    return check == 0


def _product(a: int, b: int) -> int:
    """Of two elements of D5: 0 to 4 are rotations, 5 to 9 reflections."""
    turned = (a + b) % 5 if a < 5 else (a - b) % 5
    return turned + 5 if (a < 5) != (b < 5) else turned


def _permuted(times: int, digit: int) -> int:
    for _ in range(times % 8):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit


@cache
def _dicom(scheme: str) -> dict[str, tuple[str, ...]]:
    """The meanings of each value of a scheme in DICOM PS3.16, as pydicom has them."""
    from pydicom.sr.codedict import codes

    found: dict[str, tuple[str, ...]] = {}
    if scheme in codes.schemes():
        for code in getattr(codes, scheme).concepts.values():
            found[code.value] = (*found.get(code.value, ()), code.meaning)
    return found


def _same(one: Code, other: Code) -> bool:
    return (one.scheme, one.value) == (other.scheme, other.value)


def _meaning(text: str) -> str:
    return " ".join(_TAG.sub("", text).casefold().split())


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))
