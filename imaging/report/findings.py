"""The one result object: what was found in a study, how sure that is, and where it came from.

Invariant: every number leads back to its inputs. A finding names its checkpoint and, slice by slice, the instances it
was measured on, so that its volume can be added up again by hand; and nothing that was sent goes unmentioned: each
series is either measured or listed with the reason why it was not.

`Report.schema_version` grows in its first part when a reader of the old `report.json` would misread the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from imaging.classifier import Classification, Judgement
from imaging.config import Code, Label
from imaging.errors import ImagingError
from imaging.predict import Prediction
from imaging.structures import structure_of
from imaging.volume import Volume

DISCLAIMER = "For research use, not for diagnosis."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Refusal(_Part):
    """A named refusal, as `ImagingError.as_dict` gives it."""

    code: str
    subject: str
    seen: str
    expected: str
    remedy: str


class VolumeInterval(_Part):
    """Where the true volume lies, by how the checkpoint did on held-out cases.

    `low_mm3` and `high_mm3` bound it with probability `coverage` for cases like those of the checkpoint's validation
    data; `held_on_test` is the share of its test cases for which the bounds held.
    """

    low_mm3: float
    high_mm3: float
    coverage: float
    held_on_test: float | None = None


class SliceEvidence(_Part):
    """How much of a structure lies on one slice: index along Z from 0, source instance and frame, voxels and area."""

    index: int
    sop_instance_uid: str
    frame: int
    voxels: int
    area_mm2: float


class StructureVolume(_Part):
    """How large a structure is, and where.

    `interval_note` says why there is no interval. `mean_probability` is the network's own, over the structure's voxels,
    and not calibrated. `centre_ras_mm` is in the patient's frame (RAS+). `evidence` has one entry for each slice that
    holds the structure.
    """

    voxels: int
    volume_mm3: float
    volume_ml: float
    interval: VolumeInterval | None
    interval_note: str
    mean_probability: float | None
    centre_ras_mm: tuple[float, float, float] | None
    evidence: tuple[SliceEvidence, ...]


class ClassProbability(_Part):
    """How probable a finding is, and what it was judged by.

    `probability` is calibrated by the factor `temperature` on the network's logits, which was fitted on the
    checkpoint's validation cases (None: it has no calibration). From `threshold` on it is abnormal; the threshold was
    chosen there, with a sensitivity of at least `sensitivity_goal`. `classes` has the probability of every class of the
    checkpoint.
    """

    probability: float
    temperature: float | None
    threshold: float | None
    sensitivity_goal: float | None
    classes: dict[str, float]


class Explanation(_Part):
    """Where on the image a probability comes from, and how far that may be believed.

    The map shows what raised the probability of the finding, as a share of its own greatest value; nothing on it says
    how probable the finding is. `layer` is the part of the network whose feature map it rests on, and `cells` how many
    cells that has along each axis of the network's grid: no detail of the map is finer. `seen` is the share of the
    image that the network was given; the rest was cut off. `greatest_at` is the voxel of the greatest value, by its
    indices from 0 along X, Y, Z, and `sop_instance_uid` the instance of its slice; None where nothing raised it.
    `completeness_gap` is how far integrated gradients, taken in so many `steps`, are from adding up to what they
    explain, as a share of it.
    """

    method: Literal["grad_cam_pp", "integrated_gradients"]
    layer: str
    cells: tuple[int, ...]
    seen: float
    greatest_at: tuple[int, int, int] | None
    sop_instance_uid: str
    completeness_gap: float | None
    steps: int | None


class Finding(_Part):
    """One coded statement of one checkpoint about one series.

    It has either a `structure` (what was measured) or a `classification` (how probable what it names is), which may
    have an `explanation`.

    `assessment` is `indeterminate` with its reason wherever no rule says normal or abnormal; a bare volume is not
    judged. `colour` is that of its outline in the pictures and in the SEG. `volume` tells which one of several volumes
    of the series it is about.
    """

    name: str
    title: str
    category: Code
    code: Code
    modifier: Code | None
    colour: str = ""
    assessment: Literal["normal", "abnormal", "indeterminate"]
    assessment_reason: str
    model: str
    series_uid: str
    volume: str = ""
    structure: StructureVolume | None = None
    classification: ClassProbability | None = None
    explanation: Explanation | None = None


class DefectEntry(_Part):
    """A defect of a series, as `imaging.volume.Defect`."""

    code: str
    action: Literal["noted", "repaired"]
    detail: str
    error_mm: float | None


class SeriesEntry(_Part):
    """One series of the study, or one volume of it, and what became of it.

    `volume` tells it from the other volumes of its series; empty where it is the only one. `shape` is voxels along X,
    Y, Z; `spacing_mm` likewise; `orientation` the patient direction each axis runs towards.
    They are None where the geometry could not be read. Where it was `resampled`, slices lead back to the nearest
    acquired ones. `models` measured the series; `refusals` say why the reader, or a checkpoint, did not. Where one took
    it as one of several channels of a case, `channel_of` has its name and the channel's; findings and masks of the case
    are in the series of its first channel.
    """

    uid: str
    description: str
    modality: str
    volume: str = ""
    instances: int
    models: tuple[str, ...] = ()
    channel_of: dict[str, str] = {}
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    frame_of_reference_uid: str = ""
    resampled: bool = False
    defects: tuple[DefectEntry, ...] = ()
    source_sop_instance_uids: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()


class Figure(_Part):
    """A figure over test cases with its 95 % bootstrap interval; None is what cannot be known."""

    mean: float | None
    low: float | None
    high: float | None


class MeanDice(Figure):
    """Mean Dice over test cases."""


class ModelEntry(_Part):
    """A checkpoint that took part: its version, hashes, and how well it did on held-out cases.

    `members` is how many networks it is the mean of. For each structure its Dice, or for each thing that is judged its
    figures (`imaging.scores.scores_of`): on test cases, and in cross-validation, where each case was measured by the
    one network of several that had not seen it. The latter are no figures of an ensemble, but of its members.
    """

    name: str
    version: str
    title: str
    weights_sha256: str
    config_sha256: str
    test_cases: int = 0
    dice_on_test: dict[str, MeanDice] = {}
    scores_on_test: dict[str, dict[str, Figure]] = {}
    members: int = 1
    cross_validated_cases: int = 0
    dice_cross_validated: dict[str, MeanDice] = {}
    scores_cross_validated: dict[str, dict[str, Figure]] = {}


class StudyEntry(_Part):
    """Whose study it is; empty fields are not told by the source. A NIfTI file has only `name`."""

    name: str
    uid: str = ""
    description: str = ""
    patient_id: str = ""
    date: str = ""
    accession: str = ""


class OutputEntry(_Part):
    """A file beside the report, with the SHA-256 of its bytes and, for a mask, the series and volume it is of."""

    file: str
    sha256: str
    series_uid: str = ""
    volume: str = ""


class Report(_Part):
    """The findings of one study with their provenance."""

    schema_version: Literal["1.0"] = "1.0"
    disclaimer: str = DISCLAIMER
    created: str
    software: str
    software_version: str
    study: StudyEntry
    findings: tuple[Finding, ...]
    series: tuple[SeriesEntry, ...]
    refused: tuple[Refusal, ...] = ()
    models: tuple[ModelEntry, ...] = ()
    outputs: tuple[OutputEntry, ...] = ()

    def to_json(self) -> str:
        """As `report.json` holds it."""
        return self.model_dump_json(indent=1) + "\n"


def findings_of(prediction: Prediction | Classification) -> tuple[Finding, ...]:
    """Measure each structure (one that was not found has volume 0), or tell what was judged and how."""
    if isinstance(prediction, Classification):
        return tuple(_judged(prediction, judgement) for judgement in prediction.judgements)
    labels = prediction.checkpoint.segmenter().labels
    return tuple(_finding(prediction, label) for label in labels)


def _finding(prediction: Prediction, label: Label) -> Finding:
    structure = _measure(prediction, label)
    reason = (
        "Volume only: the checkpoint knows no reference range, so it does not say normal or abnormal."
        if structure.voxels
        else "Not found by the network; this does not mean that the structure is absent."
    )
    return Finding(
        name=label.name,
        title=label.title,
        category=label.category,
        code=label.code,
        modifier=label.modifier,
        colour=label.colour,
        assessment="indeterminate",
        assessment_reason=reason,
        model=prediction.checkpoint.name,
        series_uid=prediction.volume.facts.series_uid,
        volume=prediction.volume.facts.volume,
        structure=structure,
    )


def _judged(prediction: Classification, judgement: Judgement) -> Finding:
    calibration = prediction.checkpoint.metrics.get("calibration") or {}
    return Finding(
        name=judgement.target.name,
        title=judgement.target.title,
        category=judgement.target.category,
        code=judgement.target.code,
        modifier=None,
        assessment=judgement.assessment,
        assessment_reason=judgement.reason,
        model=prediction.checkpoint.name,
        series_uid=prediction.volume.facts.series_uid,
        volume=prediction.volume.facts.volume,
        classification=ClassProbability(
            probability=round(judgement.probability, 5),
            temperature=calibration.get("temperature"),
            threshold=judgement.threshold,
            sensitivity_goal=calibration.get("sensitivity"),
            classes={name: round(value, 5) for name, value in prediction.probability.items()},
        ),
        explanation=_explanation(prediction, judgement),
    )


def _explanation(prediction: Classification, judgement: Judgement) -> Explanation | None:
    heat_map = next((found for found in prediction.heat_maps if found.target == judgement.target.name), None)
    if heat_map is None:
        return None
    heat, made = np.nan_to_num(heat_map.heat_XYZ, nan=0.0), heat_map.attribution
    x, y, z = (int(index) for index in np.unravel_index(int(heat.argmax()), heat.shape))
    raised, sources = bool(heat.max() > 0), prediction.volume.sources
    return Explanation(
        method=made.method,
        layer=made.layer,
        cells=made.cells,
        seen=round(heat_map.seen, 4),
        greatest_at=(x, y, z) if raised else None,
        sop_instance_uid=sources[z].sop_instance_uid if raised and sources else "",
        completeness_gap=None if made.gap is None else float(f"{made.gap:.3g}"),
        steps=made.steps,
    )


def _measure(prediction: Prediction, label: Label) -> StructureVolume:
    volume, found_XYZ = prediction.volume, structure_of(prediction.found, label)
    voxels = int(found_XYZ.sum())
    amount = voxels * volume.voxel_volume
    interval, note = _interval(prediction, label, amount)
    return StructureVolume(
        voxels=voxels,
        volume_mm3=round(amount, 3),
        volume_ml=round(amount / 1000, 6),
        interval=interval,
        interval_note=note,
        mean_probability=_rounded(prediction.mean_probability.get(label.id)),
        centre_ras_mm=_centre(volume, found_XYZ) if voxels else None,
        evidence=_evidence(volume, found_XYZ),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _interval(prediction: Prediction, label: Label, amount: float) -> tuple[VolumeInterval | None, str]:
    """The interval of a volume, or None and why there is none."""
    preprocess, own = prediction.checkpoint.segmenter().preprocess, prediction.volume.spacing
    if None in preprocess.spacing_mm:
        return None, "the checkpoint was measured at any spacing, so its interval holds for none"
    trained = [step for step in preprocess.spacing_mm if step is not None]
    if any(not 0.9 < o / t < 1.1 for o, t in zip(sorted(own), sorted(trained), strict=True)):
        return None, "the checkpoint's interval was measured at another spacing"
    factors = (prediction.checkpoint.metrics.get("volume_interval") or {}).get(label.name)
    if not amount:
        return None, "nothing was found"
    if not factors:
        return None, "the checkpoint has too few validation cases to know one"
    interval = VolumeInterval(
        low_mm3=round(amount * factors["low"], 3),
        high_mm3=round(amount * factors["high"], 3),
        coverage=factors["coverage"],
        held_on_test=factors.get("held_on_test"),
    )
    return interval, ""


def _centre(volume: Volume, found_XYZ: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[float, float, float]:
    x, y, z = volume.affine[:3, :3] @ np.argwhere(found_XYZ).mean(axis=0) + volume.affine[:3, 3]
    return round(float(x), 3), round(float(y), 3), round(float(z), 3)


def _evidence(volume: Volume, found_XYZ: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[SliceEvidence, ...]:
    area = volume.voxel_volume / volume.spacing[2]
    counts = found_XYZ.sum(axis=(0, 1))
    evidence = []
    for index in np.flatnonzero(counts).tolist():
        frame = volume.sources[index] if volume.sources else None
        evidence.append(
            SliceEvidence(
                index=index,
                sop_instance_uid=frame.sop_instance_uid if frame else "",
                frame=frame.number if frame else 0,
                voxels=int(counts[index]),
                area_mm2=round(float(counts[index]) * area, 3),
            )
        )
    return tuple(evidence)


def refusals_of(errors: Sequence[ImagingError]) -> tuple[Refusal, ...]:
    """Errors as parts of a report."""
    return tuple(Refusal(**error.as_dict()) for error in errors)


def model_entry(prediction: Prediction | Classification) -> ModelEntry:
    """The entry of the checkpoint that made a prediction."""
    checkpoint = prediction.checkpoint
    test, held_out = (checkpoint.metrics.get(side, {}) for side in ("test", "cross_validation"))
    return ModelEntry(
        name=checkpoint.name,
        version=checkpoint.config.version,
        title=checkpoint.config.title,
        weights_sha256=checkpoint.weights_sha256,
        config_sha256=checkpoint.config.digest(),
        test_cases=test.get("cases", 0),
        dice_on_test=_dice_of(test),
        scores_on_test=_scores_of(test),
        members=checkpoint.config.members,
        cross_validated_cases=held_out.get("cases", 0),
        dice_cross_validated=_dice_of(held_out),
        scores_cross_validated=_scores_of(held_out),
    )


def _dice_of(side: dict[str, Any]) -> dict[str, MeanDice]:
    return {name: MeanDice(**value) for name, value in side.get("dice", {}).items()}


def _scores_of(side: dict[str, Any]) -> dict[str, dict[str, Figure]]:
    return {
        name: {key: Figure(**value) for key, value in figures.items() if isinstance(value, dict)}
        for name, figures in side.get("scores", {}).items()
    }
