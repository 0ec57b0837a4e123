"""Predictions -> findings: what was found in a study, how sure that is, and where it came from.

Invariant: every number leads back to its inputs. A finding names its checkpoint and, slice by slice, the instances it
was measured on, so that its volume can be added up again by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.config import Label
from imaging.errors import ImagingError
from imaging.judgement import Classification, Judgement
from imaging.predict import Prediction
from imaging.report.report import (
    ClassProbability,
    Explanation,
    Finding,
    Refusal,
    SliceEvidence,
    StructureVolume,
    VolumeInterval,
)
from imaging.structures import voxels_by_column, voxels_by_slice
from imaging.volume import Volume


def findings_of(prediction: Prediction | Classification) -> tuple[Finding, ...]:
    """Measure each structure (one that was not found has volume 0), or tell what was judged and how."""
    if isinstance(prediction, Classification):
        return tuple(_judged(prediction, judgement) for judgement in prediction.judgements)
    labels = prediction.checkpoint.segmenter().labels
    each = zip(labels, voxels_by_slice(prediction.found, labels), strict=True)
    return tuple(_finding(prediction, label, voxels_Z) for label, voxels_Z in each)


def _finding(prediction: Prediction, label: Label, voxels_Z: NDArray[np.int64]) -> Finding:
    structure = _measure(prediction, label, voxels_Z)
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
    unknown = prediction.novelty is None and not calibration.get("familiar")
    note = " Whether the picture is strange to the checkpoint is not known." if unknown else ""
    return Finding(
        name=judgement.target.name,
        title=judgement.target.title,
        category=judgement.target.category,
        code=judgement.target.code,
        modifier=None,
        assessment=judgement.assessment,
        assessment_reason=judgement.reason + note,
        novelty=prediction.novelty or (),
        model=prediction.checkpoint.name,
        series_uid=prediction.volume.facts.series_uid,
        volume=prediction.volume.facts.volume,
        classification=None if judgement.strange else _probability(prediction, judgement, calibration),
        explanation=_explanation(prediction, judgement),
    )


def _probability(prediction: Classification, judgement: Judgement, calibration: Mapping[str, Any]) -> ClassProbability:
    settings = prediction.checkpoint.classifier().calibrate
    # A factor that nobody fitted, and no curve either, calibrate nothing.
    fitted = settings.temperature == "fitted" or bool(calibration.get("isotonic"))
    return ClassProbability(
        probability=round(judgement.probability, 5),
        temperature=calibration.get("temperature") if fitted else None,
        threshold=judgement.threshold,
        sensitivity_goal=calibration.get("sensitivity"),
        classes={name: round(value, 5) for name, value in prediction.probability.items()},
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


def _measure(prediction: Prediction, label: Label, voxels_Z: NDArray[np.int64]) -> StructureVolume:
    volume, voxels = prediction.volume, int(voxels_Z.sum())
    amount = voxels * volume.voxel_volume
    interval, note = _interval(prediction, label, amount)
    return StructureVolume(
        voxels=voxels,
        volume_mm3=round(amount, 3),
        volume_ml=round(amount / 1000, 6),
        interval=interval,
        interval_note=note,
        mean_probability=_rounded(prediction.mean_probability.get(label.id)),
        centre_ras_mm=_centre(prediction, label, voxels_Z) if voxels else None,
        evidence=_evidence(volume, voxels_Z),
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


def _centre(prediction: Prediction, label: Label, voxels_Z: NDArray[np.int64]) -> tuple[float, float, float]:
    """The mean place of the voxels, added up by places of a slice: a list of them may be larger than the volume."""
    affine = prediction.volume.affine
    counts_XY = voxels_by_column(prediction.found, label, np.flatnonzero(voxels_Z).tolist())
    by_axis = (counts_XY.sum(axis=1), counts_XY.sum(axis=0), voxels_Z)
    along = np.array([float(count @ np.arange(len(count))) for count in by_axis])
    x, y, z = affine[:3, :3] @ (along / voxels_Z.sum()) + affine[:3, 3]
    return round(float(x), 3), round(float(y), 3), round(float(z), 3)


def _evidence(volume: Volume, voxels_Z: NDArray[np.int64]) -> tuple[SliceEvidence, ...]:
    area = volume.voxel_volume / volume.spacing[2]
    evidence = []
    for index in np.flatnonzero(voxels_Z).tolist():
        frame = volume.sources[index] if volume.sources else None
        evidence.append(
            SliceEvidence(
                index=index,
                sop_instance_uid=frame.sop_instance_uid if frame else "",
                frame=frame.number if frame else 0,
                voxels=int(voxels_Z[index]),
                area_mm2=round(float(voxels_Z[index]) * area, 3),
            )
        )
    return tuple(evidence)


def refusals_of(errors: Sequence[ImagingError]) -> tuple[Refusal, ...]:
    """Errors as parts of a report."""
    return tuple(Refusal(**error.as_dict()) for error in errors)
