"""A structured report says exactly what was meant, of whom it was meant, or it is not there."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from films import STUDY, write_film
from pydicom.dataset import Dataset
from validators import assert_valid, dumped

from imaging.codes import code_of
from imaging.dicom import sr
from imaging.dicom.source import read_source, uid_of
from imaging.dicom.sr import Statement, check_report, write_report
from imaging.dicom.sr_content import Evaluation, Group, Maker, Measured, SegmentRef, read_content
from imaging.errors import OutputMismatch, OutputNotBuilt

MAKER = Maker("toy", "1.2", ("weights SHA-256 ab", "config SHA-256 cd"))
PROBABILITY = Measured(code_of("probability"), 0.93412, code_of("no_units"), 0.8, 0.97, MAKER)
GROUP = Group(
    tracking_id="toy pneumonia",
    tracking_uid="1.2.3.4",
    maker=MAKER,
    finding=code_of("pneumonia"),
    category=code_of("finding"),
    measured=(PROBABILITY, Measured(code_of("volume"), 1234.567, code_of("cubic_millimeter"))),
    evaluations=(
        Evaluation(code_of("normality"), code_of("abnormal")),
        Evaluation(code_of("pneumonia"), code_of("present")),
    ),
    comments=("Above its threshold of 0.5.", "Second line"),
    images=(f"{STUDY}.1.1",),
)
WHERE = Group(
    "part", "1.2.3.5", finding=code_of("hippocampus"), category=code_of("anatomical_structure"),
    site=code_of("hippocampus"), site_modifier=code_of("anterior"), comments=("x",),
)  # fmt: skip
MOMENT = datetime(2026, 1, 2, 3, 4, 5)
STATEMENT = Statement((GROUP, WHERE), "0.1.0", MOMENT)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.dcm", np.arange(80).reshape(8, 10))


def write(folder: Path, statement: Statement, *files: Path, **options: Any) -> bytes:
    write_report(folder / "sr.dcm", statement, files, **options)
    return (folder / "sr.dcm").read_bytes()


def read(content: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def test_it_says_what_was_meant(tmp_path: Path, film: Path) -> None:
    report = read(write(tmp_path, STATEMENT, film))
    first, second = read_content(report)
    assert second == WHERE
    assert replace(first, measured=()) == replace(GROUP, measured=())
    assert [(item.name, item.value, item.unit, item.maker) for item in first.measured] == [
        (item.name, item.value, item.unit, item.maker) for item in GROUP.measured
    ]
    assert (first.measured[0].low, first.measured[0].high) == (pytest.approx(0.8), pytest.approx(0.97))
    assert first.measured[1].low is None


def test_it_is_a_preliminary_report_of_a_device_that_nobody_verified(tmp_path: Path, film: Path) -> None:
    report = read(write(tmp_path, STATEMENT, film))
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    items = {str(item.ConceptNameCodeSequence[0].CodeMeaning): item for item in report.ContentSequence}
    assert items["Observer Type"].ConceptCodeSequence[0].CodeMeaning == "Device"
    assert items["Device Observer Name"].TextValue == "imgpipe"
    assert items["Language of Content Item and Descendants"].ConceptCodeSequence[0].CodeValue == "en"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = items["Imaging Measurements"].ContentSequence
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1501", "1501"]


def test_it_is_of_the_patient_and_the_study_of_its_source_and_refers_to_it(tmp_path: Path, film: Path) -> None:
    film = write_film(film, np.arange(80).reshape(8, 10), IssuerOfPatientID="Hospital", StudyDescription="Thorax")
    report, source = read(write(tmp_path, STATEMENT, film)), pydicom.dcmread(film)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
                    "IssuerOfPatientID", "StudyDescription"):  # fmt: skip
        assert report[keyword].value == source[keyword].value
    assert "PixelData" not in report and "ViewPosition" not in report
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == [source.SOPInstanceUID]
    assert report.SeriesInstanceUID != source.SeriesInstanceUID


def test_what_only_says_whose_study_it_is_is_no_evidence(tmp_path: Path, film: Path) -> None:
    content = write(tmp_path, Statement((replace(GROUP, images=()),), "0.1.0", MOMENT), film)
    assert "CurrentRequestedProcedureEvidenceSequence" not in read(content)
    assert_valid(tmp_path / "sr.dcm")
    dumped(tmp_path / "sr.dcm")


def test_evidence_is_in_the_order_of_the_files_whichever_was_looked_at_first(tmp_path: Path, film: Path) -> None:
    """Segmentations lie behind the images; where a report refers to nothing else, no image is looked at."""
    files = [film, *(write_film(tmp_path / f"{number}.dcm", np.eye(8), number=number) for number in range(2, 6))]
    uids = [str(pydicom.dcmread(file).SOPInstanceUID) for file in files]
    segment = replace(WHERE, segment=SegmentRef(uids[-1], 1, "1.2"))
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"")
    _, evidence = sr._evidence([segment], [film, broken, broken, files[-1]])
    assert [header.SOPInstanceUID for header in evidence] == uids[-1:]
    _, evidence = sr._evidence([segment, replace(GROUP, images=(uids[3], uids[1]))], files)
    assert [header.SOPInstanceUID for header in evidence] == [uids[1], uids[3], uids[4]]
    _, evidence = sr._evidence([segment], [*files[-1:], *files[:-1]])
    assert [header.SOPInstanceUID for header in evidence] == uids[-1:]


def test_the_validators_find_nothing_wrong(tmp_path: Path, film: Path) -> None:
    write(tmp_path, STATEMENT, film)
    assert_valid(tmp_path / "sr.dcm")
    tree = dumped(tmp_path / "sr.dcm")
    assert "Pneumonia" in tree and "0.93412" in tree and "Above its threshold of 0.5." in tree


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 144", "\u0416\u0438\u0437\u043d\u044c^\u042f\u043d\u0430"),
        ("ISO_IR 192", "王^小东=山田^太郎"),
        ("GB18030", "王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (None, "Plain^Name"),
    ],
    ids=["latin", "cyrillic", "utf8", "chinese", "japanese", "korean", "ascii"],
)
@pytest.mark.parametrize("comment", ["Plain words", "Gr\u00f6\u00dfer \u2264 \u80ba"], ids=["plain", "unicode"])
def test_names_of_any_script_and_words_of_ours_stay_as_they_are(
    tmp_path: Path, charset: Any, name: str, comment: str
) -> None:
    film = write_film(
        tmp_path / "film.dcm", np.arange(80).reshape(8, 10), SpecificCharacterSet=charset, PatientName=name
    )
    group = replace(GROUP, comments=(comment,))
    report = read(write(tmp_path, Statement((group,), "0.1.0", MOMENT), film))
    assert str(report.PatientName) == str(pydicom.dcmread(film).PatientName) == name
    assert read_content(report)[0].comments == (comment,)
    if comment.isascii() and isinstance(charset, str):
        assert report.PatientName.original_string == pydicom.dcmread(film).PatientName.original_string
    else:
        assert report.get("SpecificCharacterSet") == (None if charset is None and comment.isascii() else "ISO_IR 192")
    assert_valid(tmp_path / "sr.dcm")
    dumped(tmp_path / "sr.dcm")


def test_the_same_moment_gives_the_same_bytes_and_another_one_the_same_uids(tmp_path: Path, film: Path) -> None:
    first, again = write(tmp_path, STATEMENT, film), write(tmp_path, STATEMENT, film)
    assert first == again
    later = read(write(tmp_path, replace(STATEMENT, moment=datetime(2027, 6, 5, 4, 3, 2)), film))
    changed = {element.keyword for element in later if element != read(first).get(element.tag)}
    stated = {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"}
    assert changed == {*stated, "ContributingEquipmentSequence"}
    for equipment in later.ContributingEquipmentSequence:
        assert equipment.ContributionDateTime == "20270605040302"


@pytest.mark.parametrize(
    "other",
    [
        replace(STATEMENT, groups=(replace(GROUP, comments=()), WHERE)),
        replace(STATEMENT, groups=(GROUP,)),
        replace(STATEMENT, software_version="0.2.0"),
    ],
    ids=["comment", "group", "version"],
)
def test_other_content_has_another_uid(tmp_path: Path, film: Path, other: Statement) -> None:
    one, two = read(write(tmp_path, STATEMENT, film)), read(write(tmp_path, other, film))
    assert one.SOPInstanceUID != two.SOPInstanceUID and one.SeriesInstanceUID != two.SeriesInstanceUID


def test_another_patient_has_another_uid(tmp_path: Path, film: Path) -> None:
    corrected = write_film(tmp_path / "other.dcm", np.arange(80).reshape(8, 10), PatientID="F2")
    one, two = read(write(tmp_path, STATEMENT, film)), read(write(tmp_path, STATEMENT, corrected))
    assert one.SOPInstanceUID != two.SOPInstanceUID


def test_a_later_report_names_the_one_that_it_replaces(tmp_path: Path, film: Path) -> None:
    first = read(write(tmp_path, STATEMENT, film))
    (tmp_path / "sr.dcm").rename(tmp_path / "earlier.dcm")
    second = read(write(tmp_path, STATEMENT, film, predecessors=[tmp_path / "earlier.dcm"]))
    (study,) = second.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == first.StudyInstanceUID
    (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (first.SOPClassUID, first.SOPInstanceUID)
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert_valid(tmp_path / "sr.dcm")


OTHERWISE: dict[str, Callable[[Group], Group]] = {
    "finding": lambda group: replace(group, finding=code_of("atelectasis")),
    "no_finding": lambda group: replace(group, finding=None),
    "maker": lambda group: replace(group, maker=replace(MAKER, version="1.3")),
    "value": lambda group: replace(group, measured=(replace(PROBABILITY, value=0.9341), *group.measured[1:])),
    "bound": lambda group: replace(group, measured=(replace(PROBABILITY, low=0.81), *group.measured[1:])),
    "unit": lambda group: replace(group, measured=(replace(PROBABILITY, unit=code_of("volume")), *group.measured[1:])),
    "fewer": lambda group: replace(group, measured=(PROBABILITY,)),
    "answer": lambda group: replace(group, evaluations=(Evaluation(code_of("normality"), code_of("normal")),)),
    "comment": lambda group: replace(group, comments=("Above its threshold of 0.6.",)),
    "image": lambda group: replace(group, images=(f"{STUDY}.1.2",)),
    "tracking": lambda group: replace(group, tracking_uid="1.2.3.9"),
    "segment": lambda group: replace(group, segment=SegmentRef("1.2", 1, "1.3")),
}


@pytest.mark.parametrize("otherwise", OTHERWISE.values(), ids=OTHERWISE)
def test_a_report_that_says_something_else_is_a_mismatch(
    tmp_path: Path, film: Path, otherwise: Callable[[Group], Group]
) -> None:
    content = write(tmp_path, STATEMENT, film)
    check_report(content, STATEMENT, read_source(film))
    with pytest.raises(OutputMismatch, match="toy pneumonia"):
        check_report(content, replace(STATEMENT, groups=(otherwise(GROUP), WHERE)), read_source(film))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientID", "F2"), ("PatientName", "Other^One"), ("StudyInstanceUID", "1.2.3"), ("VerificationFlag", "VERIFIED"),
     ("PreliminaryFlag", "FINAL"), ("AccessionNumber", "")],
)  # fmt: skip
def test_a_report_of_somebody_else_or_a_verified_one_is_a_mismatch(
    tmp_path: Path, film: Path, keyword: str, value: str
) -> None:
    report = read(write(tmp_path, STATEMENT, film))
    setattr(report, keyword, value)
    stream = io.BytesIO()
    report.save_as(stream)
    with pytest.raises(OutputMismatch):
        check_report(stream.getvalue(), STATEMENT, read_source(film))


def test_a_predecessor_that_is_lost_is_a_mismatch(tmp_path: Path, film: Path) -> None:
    content = write(tmp_path, STATEMENT, film)
    with pytest.raises(OutputMismatch, match="replaces"):
        check_report(content, STATEMENT, read_source(film), [read(content)])


def test_a_report_that_differs_is_withheld(tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = sr._build

    def forged(statement: Statement, *rest: Any) -> Any:
        return build(replace(statement, groups=(replace(GROUP, comments=("Forged",)), WHERE)), *rest)

    monkeypatch.setattr(sr, "_build", forged)
    with pytest.raises(OutputMismatch):
        write(tmp_path, STATEMENT, film)
    assert not (tmp_path / "sr.dcm").exists()


def test_an_image_that_is_not_among_the_files_is_refused_without_a_word_of_the_patient(
    tmp_path: Path, film: Path
) -> None:
    lost = replace(GROUP, images=(f"{STUDY}.5.5",))
    with pytest.raises(OutputNotBuilt) as caught:
        write(tmp_path, Statement((lost,), "0.1.0", MOMENT), film)
    assert "Fanny" not in str(caught.value) and not (tmp_path / "sr.dcm").exists()


def test_uids_are_functions_of_the_content() -> None:
    assert uid_of("a", "b") == uid_of("a", "b") != uid_of("ab")
