"""A config says everything about one task: data, preprocessing, network, training, prediction, what the labels mean.

Invariant: there is no code in a config and no key without a meaning. An unknown key is refused with the nearest known
one; networks and augmentations are names from a registry. The same file trains a checkpoint, lies in it, and serves it,
so that training and serving cannot drift apart.

`task` says which kind of config it is: `SegmentConfig` (label voxels), `ClassifyConfig` (say what is on a picture, or
in a volume, as a whole), `TextConfig` (read a text) or `FuseConfig` (bring together what several checkpoints and
facts say). `Config` is one of the first two, those of networks that look at images, `NetworkConfig` one of the first
three, those of networks that are trained, and `AnyConfig` any.
"""

from __future__ import annotations

from imaging.config.data import (
    Channel,
    ClassifyData,
    ClassifyPreprocess,
    Columns,
    Data,
    Preprocess,
    Scale,
    SeriesRule,
    Window,
)
from imaging.config.fitting import (
    Augmentation,
    Calibrate,
    ClassifyPredict,
    ClassifyTrain,
    Explain,
    Fit,
    Network,
    Novelty,
    Predict,
    Train,
)
from imaging.config.fuse import FuseConfig, FusedFact, FusedImage, FusedText
from imaging.config.load import find_config, load_any, load_config, load_network, with_values
from imaging.config.meaning import AppliesTo, Card, Class, Code, Kind, Label, PicturesTaken, VolumesTaken
from imaging.config.search import Searched
from imaging.config.section import Size, Size3, Spacing3, Vector3
from imaging.config.task import (
    IGNORED,
    TOGETHER,
    ClassifyConfig,
    Config,
    Described,
    JudgedConfig,
    NetworkConfig,
    SegmentConfig,
    TextConfig,
)
from imaging.config.tasks import AnyConfig
from imaging.config.text import Encoder, TextColumns, TextData, TextPredict, TextsTaken, TextTrain, Tuning
from imaging.config.transfer import Lora, Start

__all__ = [
    "IGNORED",
    "TOGETHER",
    "AnyConfig",
    "AppliesTo",
    "Augmentation",
    "Calibrate",
    "Card",
    "Channel",
    "Class",
    "ClassifyConfig",
    "ClassifyData",
    "ClassifyPredict",
    "ClassifyPreprocess",
    "ClassifyTrain",
    "Code",
    "Columns",
    "Config",
    "Data",
    "Described",
    "Encoder",
    "Explain",
    "Fit",
    "FuseConfig",
    "FusedFact",
    "FusedImage",
    "FusedText",
    "JudgedConfig",
    "Kind",
    "Label",
    "Lora",
    "Network",
    "NetworkConfig",
    "Novelty",
    "PicturesTaken",
    "Predict",
    "Preprocess",
    "Scale",
    "Searched",
    "SegmentConfig",
    "SeriesRule",
    "Size",
    "Size3",
    "Spacing3",
    "Start",
    "TextColumns",
    "TextConfig",
    "TextData",
    "TextPredict",
    "TextTrain",
    "TextsTaken",
    "Train",
    "Tuning",
    "Vector3",
    "VolumesTaken",
    "Window",
    "find_config",
    "load_any",
    "load_config",
    "load_network",
    "with_values",
]
