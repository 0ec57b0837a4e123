"""The page escapes what comes from outside, fetches nothing and runs nothing."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import full_report, judged

from imaging.checkpoint import Checkpoint
from imaging.config import Code, load_config
from imaging.errors import MissingSlices, NotDicom
from imaging.files import shipped
from imaging.predict import Prediction
from imaging.report import html
from imaging.report.findings import findings_of, refusals_of
from imaging.report.heat import Heat
from imaging.report.html import render_html
from imaging.report.models import model_entry
from imaging.report.pictures import Picture, key_pictures
from imaging.report.report import (
    DefectEntry,
    ModelEntry,
    OutputEntry,
    Report,
    SectionEntry,
    SentenceEntry,
    SentenceRef,
    SeriesEntry,
    SpanEntry,
    StudyEntry,
)
from imaging.volume import Frame, SeriesFacts, Volume

CONFIG = load_config(shipped("configs") / "hippocampus_mr.yaml")
VOID = ("meta", "br", "image", "path", "line", "circle")
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</title></style><script src=//evil.example></script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
]


def words_with(text: str) -> dict[str, Any]:
    """What words add to a report, with the text in every place that comes from outside."""
    full, said = full_report(), text or "x"
    (entry,), (fusion,), (item,) = full.texts, full.fusion, full.disagreements
    code = Code.model_construct(scheme="SCT", value="1", meaning=said)
    span = SpanEntry(start=0, end=len(said), text=said, kind="finding", assertion="present", score=1, code=code)
    sentence = SentenceEntry(start=0, end=len(said), text=said, spans=(span,))
    reference = SentenceRef(text_sha256=entry.sha256, start=0, end=len(said), text=said)
    sections = (SectionEntry(name="findings", start=0, end=len(said)),)
    return {
        "texts": (entry.model_copy(update={"source": text, "sentences": (sentence,), "sections": sections}),),
        "fusion": (fusion.model_copy(update={"title": text, "missing": (text,), "calibration": text}),),
        "disagreements": (item.model_copy(update={"title": text, "note": text, "sentence": reference}),),
        "not_looked_at": (text,),
    }


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
        models=(model_entry(prediction.checkpoint),),
        outputs=(OutputEntry(file=text, sha256="0" * 64),),
        **words_with(text),
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
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
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
        "0.022 to 0.032 mL", "with 90 % coverage", "95 % of the test cases", "not judged", "SCT 5366008",
        "0.900 [0.880, 0.920]", "On 43 test cases", "missing_slices", "not_dicom", "uneven_positions", "1.2.3.2",
        "f" * 64,
    ):  # fmt: skip
        assert said in text, said
    assert "indeterminate" not in page_of().partition("<main>")[2], "a size that nothing judges is no doubtful case"


def test_what_computed_a_model_is_told_with_its_weights() -> None:
    model = ModelEntry(name="toy", version="1.0", title="Toy", weights_sha256="a" * 64, config_sha256="c" * 64)
    report = full_report().model_copy(update={"models": (model,)})
    assert "computed by" not in rendered(report)
    by = model.model_copy(update={"engine": "openvino", "precision": "int8"})
    assert "computed by openvino in int8" in rendered(report.model_copy(update={"models": (by,)}))


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


# --------------------------------------------------------------------------------------------------- words and pictures


def rendered(report: Report, *pictures: Any) -> str:
    return Page(render_html(report, pictures)).text


def test_conclusion_comes_first_and_provenance_last() -> None:
    text = Page(page_of()).text
    order = ["Conclusion", "Where picture and report disagree", "Findings", "Key images",
             "Picture and words, alone and together", "The words", "What was not looked at", "How sure",
             "What was read", "Where it comes from"]  # fmt: skip
    places = [text.index(f"\n{heading}\n") for heading in order]
    assert places == sorted(places)


def test_headings_go_down_by_one() -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page_of())]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_findings_stand_in_the_order_of_urgency() -> None:
    findings = (judged("fine", 0.1, "normal"), judged("unsure", 0.5, "indeterminate"), judged("bad", 0.9, "abnormal"))
    findings = (*findings[:1], findings[1].model_copy(update={"novelty": ("Darker than any.",)}), *findings[2:])
    text = rendered(full_report().model_copy(update={"findings": findings})).split("\nFindings\n")[1]
    assert text.index("Bad") < text.index("Unsure") < text.index("Darker than any.") < text.index("Fine")


def test_three_scores_are_told_with_intervals_and_a_missing_one_with_why() -> None:
    text = " ".join(rendered(full_report()).split())
    assert "Picture alone image chest_xray 0.910 [0.850, 0.950]" in text
    assert "Words alone no text model" in text
    assert "Together text: no text model" in text
    assert "nothing is judged by it" in text, "a report has seen the picture"


def test_scores_are_drawn_where_they_are() -> None:
    page = render_html(full_report(), ())
    assert 'aria-label="0.910 on a line from 0 to 1, interval 0.850 to 0.950"' in page
    assert '<line class="range" x1="85.00%" x2="95.00%"' in page and '<circle cx="91.00%"' in page


def test_mention_is_told_by_a_sign_and_a_word_too() -> None:
    page = render_html(full_report(), ())
    sign, word = '<span class="sign" aria-hidden="true">\N{MINUS SIGN}</span>', '<span class="unseen">absent: </span>'
    assert f'<mark class="absent">{sign}{word}pleural effusion</mark>' in page
    assert "Pleural effusion (SCT 60046008)" in page


def test_disagreement_shows_both_sides() -> None:
    report = full_report()
    text = rendered(report).split("Where picture and report disagree")[1]
    assert "the report denies it" in text and "No pleural effusion." in text and "Most at voxel 3, 4, 0" in text
    silent = report.disagreements[0].model_copy(update={"sentence": None, "kind": "image_abnormal_report_silent"})
    assert "No sentence mentions it." in rendered(report.model_copy(update={"disagreements": (silent,)}))


def test_picture_of_what_is_disputed_stands_beside_the_words_and_only_there() -> None:
    heat = Heat(name="pleural_effusion", title="Pleural effusion", png="data:image/png;base64,", unseen="",
                method="grad_cam_pp", cells=(7, 7), blank=False)  # fmt: skip
    plain = Picture(index=0, of=1, series_uid="", volume="", sop_instance_uid="", png=heat.png, columns=2, rows=2,
                    width_mm=2, height_mm=2, left="", right="", top="", bottom="", outlines=())  # fmt: skip
    page = render_html(full_report(), (plain, replace(plain, heat=heat)))
    dispute, rest = page.split("\n<h2>Findings</h2>")
    assert (dispute.count("<figure>"), rest.count("<figure>")) == (1, 1)
    assert "Slice 1 of 1" not in page  # a film has no slices


def test_report_without_words_says_nothing_of_them() -> None:
    report = full_report().model_copy(update={"texts": (), "fusion": (), "disagreements": (), "not_looked_at": ()})
    text = rendered(report)
    for heading in ("disagree", "The words", "Picture and words", "What was not looked at"):
        assert heading not in text.split("Conclusion")[1]


def test_same_report_gives_the_same_bytes() -> None:
    assert page_of() == page_of()


# ------------------------------------------------------------------------------------------------------------- contrast


def colours() -> dict[str, dict[str, str]]:
    """The page's variables in light and in dark."""
    folder = Path(html.__file__).parent / "templates"
    css = (folder / "style.css").read_text() + (folder / "report.css").read_text()
    screen = re.sub(r"@media print.*", "", css)
    dark = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", "".join(re.findall(r"prefers-color-scheme: dark.*", screen))))
    light = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", re.sub(r"@media \(prefers-color-scheme: dark.*", "", screen)))
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    values = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("words", ["ink", "soft", "bad", "unsure", "good", "mark"])
@pytest.mark.parametrize("ground", ["page", "panel"])
def test_words_stand_out_from_their_ground(mode: str, words: str, ground: str) -> None:
    light, dark = sorted((luminance(colours()[mode][name]) for name in (words, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5, "WCAG 2.2, 1.4.3"
