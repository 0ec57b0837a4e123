"""Whose a DICOM image is by its own header, so that a list of images that tells no patients can be split by them.

Invariant: what leaves this room is a digest of the PatientID, which is not to be read in any log.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from imaging.dicom.header import read_header
from imaging.errors import InputRefused

_PATIENT_ID = 0x00100020


def owner_of(image: Path) -> str:
    """Whose a DICOM file is, or the first such file in a folder that tells it.

    Returns
    -------
    str
        A digest of PatientID (0010,0020); empty where nobody tells it, as in an archive or what is no DICOM.
    """
    files = sorted(path for path in image.rglob("*") if path.is_file()) if image.is_dir() else [image]
    for file in files:
        try:
            told = read_header(file, frozenset((_PATIENT_ID,))).values.get(_PATIENT_ID, b"")
        except InputRefused:
            continue
        patient_id = told.decode("utf-8", "replace").strip(" \0")
        if patient_id:
            return digest_of(patient_id)
    return ""


def digest_of(patient_id: str) -> str:
    """What stands for a PatientID; empty for none."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16] if patient_id else ""
