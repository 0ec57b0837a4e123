"""The configs themselves, one class a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, model_validator

from imaging.config.data import Channel, ClassifyData, ClassifyPreprocess, Data, Preprocess, Scale
from imaging.config.fitting import Calibrate, ClassifyPredict, ClassifyTrain, Explain, Fit, Network, Predict, Train
from imaging.config.meaning import AppliesTo, Card, Class, Kind, Label, PicturesTaken, VolumesTaken
from imaging.config.search import Searched
from imaging.config.section import FOR_DIGEST, LATER, Section
from imaging.config.text import Encoder, TextData, TextPredict, TextsTaken, TextTrain

# What all abnormal classes of a softmax are called together.
TOGETHER = "abnormal"
# Keys of `data` that say where a machine keeps things, and decide nothing of what is trained.
OF_THE_MACHINE = ("root", "labels", "spans", "codes", "cache", "cache_gib", "memory_gib", "workers")


# In a mask that is trained on: no label, and nothing that counts.
IGNORED = 255


class Described(Section):
    """What every config says, whatever its `task`.

    `name` is the checkpoint's in commands and file names, `title` its name for people, `version` what its reports say.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=16)]
    title: str
    task: str

    def without_paths(self) -> Self:
        """The config as it may be published: without what belongs to the machine."""
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults included, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def digest(self) -> str:
        """SHA-256 of the config's content (not of its layout, nor of what belongs to the machine).

        A later version of imgpipe gives an old config the same one, see `imaging.config.section.LATER`.
        """
        content = json.dumps(self.without_paths().model_dump(mode="json", context=FOR_DIGEST), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class _Task(Described):
    """What every config of a network says.

    `members` is the number of networks of a checkpoint, whose answers are averaged; a training fits one at a time, so
    a config to train with has 1.

    `tune` says what `imgpipe tune` may vary: dotted keys of this config, each with a range or choices. It decides
    nothing of a training, so it is no part of the digest.
    """

    data: Data = Data()
    members: Annotated[int, Field(ge=1), LATER] = 1
    train: Fit
    card: Card
    tune: Annotated[dict[str, Searched], LATER] = Field(default_factory=dict)

    def without_paths(self) -> Self:
        """The config as it may be published: without paths and limits of the machine, and without what is searched."""
        known = type(self.data).model_fields
        defaults = {key: known[key].default for key in OF_THE_MACHINE if key in known}
        start = self.train.start and self.train.start.without_path()
        return self.model_copy(
            update={
                "data": self.data.model_copy(update=defaults),
                "train": self.train.model_copy(update={"start": start}),
                "tune": {},
            }
        )


class _ImageTask(_Task):
    """What every config of a network that looks at images says."""

    applies_to: AppliesTo
    network: Network


class SegmentConfig(_ImageTask):
    """A network that labels voxels, whole.

    Where labels have `values`, structures may overlap: each is judged on its own (sigmoid), and a mask of one value a
    voxel holds the later label. `channels` are the images of a case in the order of the network's channels; without
    them a case is one image, scaled as `preprocess` says.
    """

    task: Literal["segment"]
    applies_to: VolumesTaken
    channels: Annotated[tuple[Channel, ...], LATER] = ()
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
        if 0 < sum(bool(label.values) for label in self.labels) < len(self.labels):
            raise ValueError("either every label has values, or none has")
        return self

    @model_validator(mode="after")
    def _channels_are_told_apart(self) -> SegmentConfig:
        if len({channel.name for channel in self.channels}) != len(self.channels):
            raise ValueError("two channels have the same name")
        if 0 < sum(channel.series is not None for channel in self.channels) < len(self.channels):
            raise ValueError("either every channel has a rule for its series, or none has")
        if self.channels and self.preprocess.window is not None:
            raise ValueError("preprocess.window is for configs without channels: each channel has its own")
        return self

    @model_validator(mode="after")
    def _patches_have_the_same_axes(self) -> SegmentConfig:
        if self.train.padding == "ignored" and IGNORED in self.mask_values:
            raise ValueError(
                f"with train.padding: ignored no label has the value {IGNORED}, which marks what is ignored"
            )
        if len(self.train.patch) != len(self.predict.patch):
            raise ValueError("train.patch and predict.patch have the same number of axes")
        if any(axis >= len(self.predict.patch) for axis in self.predict.flip_axes):
            raise ValueError("predict.flip_axes names an axis that predict.patch does not have")
        return self

    @property
    def outputs(self) -> int:
        """How many numbers the network gives for each voxel: one a class with the background, or one a region."""
        return len(self.labels) if self.overlapping else len(self.labels) + 1

    @property
    def overlapping(self) -> bool:
        """Whether a voxel may belong to several structures, each of which is then judged on its own."""
        return any(label.values for label in self.labels)

    @property
    def mask_values(self) -> tuple[int, ...]:
        """What a manual mask may hold beside 0."""
        return tuple(sorted({value for label in self.labels for value in label.values or (label.id,)}))

    @property
    def channels_from_series(self) -> bool:
        """Whether the channels of a case are told from the series of a DICOM study."""
        return any(channel.series is not None for channel in self.channels)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """How each of the network's channels is scaled."""
        return self.channels or (self.preprocess,)


class ClassifyConfig(_ImageTask):
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
    explain: Annotated[Explain, LATER] = Explain()

    @model_validator(mode="after")
    def _classes_are_dense(self) -> ClassifyConfig:
        _check_dense(self.classes)
        together = self.output == "softmax" and sum(item.abnormal for item in self.classes) > 1
        if together and TOGETHER in {item.name for item in self.classes}:
            raise ValueError(f"no class is called {TOGETHER!r}: that is all abnormal classes together")
        if self.output == "softmax" and len(self.classes) < 2:
            raise ValueError("softmax needs two classes at least; with sigmoid there may be one")
        if any(axis >= len(self.preprocess.size) for axis in self.predict.flip_axes):
            raise ValueError("predict.flip_axes names an axis that preprocess.size does not have")
        return self


class TextConfig(_Task):
    """A model that reads a text: what the text says as a whole, where in it something is mentioned, or both.

    `classes` are what a text is exactly one of (`output`), judged as a classifier's; `kinds` are what is marked in it.
    `encoder` is what both stand on.
    """

    task: Literal["text"]
    applies_to: TextsTaken
    output: Literal["softmax"] = "softmax"
    classes: tuple[Class, ...] = ()
    kinds: tuple[Kind, ...] = ()
    data: TextData = TextData()
    encoder: Encoder
    train: TextTrain
    calibrate: Calibrate = Calibrate()
    predict: TextPredict = TextPredict()

    @model_validator(mode="after")
    def _says_something(self) -> TextConfig:
        _check_dense(self.classes)
        if len(self.classes) == 1:
            raise ValueError("a text is one of two classes at least")
        if len({kind.name for kind in self.kinds}) != len(self.kinds):
            raise ValueError("two kinds have the same name")
        if not self.classes and not self.kinds:
            raise ValueError("a text model has classes, kinds of mentions, or both")
        if self.data.otherwise is not None and self.data.otherwise not in {item.name for item in self.classes}:
            raise ValueError("data.otherwise is the name of a class")
        if self.data.spans and not self.kinds:
            raise ValueError("data.spans is for a model that has kinds")
        if self.calibrate.familiar is not None:
            raise ValueError("calibrate.familiar is for pictures")
        if self.calibrate.novelty is not None and not self.classes:
            raise ValueError("calibrate.novelty is for a model that has classes")
        return self

    def without_paths(self) -> Self:
        """The config as it may be published; of a folder with the encoder the last part of its path stays."""
        plain = super().without_paths()
        folder = self.encoder.folder and Path(self.encoder.folder).name
        return plain.model_copy(update={"encoder": self.encoder.model_copy(update={"folder": folder})})


def _check_dense(classes: Sequence[Class]) -> None:
    if [item.id for item in classes] != list(range(len(classes))):
        raise ValueError("classes must have the ids 0, 1, 2, ... in this order")
    if len({item.name for item in classes}) != len(classes):
        raise ValueError("two classes have the same name")


# Of a network that looks at images.
Config = SegmentConfig | ClassifyConfig
# Of any network that is trained.
NetworkConfig = Config | TextConfig
# Whose cases are judged by their classes.
JudgedConfig = ClassifyConfig | TextConfig
