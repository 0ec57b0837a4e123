"""A fusion is published like any checkpoint, and taken for no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fused import fuse_config

from imaging.checkpoint import (
    WEIGHTS,
    find_checkpoint,
    open_checkpoint,
    open_checkpoints,
    open_fusion,
    save_fusion,
    task_of,
)
from imaging.errors import CheckpointCorrupt, WrongTask


def test_what_was_saved_is_opened(tmp_path: Path) -> None:
    config = fuse_config(tmp_path, "data.root=somewhere.csv", "images.0.checkpoint=/home/me/toy")
    saved = save_fusion(tmp_path / "fusion", config, {"toy": np.array([0.1, 1.0])}, {})
    again = open_fusion(tmp_path / "fusion")
    assert again.load_weights()["toy"].tolist() == [0.1, 1.0]
    assert again.config == config.without_paths() == saved.config
    assert again.config.digest() == config.digest()
    assert task_of(tmp_path / "fusion") == "fuse"
    assert "/home/me" not in (tmp_path / "fusion" / "config.yaml").read_text()


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    saved = save_fusion(tmp_path / "fusion", fuse_config(tmp_path), {"toy": np.array([0.1, 1.0])}, {})
    content = bytearray((saved.folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (saved.folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="changed after"):
        saved.load_weights()
    with pytest.raises(CheckpointCorrupt, match="differs"):
        open_fusion(saved.folder)


def test_neither_is_taken_for_the_other(tmp_path: Path) -> None:
    folder = save_fusion(tmp_path / "fusion", fuse_config(tmp_path), {"toy": np.zeros(2)}, {}).folder
    with pytest.raises(WrongTask, match="its task is fuse"):
        open_checkpoint(folder)
    with pytest.raises(WrongTask, match="its task is fuse"):
        open_checkpoints([str(folder)])
    with pytest.raises(WrongTask, match="its task is classify"):
        open_fusion(find_checkpoint("chest_xray"))
