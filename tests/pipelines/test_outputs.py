"""What a study's outputs are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from imaging.predict import Prediction
from imaging.volume import Frame, Volume
from pipelines.outputs import Wanted, delivering_bytes, instances_of


def said(*names: str) -> Any:
    frames = tuple(Frame(f"1.2.{number}", 1, Path(name)) for number, name in enumerate(names))
    volume = Volume(np.zeros((1, 1, 1, 1), np.float32), np.eye(4), sources=frames)
    return Prediction(None, volume, np.zeros((1, 1, 1), np.uint8), {})  # type: ignore[arg-type]


def test_what_was_read_comes_first_and_the_other_channels_of_a_case_after_it() -> None:
    files = [Path("flair_1"), Path("t1_1"), Path("t1_2")]
    assert instances_of([said("t1_2", "t1_1")], files) == (Path("t1_2"), Path("t1_1"), Path("flair_1"))


def test_where_nothing_was_read_any_file_says_whose_study_it_is() -> None:
    assert instances_of([], [Path("localizer")]) == (Path("localizer"),)
    assert instances_of([], []) == ()


def test_memory_of_outputs_goes_with_what_is_written() -> None:
    slices, voxels = 1000, 512 * 512 * 1000

    def bytes_of(wanted: Wanted, labels: int = 9, *, as_nifti: bool = False) -> int:
        return delivering_bytes(wanted, slices, voxels, labels, as_nifti=as_nifti)

    plain = bytes_of(Wanted())
    assert plain < voxels * 2  # less than the volume itself
    assert bytes_of(Wanted(), 116) - plain == slices * 107 * 2048
    assert bytes_of(Wanted(frozenset({"nifti"}))) == bytes_of(Wanted(), as_nifti=True) == plain
    assert bytes_of(Wanted(seg_type="labelmap"), as_nifti=True) == plain, "it has no SEG"
    assert bytes_of(Wanted(seg_type="labelmap")) - plain == 2 * voxels
    assert bytes_of(Wanted(frozenset({"json"}), seg_type="labelmap")) == plain
