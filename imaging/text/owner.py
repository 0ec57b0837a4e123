"""Whose a text is, by what it says of itself, beside whose the images are.

Invariant: a text that names another study, patient or order than the images is refused; one that names none is taken,
for most do not. What is compared stays out of every message. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from imaging.dicom.scan import Study
from imaging.errors import TextOfAnother

# What an export writes above a report, a line each.
_NAMED = re.compile(
    r"^[ \t]{0,20}(?:(?P<study>study ?instance ?uid|study uid)"
    r"|(?P<patient>patient ?id|mrn|medical record (?:number|no\.?))"
    r"|(?P<accession>accession(?: ?(?:number|no\.?|#))?))[ \t]{0,20}[:=#][ \t]{0,20}(?P<value>\S{1,64})[ \t]{0,20}\r?$",
    re.IGNORECASE | re.MULTILINE,
)
# Several to a line, or cells of a table; then a value has a digit, so that no word of prose is taken for one. The
# accession number of an earlier study stands in a line of its own sentence, so none is looked for here.
_BESIDE_OTHERS = re.compile(
    r"(?:^|[|;,\t]|(?<= ) )[ \t]{0,20}(?:(?P<study>study ?instance ?uid|study uid)"
    r"|(?P<patient>patient ?id|mrn|medical record (?:number|no\.?)))"
    r"[ \t]{0,20}[:=#|]?[ \t]{0,20}(?P<value>(?=[^\s|;,]{0,63}\d)[^\s|;,]{1,64})(?=[\s|;,]|\Z)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose images or words are; what is not told is empty.

    Attributes
    ----------
    study_uid
        StudyInstanceUID.
    patient_id
        PatientID; of words, each identifier that they give the patient.
    accession
        AccessionNumber.
    """

    study_uid: frozenset[str] = frozenset()
    patient_id: frozenset[str] = field(default=frozenset(), repr=False)
    accession: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def of(cls, study: Study) -> Owner:
        """Whose the images of a study are; a StudyInstanceUID that was made for files without one names nobody."""
        made = any(defect.code == "missing_uid" for series in study.series for defect in series.defects)
        return cls(told("" if made else study.uid), told(study.patient_id), told(study.accession))

    @classmethod
    def named_in(cls, text: str) -> Owner:
        """What a text's own lines (``Patient ID: ...``) say."""
        found: dict[str, set[str]] = {"study": set(), "patient": set(), "accession": set()}
        for match in (*_NAMED.finditer(text), *_BESIDE_OTHERS.finditer(text)):
            kind = next(name for name, value in match.groupdict().items() if value and name != "value")
            found[kind].add(match["value"])
        return cls(*(frozenset(values) for values in found.values()))


def told(*values: str) -> frozenset[str]:
    """The values that say something."""
    return frozenset(value.strip() for value in values if value.strip())


def check_owner(said: Owner, images: Owner | None, subject: object) -> tuple[str, ...]:
    """Refuse words that name somebody else, and tell by what they name the images' own.

    Parameters
    ----------
    said
        What the words say of themselves.
    images
        Whose the images are; None where there are none to compare with.
    subject
        The words, for messages.

    Returns
    -------
    tuple of str
        The attributes that both tell alike; none where the words name nobody, so that nothing could be compared.

    Raises
    ------
    TextOfAnother
        If both tell a study, a patient or an accession number, and they have none in common.
    """
    if images is None:
        return ()
    pairs: Sequence[tuple[str, frozenset[str], frozenset[str]]] = (
        ("StudyInstanceUID", said.study_uid, images.study_uid),
        ("PatientID", said.patient_id, images.patient_id),
        ("AccessionNumber", said.accession, images.accession),
    )
    for name, of_text, of_images in pairs:
        if of_text and of_images and of_text.isdisjoint(of_images):
            raise TextOfAnother(subject, seen=f"its {name} differs from that of the images")
    return tuple(name for name, of_text, of_images in pairs if of_text and of_images)
