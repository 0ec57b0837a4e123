"""A config says everything about one task: data, preprocessing, network, training, prediction, what the labels mean.

Invariant: there is no code in a config and no key without a meaning. An unknown key is refused with the nearest known
one; networks and augmentations are names from a registry. The same file trains a checkpoint, lies in it, and serves it,
so that training and serving cannot drift apart.

`task` says which of the two kinds of config it is: `SegmentConfig` (label voxels) or `ClassifyConfig` (say what is on a
picture, or in a volume, as a whole).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from imaging.errors import ConfigInvalid, UnknownKey
from imaging.files import shipped

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
Vector3 = tuple[_Positive, _Positive, _Positive]
Size3 = tuple[_Count, _Count, _Count]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Probability = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(_Section):
    """A coded concept: scheme designator, value and meaning (DICOM PS3.16 section 8; SCT is SNOMED CT)."""

    scheme: Literal["SCT", "DCM", "RADLEX"] = "SCT"
    value: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Label(_Section):
    """One structure: its value in the mask, its name in files, its codes in reports."""

    id: Annotated[int, Field(ge=1, le=255)]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    category: Code
    code: Code
    modifier: Code | None = None
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class Class(_Section):
    """One thing that a case can be: its number, its name in manifests and files, its codes in reports.

    `abnormal` is what reports call it; the probabilities of all abnormal classes together are that of an abnormal case.
    """

    id: Annotated[int, Field(ge=0, le=255)]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    category: Code
    code: Code
    abnormal: bool


class AppliesTo(_Section):
    """Which series a checkpoint takes.

    All but `description` are limits of what the network has learnt: a series beyond them is refused even when the
    checkpoint is named explicitly (a modality or body part that the file does not tell is then not held against it).
    `description`, a regular expression for SeriesDescription, only chooses: it is asked when no checkpoint is named.
    `extent_min_mm` and `extent_max_mm` bound the size along R-L, A-P and S-I, `spacing_max_mm` every voxel axis; None
    where there is no such limit.
    """

    modality: tuple[str, ...]
    body_part: tuple[str, ...] = ()
    description: str | None = None
    extent_min_mm: Vector3 | None = None
    extent_max_mm: Vector3 | None = None
    spacing_max_mm: _Positive | None = None

    @field_validator("description")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class VolumesTaken(AppliesTo):
    """Which series a segmenter takes: the size of what it has learnt is always said."""

    extent_min_mm: Vector3
    extent_max_mm: Vector3
    spacing_max_mm: _Positive


class PicturesTaken(AppliesTo):
    """Which pictures or volumes a classifier takes.

    A film has no place in the patient, so its size is bounded in pixels: at least `pixels_min` along each axis that the
    network sees, and the longest of them at most `aspect_max` times the shortest.
    """

    pixels_min: Annotated[int, Field(ge=2)] = 2
    aspect_max: Annotated[float, Field(ge=1)] | None = None


class Data(_Section):
    """Where the cases lie and how they are split, always by patient.

    `test_fraction` of the patients is set apart first, the same whichever `fold` validates; `seed` decides who.
    """

    root: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    folds: Annotated[int, Field(ge=2)] = 6
    fold: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fold_exists(self) -> Data:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: folds are 0 to {self.folds - 1}")
        return self


class ClassifyData(Data):
    """Where the classified cases lie, and how they are split.

    `split`: by ``patient``, or as ``given`` by the data set (a column ``split``, or the parts of a MedMNIST file); a
    given split without a test part has `test_fraction` of its training patients set apart, whichever `fold`.
    `duplicates`: whether cases whose pixels are equal are kept, dropped but for one, or refused.
    """

    split: Literal["patient", "given"] = "patient"
    duplicates: Literal["keep", "drop", "refuse"] = "refuse"


class Preprocess(_Section):
    """Volume -> network input, the same in training and serving.

    `orientation` names where the axes run towards, `spacing_mm` the voxels' size along them. `zscore` subtracts the
    volume's mean and divides by its deviation.
    """

    orientation: Annotated[str, Field(pattern=r"^[RL][AP][SI]$")] = "RAS"
    spacing_mm: Vector3
    normalise: Literal["zscore"] = "zscore"


class ClassifyPreprocess(_Section):
    """Picture or volume -> network input, the same in training and serving.

    `size` is that of the network's grid: two numbers for a picture (along its rows, down its columns), three for a
    volume, whose axes are turned to `orientation` first. `aspect` says what becomes of other proportions: the rest is
    filled (``pad``), what stands out is cut off (``crop``), or the picture is stretched (``stretch``). `normalise`:
    ``zscore`` subtracts the mean and divides by the deviation; ``range`` brings `range` to 0..1 and clips.
    """

    size: Annotated[tuple[_Count, ...], Field(min_length=2, max_length=3)]
    orientation: Annotated[str, Field(pattern=r"^[RL][AP][SI]$")] = "RAS"
    aspect: Literal["pad", "crop", "stretch"] = "pad"
    normalise: Literal["zscore", "range"] = "zscore"
    range: tuple[_Finite, _Finite] | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> ClassifyPreprocess:
        if (self.normalise == "range") != (self.range is not None):
            raise ValueError("range is given with normalise: range, and only then")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range goes from the lower value to the greater")
        return self


class Network(_Section):
    """A network's registered name and its options."""

    name: str
    options: dict[str, Any] = {}


