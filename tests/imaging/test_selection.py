"""A checkpoint takes the series of its rule and no other, and the reason is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from classified import toy_config

from imaging.config import AppliesTo
from imaging.errors import NotApplicable
from imaging.selection import check_choice, check_fit, check_limits
from imaging.volume import SeriesFacts

RULE = AppliesTo(
    modality=("MR", "PT"),
    description="(?i)hippo",
    extent_min_mm=(20, 30, 40),
    extent_max_mm=(50, 60, 70),
    spacing_max_mm=2.0,
)
HEAD = RULE.model_copy(update={"body_part": ("HEAD", "BRAIN")})
ANY_DESCRIPTION = RULE.model_copy(update={"description": None})
HIPPO = SeriesFacts(series_uid="1.2.3", modality="MR", description="HippoCrop")
CHEST = SeriesFacts(series_uid="1.2.3", modality="MR", description="Doe^Jane chest")
CT = SeriesFacts(series_uid="1.2.3", modality="CT", description="hippo")
NIFTI = SeriesFacts(description="hippocampus_001.nii.gz")


@pytest.mark.parametrize(
    ("rule", "facts", "named"),
    [
        (RULE, HIPPO, False),
        (RULE, HIPPO, True),
        (RULE, CHEST, True),
        (ANY_DESCRIPTION, CHEST, False),
        (RULE, NIFTI, True),
        (RULE, SeriesFacts(modality="PT", description="a hippo"), False),
        (RULE, replace(HIPPO, body_part="CHEST"), False),
        (HEAD, replace(HIPPO, body_part="BRAIN"), False),
        (HEAD, HIPPO, False),
    ],
)
def test_what_fits_the_rule_is_taken(rule: AppliesTo, facts: SeriesFacts, named: bool) -> None:
    check_choice(rule, facts, named=named)


@pytest.mark.parametrize(
    ("facts", "named", "seen", "expected"),
    [
        (CT, False, "modality CT", "MR or PT"),
        (CT, True, "modality CT", "MR or PT"),
        (CHEST, False, "another series description", "hippo"),
        (NIFTI, False, "does not tell its modality", "MR or PT"),
        (SeriesFacts(modality="MR", description="x" * 256 + "hippo"), False, "description", "hippo"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    facts: SeriesFacts, named: bool, seen: str, expected: str
) -> None:
    with pytest.raises(NotApplicable) as caught:
        check_choice(RULE, facts, named=named)
    assert caught.value.code == "not_applicable"
    assert seen in caught.value.seen
    assert expected in caught.value.expected
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("named", [True, False])
def test_another_part_of_the_body_is_refused(named: bool) -> None:
    with pytest.raises(NotApplicable) as caught:
        check_choice(HEAD, replace(HIPPO, body_part="CHEST"), named=named)
    assert "body part CHEST" in caught.value.seen
    assert "HEAD or BRAIN" in caught.value.expected


@pytest.mark.parametrize("extent", [(20, 30, 40), (50, 60, 70), (35, 45, 55)])
def test_a_grid_within_the_limits_is_taken(extent: tuple[int, int, int]) -> None:
    check_limits(RULE, HIPPO, extent, np.eye(4))


@pytest.mark.parametrize(
    ("extent", "seen"),
    [
        ((19, 45, 55), "19 mm along R-L"),
        ((51, 45, 55), "51 mm along R-L"),
        ((35, 29, 55), "29 mm along A-P"),
        ((35, 61, 55), "61 mm along A-P"),
        ((35, 45, 39), "39 mm along S-I"),
        ((35, 45, 71), "71 mm along S-I"),
    ],
)
def test_a_size_beyond_the_limits_is_refused_by_its_axis(extent: tuple[int, int, int], seen: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        check_limits(RULE, HIPPO, extent, np.eye(4))
    assert caught.value.seen == seen


def test_limits_follow_the_patient_and_not_the_voxel_axes() -> None:
    sagittal = np.array([[0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    check_limits(RULE, HIPPO, (45, 55, 35), sagittal)
    with pytest.raises(NotApplicable, match="55 mm along R-L"):
        check_limits(RULE, HIPPO, (35, 45, 55), sagittal)


@pytest.mark.parametrize(("spacing", "taken"), [(2.0, True), (2.01, False), (0.01, True)])
def test_the_coarsest_spacing_counts(spacing: float, taken: bool) -> None:
    affine = np.diag([1.0, 1.0, spacing, 1])
    shape = (35, 45, round(55 / spacing))
    if taken:
        check_limits(RULE, HIPPO, shape, affine)
        return
    with pytest.raises(NotApplicable) as caught:
        check_limits(RULE, HIPPO, shape, affine)
    assert "2.01 mm" in caught.value.seen


def test_a_series_is_named_by_its_uid_and_a_nifti_by_its_file() -> None:
    assert CHEST.subject == "series 1.2.3"
    assert NIFTI.subject == "hippocampus_001.nii.gz"


# --------------------------------------------------------------------------------------------------------- classifiers


@pytest.mark.parametrize(
    ("overrides", "shape", "match"),
    [
        ([], (40, 30, 5), "5 slice"),
        (["preprocess.size=[8, 8, 8]"], (40, 30, 1), "1 slice"),
        (["applies_to.pixels_min=64"], (400, 63, 1), "only 63 pixels"),
        (["applies_to.aspect_max=2"], (401, 200, 1), "401 to 200"),
        (["applies_to.spacing_max_mm=0.5"], (40, 30, 1), "spacing"),
    ],
)
def test_grid_that_a_classifier_does_not_take(
    tmp_path: Path, overrides: list[str], shape: tuple[int, int, int], match: str
) -> None:
    config = toy_config(tmp_path, *overrides)
    with pytest.raises(NotApplicable, match=match):
        check_fit(config, SeriesFacts(), shape, np.eye(4))


@pytest.mark.parametrize(
    ("overrides", "shape"),
    [([], (2, 9000, 1)), (["preprocess.size=[8, 8, 8]"], (9, 9, 2)), (["applies_to.aspect_max=2"], (400, 200, 1))],
)
def test_grid_that_a_classifier_takes(tmp_path: Path, overrides: list[str], shape: tuple[int, int, int]) -> None:
    check_fit(toy_config(tmp_path, *overrides), SeriesFacts(), shape, np.eye(4))
