"""Why a study was asked for is read from the headers of its images, each reason once."""

from __future__ import annotations

from pathlib import Path

from phantom import write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from written import coded

from imaging.dicom.scan import scan
from imaging.text.document import Document
from imaging.text.intake import texts_of
from imaging.text.request_attributes import request_words


def requested(folder: Path, series: int = 1, **values: object) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    write_series(folder, series=series, edit=edit)


def asked(folder: Path) -> tuple[str, tuple[str, ...]]:
    (study,) = scan(folder).studies
    return request_words([series.instances[0] for series in study.series])


def test_reasons_and_history_stand_below_their_headings(tmp_path: Path) -> None:
    order = Dataset()
    order.ReasonForTheRequestedProcedure = "Cough, exclude pneumonia"
    order.RequestedProcedureDescription = "Chest CT"
    order.ReasonForRequestedProcedureCodeSequence = Sequence([coded("SCT", "49727002", "Cough")])
    requested(tmp_path, AdditionalPatientHistory="Smoker,\r\n 30 years", RequestAttributesSequence=Sequence([order]))
    text, attributes = asked(tmp_path)
    assert text == "HISTORY: Smoker, 30 years\nINDICATION: Cough, exclude pneumonia; Cough\nEXAMINATION: Chest CT"
    assert attributes == (
        "AdditionalPatientHistory",
        "ReasonForTheRequestedProcedure",
        "ReasonForRequestedProcedureCodeSequence",
        "RequestedProcedureDescription",
    )
    names = [part.name for part in Document.of(text, role="request", source="").sections]
    assert names == ["history", "indication", "technique"]


def test_what_series_repeat_is_told_once_and_what_they_add_is_kept(tmp_path: Path) -> None:
    requested(tmp_path, ReasonForStudy="Cough")
    requested(tmp_path, 2, ReasonForStudy="Cough", ReasonForTheRequestedProcedure="Cough")
    requested(tmp_path, 3, ReasonForStudy="Fever")
    assert asked(tmp_path)[0] == "INDICATION: Cough; Fever"


def test_the_name_of_an_examination_alone_is_no_reason(tmp_path: Path) -> None:
    requested(tmp_path, RequestedProcedureDescription="Chest CT", AdditionalPatientHistory=" . ")
    assert asked(tmp_path) == ("", ())


def test_letters_beyond_ascii_are_kept(tmp_path: Path) -> None:
    requested(tmp_path, AdditionalPatientHistory="Sjögren's syndrome, temperature 39 °C")
    assert asked(tmp_path)[0] == "HISTORY: Sjögren's syndrome, temperature 39 °C"


def test_letters_that_the_character_set_does_not_have_are_not_passed_on(tmp_path: Path) -> None:
    requested(tmp_path, AdditionalPatientHistory="XANTHIPPE Qxy pain")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"Qxy", b"\xe9\xe9\xe9"))
    (study,) = scan(tmp_path).studies
    found = texts_of(study)
    assert (found.documents, [error.code for error in found.refused]) == ((), ["text_encoding"])
    assert "XANTHIPPE" not in str(found.refused)
