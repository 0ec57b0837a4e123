"""What a fusion is made from, and how it is trained and calibrated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imaging.config.meaning import Card, Code
from imaging.config.section import Count, Finite, Positive, Section
from imaging.config.task import Described

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# What the parts beside the images are called.
TEXT, FACTS = "text", "facts"
# Each set of parts that are there has weights of its own.
_MOST_PARTS = 6


class FusedImage(Section):
    """A checkpoint that looks at pictures: its `name`, and the `target` whose calibrated log-odds enter.

    `checkpoint` is its folder, where it does not ship. `weights_sha256` is told by the training: with other weights the
    fusion is refused.
    """

    name: Name
    target: Name
    checkpoint: str | None = None
    weights_sha256: Sha256 | None = None


class FusedText(Section):
    """A checkpoint that reads texts, by its `name`; see `FusedImage` for `checkpoint` and `weights_sha256`.

    `role` says which texts: a ``request`` was written before the picture was seen, a ``report`` after, so that fusing
    it with that picture is circular.
    """

    name: Name
    role: Literal["request", "report"] = "request"
    checkpoint: str | None = None
    weights_sha256: Sha256 | None = None


class FusedFact(Section):
    """A fact of the study by its `name`: a number, or one of some `values`; any other word counts as not told.

    A number enters less `mean` and divided by `deviation`, and its square; these are fixed, not fitted.
    """

    name: Name
    values: tuple[str, ...] = ()
    mean: Finite = 0.0
    deviation: Positive = 1.0


class Judged(Section):
    """What a fusion judges: its `name` in files, `title` for people, `category` and `code` in reports."""

    name: Name
    title: str
    category: Code
    code: Code


class FuseData(Section):
    """The cases of a fusion: `root`, a CSV with a row a case, and how they are split.

    `label` is the column that says 0 or 1, or a word; `abnormal` lists the words that mean 1. The log-odds of each part
    are in a column `logit_NAME` and `logit_text`, or they are asked of the checkpoint with what the columns `image` and
    `text` name, paths relative to the CSV. An empty cell is a part that is not there.

    `split`: by ``patient`` (cases with one picture or one text stay together, too), or as ``given`` by a column
    ``split``. `test_fraction` is set apart first; of the rest, dealt into `folds`, the one with the number `fold`
    calibrates. `seed` decides who.
    """

    root: str | None = None
    label: str = "label"
    abnormal: tuple[str, ...] = ("1", "abnormal")
    split: Literal["patient", "given"] = "patient"
    seed: Annotated[int, Field(ge=0)] = 0
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.3
    folds: Annotated[int, Field(ge=2)] = 3
    fold: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fold_exists(self) -> FuseData:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: folds are 0 to {self.folds - 1}")
        return self


class FuseTrain(Section):
    """How a fusion's weights are found.

    `method`: ``stacked`` is a logistic regression for each set of parts that may be there; ``mlp`` is one small network
    with `hidden` units for all of them, from which each part of a case is hidden with the probability `hide` in each of
    `epochs` steps over all cases. It learns at `learning_rate` with `weight_decay`; `seed` decides all chance. A
    regression has no chance, and none of these.
    """

    method: Literal["stacked", "mlp"] = "stacked"
    seed: Annotated[int, Field(ge=0)] = 0
    hidden: Count = 8
    hide: Annotated[float, Field(ge=0, lt=1)] = 0.3
    epochs: Count = 400
    learning_rate: Positive = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class FuseCalibrate(Section):
    """How a fusion's numbers are made to mean what they say, on the validation cases, for each set of parts.

    One temperature on the log-odds is fitted; `isotonic` then bends them along a rising curve. Of the thresholds at
    which at least `sensitivity` of the abnormal cases are called abnormal, the one is taken that tells most cases
    apart. At most the share `error_rate` of cases like those is called what it is not (None: no such promise); with
    `by_class` of the normal and of the abnormal ones each.
    """

    isotonic: bool = False
    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    error_rate: Annotated[float, Field(gt=0, lt=1)] | None = 0.1
    by_class: bool = True


class FuseConfig(Described):
    """What image checkpoints, a text checkpoint and facts say of one thing, brought together, whole.

    `judged` says of what; `images`, `text` and `facts` what enters.
    """

    task: Literal["fuse"]
    judged: Judged
    images: Annotated[tuple[FusedImage, ...], Field(min_length=1)]
    text: FusedText | None = None
    facts: tuple[FusedFact, ...] = ()
    data: FuseData = FuseData()
    train: FuseTrain = FuseTrain()
    calibrate: FuseCalibrate = FuseCalibrate()
    card: Card

    @model_validator(mode="after")
    def _parts_are_told_apart(self) -> FuseConfig:
        names = [part.name for part in self.images]
        if len({*names, TEXT, FACTS}) < len(names) + 2:
            raise ValueError(f"two images have one name, or one is called {TEXT} or {FACTS}")
        if len({fact.name for fact in self.facts}) < len(self.facts):
            raise ValueError("two facts have the same name")
        if not 2 <= len(self.parts) <= _MOST_PARTS:
            raise ValueError(f"a fusion has 2 to {_MOST_PARTS} parts: images, the text, the facts together")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """What may be there or not, by name: each image, the text, the facts together."""
        return (
            *(part.name for part in self.images),
            *((TEXT,) if self.text else ()),
            *((FACTS,) if self.facts else ()),
        )

    @property
    def parts_asked(self) -> tuple[str, ...]:
        """The parts that a checkpoint is asked for."""
        return tuple(part for part in self.parts if part != FACTS)

    def without_paths(self) -> FuseConfig:
        """The config as it may be published."""
        text = self.text and self.text.model_copy(update={"checkpoint": None})
        images = tuple(part.model_copy(update={"checkpoint": None}) for part in self.images)
        return self.model_copy(
            update={"data": self.data.model_copy(update={"root": None}), "images": images, "text": text}
        )
