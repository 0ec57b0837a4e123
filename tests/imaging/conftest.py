"""Two real cases, and a config that trains on small patches of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imaging.config import SegmentConfig, load_config
from imaging.files import shipped


@pytest.fixture
def two_cases(data: Path, tmp_path: Path) -> Path:
    """A folder with the images i001 and i003 and their masks l001 and l003."""
    for number in ("001", "003"):
        shutil.copy(data / "hippocampus" / "imagesTr" / f"hippocampus_{number}.nii.gz", tmp_path / f"i{number}.nii.gz")
        shutil.copy(data / "hippocampus" / "labelsTr" / f"hippocampus_{number}.nii.gz", tmp_path / f"l{number}.nii.gz")
    return tmp_path


@pytest.fixture
def small_patches() -> SegmentConfig:
    """The shipped config on small patches."""
    overrides = ["train.patch=[16, 24, 16]", "train.batch_size=2"]
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", overrides)
    assert isinstance(config, SegmentConfig)
    return config
