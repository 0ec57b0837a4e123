"""The network, how its weights are found, calibrated and used."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from imaging.config.section import LATER, Count, Probability, Section, Size
from imaging.config.transfer import Lora, Start


class Network(Section):
    """A network's registered `name` and its `options`, as MONAI's class takes them."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Augmentation(Section):
    """A random transform's registered `name` and its `options`, as MONAI's class takes them."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Fit(Section):
    """How the weights of any network are found: by AdamW with `weight_decay`, in `epochs` passes over the cases.

    `seed` decides all chance, `precision` the numbers that are computed with (Lightning's names), `augment` the random
    transforms of each sample, in this order. The learning rate rises to `learning_rate` over `warmup_steps` and falls
    to zero by `schedule`: a ``cosine``, or ``poly``, the power 0.9 of what is left. Gradients are added up over
    `accumulate` batches of `batch_size` before a step, and clipped to the norm `gradient_clip`. `ema_decay` is that of
    the moving average of the weights, which is validated every `validate_every` epochs and published; 0 switches it
    off. With `early_stopping` the run ends after as many validations without a better score. `keep` says whose weights
    are published: those of the epoch that was ``best`` on validation, or the ``last`` ones, which nothing chose.

    `channels_last` lays images out with their channels together, and `compile` lets PyTorch compile the network; both
    change the speed, and the numbers by rounding only. `loggers` are where the figures of the training are told.
    `start` are weights to begin with; those whose names match one of the patterns `freeze` (``encoder.*``) stay as they
    are, with the running statistics of their normalisation; `lora` trains thin additions to attention instead.
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
    keep: Annotated[Literal["best", "last"], LATER] = "best"
    schedule: Annotated[Literal["cosine", "poly"], LATER] = "cosine"
    accumulate: Annotated[int, Field(ge=1), LATER] = 1
    early_stopping: Annotated[Annotated[int, Field(ge=1)] | None, LATER] = None
    channels_last: Annotated[bool, LATER] = False
    compile: Annotated[bool, LATER] = False
    loggers: Annotated[tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...], LATER] = ("csv", "tensorboard")
    start: Annotated[Start | None, LATER] = None
    freeze: Annotated[tuple[str, ...], LATER] = ()
    lora: Annotated[Lora | None, LATER] = None
    augment: tuple[Augmentation, ...] = ()

    @model_validator(mode="after")
    def _one_way_of_freezing(self) -> Self:
        if self.freeze and self.lora is not None:
            raise ValueError("lora freezes all weights but lora.also; it is not given with freeze")
        return self


class Train(Fit):
    """How a segmenter's weights are found.

    `patch` is in voxels of the network's grid; with two numbers the network sees slices, which lie across the last axis
    of `preprocess.orientation`. Each case gives `patches_per_case` patches an epoch. The share `foreground` of the
    patches is centred on a voxel of a structure, each structure alike; the others lie anywhere. `padding` says whether
    what a patch has beyond a smaller volume is ``background`` to the loss, or ``ignored`` by it.
    """

    patch: Size
    patches_per_case: Annotated[Count, LATER] = 1
    padding: Annotated[Literal["background", "ignored"], LATER] = "background"
    foreground: Annotated[Probability, LATER] = 0.0


class ClassifyTrain(Fit):
    """How a classifier's weights are found.

    `class_weights`: ``balanced`` counts each case by how rare its class is, so that each class weighs the same in all.
    `label_smoothing` is the share of the certainty that is spread over the classes.
    """

    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Novelty(Section):
    """How a case is known to be unlike those that trained the checkpoint, and so to be beyond what it can say.

    `false_flags` is the share of the validation cases that may be taken for strange; intensity, geometry and embedding
    of a picture, words and embedding of a text have equal parts of it, as far as they can be known. `embedding` says
    how the distance of the network's last feature vector, or of the mean of a text's tokens, is taken: ``mahalanobis``
    from the mean of the training cases in units of their spread, ``knn`` from the one that is the `neighbour`-th
    nearest of at most `kept` that the checkpoint keeps.
    """

    false_flags: Annotated[float, Field(gt=0, lt=1)] = 0.03
    embedding: Literal["mahalanobis", "knn"] = "mahalanobis"
    neighbour: Count = 10
    kept: Count = 1000


class Calibrate(Section):
    """How a classifier's numbers are made to mean what they say, on the validation cases.

    `temperature`: whether one factor on the logits is ``fitted`` or stays 1. Of the thresholds at which at least
    `sensitivity` of the abnormal cases are called abnormal, the one is taken that tells most cases apart. A probability
    less than `margin` from the threshold is called indeterminate, and so is a picture that looks less like the
    validation cases than all but the share `familiar` of these do (None: no picture is too strange).

    `isotonic` then bends the probabilities along a rising curve a class, which needs some hundreds of validation cases.
    With an `error_rate` a case is also called indeterminate where conformal prediction leaves both answers open, so
    that at most this share of cases like those is called what it is not; `by_class`: of the normal and of the abnormal
    ones each. With `novelty` the checkpoint keeps what its training cases are like, to know strange ones by.
    """

    temperature: Literal["fitted", "one"] = "fitted"
    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    margin: Probability = 0.0
    familiar: Annotated[float, Field(gt=0, le=1)] | None = None
    isotonic: Annotated[bool, LATER] = False
    error_rate: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, LATER] = None
    by_class: Annotated[bool, LATER] = True
    novelty: Annotated[Novelty | None, LATER] = None


class Explain(Section):
    """How it is shown where on a picture a probability comes from.

    `method`: ``grad_cam_pp`` weighs the feature maps of `layer`, ``integrated_gradients`` counts each pixel in `steps`
    steps from an empty picture, or in more until they add up; None takes the first where the network has stages, and
    the second where it has none.
    `layer` is a module's name; None takes the last stage, or the one before it where the last has too few cells.
    """

    method: Literal["grad_cam_pp", "integrated_gradients"] | None = None
    layer: str | None = None
    steps: Annotated[int, Field(ge=8, le=512)] = 64


class ClassifyPredict(Section):
    """How a classifier's weights are used: logits are averaged over flips of `flip_axes` of the network's grid.

    So many cases as `batch_size` are asked at a time, computed in `precision`.
    """

    batch_size: Annotated[int, Field(ge=1)] = 32
    precision: Annotated[Literal["32", "bf16"], BeforeValidator(str)] = "32"
    flip_axes: tuple[Literal[0, 1, 2], ...] = ()


class Predict(Section):
    """How a segmenter's weights are used.

    Tiles of `patch` voxels (of two axes, slice by slice, where `train.patch` has two) overlap by the share `overlap`;
    probabilities are averaged over flips of `flip_axes` (0 is the first axis of `preprocess.orientation`). So many
    tiles as `batch_size` are asked at a time, computed in `precision`. With `skip_air` the tiles that hold nothing but
    the image's least value, as air does that lies below the window of a CT, are asked once and share the answer, which
    is the one that each would have had.
    """

    patch: Size
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Annotated[int, Field(ge=1)] = 1
    precision: Annotated[Literal["32", "bf16"], BeforeValidator(str)] = "bf16"
    flip_axes: tuple[Literal[0, 1, 2], ...] = ()
    skip_air: Annotated[bool, LATER] = False
