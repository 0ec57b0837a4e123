"""What segmenters are measured on: studies, and checkpoints with random weights where none ships for them.

Random weights cost what trained ones cost, and say nothing of a picture: their masks are noise, which is harder to
write than a real one. An engine can then not be accepted by comparing masks; it is marked as accepted by hand, here
alone.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import synthetic_ct

from imaging.checkpoint import open_checkpoint, save_checkpoint
from imaging.config import SegmentConfig, load_config
from imaging.engines.accepted import FILE, Compared, Trial, Trials
from imaging.files import shipped
from imaging.nifti import write_volume
from imaging.volume import Volume

ROOT = Path(__file__).parent.parent
# A 3D network of each kind: a U-Net, a residual network, and the architecture of hippocampus_mr.
NETWORKS: dict[str, dict[str, Any]] = {
    "BasicUNet": {"name": "BasicUNet", "options": {}},
    "SegResNet": {"name": "SegResNet", "options": {"init_filters": 16, "blocks_down": [1, 2, 2, 4]}},
    "DynUNet": {},
    # For how cost grows: what is beside the network shall be seen, too.
    "small U-Net": {"name": "BasicUNet", "options": {"features": [8, 8, 16, 32, 64, 8]}},
}
# Of nnU-Net's plain U-Net beside it: channels of each level.
FEATURES = {"BasicUNet": [32, 32, 64, 128, 256], "DynUNet": [32, 64, 128, 192]}
# Of the network's grid for a CT of the trunk, and of the tiles on it.
CT_SPACING_MM, CT_PATCH = 3.0, 96
# Of a slice of the synthetic CT.
_PIXEL_MM, _SLICE_MM = 0.703125, 1.25


@dataclass(frozen=True)
class Case:
    """One study and who is asked of it.

    Attributes
    ----------
    name
        As the table calls it.
    study
        A DICOM folder, or a NIfTI file.
    nifti
        The same, or one of as many tiles, as NIfTI for who reads no DICOM; made beforehand.
    checkpoint
        A folder.
    """

    name: str
    study: Path
    nifti: Path
    checkpoint: Path

    @property
    def config(self) -> SegmentConfig:
        """That of the checkpoint."""
        return open_checkpoint(self.checkpoint).segmenter()

    def told(self) -> str:
        """As JSON on one line, with what nnU-Net needs where it has such a network."""
        config = self.config
        said = {key: str(value) for key, value in asdict(self).items()}
        if config.network.name in FEATURES:
            settings = {
                "patch": config.predict.patch, "spacing_mm": config.preprocess.spacing_mm, "classes": config.outputs,
                "features": FEATURES[config.network.name], "flips": config.predict.flip_axes,
                "ending": "".join(self.nifti.suffixes),
            }  # fmt: skip
            said["settings"] = json.dumps(settings)
        return json.dumps(said)


def demo(_: Path) -> Case:
    """The MR study that ships with the tests."""
    nifti = ROOT / "tests/data/hippocampus/imagesTr/hippocampus_001.nii.gz"
    return Case("demo study (DICOM MR, 35 x 51 x 32)", ROOT / "tests/data/hippocrop_study1", nifti,
                shipped("checkpoints") / "hippocampus_mr")  # fmt: skip


def hippocampus(_: Path) -> Case:
    """A case of the data set that hippocampus_mr was trained on."""
    nifti = ROOT / "tests/data/hippocampus/imagesTr/hippocampus_001.nii.gz"
    return Case("hippocampus (NIfTI MR, 35 x 51 x 35)", nifti, nifti, shipped("checkpoints") / "hippocampus_mr")


def ct(
    folder: Path, network: str, *, slices: int, classes: int = 10, patch: int = CT_PATCH, nifti: bool = True
) -> Case:
    """A synthetic CT of 512 x 512 pixels, as DICOM and, for who needs it, as NIfTI."""
    synthetic_ct.write(folder, "uncompressed", slices)
    study = folder / f"uncompressed-{slices}"
    same = folder / f"ct-{slices}.nii" if nifti else study
    if not same.exists():
        pictures = [synthetic_ct.picture(k % synthetic_ct.PICTURES).T for k in range(slices)]
        values_XYZ = np.stack(pictures, axis=2).astype(np.float32) * synthetic_ct.SLOPE + synthetic_ct.INTERCEPT
        affine = np.diag([-_PIXEL_MM, -_PIXEL_MM, _SLICE_MM, 1.0])
        write_volume(same, Volume(values_XYZ[None].astype(np.float32), affine))
    checkpoint = random_checkpoint(folder, network, classes=classes, patch=patch)
    return Case(f"synthetic CT, 512 x 512 x {slices}, {classes} classes, {network}", study, same, checkpoint)


def tiles(folder: Path, network: str, *, edge: int = 120, classes: int = 10, patch: int = CT_PATCH) -> Case:
    """A synthetic CT that lies on the network's grid already, so that the network is nearly all there is to do."""
    nifti = folder / f"tiles-{edge}.nii"
    if not nifti.exists():
        folder.mkdir(parents=True, exist_ok=True)
        every = synthetic_ct.SIZE / edge
        at = np.floor((np.arange(edge) + 0.5) * every).astype(int)
        pictures = [synthetic_ct.picture(k % synthetic_ct.PICTURES).T[np.ix_(at, at)] for k in range(edge)]
        values_XYZ = np.stack(pictures, axis=2).astype(np.float32) * synthetic_ct.SLOPE + synthetic_ct.INTERCEPT
        write_volume(nifti, Volume(values_XYZ[None].astype(np.float32), np.diag([*[CT_SPACING_MM] * 3, 1.0])))
    checkpoint = random_checkpoint(folder, network, classes=classes, patch=patch)
    return Case(f"{network}, {edge}^3 voxels in tiles of {patch}^3, {classes} classes", nifti, nifti, checkpoint)


