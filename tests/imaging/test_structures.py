"""A structure is where its mask says, whether structures overlap or not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from segmented import REGIONS, segment_config

from imaging.errors import ConfigInvalid
from imaging.structures import labels_of, structure_of, truth_of, voxels_by_column, voxels_by_slice


def test_labels_of_a_mask_are_its_structures() -> None:
    config = segment_config(Path("cases.csv"))
    mask = np.array([[[0, 1], [2, 1]]], dtype=np.uint8)
    assert truth_of(mask, config) is mask
    assert config.mask_values == (1, 2) and config.outputs == 3
    assert [structure_of(mask, label).sum() for label in config.labels] == [2, 1]


def test_regions_are_made_up_of_their_values() -> None:
    """The whole is 1 and 2, its core 2 alone."""
    config = segment_config(Path("cases.csv"), *REGIONS)
    assert config.overlapping and config.mask_values == (1, 2) and config.outputs == 2
    regions = truth_of(np.array([[[0, 1], [2, 1]]], dtype=np.uint8), config)
    assert regions.tolist() == [[[[False, True], [True, True]]], [[[False, False], [True, False]]]]
    assert [structure_of(regions, label).sum() for label in config.labels] == [3, 1]


def test_where_regions_overlap_the_later_label_is_written() -> None:
    config = segment_config(Path("cases.csv"), *REGIONS)
    regions = np.array([[[[True, True, False, False]]], [[[False, True, True, False]]]])
    assert labels_of(regions, config.labels).tolist() == [[[1, 2, 2, 0]]]


@pytest.mark.parametrize(
    "overrides",
    [("labels.0.values=[1, 2]",), ("labels.0.values=[0]", "labels.1.values=[2]"), ("labels.0.values=[256]",)],
    ids=["one_of_two", "background", "too_large"],
)
def test_values_that_make_no_regions_are_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigInvalid, match="values"):
        segment_config(Path("cases.csv"), *overrides)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("overlapping", [False, True])
def test_voxels_are_counted_by_slice_and_by_column(order: Literal["C", "F"], overlapping: bool) -> None:
    """Of more slices than a byte counts to, and of a structure that has none."""
    config = segment_config(Path("cases.csv"), *(REGIONS if overlapping else ()))
    shape = (2, 5, 4, 600) if overlapping else (5, 4, 600)
    mask = np.random.default_rng(0).integers(0, 2 if overlapping else 4, shape)
    mask[..., 0, 0, :] = 1  # one place of all slices
    mask = np.asarray(mask, dtype=np.bool_ if overlapping else np.uint8, order=order)
    by_slice = voxels_by_slice(mask, config.labels)
    for label, voxels_Z in zip(config.labels, by_slice, strict=True):
        found = structure_of(mask, label)
        assert np.array_equal(voxels_Z, found.sum(axis=(0, 1)))
        assert np.array_equal(voxels_by_column(mask, label, range(600)), found.sum(axis=2))
        assert np.array_equal(voxels_by_column(mask, label, [3, 599]), found[..., [3, 599]].sum(axis=2))
    empty = np.zeros_like(mask)
    assert not voxels_by_slice(empty, config.labels).any() and not voxels_by_column(empty, config.labels[0], []).any()
