"""What a data set says of itself beside its list of cases: name, modality, the names of its structures, its licence.

Invariant: what a data set does not tell stays empty; nothing is guessed from the voxels. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imaging.dataset_json import read_dataset_json
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
    regions, ignore
        As `imaging.dataset_json.DatasetJson` has them.
    text, licence, reference
        As the data set has them.
    """

    name: str
    channels: tuple[str, ...] = ()
    labels: Mapping[int, str] | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
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
        As `imaging.dataset_json.read_dataset_json` does.
    """
    manifest = manifest_file(root)
    if manifest.suffix.lower() == ".csv":
        return Description(manifest.stem)
    told = read_dataset_json(manifest)
    return Description(
        name=told.name,
        channels=told.channels,
        labels=told.labels or None,
        regions=told.regions,
        ignore=told.ignore,
        text=told.text,
        licence=told.licence,
        reference=told.reference,
    )
