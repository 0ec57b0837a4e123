"""A list that tells no patients is split by those of the DICOM headers, and no PatientID is told."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from classified import toy_config
from phantom import STUDY_UID, write_series

from imaging.cases import read_cases
from imaging.dicom.owner import digest_of, owner_of
from imaging.manifest import read_manifest


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Four studies of two patients, each with a mask."""
    for number in range(4):
        patient_id = f"SECRET-{number // 2}"
        write_series(tmp_path / f"s{number}", study_uid=f"{STUDY_UID}.{number}", series=number, patient_id=patient_id)
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2), dtype=np.uint8), np.eye(4)), tmp_path / f"m{number}.nii")
    return tmp_path


def test_classified_cases_are_of_their_headers_patients(studies: Path) -> None:
    file = min((studies / "s1").iterdir()).relative_to(studies)
    (studies / "list.csv").write_text(f"image,label\ns0,odd\n{file},plain\ns2,odd\ns3,plain\n")
    first, second, third, fourth = (case.patient for case in read_cases(studies / "list.csv", toy_config(studies)))
    assert first == second != third == fourth
    assert "SECRET" not in first + third
    (studies / "told.csv").write_text("image,label,patient\ns0,odd,a\ns1,plain,b\n")
    cases = read_cases(studies / "told.csv", toy_config(studies))
    assert [case.patient for case in cases] == ["a", "b"], "the table decides where it tells"


def test_cases_with_masks_are_of_their_headers_patients(studies: Path) -> None:
    (studies / "list.csv").write_text("image,label\n" + "\n".join(f"s{n},m{n}.nii" for n in range(4)))
    first, second, third, fourth = (case.patient for case in read_manifest(studies / "list.csv"))
    assert first == second == digest_of("SECRET-0") and third == fourth == digest_of("SECRET-1")


def test_who_does_not_tell_owns_nothing(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no DICOM")
    write_series(tmp_path / "nobody", patient_id="")
    (tmp_path / "empty").mkdir()
    for name in ("note.txt", "nobody", "empty", "not there"):
        assert owner_of(tmp_path / name) == ""
