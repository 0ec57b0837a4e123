"""The page escapes what comes from outside, fetches nothing and runs nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.checkpoint import Checkpoint
from imaging.config import load_config
from imaging.errors import MissingSlices, NotDicom
from imaging.files import shipped
from imaging.predict import Prediction
from imaging.report.findings import findings_of, model_entry, refusals_of
from imaging.report.html import render_html
from imaging.report.pictures import key_pictures
from imaging.report.report import DefectEntry, OutputEntry, Report, SeriesEntry, StudyEntry
from imaging.volume import Frame, SeriesFacts, Volume

CONFIG = load_config(shipped("configs") / "hippocampus_mr.yaml")
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</title></style><script src=//evil.example></script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
]


def page_of(text: str = "HippoCrop", *, found: bool = True) -> str:
    """A page with the text in every place that comes from outside."""
    mask = np.zeros((6, 7, 5), np.uint8)
    if found:
        mask[1:4, 2:5, 1:4], mask[5, 5, 2] = 1, 2
    frames = tuple(Frame(f"1.2.3.{z}", 1, Path("f")) for z in range(5))
    facts = SeriesFacts("1.2", "1.2.3", "1.2.0", modality=text, description=text)
    volume = Volume(np.random.default_rng(0).random((1, 6, 7, 5), dtype=np.float32), np.eye(4), facts, frames)
    series = SeriesEntry(
        uid="1.2.3", description=text, modality=text, instances=5, models=("hippocampus_mr",), shape=(6, 7, 5),
        spacing_mm=(1, 1, 1), orientation="RAS", refusals=refusals_of([MissingSlices(text, seen=text)]),
        defects=(DefectEntry(code="uneven_positions", action="noted", detail=text, error_mm=0.1),),
    )  # fmt: skip
    interval = {"coverage": 0.9, "low": 0.8, "high": 1.2, "held_on_test": 0.95}
    dice = {"mean": 0.9, "low": 0.88, "high": 0.92}
    metrics: dict[str, Any] = {"volume_interval": {"hippocampus_anterior": interval},
                               "test": {"cases": 43, "dice": {"hippocampus_anterior": dice}}}  # fmt: skip
    prediction = Prediction(Checkpoint(Path("c"), CONFIG, metrics, "f" * 64), volume, mask, {1: 0.9, 2: 0.8})
    report = Report(
        created="2026-01-01T00:00:00+00:00",
        software="imgpipe",
        software_version="0.1",
        study=StudyEntry(name="1.2", uid="1.2", description=text, patient_id=text, date=text, accession=text),
        findings=findings_of(prediction),
        series=(series,),
        refused=refusals_of([NotDicom(text, seen=text)]),
        models=(model_entry(prediction),),
        outputs=(OutputEntry(file=text, sha256="0" * 64),),
    )
    return render_html(report, key_pictures(prediction))


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "image", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "br", "image", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "iframe", "object", "embed", "link", "img", "form", "a", "base"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "action", "srcset")
        assert name != "href" or value.startswith("data:image/png;base64,")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_obeyed(text: str) -> None:
    page = page_of(text)
    assert_harmless(page)
    assert "<script" not in page
    assert text in Page(page).text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=20))
@settings(max_examples=25, deadline=None)
def test_any_text_leaves_the_page_whole(text: str) -> None:
    assert_harmless(page_of(text))


@pytest.mark.parametrize("found", [True, False], ids=["found", "nothing_found"])
def test_page_fetches_nothing(found: bool) -> None:
    page = page_of(found=found)
    for reference in ("http:", "https:", "//", "@import", "url(", "<script", "<link"):
        assert reference not in page.replace("base64,", "").partition("</style>")[0]
        without_pictures = "".join(part.partition('"')[2] for part in page.split("data:image/png;base64,")[1:])
        assert reference not in without_pictures
    assert "default-src 'none'" in page


@pytest.mark.parametrize("found", [True, False], ids=["found", "nothing_found"])
def test_page_is_well_formed(found: bool) -> None:
    assert_harmless(page_of(found=found))


def test_page_tells_what_the_report_tells() -> None:
    text = Page(page_of()).text
    for said in (
        "For research use, not for diagnosis.", "Hippocampus, anterior part", "0.027 mL", "27 mm³",
        "0.022 to 0.032 mL", "with 90 % coverage", "95 % of the test cases", "indeterminate", "SCT 5366008",
        "0.900 [0.880, 0.920]", "On 43 test cases", "missing_slices", "not_dicom", "uneven_positions", "1.2.3.2",
        "f" * 64,
    ):  # fmt: skip
        assert said in text, said


def test_each_picture_has_its_slice_and_instance() -> None:
    page = page_of()
    assert page.count("<figure>") == page.count("data:image/png;base64,") == 3
    assert all(f"Slice {number} of 5" in page and f"<code>1.2.3.{number - 1}</code>" in page for number in (2, 3, 4))


def test_report_of_nothing_says_so() -> None:
    empty = Report(created="now", software="imgpipe", software_version="0", study=StudyEntry(name="x"), findings=(),
                   series=(), refused=refusals_of([NotDicom("file.txt", seen="a text file")]))  # fmt: skip
    text = Page(render_html(empty, ())).text
    assert "Nothing was measured" in text
    assert "not_dicom" in text and "file.txt" in text
    assert "No model took part" in text
