"""What a task's labels and classes mean, and which series a checkpoint takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from imaging.config.section import LATER, Pattern, Positive, Section, Vector3

# Designators of coding schemes (DICOM PS3.16 section 8).
_SCHEME = r"^(SCT|DCM|RADLEX|LN|UCUM|FMA|NCIt|99[A-Z0-9_]{1,14})$"


class Code(Section):
    """A coded concept: its `scheme`'s designator, `value` and `meaning` (DICOM PS3.16 section 8; SCT is SNOMED CT).

    A scheme of one's own begins with 99.
    """

    scheme: Annotated[str, Field(pattern=_SCHEME)] = "SCT"
    value: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Label(Section):
    """One structure: its `id` is its value in the mask, `name` is for files, `title` for people.

    A DICOM SEG has its `category` (such as anatomical structure), its `code`, a `modifier` of it such as a side, and
    its `colour` (#rrggbb).

    `values` are those of a manual mask that make it up, where structures overlap: a whole tumour may be 1, 2 and 3, its
    core 2 and 3. Without them it is its id alone.
    """

    id: Annotated[int, Field(ge=1, le=255)]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    category: Code
    code: Code
    modifier: Code | None = None
    values: Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], LATER] = ()
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class Class(Section):
    """One thing that a case can be: its number `id`, its `name` in manifests and files, its `title` for people.

    `category` and `code` say it in reports, coded.
    `abnormal` is what reports call it; the probabilities of all abnormal classes together are that of an abnormal case.
    `told_as` lists what manifests call it beside its name and its title; a word that several classes list names all of
    them.
    """

    id: Annotated[int, Field(ge=0, le=255)]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    category: Code
    code: Code
    abnormal: bool
    told_as: Annotated[tuple[str, ...], LATER] = ()


class Kind(Section):
    """One kind of mention that is marked in a text: its `name`, and its `title` for people.

    `told_as` lists what marked texts call it beside its name; tags of other kinds count as no mention.
    """

    name: Literal["finding", "disease", "chemical"]
    title: str
    told_as: tuple[str, ...] = ()


class AppliesTo(Section):
    """Which series a checkpoint takes: of one of the modalities in `modality` and the body parts in `body_part`.

    Modalities and body parts are DICOM's terms; without body parts any is taken. All but `description` are limits of
    what the network has learnt: a series beyond them is refused even when the checkpoint is named explicitly (a
    modality or body part that the file does not tell is then not held against it). `description`, a regular expression
    for SeriesDescription, only chooses: it is asked when no checkpoint is named. `extent_min_mm` and `extent_max_mm`
    bound the size along R-L, A-P and S-I, `spacing_max_mm` every voxel axis; None where there is no such limit.
    """

    modality: tuple[str, ...]
    body_part: tuple[str, ...] = ()
    description: Pattern | None = None
    extent_min_mm: Vector3 | None = None
    extent_max_mm: Vector3 | None = None
    spacing_max_mm: Positive | None = None


class VolumesTaken(AppliesTo):
    """Which series a segmenter takes: the size of what it has learnt is always said."""

    extent_min_mm: Vector3
    extent_max_mm: Vector3
    spacing_max_mm: Positive


class PicturesTaken(AppliesTo):
    """Which pictures or volumes a classifier takes.

    A film has no place in the patient, so its size is bounded in pixels: at least `pixels_min` along each axis that the
    network sees, and the longest of them at most `aspect_max` times the shortest.
    """

    pixels_min: Annotated[int, Field(ge=2)] = 2
    aspect_max: Annotated[float, Field(ge=1)] | None = None


class Card(Section):
    """What the model card says that no number says.

    `data`: what it was trained on; `licence`: that of the weights; `intended_use` and `limits`: for what, and for what
    not; `command`: what trained it.
    """

    data: str
    licence: str
    intended_use: str
    limits: str
    command: str
