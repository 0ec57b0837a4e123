"""Synthetic cases with masks whose answer is known, and a config that learns them in seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from imaging.config import SegmentConfig, load_config
from imaging.files import shipped
from imaging.manifest import Case

SIZE = (26, 24, 8)
AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])
# The outer box with the inner one in it, and the inner one alone.
REGIONS = ("labels.0.values=[1, 2]", "labels.1.values=[2]")
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def write_cases(folder: Path, *, channels: int = 1, size: tuple[int, ...] = SIZE, affine: np.ndarray = AFFINE) -> Path:
    """Eight cases of noise with a bright box and a dark one inside it, and a manifest of them.

    The outer box has the value 1 in the mask, the inner one 2. With two channels there is a decoy as well, which looks
    like the outer box in the first channel, and only the second one tells them apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image,label,case"]
    for number, name in enumerate(NAMES):
        generator = np.random.default_rng(number)
        mask = np.zeros(size)
        x, y = generator.integers(1, 12, 2).tolist()
        outer, inner = (slice(x, x + 12), slice(y, y + 11)), (slice(x + 3, x + 9), slice(y + 3, y + 8))
        mask[(*outer, slice(2, 7))], mask[(*inner, slice(3, 6))] = 1, 2
        contrast = 60 * (mask == 1) - 60 * (mask == 2)
        shown = [generator.normal(100, 5, size) + contrast for _ in range(channels)]
        if channels == 2:
            decoy = np.roll(mask > 0, 13, axis=0) & (mask == 0)
            shown[0] += 60 * decoy
        files = [f"{name}_{channel:04d}.nii.gz" for channel in range(channels)]
        for file, array in zip(files, shown, strict=True):
            nib.save(nib.Nifti1Image(array.astype(np.float32), affine), folder / file)
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}_mask.nii.gz")
        rows.append(f"{'|'.join(files)},{name}_mask.nii.gz,{name}")
    manifest = folder / "cases.csv"
    manifest.write_text("\n".join(rows))
    return manifest


def write_pictures(folder: Path) -> Path:
    """The middle slices of these cases, as PNG pictures with PNG masks."""
    write_cases(folder)
    rows = ["image,label,case"]
    for name in NAMES:
        for kind, file in (("0000", f"{name}.png"), ("mask", f"{name}_mask.png")):
            values = np.asarray(nib.load(folder / f"{name}_{kind}.nii.gz").dataobj)[:, :, 4]
            Image.fromarray(values.T.clip(0, 255).astype(np.uint8)).save(folder / file)
        rows.append(f"{name}.png,{name}_mask.png,{name}")
    manifest = folder / "pictures.csv"
    manifest.write_text("\n".join(rows))
    return manifest


def segment_config(manifest: Path, *overrides: str) -> SegmentConfig:
    """A tiny network for these cases; by default it sees slices."""
    config = load_config(
        shipped("configs") / "hippocampus_mr.yaml",
        [
            "name=boxes", f"data.root={manifest}", "data.folds=4", "data.test_fraction=0.25",
            "applies_to={modality: [MR], extent_min_mm: [1, 1, 1], extent_max_mm: [99, 99, 99], spacing_max_mm: 9}",
            "preprocess.spacing_mm=[1, 1, null]", "network={name: UNet, options: {channels: [8, 16], strides: [2]}}",
            "train.patch=[24, 24]", "train.foreground=0.5", "train.augment=[]", "train.epochs=40", "train.batch_size=5",
            "train.learning_rate=0.02", "train.ema_decay=0", "train.precision='32'", "train.validate_every=20",
            "predict.patch=[24, 24]", "predict.precision='32'", "predict.flip_axes=[0]", "predict.batch_size=4",
            *overrides,
        ],
    )  # fmt: skip
    assert isinstance(config, SegmentConfig)
    return config


def written(config: SegmentConfig, path: Path) -> Path:
    """The config as a file."""
    path.write_text(config.to_yaml())
    return path


def case_in(folder: Path) -> Case:
    """The first of the two cases in a folder with files of plain names."""
    return Case("one", (folder / "i001.nii.gz",), folder / "l001.nii.gz", "one")


def several_patches(config: SegmentConfig, number: int) -> SegmentConfig:
    """The same with so many patches of each case an epoch."""
    train = config.train.model_copy(update={"patches_per_case": number})
    return config.model_copy(update={"train": train})
