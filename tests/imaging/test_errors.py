"""Every refusal has a code of its own, belongs to one branch, and says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging import errors
from imaging.errors import ImagingError, InputRefused, InternalFault, WrongUsage

BRANCHES = (InputRefused, WrongUsage, InternalFault)
ABSTRACT = (ImagingError, *BRANCHES, errors.SeriesRefused, errors.SetAside, errors.PeerFault)


def below(error: type[ImagingError]) -> Iterator[type[ImagingError]]:
    for child in error.__subclasses__():
        if child.__module__.startswith(f"{errors.__name__}."):
            yield child
            yield from below(child)


CONCRETE = sorted({error for error in below(ImagingError) if error not in ABSTRACT}, key=lambda error: error.code)


def test_codes_are_unique() -> None:
    codes = [error.code for error in CONCRETE]
    assert len(codes) == len(set(codes)) > 40


@pytest.mark.parametrize("error", CONCRETE, ids=lambda error: error.code)
def test_each_error_has_a_code_of_its_own_a_branch_and_a_remedy(error: type[ImagingError]) -> None:
    assert "code" in vars(error), "the code is inherited"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", error.code)
    assert sum(issubclass(error, branch) for branch in BRANCHES) == 1
    assert error.remedy
    assert error.__doc__


@pytest.mark.parametrize("error", CONCRETE, ids=lambda error: error.code)
def test_message_and_dict_say_the_same_five_things(error: type[ImagingError]) -> None:
    raised = error("series 1.2.3", seen="THIS", expected="THAT", remedy="DO SO")
    assert str(raised) == f"{error.code}: series 1.2.3: THIS; THAT. DO SO"
    parts = {"subject": "series 1.2.3", "seen": "THIS", "expected": "THAT", "remedy": "DO SO"}
    assert raised.as_dict() == {"code": error.code, **parts}


def test_words_of_the_class_stand_where_the_raise_site_has_none() -> None:
    raised = errors.MissingSlices("series 1.2", seen="a hole")
    assert raised.expected == errors.MissingSlices.expected != ""
    assert raised.remedy == errors.MissingSlices.remedy


def test_raise_site_does_not_change_the_words_of_the_class() -> None:
    before = errors.NotDicom.expected
    errors.NotDicom("file", seen="text", expected="something else")
    assert errors.NotDicom.expected == before


@given(subject=st.text(), seen=st.text())
def test_any_text_is_kept_as_it_is(subject: str, seen: str) -> None:
    raised = errors.NotDicom(subject, seen=seen)
    assert (raised.subject, raised.seen) == (subject, seen)
    assert subject in str(raised) and seen in str(raised)
