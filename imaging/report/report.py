"""The report's types: the one result object of a study, and every part that it can have.

Invariant: every number leads back to its inputs, and nothing that was sent goes unmentioned. The types hold plain
values: whoever renders a report (HTML, DICOM, FHIR) needs this room and no network.

`Report.schema_version` grows in its first part when a reader of the old `report.json` would misread the new one, and in
its second when something is told that was not. A report of 1.0 is read as it is: what it does not tell is empty.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from imaging.config import Code
from imaging.text.document import Assertion, Kind, Role, SectionName

# What a report may be written as.
Format = Literal["json", "html", "seg", "sr", "sc", "fhir", "nifti"]

DISCLAIMER = "For research use, not for diagnosis."


Assessment = Literal["normal", "abnormal", "indeterminate"]
Share = Annotated[float, Field(ge=0, le=1)]
# Where something stands in a text: characters from 0, as Python counts them.
Place = Annotated[int, Field(ge=0)]


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
    judged. `novelty` has the reasons why the input is unlike what the checkpoint has learnt; with one the assessment is
    `indeterminate`, and there is no `classification`: a probability would mean nothing. `colour` is that of its outline
    in the pictures and in the SEG. `volume` tells which one of several volumes of the series it is about.
    """

    name: str
    title: str
    category: Code
    code: Code
    modifier: Code | None
    colour: str = ""
    assessment: Assessment
    assessment_reason: str
    model: str
    series_uid: str
    volume: str = ""
    structure: StructureVolume | None = None
    classification: ClassProbability | None = None
    explanation: Explanation | None = None
    novelty: tuple[str, ...] = ()


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
    are in the series of its first channel. `sop_class_uid` is that of all `source_sop_instance_uids`.
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
    sop_class_uid: str = ""
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

    `members` is how many networks it is the mean of; `measured_on` says in the plural what its cases are. For each
    structure its Dice, or for each thing that is judged (by a fusion: for each set of parts) its figures
    (`imaging.scores.scores_of`): on validation cases, which did not train it but chose its calibration and perhaps its
    epoch; on test cases, which had no part in it; and in cross-validation, where each case was measured by the one
    network of several that had not seen it. The latter are no figures of an ensemble, but of its members.
    `spans_on_test` has for each kind of mention precision, recall and F1, both ends right.
    `engine` computed its answers in `precision`, where there was a choice; `engine_note` says what decided.
    """

    name: str
    version: str
    title: str
    weights_sha256: str
    config_sha256: str
    measured_on: str = "cases"
    validation_cases: int = 0
    dice_on_validation: dict[str, MeanDice] = {}
    scores_on_validation: dict[str, dict[str, Figure]] = {}
    test_cases: int = 0
    dice_on_test: dict[str, MeanDice] = {}
    scores_on_test: dict[str, dict[str, Figure]] = {}
    spans_on_test: dict[str, dict[str, Figure]] = {}
    members: int = 1
    cross_validated_cases: int = 0
    dice_cross_validated: dict[str, MeanDice] = {}
    scores_cross_validated: dict[str, dict[str, Figure]] = {}
    engine: Literal["torch", "openvino"] | None = None
    precision: Literal["fp32", "bf16", "int8"] | None = None
    engine_note: str = ""


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


class SpanEntry(_Part):
    """A mention in a text, from character `start` to before `end`, and whether the text says that it is there.

    `score` is the model's own, and not calibrated; `code` is None where no table has the mention.
    """

    start: Place
    end: Place
    text: str
    kind: Kind
    assertion: Assertion
    score: Share
    code: Code | None = None


class SentenceEntry(_Part):
    """A sentence of a text, from character `start` to before `end`, with what it mentions."""

    start: Place
    end: Place
    text: str
    spans: tuple[SpanEntry, ...] = ()


class SectionEntry(_Part):
    """A section of a text by what it is for: from character `start` to before `end`."""

    name: SectionName
    start: Place
    end: Place


class TextEntry(_Part):
    """A text that belongs to the study, and what a text model said of it.

    A `request` was written before the pictures were read, a `report` after. `source` says where the text comes from and
    `sha256` is that of its UTF-8 bytes. `probability` is that of an abnormal study, calibrated, in `interval` (low,
    high); both are None where no model judges texts, and `model` is then empty, and where the text is strange to the
    model. `whose` tells whether the text names the study, patient or order of the images (``named``), or nobody
    (``unnamed``): then only its place says whose it is. It is ``unknown`` where there is nothing to compare it with.
    """

    role: Role
    source: str
    sha256: str
    language: str = ""
    model: str = ""
    probability: Share | None = None
    interval: tuple[Share, Share] | None = None
    assessment: Assessment = "indeterminate"
    assessment_reason: str = ""
    whose: Literal["named", "unnamed", "unknown"] = "unknown"
    sentences: tuple[SentenceEntry, ...] = ()
    sections: tuple[SectionEntry, ...] = ()


class Score(_Part):
    """A calibrated probability with its interval and its log-odds, and whose it is.

    `source` is ``image <model>``, ``text <model>`` or ``fused``. `low` and `high` are None where no interval is known.
    """

    probability: Share
    low: Share | None = None
    high: Share | None = None
    logit: float
    source: str


class FusionEntry(_Part):
    """What picture and words say of one thing, each alone and together.

    Always three numbers: `image`, `text` and `fused`; one that there is not is None, and `missing` says why. A text of
    the role `report` was written by somebody who saw the picture; `fused` is then circular, so nothing is judged by it
    and `assessment` is that of the picture alone.

    `method` is how they are fused; `prior` the share of the abnormal that added log-odds rest on. `error_rate` is the
    share of wrong assessments that the conformal prediction allows, and `calibration` says what it was calibrated on.
    """

    name: str
    title: str = ""
    code: Code | None = None
    image: Score | None = None
    text: Score | None = None
    text_role: Role | None = None
    fused: Score | None = None
    method: Literal["stacked", "mlp", "log_odds"]
    model: str = ""
    prior: Share | None = None
    missing: tuple[str, ...] = ()
    assessment: Assessment
    assessment_reason: str
    error_rate: Share | None = None
    calibration: str = ""

    @property
    def judged_by(self) -> Score | None:
        """The number that the assessment rests on.

        Of added log-odds, which have no threshold, and beside a report, which was written of the picture, that is the
        picture's; of a trained fusion all together, and where it was given one part alone, that one.
        """
        if self.method == "log_odds" or self.text_role == "report":
            return self.image
        return self.fused or self.image or self.text


class SentenceRef(_Part):
    """A sentence by its place in a text, which is told by its SHA-256."""

    text_sha256: str
    start: Place
    end: Place
    text: str


class Disagreement(_Part):
    """Picture and words do not say the same of one finding; a person has to look.

    The picture's side: the finding's `name` in the series, with the instance and voxel where its probability was raised
    most. The words' side: the `sentence`; None where the report does not mention it. `score` grows with how sure both
    sides are of opposite things.
    """

    kind: Literal["image_abnormal_report_silent", "image_abnormal_report_denies", "image_normal_report_abnormal"]
    name: str
    title: str = ""
    series_uid: str = ""
    sop_instance_uid: str = ""
    greatest_at: tuple[int, int, int] | None = None
    sentence: SentenceRef | None = None
    score: float
    note: str


class Replaced(_Part):
    """An earlier result of the study: its version, and the SHA-256 of its `report.json`."""

    version: Annotated[int, Field(ge=1)]
    report_sha256: str


class Report(_Part):
    """The findings of one study with their provenance.

    `version` grows with each result of a study that went on growing; `replaces` names the result that this one stands
    in for.

    `texts`, `fusion` and `disagreements` are empty where the study has no text. `not_looked_at` says in words what was
    there or could be asked, and no checkpoint looked at.
    """

    schema_version: Literal["1.0", "1.1"] = "1.1"
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
    texts: tuple[TextEntry, ...] = ()
    fusion: tuple[FusionEntry, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    not_looked_at: tuple[str, ...] = ()
    version: Annotated[int, Field(ge=1)] = 1
    replaces: Replaced | None = None

    def to_json(self) -> str:
        """As `report.json` holds it."""
        return self.model_dump_json(indent=1) + "\n"
