"""A structure is where its mask says, whether structures overlap or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from segmented import REGIONS, segment_config

from imaging.errors import ConfigInvalid
from imaging.structures import labels_of, structure_of, truth_of


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
