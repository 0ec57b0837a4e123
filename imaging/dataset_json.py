"""The ``dataset.json`` of a segmentation data set -> its cases, and what it says of itself.

Three forms are read: that of the Medical Segmentation Decathlon (``training`` lists an image and a label each, and an
image may be four-dimensional); that of nnU-Net 1, which is the same with a file for each channel; and that of nnU-Net
2, which has no list, or its cases by name under ``dataset``. A channel's file is called ``CASE_0000``, ``CASE_0001``.
See nnU-Net's documentation/dataset_format.md.

Invariant: what the file does not tell stays empty, and a file of the data set that it does not account for is refused
rather than passed over. Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imaging.errors import ManifestInvalid
from imaging.nifti import case_name

_ENDINGS = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"_(\d{4})$")
# What nnU-Net calls voxels that nothing is learnt from.
_IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one case, whether or not they exist."""

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True, slots=True)
class DatasetJson:
    """What a ``dataset.json`` tells.

    Attributes
    ----------
    name
        Its own name, or that of its folder.
    channels
        What it calls its channels.
    labels
        A name for each value of the masks but that of the background and `ignore`; what is only there as a part of
        regions is called ``label <value>``.
    regions
        The values that make up each structure, in the order of the file; empty where each structure is one value.
    ignore
        The value of voxels that nothing is known of; None where there is none.
    text, licence, reference
        As the data set has them.
    """

    name: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
    text: str = ""
    licence: str = ""
    reference: str = ""


