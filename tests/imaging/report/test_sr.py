"""Each statement of a report becomes one group of the SR, and real studies pass other people's validators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from films import STUDY, write_film
from PIL import Image
from pydicom.dataset import Dataset
from validators import assert_valid, dumped

from imaging.checkpoint import find_checkpoint, open_checkpoint
from imaging.classifier import Classifier
from imaging.codes import code_of
from imaging.config import Code
from imaging.dicom import load_series
from imaging.dicom.seg import Algorithm, SegType, write_seg
from imaging.dicom.sr_content import Evaluation, Group, SegmentRef, read_content
from imaging.errors import FormatNotApplicable, OutputNotBuilt
from imaging.judgement import Classification
from imaging.predict import Prediction, Predictor
from imaging.predictors import open_predictor
from imaging.report.findings import findings_of
from imaging.report.models import model_entry
from imaging.report.report import (
    ClassProbability,
    Disagreement,
    Finding,
    FusionEntry,
    ModelEntry,
    OutputEntry,
    Refusal,
    Report,
    Score,
    SectionEntry,
    SentenceEntry,
    SentenceRef,
    SeriesEntry,
    SpanEntry,
    StructureVolume,
    StudyEntry,
    TextEntry,
    VolumeInterval,
)
from imaging.report.sr import Drawn, groups_of, write_sr

CREATED = "2026-01-02T03:04:05+00:00"
MODEL = ModelEntry(name="toy", version="2.0", title="Toy", weights_sha256="ab" * 32, config_sha256="cd" * 32)
SERIES = SeriesEntry(
    uid=f"{STUDY}.1", description="", modality="DX", instances=1, models=("toy",),
    source_sop_instance_uids=(f"{STUDY}.1.1",),
)  # fmt: skip


def finding_of(assessment: str, *, name: str = "pneumonia", **values: Any) -> Finding:
    told = ClassProbability(probability=0.8, temperature=1.0, threshold=0.5, sensitivity_goal=0.9, classes={name: 0.8})
    given = {
        "name": name, "title": name.title(), "category": code_of("finding"), "code": code_of(name), "modifier": None,
        "assessment": assessment, "assessment_reason": "Because.", "model": "toy", "series_uid": SERIES.uid,
        "classification": told,
    }  # fmt: skip
    return Finding(**{**given, **values})


def structure_of(*, voxels: int = 8, low: float = 90.0, high: float = 130.0) -> StructureVolume:
    interval = VolumeInterval(low_mm3=low, high_mm3=high, coverage=0.9)
    return StructureVolume(
        voxels=voxels, volume_mm3=100.0 if voxels else 0.0, volume_ml=0.1, interval=interval if voxels else None,
        interval_note="", mean_probability=0.9, centre_ras_mm=None, evidence=(),
    )  # fmt: skip


def part_of(structure: StructureVolume) -> Finding:
    return finding_of(
        "indeterminate", name="hippocampus", category=code_of("anatomical_structure"), modifier=code_of("anterior"),
        classification=None, structure=structure,
    )  # fmt: skip


def report_of(*findings: Finding, series: Sequence[SeriesEntry] = (SERIES,), **values: Any) -> Report:
    given = {
        "created": CREATED, "software": "imgpipe", "software_version": "0.1.0", "series": tuple(series),
        "study": StudyEntry(name=STUDY, uid=STUDY), "findings": findings, "models": (MODEL,),
    }  # fmt: skip
    return Report(**{**given, **values})


def group_of(report: Report, number: int = 0) -> Group:
    return groups_of(report, {})[number]


def answers(group: Group) -> dict[str, str]:
    return {item.question.meaning: item.answer.meaning for item in group.evaluations}


# ----------------------------------------------------------------------------------------------- statement by statement


@pytest.mark.parametrize(
    ("assessment", "found", "normality", "presence"),
    [
        ("abnormal", True, "Abnormal", "Present"),
        ("normal", False, "Normal", "Absent"),
        ("indeterminate", False, "Normality Undetermined", "Undetermined"),
    ],
)
def test_only_what_was_judged_abnormal_is_named_as_a_finding(
    assessment: str, found: bool, normality: str, presence: str
) -> None:
    group = group_of(report_of(finding_of(assessment)))
    assert group.finding == (code_of("pneumonia") if found else None)
    assert answers(group) == {"Normality": normality, "Pneumonia": presence}
    (number,) = group.measured
    assert (number.name.meaning, number.value, number.unit.value) == ("Probability", 0.8, "1")
    assert "Because." in group.comments
    assert group.images == SERIES.source_sop_instance_uids
    assert group.maker is not None and (group.maker.name, group.maker.version) == ("toy", "2.0")
    assert group.maker.parameters == (f"weights SHA-256 {'ab' * 32}", f"config SHA-256 {'cd' * 32}")


@pytest.mark.parametrize("name", ["normal", "abnormal"])
def test_what_is_called_normal_or_abnormal_is_not_present_or_absent(name: str) -> None:
    assert set(answers(group_of(report_of(finding_of("abnormal", name=name))))) == {"Normality"}


def test_a_structure_is_measured_where_it_lies() -> None:
    key = ("toy", SERIES.uid, "", "hippocampus")
    reference = SegmentRef("1.2.3", 2, SERIES.uid)
    (group, _) = groups_of(report_of(part_of(structure_of())), {key: Drawn("1.9", reference)})
    assert (group.segment, group.tracking_id, group.tracking_uid) == (reference, "hippocampus", "1.9")
    assert (group.finding, group.site, group.site_modifier) == (*[code_of("hippocampus")] * 2, code_of("anterior"))
    (number,) = group.measured
    assert (number.name.meaning, number.unit.value) == ("Volume", "mm3")
    assert (number.low, number.value, number.high) == (90.0, 100.0, 130.0)
    assert group.images == () and answers(group) == {}, "nobody judged it: that is not undetermined"


def test_a_structure_of_a_strange_picture_is_undetermined() -> None:
    strange = part_of(structure_of()).model_copy(update={"novelty": ("Strange film",)})
    assert answers(group_of(report_of(strange))) == {"Normality": "Normality Undetermined"}


def test_a_text_that_no_checkpoint_read_is_not_judged() -> None:
    text = TextEntry(role="report", source="", sha256="ef" * 32, assessment_reason="No checkpoint.")
    assert answers(group_of(report_of(texts=(text,)))) == {}
    strange = text.model_copy(update={"model": "toy"})
    assert answers(group_of(report_of(texts=(strange,)))) == {"Normality": "Normality Undetermined"}


def test_an_interval_without_its_number_is_told_in_words_alone() -> None:
    group = group_of(report_of(part_of(structure_of(low=110.0))))
    assert (group.measured[0].low, group.measured[0].high) == (None, None)
    assert any("between 110 and 130 mm3 in 90%" in comment for comment in group.comments)


def test_a_structure_that_was_not_found_has_no_volume_and_is_no_finding() -> None:
    group = group_of(report_of(part_of(structure_of(voxels=0))))
    assert (group.finding, group.measured, group.segment) == (None, (), None)
    assert group.site == code_of("hippocampus")


def test_without_a_seg_a_volume_refers_to_the_images() -> None:
    group = group_of(report_of(part_of(structure_of())))
    assert group.segment is None and group.images == SERIES.source_sop_instance_uids


def test_a_case_of_several_channels_refers_to_the_images_of_all() -> None:
    other = SERIES.model_copy(
        update={"uid": "1.7", "channel_of": {"toy": "flair"}, "source_sop_instance_uids": ("1.7.1",)}
    )
    unlike = SERIES.model_copy(update={"uid": "1.8", "models": (), "source_sop_instance_uids": ("1.8.1",)})
    group = group_of(report_of(finding_of("normal"), series=(SERIES, other, unlike)))
    assert group.images == (f"{STUDY}.1.1", "1.7.1")


def test_what_is_unlike_all_that_was_learnt_says_why() -> None:
    assert "Strange film" in group_of(report_of(finding_of("indeterminate", novelty=("Strange film",)))).comments


SCORES = {
    "image": Score(probability=0.7, low=0.6, high=0.8, logit=0.85, source="image toy"),
    "text": Score(probability=0.2, logit=-1.4, source="text words"),
    "fused": Score(probability=0.5, logit=0.0, source="fused"),
}


def test_picture_words_and_both_are_three_numbers_with_their_makers() -> None:
    fusion = FusionEntry(
        name="abnormal", code=code_of("abnormal"), **SCORES, text_role="request", method="log_odds", prior=0.4,
        assessment="indeterminate", assessment_reason="Between the thresholds.", error_rate=0.1,
    )  # fmt: skip
    group = group_of(report_of(fusion=(fusion,)))
    told = [(item.maker.name, item.maker.version, item.value, item.low) for item in group.measured if item.maker]
    assert told == [("image toy", "2.0", 0.7, 0.6), ("text words", "0.1.0", 0.2, None), ("fused", "0.1.0", 0.5, None)]
    assert group.finding is None and answers(group) == {"Normality": "Normality Undetermined"}
    assert {"Between the thresholds.", "Fused by log odds, prior 0.4", "Error rate 0.1"} <= set(group.comments)


def test_what_is_nearly_sure_is_not_told_as_certain() -> None:
    score = Score(probability=0.99984, low=0.99918, high=0.99997, logit=8.7, source="fused")
    entry = FusionEntry(name="pneumonia", fused=score, method="log_odds", assessment="abnormal", assessment_reason="-")
    assert "fused: 0.99984, 0.99918 to 0.99997" in group_of(report_of(fusion=(entry,))).comments


def test_what_is_missing_of_a_fusion_is_told() -> None:
    fusion = FusionEntry(
        name="pneumonia", code=code_of("pneumonia"), image=SCORES["image"], method="stacked", model="toy",
        missing=("no text",), assessment="abnormal", assessment_reason="Above.",
    )  # fmt: skip
    group = group_of(report_of(fusion=(fusion,)))
    assert group.finding == code_of("pneumonia") and "Missing: no text" in group.comments
    assert len(group.measured) == 1


SENTENCE = SentenceRef(text_sha256="ef" * 32, start=0, end=15, text="No pneumonia is seen.")


def test_a_disagreement_is_evaluated_with_both_sides() -> None:
    entry = Disagreement(
        kind="image_abnormal_report_denies", name="pneumonia", title="Pneumonia", series_uid=SERIES.uid,
        sop_instance_uid=f"{STUDY}.1.1", greatest_at=(3, 4, 0), sentence=SENTENCE, score=2.5, note="Look again.",
    )  # fmt: skip
    group = group_of(report_of(disagreements=(entry,)))
    assert answers(group) == {"Disagreement with prior findings": "Present"}
    assert group.images == (f"{STUDY}.1.1",)
    assert {"Look again.", "The report says: No pneumonia is seen.", "Raised most at voxel 3, 4, 0"} <= set(
        group.comments
    )
    silent = entry.model_copy(update={"sentence": None, "sop_instance_uid": "", "greatest_at": None})
    assert "The report does not mention it" in group_of(report_of(disagreements=(silent,))).comments


def test_a_text_says_what_it_asserts_once_each() -> None:
    spans = [
        SpanEntry(start=3, end=12, text="pneumonia", kind="finding", assertion=assertion, score=0.9, code=code)
        for assertion, code in [
            ("absent", code_of("pneumonia")),
            ("absent", code_of("pneumonia")),
            ("uncertain", code_of("pleural_effusion")),
            ("present", None),
        ]
    ]
    sentence = SentenceEntry(start=0, end=20, text="No pneumonia is seen.", spans=tuple(spans))
    text = TextEntry(
        role="report", source="file SECRET_NAME.txt", sha256="ef" * 32, model="toy", probability=0.3,
        interval=(0.2, 0.4), assessment="normal", assessment_reason="Below.", sentences=(sentence,),
    )  # fmt: skip
    group = group_of(report_of(texts=(text,)))
    assert answers(group) == {"Normality": "Normal", "Pneumonia": "Absent", "Pleural effusion": "Undetermined"}
    assert (group.measured[0].low, group.measured[0].high) == (0.2, 0.4)
    assert group.finding is None and len(group.evaluations) == 3
    assert not any("SECRET" in word for word in (group.tracking_id, *group.comments))


def span_of(start: int, assertion: str, name: str = "pneumonia") -> SpanEntry:
    given = {"start": start, "end": start + 9, "text": name, "kind": "finding", "assertion": assertion, "score": 1.0}
    return SpanEntry.model_validate({**given, "code": code_of(name)})


@pytest.mark.parametrize(
    ("role", "spans", "answer"),
    [
        ("report", [(25, "present")], "Present"),
        ("report", [(5, "present")], None),  # in the history
        ("report", [(25, "present"), (27, "absent")], "Undetermined"),  # of one side, and not of the other
        ("report", [(5, "present"), (25, "absent")], "Absent"),
        ("request", [(25, "present")], None),
    ],
)
def test_a_text_answers_for_this_picture_alone(role: str, spans: list[tuple[int, str]], answer: str | None) -> None:
    found = tuple(span_of(start, assertion) for start, assertion in spans)
    text = TextEntry(
        role=role, source="", sha256="ef" * 32, sentences=(SentenceEntry(start=0, end=50, text="-", spans=found),),
        sections=(SectionEntry(name="history", start=0, end=20), SectionEntry(name="findings", start=20, end=50)),
    )  # fmt: skip
    assert answers(group_of(report_of(texts=(text,)))).get("Pneumonia") == answer


@pytest.mark.parametrize(("temperature", "told"), [(None, True), (1.2, False)])
def test_a_probability_that_is_not_calibrated_says_so(temperature: float | None, told: bool) -> None:
    said = finding_of("indeterminate")
    assert said.classification is not None
    number = said.classification.model_copy(update={"temperature": temperature})
    group = group_of(report_of(said.model_copy(update={"classification": number})))
    assert any("not calibrated" in line for line in group.comments) == told


def test_what_nobody_looked_at_is_told_last() -> None:
    refusal = Refusal(code="localizer", subject="/home/secret/file.dcm", seen="", expected="", remedy="")
    unread = SERIES.model_copy(update={"uid": "1.8", "models": (), "refusals": (refusal,), "modality": "MR"})
    report = report_of(series=(SERIES, unread), not_looked_at=("Bones",), refused=(refusal,))
    group = groups_of(report, {})[-1]
    assert group.comments == (
        "For research use, not for diagnosis.",
        "No checkpoint looked at this study",
        "Not looked at: Bones",
        "Series 1.8 (MR) was not measured: localizer",
        "Refused: localizer",
    )


def test_a_later_version_of_a_result_says_so() -> None:
    assert "Version 3 of the result" in groups_of(report_of(version=3), {})[-1].comments


def test_words_are_one_line_each_without_control_characters() -> None:
    report = report_of(finding_of("normal", assessment_reason="Two\nlines\x00 and\ta tab  "))
    assert "Two lines and a tab" in group_of(report).comments


# --------------------------------------------------------------------------------------------------------- real studies


@dataclass(frozen=True)
class Study:
    """A folder of outputs with the report on them, and the files that it is of."""

    folder: Path
    report: Report
    instances: list[Path]

    def sr(self, **options: Any) -> Dataset:
        write_sr(self.folder / "sr.dcm", self.report, self.instances, **options)
        assert_valid(self.folder / "sr.dcm")
        return pydicom.dcmread(self.folder / "sr.dcm")


def entry_of(said: Prediction | Classification) -> SeriesEntry:
    facts = said.volume.facts
    return SeriesEntry(
        uid=facts.series_uid, description=facts.description, modality=facts.modality, volume=facts.volume,
        instances=len(said.volume.sources), models=(said.checkpoint.name,),
        source_sop_instance_uids=tuple(frame.sop_instance_uid for frame in said.volume.sources),
    )  # fmt: skip


def study_of(folder: Path, said: Sequence[Prediction | Classification], **values: Any) -> Study:
    uid = said[0].volume.facts.study_uid
    report = report_of(
        *(finding for one in said for finding in findings_of(one)),
        series=[entry_of(one) for one in said], study=StudyEntry(name=uid, uid=uid),
        models=tuple({one.checkpoint.name: model_entry(one.checkpoint) for one in said}.values()), **values,
    )  # fmt: skip
    return Study(folder, report, [frame.path for one in said for frame in one.volume.sources])


@pytest.fixture(scope="module")
def hippocampus(data: Path) -> Prediction:
    predict = open_predictor(open_checkpoint(find_checkpoint("hippocampus_mr")))
    assert isinstance(predict, Predictor)
    return predict(load_series(data / "hippocrop_study1"))


@pytest.fixture
def measured(hippocampus: Prediction, tmp_path: Path) -> Study:
    return with_seg(hippocampus, tmp_path, "binary")


def with_seg(hippocampus: Prediction, tmp_path: Path, seg_type: SegType) -> Study:
    config, facts = hippocampus.checkpoint.segmenter(), hippocampus.volume.facts
    algorithm = Algorithm(config.name, config.version, "ab" * 32, config.digest(), "0.1.0")
    path, found = tmp_path / "seg_hippocampus_mr.dcm", hippocampus.found
    write_seg(path, found, hippocampus.volume, config.labels, algorithm, seg_type=seg_type)
    output = OutputEntry(file="seg_hippocampus_mr.dcm", sha256="", series_uid=facts.series_uid, volume=facts.volume)
    return study_of(tmp_path, [hippocampus], outputs=(output,))


def test_volumes_of_a_real_study_refer_to_the_segments_beside_them(measured: Study) -> None:
    dataset, seg = measured.sr(), pydicom.dcmread(measured.folder / "seg_hippocampus_mr.dcm")
    anterior, posterior, _ = read_content(dataset)
    for number, group in enumerate((anterior, posterior), start=1):
        assert group.segment == SegmentRef(seg.SOPInstanceUID, number, measured.report.series[0].uid)
        segment = seg.SegmentSequence[number - 1]
        assert (group.tracking_id, group.tracking_uid) == (segment.TrackingID, segment.TrackingUID)
        meant = measured.report.findings[number - 1].structure
        assert meant is not None and group.measured[0].value == meant.volume_mm3
    assert anterior.site_modifier == code_of("anterior") and posterior.site_modifier == code_of("posterior")
    groups = dataset.ContentSequence[-1].ContentSequence
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1411", "1411", "1501"]
    referenced = {
        item.ReferencedSOPInstanceUID
        for study in dataset.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert referenced == {seg.SOPInstanceUID}
    tree = dumped(measured.folder / "sr.dcm")
    assert "Hippocampus" in tree and "Volume" in tree and "Artificial Intelligence" in tree


def test_segments_of_a_label_map_are_told_in_words_and_tracked_as_its_own(
    hippocampus: Prediction, tmp_path: Path
) -> None:
    study = with_seg(hippocampus, tmp_path, "labelmap")
    groups, seg = read_content(study.sr()), pydicom.dcmread(tmp_path / "seg_hippocampus_mr.dcm")
    _background, *segments = seg.SegmentSequence
    for group, segment in zip(groups, segments, strict=False):
        assert group.segment is None and group.tracking_uid == segment.TrackingUID
        assert f"Segment {segment.SegmentNumber} of label map {seg.SOPInstanceUID}" in group.comments
        assert group.images == study.report.series[0].source_sop_instance_uids
    dumped(tmp_path / "sr.dcm")


def test_a_report_that_names_a_seg_that_is_not_there_is_not_written(measured: Study) -> None:
    (measured.folder / "seg_hippocampus_mr.dcm").unlink()
    with pytest.raises(OutputNotBuilt, match="seg_hippocampus_mr"):
        write_sr(measured.folder / "sr.dcm", measured.report, measured.instances)
    assert not (measured.folder / "sr.dcm").exists()


@pytest.fixture(scope="module")
def chest() -> Classifier:
    classify = open_predictor(open_checkpoint(find_checkpoint("chest_xray")))
    assert isinstance(classify, Classifier)
    return classify


@pytest.fixture
def films(data: Path, tmp_path: Path) -> list[Path]:
    pictures = sorted((data / "pneumoniamnist" / "images").glob("*.png"))
    found = []
    for number, picture in enumerate((pictures[0], pictures[-1]), start=1):
        image = np.asarray(Image.open(picture).convert("L").resize((256, 256)))
        values = {"PatientName": "Müller^Jörg", "StudyDescription": "Thorax"}
        found.append(write_film(tmp_path / f"film_{number}" / "1.dcm", image, number=number, **values))
    return found


@pytest.fixture
def judged(chest: Classifier, films: list[Path], tmp_path: Path) -> Study:
    return study_of(tmp_path, [chest(load_series(film.parent)) for film in films])


def test_each_series_of_a_study_of_films_is_judged_on_its_own(judged: Study) -> None:
    dataset = judged.sr()
    *groups, last = read_content(dataset)
    assert len(groups) == len(judged.report.findings) == 2
    for group, finding, number in zip(groups, judged.report.findings, (1, 2), strict=True):
        assert group.images == (f"{STUDY}.{number}.1",)
        assert finding.classification is not None
        assert group.measured[0].value == finding.classification.probability
        assert (group.finding is not None) == (finding.assessment == "abnormal")
    assert str(dataset.PatientName) == "Müller^Jörg" and dataset.AccessionNumber == "A77"
    assert last.tracking_id == "study"
    assert "Probability" in dumped(judged.folder / "sr.dcm")


def test_a_study_that_nobody_looked_at_says_so(films: list[Path], tmp_path: Path) -> None:
    unread = SERIES.model_copy(update={"models": (), "source_sop_instance_uids": ()})
    dataset = Study(tmp_path, report_of(series=(unread,), models=()), films).sr()
    (group,) = read_content(dataset)
    assert "No checkpoint looked at this study" in group.comments
    assert dataset.PatientID == "F1" and "not for diagnosis" in dumped(tmp_path / "sr.dcm")


def test_picture_and_words_in_one_report_pass_the_validators(judged: Study) -> None:
    fusion = FusionEntry(
        name="pneumonia", code=code_of("pneumonia"), **SCORES, method="stacked", assessment="abnormal",
        assessment_reason="Above.",
    )  # fmt: skip
    entry = Disagreement(
        kind="image_abnormal_report_denies", name="pneumonia", sop_instance_uid=f"{STUDY}.1.1",
        sentence=SENTENCE.model_copy(update={"text": "Kein Erguß \u2265 2 cm"}), score=1.0, note="Look again.",
    )  # fmt: skip
    report = judged.report.model_copy(update={"fusion": (fusion,), "disagreements": (entry,)})
    dataset = Study(judged.folder, report, judged.instances).sr()
    assert len(read_content(dataset)) == 5
    assert str(dataset.PatientName) == "Müller^Jörg" and dataset.SpecificCharacterSet == "ISO_IR 192"
    assert "Kein Erguß" in dumped(judged.folder / "sr.dcm")


def test_the_same_report_is_the_same_file_and_only_the_moment_makes_another(judged: Study) -> None:
    judged.sr()
    first = (judged.folder / "sr.dcm").read_bytes()
    assert judged.sr() and (judged.folder / "sr.dcm").read_bytes() == first
    later = judged.report.model_copy(update={"created": "2027-01-02T03:04:05+00:00"})
    one, two = judged.sr(), Study(judged.folder, later, judged.instances).sr()
    assert one.SOPInstanceUID == two.SOPInstanceUID and one.ContentDate != two.ContentDate


def test_a_later_version_names_the_earlier_one(judged: Study) -> None:
    first = judged.sr()
    (judged.folder / "sr.dcm").rename(judged.folder / "first.dcm")
    second = judged.sr(predecessors=[judged.folder / "first.dcm"])
    (item,) = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == first.SOPInstanceUID != second.SOPInstanceUID


def test_what_is_no_dicom_has_no_sr(tmp_path: Path, films: list[Path]) -> None:
    with pytest.raises(FormatNotApplicable):
        write_sr(tmp_path / "sr.dcm", report_of(finding_of("normal")), [])
    with pytest.raises(FormatNotApplicable):
        write_sr(tmp_path / "sr.dcm", report_of(study=StudyEntry(name="picture")), films)


def test_a_finding_on_an_image_that_is_lost_is_not_written(judged: Study) -> None:
    with pytest.raises(OutputNotBuilt):
        write_sr(judged.folder / "sr.dcm", judged.report, judged.instances[:1])


def test_every_code_that_is_written_is_in_the_table_or_the_finding_s_own(judged: Study) -> None:
    own: set[Code] = {finding.code for finding in judged.report.findings}
    for group in read_content(judged.sr()):
        for item in group.evaluations:
            assert isinstance(item, Evaluation)
            assert item.question in own or item.question == code_of("normality")
    assert json.loads(judged.report.to_json())["findings"]
