"""Every number of a finding can be added up again from what it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from imaging.checkpoint import Checkpoint
from imaging.config import load_config
from imaging.errors import MissingSlices
from imaging.files import shipped
from imaging.predict import Prediction
from imaging.report.findings import findings_of, refusals_of
from imaging.report.report import Finding, Report, StructureVolume, StudyEntry
from imaging.volume import Frame, SeriesFacts, Volume

Array = np.ndarray[Any, Any]

CONFIG = load_config(shipped("configs") / "hippocampus_mr.yaml")
FACTOR = {"coverage": 0.9, "low": 0.8, "high": 1.25, "held_on_test": 0.93}
DICE = {"mean": 0.9, "low": 0.88, "high": 0.92}
METRICS: dict[str, Any] = {
    "volume_interval": {"hippocampus_anterior": FACTOR, "hippocampus_posterior": None},
    "test": {"cases": 43, "dice": {"hippocampus_anterior": DICE}},
}
OBLIQUE = np.array([[0.6, -0.64, 0.3, 5], [0.8, 0.48, -0.2, -7], [0.1, 0.7, 2.1, 80], [0, 0, 0, 1.0]])


def predicted(mask: Array, affine: Array = OBLIQUE, *, dicom: bool = True, metrics: Any = METRICS) -> Prediction:
    """A prediction with this mask, as if of a DICOM series or of a NIfTI file."""
    frames = tuple(Frame(f"1.2.3.{z}", 1, Path(f"{z}.dcm")) for z in range(mask.shape[2])) if dicom else ()
    facts = SeriesFacts(study_uid="1.2", series_uid="1.2.3" if dicom else "", modality="MR", description="HippoCrop")
    volume = Volume(np.zeros((1, *mask.shape), np.float32), affine, facts, frames)
    found = {label: 0.87654321 for label in (1, 2) if (mask == label).any()}
    return Prediction(Checkpoint(Path("checkpoint"), CONFIG, metrics, "f" * 64), volume, mask.astype(np.uint8), found)


def structures_of(prediction: Prediction) -> list[StructureVolume]:
    return [finding.structure for finding in findings_of(prediction) if finding.structure]


def mask_of() -> Array:
    """18 voxels of label 1 and one of label 2."""
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 2:5, 1:4] = 1
    mask[0, 0, 5] = 2
    return mask


def report_of(*findings: Finding) -> Report:
    return Report(
        created="2026-01-01T00:00:00+00:00",
        software="imgpipe",
        software_version="0",
        study=StudyEntry(name="1.2"),
        findings=findings,
        series=(),
    )


# -------------------------------------------------------------------------------------------------------------- amounts


def test_volume_is_voxels_times_the_size_of_a_voxel() -> None:
    anterior, posterior = structures_of(predicted(mask_of()))
    size = abs(np.linalg.det(OBLIQUE[:3, :3]))
    assert (anterior.voxels, posterior.voxels) == (18, 1)
    assert anterior.volume_mm3 == pytest.approx(18 * size, abs=1e-3)
    assert anterior.volume_ml == pytest.approx(anterior.volume_mm3 / 1000, abs=1e-6)


@given(arrays.arrays(np.uint8, (5, 4, 6), elements=st.integers(0, 2)))
@settings(max_examples=50, deadline=None)
def test_slices_add_up_to_the_volume(mask: Array) -> None:
    prediction = predicted(mask)
    for label, structure in enumerate(structures_of(prediction), start=1):
        assert sum(slice_.voxels for slice_ in structure.evidence) == structure.voxels == (mask == label).sum()
        total = sum(slice_.area_mm2 for slice_ in structure.evidence) * prediction.volume.spacing[2]
        assert total == pytest.approx(structure.volume_mm3, abs=0.02)
        assert all(slice_.voxels > 0 for slice_ in structure.evidence)


def test_evidence_leads_to_the_instances() -> None:
    anterior, posterior = structures_of(predicted(mask_of()))
    assert [(slice_.index, slice_.sop_instance_uid, slice_.frame) for slice_ in anterior.evidence] == [
        (1, "1.2.3.1", 1), (2, "1.2.3.2", 1), (3, "1.2.3.3", 1)
    ]  # fmt: skip
    assert [slice_.sop_instance_uid for slice_ in posterior.evidence] == ["1.2.3.5"]


def test_nifti_has_slices_without_instances() -> None:
    anterior, _ = structures_of(predicted(mask_of(), dicom=False))
    assert [(slice_.index, slice_.sop_instance_uid, slice_.frame) for slice_ in anterior.evidence] == [
        (1, "", 0), (2, "", 0), (3, "", 0)
    ]  # fmt: skip


def test_centre_is_in_ras_mm() -> None:
    anterior, posterior = structures_of(predicted(mask_of()))
    assert anterior.centre_ras_mm == pytest.approx((OBLIQUE @ [1.5, 3, 2, 1])[:3], abs=1e-3)
    assert posterior.centre_ras_mm == pytest.approx((OBLIQUE @ [0, 0, 5, 1])[:3], abs=1e-3)


# ------------------------------------------------------------------------------------------------------------ certainty


def test_interval_is_the_checkpoints_own() -> None:
    anterior, posterior = structures_of(predicted(mask_of(), np.diag([-1.05, 0.95, 1, 1])))
    assert anterior.interval is not None
    assert anterior.interval.low_mm3 == pytest.approx(0.8 * anterior.volume_mm3, abs=2e-3)
    assert anterior.interval.high_mm3 == pytest.approx(1.25 * anterior.volume_mm3, abs=2e-3)
    assert (anterior.interval.coverage, anterior.interval.held_on_test) == (0.9, 0.93)
    assert posterior.interval is None


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (1, 1, 2), (2, 2, 2)])
def test_there_is_no_interval_for_a_spacing_it_was_not_measured_on(spacing: tuple[float, ...]) -> None:
    structures = structures_of(predicted(mask_of(), np.diag([*spacing, 1])))
    assert [structure.interval for structure in structures] == [None, None]


@pytest.mark.parametrize("metrics", [{}, {"volume_interval": None}, {"volume_interval": {}}])
def test_checkpoint_without_figures_gives_no_interval(metrics: dict[str, Any]) -> None:
    prediction = predicted(mask_of(), metrics=metrics)
    assert [structure.interval for structure in structures_of(prediction)] == [None, None]


def test_nothing_is_called_normal() -> None:
    for finding in findings_of(predicted(mask_of())):
        assert finding.assessment == "indeterminate"
        assert "reference range" in finding.assessment_reason


def test_what_was_not_found_is_a_finding_of_zero_that_says_so() -> None:
    prediction = predicted(np.zeros((4, 5, 6), np.uint8))
    for structure in structures_of(prediction):
        assert (structure.voxels, structure.volume_mm3, structure.evidence) == (0, 0, ())
        assert (structure.centre_ras_mm, structure.interval, structure.mean_probability) == (None, None, None)
    for finding in findings_of(prediction):
        assert "does not mean that the structure is absent" in finding.assessment_reason


def test_finding_has_the_codes_of_its_label() -> None:
    for finding, label in zip(findings_of(predicted(mask_of())), CONFIG.labels, strict=True):
        assert (finding.code, finding.category, finding.modifier) == (label.code, label.category, label.modifier)
        assert (finding.model, finding.series_uid) == ("hippocampus_mr", "1.2.3")


# --------------------------------------------------------------------------------------------------------------- report


def test_report_json_is_the_report() -> None:
    report = report_of(*findings_of(predicted(mask_of())))
    text = report.to_json()
    assert Report.model_validate_json(text) == report
    document = json.loads(text)
    assert document["schema_version"] == "1.1"
    assert "not for diagnosis" in document["disclaimer"]


@pytest.mark.parametrize(
    "change", [{"schema_version": "2.0"}, {"extra": 1}, {"findings": None}, {"study": {}}], ids=str
)
def test_another_schema_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate(json.loads(report_of().to_json()) | change)


def test_refusals_keep_their_five_parts() -> None:
    error = MissingSlices("series 1.2.3", seen="one slice is missing")
    (refusal,) = refusals_of([error])
    assert refusal.model_dump() == error.as_dict()
