"""Every case of the torture suite comes out right, repaired and told, or refused by name, and nothing else suffers."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantom import Phantom, write_series
from torture import CASES, Case, Expected, Truth, untold, wrong

from imaging.dicom import Policy, Scan, read_stack, scan, stacks
from imaging.errors import ImagingError
from imaging.volume import Affine, Defect, Volume

BYSTANDER = "1.2.826.0.1.3680043.8.498.999"


def read_all(found: Scan, policy: Policy) -> tuple[list[Volume], list[ImagingError]]:
    """Every volume that can be read and everything that is refused."""
    volumes: list[Volume] = []
    refused = list(found.refused)
    for series in (series for study in found.studies for series in study.series):
        made, aside = stacks(series, policy=policy)
        refused += aside
        for stack in made:
            try:
                volumes.append(read_stack(series, stack))
            except ImagingError as error:
                refused.append(error)
    return volumes, refused


def belongs(volume: Volume, expected: Expected) -> bool:
    names = frozenset[tuple[str, int]]().union(*(plane.names for plane in expected.planes))
    return bool({(frame.sop_instance_uid, frame.number) for frame in volume.sources} & names)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    given: Case = request.param
    return given


@pytest.fixture(scope="module")
def written(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth, Phantom]:
    """The case beside a good series; reading leaves it as it is, so both policies read the same folder."""
    folder = tmp_path_factory.mktemp("case")
    truth = case.write(folder)
    return folder, truth, write_series(folder / "bystander", study_uid=BYSTANDER, patient_id="BY-1")


@pytest.mark.parametrize("policy", ["strict", "repair"])
def test_right_or_explained(case: Case, written: tuple[Path, Truth, Phantom], policy: Policy) -> None:
    folder, truth, bystander = written
    found = scan(folder)
    volumes, refused = read_all(found, policy)
    unharmed = [volume for volume in volumes if volume.facts.study_uid == BYSTANDER]
    assert len(unharmed) == 1, "the rest of the folder did not go on"
    assert bystander.worst_error(unharmed[0]) <= bystander.tolerance
    volumes.remove(unharmed[0])

    problems: list[str] = []
    for expected in truth.strict if policy == "strict" else truth.repair:
        mine = [volume for volume in volumes if belongs(volume, expected)]
        if len(mine) != 1:
            problems.append(f"{len(mine)} volumes hold the slices of one ({expected.named})")
        for volume in mine:
            volumes.remove(volume)
            assert volume.array.dtype == np.float32
            problems += wrong(expected, volume.array, volume.affine) + untold(expected, volume, policy)
    problems += [f"an unexpected volume {volume.facts.volume!r} of shape {volume.shape}" for volume in volumes]
    codes = {error.code for error in refused}
    expected_codes = case.strict if policy == "strict" else case.repair
    if codes != expected_codes:
        problems.append(f"refuses {sorted(map(str, refused))} instead of {sorted(expected_codes)}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "name",
    [
        "four_gigabytes_declared",
        "four_gigabytes_of_pixels_declared",
        "declares_16_gigapixels",
        "declares_100_megapixels",
        "rle_that_declares_too_much",
        "more_rows_than_there_are",
    ],
)
def test_what_a_header_declares_is_not_allocated(tmp_path: Path, name: str) -> None:
    next(case for case in CASES if case.name == name).write(tmp_path)
    tracemalloc.start()
    try:
        _, refused = read_all(scan(tmp_path), "repair")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused
    assert peak < 64 * 2**20


# The judge itself: what is wrong with a volume must not pass.

Change = Callable[[Volume], Volume]


def _moved(affine: Affine, column: int, by: float) -> Affine:
    moved = affine.copy()
    moved[:3, 3] += by * affine[:3, column]
    return moved


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: replace(volume, array=np.flip(volume.array, 1)),
        lambda volume: replace(volume, array=np.flip(volume.array, 2)),
        lambda volume: replace(volume, array=np.flip(volume.array, 3)),
        lambda volume: replace(volume, array=np.roll(volume.array, 1, 3)),
        lambda volume: replace(volume, array=volume.array[:, :, :, 1:]),
        lambda volume: replace(volume, array=volume.array * 1.01),
        lambda volume: replace(volume, array=np.full_like(volume.array, volume.array.min())),
        lambda volume: replace(volume, affine=_moved(volume.affine, 0, 1)),
        lambda volume: replace(volume, affine=_moved(volume.affine, 2, 0.2)),
        lambda volume: replace(volume, affine=volume.affine @ np.diag([1.0, 1.0, 1.01, 1.0])),
        lambda volume: replace(volume, sources=volume.sources[::-1]),
        lambda volume: replace(volume, sources=(volume.sources[0],) * len(volume.sources)),
        lambda volume: replace(volume, defects=(*volume.defects, Defect("missing_slices", "repaired", ""))),
        lambda volume: replace(volume, resampled=not volume.resampled),
    ],
)
@pytest.mark.parametrize("name", ["instance_number_scrambled_oblique", "tilt_both_oblique", "spacing_drift_axial"])
def test_the_judge_sees_what_is_wrong(tmp_path: Path, name: str, change: Change) -> None:
    case = next(case for case in CASES if case.name == name)
    (expected,) = case.write(tmp_path).repair
    (volume,), _ = read_all(scan(tmp_path), "repair")
    assert judged(expected, volume) == []
    assert judged(expected, change(volume)) != []


def judged(expected: Expected, volume: Volume) -> list[str]:
    return wrong(expected, volume.array, volume.affine) + untold(expected, volume, "repair")


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
