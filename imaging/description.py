"""What a data set says of itself beside its list of cases: name, modality, the names of its structures, its licence.

Invariant: what a data set does not tell stays empty; nothing is guessed from the voxels. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.errors import ManifestInvalid
from imaging.manifest import manifest_file

# How data sets write what DICOM's Modality (0008,0060) abbreviates.
_MODALITY = {"mri": "MR", "mr": "MR", "t1": "MR", "t2": "MR", "flair": "MR", "t1w": "MR", "t2w": "MR", "adc": "MR",
             "ct": "CT", "pet": "PT", "pt": "PT", "us": "US"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Description:
    """What a data set tells.

    Attributes
    ----------
    name
        Its own name, or that of its folder or file.
    channels
        What the data set calls its channels; empty where it does not tell.
    labels
        Name of each structure by its value in the masks, without the background; empty where it is not told.
    text, licence, reference
        As the data set has them.
    """

    name: str
    channels: tuple[str, ...] = ()
    labels: Mapping[int, str] | None = None
    text: str = ""
    licence: str = ""
    reference: str = ""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of each channel as DICOM's Modality (0008,0060) writes it; empty where it is not told or not known to us."""
        return tuple(_MODALITY.get(name.strip().lower(), "") for name in self.channels)

    @property
    def modality(self) -> str:
        """That of the first channel."""
        return next(iter(self.modalities), "")


def describe(root: Path) -> Description:
    """Read what a ``dataset.json`` (Medical Segmentation Decathlon or nnU-Net) tells; a CSV tells its name only.

    Raises
    ------
    ManifestInvalid
        If it is no JSON object, or its labels are not whole numbers with names.
    """
    manifest = manifest_file(root)
    if manifest.suffix.lower() == ".csv":
        return Description(manifest.stem)
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("the top level is not a mapping")
        labels = _labels(content.get("labels") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ManifestInvalid(manifest, seen=f"cannot be read ({type(error).__name__}: {error})") from error
    # nnU-Net 2 calls channel_names what the Decathlon calls modality.
    channels = content.get("modality") or content.get("channel_names") or {}
    told = channels.values() if isinstance(channels, dict) else [channels]
    return Description(
        name=str(content.get("name") or manifest.parent.resolve().name),
        channels=tuple(str(name) for name in told),
        labels=labels or None,
        text=str(content.get("description") or ""),
        licence=str(content.get("licence") or content.get("license") or ""),
        reference=str(content.get("reference") or ""),
    )


def _labels(told: Mapping[str, Any]) -> dict[int, str]:
    """Names by value, from the Decathlon's ``{"1": "Liver"}`` or nnU-Net's ``{"Liver": 1}``."""
    pairs = [(key, value) if isinstance(value, str) else (value, key) for key, value in told.items()]
    return {int(value): str(name) for value, name in sorted(pairs, key=lambda pair: int(pair[0])) if int(value) != 0}
