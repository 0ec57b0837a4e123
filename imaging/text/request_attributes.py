"""Why a study was asked for, as the headers of its images say.

Invariant: the words stand below a heading that says which they are, each once, however many series repeat them; an
examination's name alone is no reason. Values never get into messages. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pydicom

from imaging.dicom.attributes import Instance
from imaging.dicom.frames import quietly, read_dataset
from imaging.errors import UnreadableDicom

# Heading for each attribute that says why a study was asked for (PS3.3 C.7.2.2, C.4.11, C.7.3.1.1, 10.6), in the order
# in which they are told. What was asked for goes along where there is a reason; alone it is none.
_REASONS = (
    ("HISTORY", "AdditionalPatientHistory"),
    ("HISTORY", "AdmittingDiagnosesDescription"),
    ("INDICATION", "ReasonForTheRequestedProcedure"),
    ("INDICATION", "ReasonForStudy"),
    ("INDICATION", "ReasonForTheImagingServiceRequest"),
    ("INDICATION", "ReasonForRequestedProcedureCodeSequence"),
    ("COMMENT", "RequestedProcedureComments"),
    ("COMMENT", "ImagingServiceRequestComments"),
)
_PROCEDURES = (
    ("EXAMINATION", "RequestedProcedureDescription"),
    ("EXAMINATION", "ScheduledProcedureStepDescription"),
)
_REQUESTS = "RequestAttributesSequence"


def request_words(instances: Iterable[Instance]) -> tuple[str, tuple[str, ...]]:
    """The reasons that headers give.

    Parameters
    ----------
    instances
        One of each series is enough.

    Returns
    -------
    text, attributes
        The words, and the names of the attributes that they are from; empty where no reason is given.

    Raises
    ------
    UnreadableDicom
        If a header cannot be parsed.
    """
    found: dict[tuple[str, str], dict[str, None]] = {pair: {} for pair in (*_REASONS, *_PROCEDURES)}
    for instance in instances:
        try:
            with quietly():
                dataset = read_dataset(instance, only=[*(name for _, name in found), _REQUESTS])
                levels = [dataset, *(dataset.get(_REQUESTS) or [])]
                values = [(pair, value) for pair in found for level in levels for value in _values(level, pair[1])]
        except Exception as error:  # noqa: BLE001  pydicom raises whatever it meets, with values in its words
            seen = f"the request in its header cannot be read ({type(error).__name__})"
            raise UnreadableDicom(instance.path, seen=seen) from None
        for pair, value in values:
            found[pair].setdefault(value)
    if not any(found[pair] for pair in _REASONS):
        return "", ()
    # Two attributes that say the same are told once.
    lines: dict[str, dict[str, None]] = {}
    for (heading, _), told in found.items():
        lines.setdefault(heading, {}).update(told)
    text = "\n".join(f"{heading}: {'; '.join(told)}" for heading, told in lines.items() if told)
    return text, tuple(name for (_, name), told in found.items() if told)


def _values(level: pydicom.Dataset, keyword: str) -> Iterator[str]:
    value = level.get(keyword)
    if value is None:
        return
    if isinstance(value, pydicom.Sequence):
        parts = [item.get("CodeMeaning") for item in value]
    else:
        parts = [value] if isinstance(value, str) else list(value)
    for part in parts:
        words = " ".join(str(part or "").split())
        if any(letter.isalpha() for letter in words):
            yield words
