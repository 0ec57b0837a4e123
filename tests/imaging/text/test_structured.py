"""The words of an SR stand below the headings that their concepts name; what a device wrote is no report."""

from __future__ import annotations

from pathlib import Path

import pytest
from phantom import PATIENT_ID, STUDY_UID
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedSRStorage, XRayRadiationDoseSRStorage
from written import coded, item, observer, text, write_sr

from imaging.dicom.attributes import read_facts
from imaging.errors import DeviceReport, ImagingError, SetAside, TextEmpty, TextTooLarge, UnreadableDicom
from imaging.text.document import Document
from imaging.text.mentions import find_mentions
from imaging.text.structured import is_text_report, report_words

FINDINGS, IMPRESSIONS, HISTORY = ("DCM", "121070"), ("LN", "19005-8"), ("DCM", "121060")


def words_of(path: Path) -> str:
    return report_words(read_facts(path).instance)[0]


def test_sections_come_from_the_concepts(tmp_path: Path) -> None:
    path = write_sr(
        tmp_path / "sr.dcm",
        observer("121006"),
        item("CONTAINER", HISTORY, text("Cough.", None)),
        item("CONTAINER", FINDINGS, text("Lungs clear."), item("CONTAINER", None, text("Heart normal.", None))),
        item("CONTAINER", ("99X", "1"), text("Told by phone.", ("99X", "2"))),
        item("CONTAINER", IMPRESSIONS, text("Normal.", ("DCM", "121073"))),
    )
    said, owner, coded_lines = report_words(read_facts(path).instance)
    assert coded_lines == 0
    document = Document.of(said, role="report", source="sr")
    assert [(part.name, document.words(part)) for part in document.sections] == [
        ("history", "Cough."),
        ("findings", "Lungs clear.\n\nHeart normal."),
        ("other", "Told by phone."),
        ("impression", "Normal."),
    ]
    assert (owner.study_uid, owner.patient_id) == ({STUDY_UID}, {PATIENT_ID})


def test_a_whole_report_in_one_item_keeps_its_own_headings(tmp_path: Path) -> None:
    said = words_of(write_sr(tmp_path / "sr.dcm", text("FINDINGS: Clear.\r\nIMPRESSION: Normal.", None)))
    assert [part.name for part in Document.of(said, role="report", source="sr").sections] == ["findings", "impression"]


def deep(levels: int) -> Dataset:
    content = text("XANTHIPPE")
    for _ in range(levels):
        content = item("CONTAINER", None, content)
    return content


@pytest.mark.parametrize(
    ("children", "error"),
    [
        ([observer("121007"), text("XANTHIPPE")], DeviceReport),
        ([item("CONTAINER", FINDINGS)], TextEmpty),
        ([item("NUM", FINDINGS)], TextEmpty),
        ([text("XANTHIPPE " * 60_000), text("XANTHIPPE " * 60_000)], TextTooLarge),
        ([text("x" * 4_100_000)], TextTooLarge),
        ([deep(40)], UnreadableDicom),
        ([item("TEXT", FINDINGS, TextValue=["XANTHIPPE"] * 3)] * 2_001, UnreadableDicom),
    ],
    ids=["device", "no items", "no text", "long", "large", "deep", "many"],
)
def test_refusals_are_named_and_quote_nothing(
    tmp_path: Path, children: list[Dataset], error: type[ImagingError]
) -> None:
    path = write_sr(tmp_path / "sr.dcm", *children)
    with pytest.raises(error) as raised:
        words_of(path)
    assert "XANTHIPPE" not in str(raised.value)


def test_a_person_beside_a_device_makes_it_a_report(tmp_path: Path) -> None:
    path = write_sr(tmp_path / "sr.dcm", observer("121007"), observer("121006"), text("Lungs clear."))
    assert words_of(path) == "FINDINGS:\nLungs clear."


def test_dose_reports_are_no_text(tmp_path: Path) -> None:
    assert is_text_report(read_facts(write_sr(tmp_path / "sr.dcm", text("a"))).instance)
    dose = write_sr(tmp_path / "dose.dcm", text("a"), sop_class=XRayRadiationDoseSRStorage)
    assert not is_text_report(read_facts(dose).instance)


def code(
    concept: tuple[str, ...], answer: tuple[str, str, str], *children: Dataset, relationship: str = "CONTAINS"
) -> Dataset:
    """A CODE item with what its codes mean."""
    content = item("CODE", None, *children, ConceptCodeSequence=Sequence([coded(*answer)]))
    content.ConceptNameCodeSequence, content.RelationshipType = Sequence([coded(*concept)]), relationship
    return content


FINDING, SITE = ("DCM", "121071", "Finding"), ("SCT", "363698007", "Finding Site")


def test_coded_findings_are_read_as_words(tmp_path: Path) -> None:
    lung = code(SITE, ("SCT", "44029006", "Left lung"), relationship="HAS CONCEPT MOD")
    path = write_sr(
        tmp_path / "sr.dcm",
        observer("121006"),
        code(("DCM", "121058", "Procedure reported"), ("SCT", "399208008", "Chest X-ray")),
        item(
            "CONTAINER", FINDINGS,
            code(FINDING, ("SCT", "46621007", "Atelectasis"), lung),
            code(("SCT", "36118008", "Pneumothorax"), ("SCT", "2667000", "Absent")),
            code(("SCT", "60046008", "Pleural effusion"), ("SCT", "373068000", "Undetermined")),
            code(("99X", "7", "Heart size"), ("99X", "8", "enlarged")),
        ),
        item("CONTAINER", IMPRESSIONS, text("Partial collapse.", ("DCM", "121073"))),
    )  # fmt: skip
    said, _, coded_lines = report_words(read_facts(path).instance)
    document = Document.of(said, role="report", source="sr")
    assert [(part.name, document.words(part)) for part in document.sections] == [
        (
            "findings",
            "Atelectasis, Left lung.\n\nNo Pneumothorax.\n\nPossible Pleural effusion.\n\nHeart size: enlarged.",
        ),
        ("impression", "Partial collapse."),
    ]
    assert coded_lines == 4
    assertions = {document.text[span.start : span.end]: span.assertion for span in find_mentions(document)}
    assert assertions == {"Atelectasis": "present", "Pneumothorax": "absent", "Pleural effusion": "uncertain"}


def test_a_dose_report_is_none_whoever_observed_it(tmp_path: Path) -> None:
    title = Sequence([coded("DCM", "113701", "X-Ray Radiation Dose Report")])
    path = write_sr(tmp_path / "sr.dcm", text("XANTHIPPE"), sop_class=EnhancedSRStorage, ConceptNameCodeSequence=title)
    with pytest.raises(DeviceReport, match="a dose report") as refused:
        report_words(read_facts(path).instance)
    assert isinstance(refused.value, SetAside)
