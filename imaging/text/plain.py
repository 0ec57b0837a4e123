"""Bytes -> words that a reader of English reports can read, or a named refusal.

Invariant: no more than the bound is ever read, nothing is guessed of an encoding, and no refusal quotes the text.
Imports no torch.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from imaging.errors import NothingFound, NotPlainText, TextEmpty, TextEncoding, TextLanguage, TextTooLarge
from imaging.text.language import ENGLISH, language_of

# A radiology report has about 2 KB.
LARGEST_TEXT = 1_000_000
# Of other things that hold one: base64 makes a text by a third larger, and a Bundle has resources beside it.
LARGEST_CONTAINER = 4_000_000

_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_KINDS = (
    (b"%PDF", "a PDF document"),
    (b"{\\rtf", "an RTF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"\xd0\xcf\x11\xe0", "an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_MARKUP = re.compile(r"\s*<(?:\?xml|!doctype|html|\w+ xmlns)", re.IGNORECASE)
# All but tab, line feed, vertical tab, form feed and carriage return.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_bounded(path: Path, largest: int) -> bytes:
    """The bytes of a file of at most `largest` bytes.

    Raises
    ------
    NothingFound
        If there is no such file, or it may not be read.
    NotPlainText
        If it is a folder, a pipe or a device.
    TextTooLarge
        If it is larger; that much of it and one byte more are read at most.
    """
    try:
        # A pipe would keep the opening waiting.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise NotPlainText(path, seen="is no file, but a folder, a pipe or a device")
            if about.st_size > largest:
                raise TextTooLarge(path, seen=f"{about.st_size} bytes")
            data = stream.read(largest + 1)
    except OSError as error:
        if isinstance(error, IsADirectoryError):
            raise NotPlainText(path, seen="is no file, but a folder") from error
        raise NothingFound(path, seen=f"cannot be read ({error.strerror})", expected="a text was expected") from error
    if len(data) > largest:
        raise TextTooLarge(path, seen=f"more than {largest} bytes")
    return data


def decoded(data: bytes, subject: object, *, encoding: str = "") -> str:
    """Bytes as text.

    Parameters
    ----------
    data
        At most `LARGEST_TEXT` bytes.
    subject
        What they are, for messages.
    encoding
        The one that is declared; without it a byte order mark decides, and without that it is UTF-8.

    Raises
    ------
    TextTooLarge, TextEncoding
        As their names say.
    NotPlainText
        If it is binary or a document of another kind.
    """
    if len(data) > LARGEST_TEXT:
        raise TextTooLarge(subject, seen=f"{len(data)} bytes")
    kind = next((words for head, words in _KINDS if data.startswith(head)), "")
    if kind:
        raise NotPlainText(subject, seen=kind)
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "")
    if not marked and not encoding and b"\0" in data:
        raise NotPlainText(subject, seen="binary data")
    name = marked or encoding or "utf-8"
    try:
        # Not chained: the error holds the bytes.
        return data.decode(name)
    except UnicodeError as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise TextEncoding(subject, seen=f"bytes that are not {name}{place}") from None
    except LookupError:
        raise TextEncoding(subject, seen="an encoding that is not known") from None


def checked(text: str, subject: object) -> str:
    """The language of a text that can be read: English, or empty where it is too short to tell.

    Raises
    ------
    TextEmpty, TextTooLarge, TextEncoding, TextLanguage
        As their names say.
    NotPlainText
        If it has control characters, or is markup.
    """
    if len(text) > LARGEST_TEXT:
        raise TextTooLarge(subject, seen=f"{len(text)} characters")
    if _SURROGATE.search(text):
        raise TextEncoding(subject, seen="half of a surrogate pair")
    if "\ufffd" in text:
        raise TextEncoding(subject, seen="a replacement character: some letters were lost on the way")
    if _CONTROL.search(text):
        raise NotPlainText(subject, seen="control characters")
    if _MARKUP.match(text):
        raise NotPlainText(subject, seen="HTML or XML")
    if not any(letter.isalpha() for letter in text):
        raise TextEmpty(subject, seen="no word")
    language = language_of(text)
    if language not in ("", ENGLISH):
        raise TextLanguage(subject, seen="another script" if language == "und" else f"language {language}")
    return language
