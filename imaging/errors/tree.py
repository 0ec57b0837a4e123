"""The root of the tree of refusals and its three branches: whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar


class ImagingError(Exception):
    """Root of the tree.

    Parameters
    ----------
    subject
        What it is about: a path (then `path` holds it), or an entity with its UID such as ``series 1.2.840...``.
    seen
        What was met.
    expected, remedy
        What should have been met, and what to do now. Each class has its own words for both; a raise site gives
        better ones where it knows more.
    """

    code: ClassVar[str] = "imaging_error"
    expected: str = ""
    remedy: str = ""

    def __init__(
        self, subject: object, *, seen: object, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.subject = str(subject)
        self.path = subject if isinstance(subject, Path) else None
        self.seen = str(seen)
        self.expected = self.expected if expected is None else expected
        self.remedy = self.remedy if remedy is None else remedy
        super().__init__(f"{self.code}: {self.subject}: {self.seen}; {self.expected}. {self.remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it be sent from one process to another."""
        return _again, (type(self), self.path or self.subject, self.seen, self.expected, self.remedy)

    def as_dict(self) -> dict[str, str]:
        """The five parts, for JSON."""
        return {
            "code": self.code,
            "subject": self.subject,
            "seen": self.seen,
            "expected": self.expected,
            "remedy": self.remedy,
        }


def _again(kind: type[ImagingError], subject: object, seen: str, expected: str, remedy: str) -> ImagingError:
    return kind(subject, seen=seen, expected=expected, remedy=remedy)


def told_again(parts: Mapping[str, str]) -> ImagingError:
    """An error that `ImagingError.as_dict` has told.

    Raises
    ------
    KeyError
        If this version has no such code.
    """
    kinds = {kind.code: kind for kind in _below(ImagingError)}
    kind = kinds[parts["code"]]
    return kind(parts["subject"], seen=parts["seen"], expected=parts["expected"], remedy=parts["remedy"])


def _below(kind: type[ImagingError]) -> Iterator[type[ImagingError]]:
    yield kind
    for own in kind.__subclasses__():
        yield from _below(own)


class InputRefused(ImagingError):
    """Something of the input cannot be read rightly, and is left out rather than guessed."""


class WrongUsage(ImagingError):
    """The command line or a config asks for something that cannot be done."""


class InternalFault(ImagingError):
    """imgpipe produced something that failed its own check; nothing of it is delivered."""