def config_of(network: str, *, classes: int, patch: int) -> SegmentConfig:
    """A segmenter of CT; `classes` are with the background."""
    code = {"scheme": "SCT", "value": "91723000", "meaning": "Anatomical Structure"}
    labels = [
        {"id": number, "name": f"part_{number}", "title": f"Part {number}", "category": code, "code": code,
         "colour": f"#{40503 * number % 2**24:06x}"}
        for number in range(1, classes)
    ]  # fmt: skip
    name = f"random_{re.sub('[^a-z0-9]', '_', network.lower())}_{classes}"
    taken = {"modality": ["CT"], "extent_min_mm": [1, 1, 1], "extent_max_mm": [9999] * 3, "spacing_max_mm": 99}
    settings: dict[str, Any] = {
        "name": name, "title": "Random weights", "applies_to": taken, "labels": labels,
        "preprocess": {"normalise": "zscore", "orientation": "RAS", "spacing_mm": [CT_SPACING_MM] * 3},
        "train.patch": [patch] * 3,
        "predict": {"patch": [patch] * 3, "overlap": 0.5, "batch_size": 1, "precision": "bf16"},
    }  # fmt: skip
    if NETWORKS[network]:
        settings["network"] = NETWORKS[network]
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", overrides)
    assert isinstance(config, SegmentConfig)
    return config


def random_checkpoint(folder: Path, network: str, *, classes: int, patch: int) -> Path:
    """A checkpoint of such a network, unless it is there."""
    import torch

    from imaging.networks import build_segmenter, weights_of

    place = folder / f"{network}-{classes}-{patch}"
    if not (place / "SHA256SUMS").exists():
        shutil.rmtree(place, ignore_errors=True)
        torch.manual_seed(0)
        config = config_of(network, classes=classes, patch=patch)
        save_checkpoint(place, config, weights_of(build_segmenter(config)), {}, {FILE: _accepted_by_hand()})
    return place


def _accepted_by_hand() -> bytes:
    """Says of OpenVINO that it was compared: of random weights there is no truth to compare it with."""
    same = Compared(dice_with_torch=1, least_dice_with_torch=1, dice=1, dice_of_torch=1)
    trials = tuple(
        Trial(engine="openvino", precision=precision, version="any", processor="any", data="none: random weights",
              side="other", cases=1, compared={"by hand": same})
        for precision in ("bf16", "fp32")
    )  # fmt: skip
    return Trials(trials=trials).model_dump_json().encode()
