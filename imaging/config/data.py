"""Where the cases lie, how they are split, and how a volume becomes a network's input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from imaging.config.section import LATER, Count, Finite, Pattern, Positive, Section, Spacing3


class Data(Section):
    """Where the cases lie (`root`: a manifest, or the folder of one) and how they are split, always by patient.

    `test_fraction` of the patients is set apart first; the others are dealt into `folds` parts, of which the one with
    the number `fold`, from 0, validates. `seed` decides who, so that the test patients are the same for each fold.

    `codes` is a table of codes of one's own, beside `imaging/codes.csv`: a CSV with the columns name, scheme, value,
    meaning and source. Codes of labels and classes are looked up in both when a training begins.

    What the random transforms begin with is made once and held in memory, up to `memory_gib` of it a process; or, with
    a folder as `cache`, kept on disk, up to `cache_gib`, for this run and for later ones. `workers` processes make the
    batches; with 0 the training does it itself. Nothing of this changes what is trained, so nothing of it is part of
    the config's digest.
    """

    root: str | None = None
    codes: Annotated[str | None, LATER] = None
    cache: Annotated[str | None, LATER] = None
    cache_gib: Annotated[Positive, LATER] = 50.0
    memory_gib: Annotated[float, Field(ge=0, allow_inf_nan=False), LATER] = 8.0
    workers: Annotated[int, Field(ge=0), LATER] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15
    folds: Annotated[int, Field(ge=2)] = 6
    fold: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fold_exists(self) -> Data:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: folds are 0 to {self.folds - 1}")
        return self


class Columns(Section):
    """What the columns of a CSV with classes are called: `image`, `label`, `case`, `patient` and `split`.

    `none` lists the words in the label column that mean none of the classes. `facts` names the columns to measure
    subgroups by, each with what it is to be called here; None takes every column that is nothing else.
    """

    image: str = "image"
    label: str = "label"
    case: str = "case"
    patient: str = "patient"
    split: str = "split"
    none: tuple[str, ...] = ()
    facts: dict[str, str] | None = None

    def named(self) -> tuple[str, ...]:
        """The headings that a config names, which the CSV must therefore have."""
        usual = Columns()
        given = [getattr(self, key) for key in ("image", "label", "case", "patient", "split")
                 if getattr(self, key) != getattr(usual, key)]  # fmt: skip
        return (*given, *(self.facts or {}).values())


class ClassifyData(Data):
    """Where the classified cases lie, and how they are split.

    `labels`: where `root` is a folder of DICOM studies, the CSV of their classes, with a column StudyInstanceUID or
    PatientID. `columns` says what a CSV calls its columns, `images` in which folder (relative to the CSV) its images
    lie.
    `absent`: whether a class that no case for validation or test has is refused, or told and not measured there.

    `split`: by ``patient``, or as ``given`` by the data set (a column ``split``, or the parts of a MedMNIST file); a
    given split without a test part has `test_fraction` of its training patients set apart, whichever `fold`.
    `duplicates`: whether cases whose pixels are equal are kept, dropped but for one, or refused.
    """

    split: Literal["patient", "given"] = "patient"
    duplicates: Literal["keep", "drop", "refuse"] = "refuse"
    labels: Annotated[str | None, LATER] = None
    columns: Annotated[Columns, LATER] = Columns()
    images: Annotated[str, LATER] = "."
    absent: Annotated[Literal["refuse", "tell"], LATER] = "refuse"


def _three_axes(orientation: str) -> str:
    if any(len(set(pair) & set(orientation)) != 1 for pair in ("RL", "AP", "SI")):
        raise ValueError("one of R and L, of A and P, of S and I, in any order, was expected")
    return orientation


# Where the three axes run towards, such as RAS; the slices of a sagittal network lie across the last axis of ASR.
Orientation = Annotated[str, Field(pattern=r"^[RLAPSI]{3}$"), AfterValidator(_three_axes)]


class Window(Section):
    """Values to network input by fixed numbers: clipped to `low` and `high`, less `mean`, divided by `deviation`.

    For images with a unit, such as CT: the same tissue keeps the same value in every case.
    """

    low: Finite
    high: Finite
    mean: Finite
    deviation: Positive

    @model_validator(mode="after")
    def _goes_upwards(self) -> Window:
        if self.low >= self.high:
            raise ValueError("a window goes from the lower value to the greater")
        return self


class Scale(Section):
    """How a channel's values become network input.

    `normalise`: ``zscore`` subtracts the mean of the volume and divides by its deviation; ``window`` does what `window`
    says, the same for every volume.
    """

    normalise: Literal["zscore", "window"] = "zscore"
    window: Annotated[Window | None, LATER] = None

    @model_validator(mode="after")
    def _window_is_one(self) -> Scale:
        if (self.normalise == "window") != (self.window is not None):
            raise ValueError("window is given with normalise: window, and only then")
        return self


class Preprocess(Scale):
    """Volume -> network input, the same in training and serving.

    `orientation` names where the axes run towards, `spacing_mm` the voxels' size along them (``null``: each image keeps
    its own).
    """

    orientation: Orientation = "RAS"
    spacing_mm: Spacing3


class SeriesRule(Section):
    """Which series of a DICOM study is a channel.

    `description` is a regular expression for its SeriesDescription, `modality` a list of what it may be; one of the two
    must be given. Exactly one series of the study must match.
    """

    description: Pattern | None = None
    modality: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> SeriesRule:
        if self.description is None and not self.modality:
            raise ValueError("a rule names a description, a modality or both")
        return self


class Channel(Scale):
    """One of several images of a case that lie on one grid, such as T1 and T2: its `name`, and how it is scaled.

    `series` says which series of a DICOM study it is, where a checkpoint is to put a case together from several.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
    series: Annotated[SeriesRule | None, LATER] = None


class ClassifyPreprocess(Section):
    """Picture or volume -> network input, the same in training and serving.

    `size` is that of the network's grid: two numbers for a picture (along its rows, down its columns), three for a
    volume, whose axes are turned to `orientation` first. `aspect` says what becomes of other proportions: the rest is
    filled (``pad``), what stands out is cut off (``crop``), or the picture is stretched (``stretch``). `normalise`:
    ``zscore`` subtracts the mean and divides by the deviation; ``range`` brings `range` to 0..1 and clips.
    """

    size: Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
    orientation: Orientation = "RAS"
    aspect: Literal["pad", "crop", "stretch"] = "pad"
    normalise: Literal["zscore", "range"] = "zscore"
    range: tuple[Finite, Finite] | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> ClassifyPreprocess:
        if (self.normalise == "range") != (self.range is not None):
            raise ValueError("range is given with normalise: range, and only then")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range goes from the lower value to the greater")
        return self
