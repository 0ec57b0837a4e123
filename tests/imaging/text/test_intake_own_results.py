"""What imgpipe wrote is never read back as a radiologist's words, though it lies beside the images as theirs do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from phantom import write_series
from reported import full_report

from imaging.dicom.scan import scan
from imaging.errors import NotAReport
from imaging.report.fhir import write_fhir
from imaging.report.report import StudyEntry
from imaging.report.sr import write_sr
from imaging.text.intake import read_text, texts_of


@pytest.mark.parametrize("name", ["sr.dcm", "r4.json", "r5.json"])
def test_own_results_are_refused_as_reports(tmp_path: Path, name: str) -> None:
    phantom = write_series(tmp_path, slices=2)
    (study,) = scan(tmp_path).studies
    report = full_report().model_copy(update={"study": StudyEntry(name=study.uid, uid=study.uid)})
    path = tmp_path / name
    if name == "sr.dcm":
        write_sr(path, report, phantom.paths)
    else:
        write_fhir(path, report, "r4" if name == "r4.json" else "r5")
        assert json.loads(path.read_bytes())["resourceType"] == "Bundle"
    with pytest.raises(NotAReport):
        read_text(path, study=study)
    (study,) = scan([*phantom.paths, *([path] if name == "sr.dcm" else [])]).studies
    found = texts_of(study, roots=[tmp_path])
    assert found.documents == ()
    # Of an SR it is known what it is; JSON that looks like a reader's is a mistake of somebody's.
    assert [error.code for error in found.refused] == ["device_report" if name == "sr.dcm" else "not_a_report"]


def test_report_json_is_no_text_and_is_passed_over(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=2)
    (tmp_path / "report.json").write_text(full_report().model_dump_json())
    (study,) = scan(phantom.paths).studies
    found = texts_of(study, roots=[tmp_path])
    assert (found.documents, found.refused, found.sidecars) == ((), (), ())