class Augmentation(_Section):
    """A random transform's registered name and its options."""

    name: str
    options: dict[str, Any] = {}


class Fit(_Section):
    """How the weights of any network are found.

    The learning rate rises over `warmup_steps` and falls to zero by a
    cosine. Gradients are clipped to the norm `gradient_clip`. `ema_decay` is that of the moving average of the weights,
    which is validated every `validate_every` epochs and published; 0 switches it off.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 2
    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    gradient_clip: Annotated[float, Field(gt=0)] = 12.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    precision: Annotated[Literal["32", "bf16-mixed", "16-mixed"], BeforeValidator(str)] = "bf16-mixed"
    validate_every: Annotated[int, Field(ge=1)] = 1
    augment: tuple[Augmentation, ...] = ()


class Train(Fit):
    """How a segmenter's weights are found; `patch` is in voxels of the network's grid."""

    patch: Size3


class ClassifyTrain(Fit):
    """How a classifier's weights are found.

    `class_weights`: ``balanced`` counts each case by how rare its class is, so that each class weighs the same in all.
    `label_smoothing` is the share of the certainty that is spread over the classes.
    """

    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Calibrate(_Section):
    """How a classifier's numbers are made to mean what they say, on the validation cases.

    `temperature`: whether one factor on the logits is ``fitted`` or stays 1. Of the thresholds at which at least
    `sensitivity` of the abnormal cases are called abnormal, the one is taken that tells most cases apart. A probability
    less than `margin` from the threshold is called indeterminate, and so is a picture that looks less like the
    validation cases than all but the share `familiar` of these do (None: no picture is too strange).
    """

    temperature: Literal["fitted", "one"] = "fitted"
    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    margin: _Probability = 0.0
    familiar: Annotated[float, Field(gt=0, le=1)] | None = None


class ClassifyPredict(_Section):
    """How a classifier's weights are used: logits are averaged over flips of `flip_axes` of the network's grid."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    precision: Annotated[Literal["32", "bf16"], BeforeValidator(str)] = "32"
    flip_axes: tuple[Literal[0, 1, 2], ...] = ()


class Predict(_Section):
    """How a segmenter's weights are used.

    Tiles of `patch` voxels overlap by the share `overlap`; probabilities are averaged over flips of `flip_axes` (0 is
    the first axis of `preprocess.orientation`).
    """

    patch: Size3
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Annotated[int, Field(ge=1)] = 1
    precision: Annotated[Literal["32", "bf16"], BeforeValidator(str)] = "bf16"
    flip_axes: tuple[Literal[0, 1, 2], ...] = ()


class Card(_Section):
    """What the model card says that no number says."""

    data: str
    licence: str
    intended_use: str
    limits: str
    command: str