def read_dataset_json(manifest: Path) -> DatasetJson:
    """Read what a ``dataset.json`` says of its data set.

    Raises
    ------
    ManifestInvalid
        If it is no JSON object, or its labels are not whole numbers with names.
    """
    try:
        content = _content(manifest)
        structures = _structures(content.get("labels") or {})
        channels = _channels(content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(manifest, error) from error
    ignore = structures.pop(_IGNORE, (None,))[0]
    return DatasetJson(
        name=str(content.get("name") or manifest.parent.resolve().name),
        channels=channels,
        labels=_labels(structures),
        regions=structures if any(len(values) > 1 for values in structures.values()) else {},
        ignore=ignore,
        text=str(content.get("description") or ""),
        licence=str(content.get("licence") or content.get("license") or ""),
        reference=str(content.get("reference") or ""),
    )


def list_files(manifest: Path) -> tuple[Files, ...]:
    """The cases of a ``dataset.json``: those that it lists, or else those that lie in its folder.

    Raises
    ------
    ManifestInvalid
        If it is none of the three forms, or the files in ``imagesTr`` are not those that it speaks of.
    """
    try:
        content = _content(manifest)
        channels = len(_channels(content))
        return _listed(manifest, content, channels) if "training" in content else _found(manifest, content, channels)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(manifest, error) from error


def _unreadable(manifest: Path, error: Exception) -> ManifestInvalid:
    return ManifestInvalid(manifest, seen=f"cannot be read ({type(error).__name__}: {error})")


def _content(manifest: Path) -> dict[str, Any]:
    content = json.loads(manifest.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError("the top level is not a mapping")
    return content


def _channels(content: Mapping[str, Any]) -> tuple[str, ...]:
    """By their numbers, as their files are; nnU-Net 2 calls channel_names what the Decathlon calls modality."""
    told = content.get("modality") or content.get("channel_names") or {}
    if not isinstance(told, dict):
        return (str(told),)
    numbered = all(number.isdecimal() for number in told)
    return tuple(str(told[number]) for number in (sorted(told, key=int) if numbered else told))


def _structures(told: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The values of each structure, from the Decathlon's ``{"1": "Liver"}`` or nnU-Net's ``{"Liver": 1}``."""
    pairs = [(value, key) if isinstance(value, str) else (key, value) for key, value in told.items()]
    found = {str(name): tuple(map(int, values if isinstance(values, list) else [values])) for name, values in pairs}
    return {name: values for name, values in found.items() if values != (0,)}


def _labels(structures: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    names = {values[0]: name for name, values in structures.items() if len(values) == 1}
    every = sorted({value for values in structures.values() for value in values} - {0})
    return {value: names.get(value, f"label {value}") for value in every}


def _listed(manifest: Path, content: Mapping[str, Any], channels: int) -> tuple[Files, ...]:
    """The cases of a Decathlon's or an nnU-Net 1's list."""
    cases = []
    for row in content["training"]:
        image, label = manifest.parent / row["image"], manifest.parent / row["label"]
        name = case_name(image)
        ending = image.name.removeprefix(name)
        files = tuple(image.with_name(f"{name}_{number:04d}{ending}") for number in range(max(channels, 1)))
        # nnU-Net 1 lists a case by a file that is not there; its channels are.
        several = not image.exists() and files[0].exists()
        further = image.with_name(f"{name}_{len(files):04d}{ending}")
        if several and further.exists():
            raise ManifestInvalid(manifest, seen=f"channel {len(files):04d} of case {name!r}",
                                  expected=f"{len(files)} channels were expected")  # fmt: skip
        cases.append(Files(name, files if several else (image,), label))
    return tuple(cases)


def _found(manifest: Path, content: Mapping[str, Any], channels: int) -> tuple[Files, ...]:
    """The cases of an nnU-Net 2 data set: those under ``dataset``, or else what lies in its folders."""
    ending = str(content["file_ending"])
    if ending not in _ENDINGS:
        raise ManifestInvalid(manifest, seen=f"file_ending {ending!r}",
                              expected=f"one of {', '.join(_ENDINGS)} was expected")  # fmt: skip
    if not channels:
        raise ManifestInvalid(manifest, seen="no channel_names")
    folder = manifest.parent
    if content.get("dataset"):
        cases = tuple(
            Files(str(name), tuple(folder / image for image in files["images"]), folder / files["label"])
            for name, files in sorted(content["dataset"].items())
        )
    else:
        images = _images(manifest, ending)
        names = sorted({*images, *(path.name.removesuffix(ending) for path in _files(folder / "labelsTr", ending))})
        cases = tuple(
            Files(
                name,
                tuple(folder / "imagesTr" / f"{name}_{number:04d}{ending}" for number in range(channels)),
                folder / "labelsTr" / f"{name}{ending}",
            )
            for name in names
        )
        for name, numbers in sorted(images.items()):
            if max(numbers) >= channels:
                raise ManifestInvalid(manifest, seen=f"channel {max(numbers):04d} of case {name!r}",
                                      expected=f"{channels} channels were expected")  # fmt: skip
    for case in cases:
        if len(case.images) != channels:
            raise ManifestInvalid(manifest, seen=f"{len(case.images)} images of case {case.name!r}",
                                  expected=f"{channels} channels were expected")  # fmt: skip
    told = content.get("numTraining", len(cases))
    if told != len(cases):
        raise ManifestInvalid(manifest, seen=f"{len(cases)} cases", expected=f"numTraining says {told}",
                              remedy="Find the missing files, or correct numTraining")  # fmt: skip
    return cases


def _images(manifest: Path, ending: str) -> dict[str, set[int]]:
    """The channels of each case in ``imagesTr``."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for path in _files(manifest.parent / "imagesTr", ending):
        stem = path.name.removesuffix(ending)
        match = _CHANNEL.search(stem)
        if not match:
            raise ManifestInvalid(manifest, seen=f"the image {path.name!r}",
                                  expected=f"a name that ends in its channel (_0000{ending}) was expected")  # fmt: skip
        found[stem[: match.start()]].add(int(match[1]))
    return found


def _files(folder: Path, ending: str) -> list[Path]:
    """Those with this ending; what systems leave beside them (``._*``) is none."""
    return [path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith(".")]
