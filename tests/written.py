"""DICOM SR objects with words in them, as reporting systems write them."""

from __future__ import annotations

from pathlib import Path

from phantom import PATIENT_ID, STUDY_UID
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, BasicTextSRStorage, ExplicitVRLittleEndian

REPORT_CODE = ("LN", "11528-7", "Radiology Report")


def coded(scheme: str, value: str, meaning: str = "words") -> Dataset:
    """One item of a code sequence."""
    code = Dataset()
    code.CodingSchemeDesignator, code.CodeValue, code.CodeMeaning = scheme, value, meaning
    return code


def item(kind: str, concept: tuple[str, str] | None, *children: Dataset, **values: object) -> Dataset:
    """One content item with what it contains."""
    content = Dataset()
    content.RelationshipType, content.ValueType = "CONTAINS", kind
    if concept is not None:
        content.ConceptNameCodeSequence = Sequence([coded(*concept)])
    for keyword, value in values.items():
        setattr(content, keyword, value)
    if children:
        content.ContentSequence = Sequence(children)
    return content


def text(words: str, concept: tuple[str, str] | None = ("DCM", "121071")) -> Dataset:
    """A TEXT item."""
    return item("TEXT", concept, TextValue=words)


def observer(kind: str) -> Dataset:
    """Who observed: 121006 is a person, 121007 a device (TID 1002)."""
    return item("CODE", ("DCM", "121005"), ConceptCodeSequence=Sequence([coded("DCM", kind)]))


def write_sr(
    path: Path, *children: Dataset, sop_class: str = BasicTextSRStorage, study_uid: str = STUDY_UID, **values: object
) -> Path:
    """Write an SR whose root contains the items."""
    dataset = item("CONTAINER", None, *children)
    dataset.ConceptNameCodeSequence = Sequence([coded(*REPORT_CODE)])
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, UID(f"{study_uid}.900.{len(children)}")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID(study_uid), UID(f"{study_uid}.900")
    dataset.PatientID, dataset.PatientName, dataset.Modality = PATIENT_ID, "Doe^Jane", "SR"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path