class _Task(_Section):
    """What every config says, whatever its task."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=16)]
    title: str
    task: str
    applies_to: AppliesTo
    data: Data = Data()
    network: Network
    train: Fit
    card: Card

    def without_paths(self) -> Self:
        """The config as it may be published: `data.root` is a path of the machine that trained, so it is left out."""
        return self.model_copy(update={"data": self.data.model_copy(update={"root": None})})

    def to_yaml(self) -> str:
        """The whole config, defaults included, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def digest(self) -> str:
        """SHA-256 of the config's content (not of its layout, nor of `data.root`)."""
        content = json.dumps(self.without_paths().model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class SegmentConfig(_Task):
    """A network that labels voxels, whole."""

    task: Literal["segment"]
    applies_to: VolumesTaken
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    preprocess: Preprocess
    train: Train
    predict: Predict

    @model_validator(mode="after")
    def _labels_are_dense(self) -> SegmentConfig:
        if [label.id for label in self.labels] != list(range(1, len(self.labels) + 1)):
            raise ValueError("labels must have the ids 1, 2, 3, ... in this order")
        if len({label.name for label in self.labels}) != len(self.labels):
            raise ValueError("two labels have the same name")
        return self


class ClassifyConfig(_Task):
    """A network that says what a picture or a volume shows, whole.

    `output`: ``softmax`` where a case is exactly one of the classes, ``sigmoid`` where each is there or not (then every
    class is judged on its own).
    """

    task: Literal["classify"]
    applies_to: PicturesTaken
    output: Literal["softmax", "sigmoid"]
    classes: Annotated[tuple[Class, ...], Field(min_length=1)]
    data: ClassifyData = ClassifyData()
    preprocess: ClassifyPreprocess
    train: ClassifyTrain
    calibrate: Calibrate = Calibrate()
    predict: ClassifyPredict = ClassifyPredict()

    @model_validator(mode="after")
    def _classes_are_dense(self) -> ClassifyConfig:
        if [item.id for item in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must have the ids 0, 1, 2, ... in this order")
        if len({item.name for item in self.classes}) != len(self.classes):
            raise ValueError("two classes have the same name")
        if self.output == "softmax" and len(self.classes) < 2:
            raise ValueError("softmax needs two classes at least; with sigmoid there may be one")
        if any(axis >= len(self.preprocess.size) for axis in self.predict.flip_axes):
            raise ValueError("predict.flip_axes names an axis that preprocess.size does not have")
        return self


Config = SegmentConfig | ClassifyConfig
_TASKS: dict[str, type[SegmentConfig] | type[ClassifyConfig]] = {"segment": SegmentConfig, "classify": ClassifyConfig}


def find_config(name: str | Path) -> Path:
    """A config file by its path, or a shipped one by its name.

    Raises
    ------
    ConfigInvalid
        If there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(shipped("configs").glob("*.yaml"))}
    if str(name) in known:
        return known[str(name)]
    raise ConfigInvalid(name, seen="no such file", expected=f"a config file, or one of {', '.join(known)} was expected")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a config.

    Parameters
    ----------
    path
        A YAML file.
    overrides
        ``KEY=VALUE`` with dots for sections (``train.epochs=3``); VALUE is read as YAML. An element of a list is named
        by its number (``labels.0.title=Head``).

    Raises
    ------
    UnknownKey
        If the file or an override has a key that configs do not have.
    ConfigInvalid
        If the file is not YAML, or a value is not what its key takes.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # PyYAML lets int() and date() raise ValueError
        raise ConfigInvalid(path, seen=f"cannot be read as YAML ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ConfigInvalid(path, seen="the top level is not a mapping")
    for override in overrides:
        _set(content, override)
    model = _model_of(path, content)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(path, error, model) from error


def _model_of(path: Path, content: dict[str, Any]) -> type[SegmentConfig] | type[ClassifyConfig]:
    """The kind of config that `task` names."""
    known = ", ".join(_TASKS)
    if "task" not in content:
        meant = difflib.get_close_matches("task", [str(key) for key in content], n=1)
        if meant:
            raise UnknownKey(path, seen=f"unknown key {meant[0]!r}", expected="did you mean 'task'")
        raise ConfigInvalid(path, seen="task: Field required", expected=f"one of {known} was expected")
    task = content["task"]
    if not isinstance(task, str) or task not in _TASKS:
        raise ConfigInvalid(path, seen=f"task: {task!r}", expected=f"one of {known} was expected")
    return _TASKS[task]


def _set(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigInvalid(f"override {override!r}", seen="no KEY=VALUE", remedy="Write it as KEY=VALUE")
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigInvalid(f"override {override!r}", seen="VALUE is not YAML") from error
    node: Any = content
    *sections, last = key.split(".")
    for section in sections:
        if isinstance(node, list) and section.isdecimal() and int(section) < len(node):
            node = node[int(section)]
        elif isinstance(node, dict):
            node = node.setdefault(section, {})
        else:
            raise UnknownKey(
                f"override {override!r}", seen=f"{section!r} leads nowhere", expected="a known key was expected"
            )
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UnknownKey(f"override {override!r}", seen=f"{last!r} leads nowhere", expected="a known key was expected")


def _explain(path: Path, error: ValidationError, root: type[BaseModel]) -> ConfigInvalid | UnknownKey:
    """The first problem of a validation, in this project's words; an unknown key before all others."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *section, unknown = (str(part) for part in problem["loc"])
        known = list(_section_at(section, root).model_fields)
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
        near = ".".join([*section, *nearest])
        expected = f"did you mean {near!r}" if nearest else f"one of {', '.join(known)} was expected"
        return UnknownKey(path, seen=f"unknown key {where!r}", expected=expected)
    return ConfigInvalid(path, seen=f"{where or 'config'}: {problem['msg']}")


def _section_at(location: Sequence[str], root: type[BaseModel]) -> type[BaseModel]:
    """The section's model at a path of keys below a config's own."""
    model = root
    for part in location:
        if not part.isdecimal():
            model = _model_in(model.model_fields[part].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel]:
    """The one model inside an annotation such as ``tuple[Label, ...]`` or ``Code | None``."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return annotation
    models = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    return _model_in(models[0])
