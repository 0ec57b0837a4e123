"""Slices of several volumes come apart the same way whatever their files are called, and never by a clock's guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom import STUDY_UID, Edit, turned, write_series
from pydicom.dataset import Dataset
from torture_rows.writing import FrameSpec, write_enhanced

from imaging.dicom import Series, scan, stacks
from imaging.dicom.frames import slices_of
from imaging.dicom.phases import split_by_moment
from imaging.dicom.split import Group
from imaging.errors import DuplicateSlices, ImagingError

Made = tuple[frozenset[tuple[str, tuple[str, ...]]], frozenset[str]]


def series_in(folder: Path) -> Series:
    ((series,),) = (study.series for study in scan(folder).studies)
    return series


def made_of(folder: Path) -> Made:
    """The volumes of a folder by name and by their slices in order, and the codes of what was refused."""
    found, refused = stacks(series_in(folder))
    volumes = ((stack.name, tuple(item.instance.sop_instance_uid for item in stack.slices)) for stack in found)
    return frozenset(volumes), frozenset(error.code for error in refused)


def having(keyword: str, *values: object) -> Edit:
    """An attribute with one value for all slices, or with one for each."""
    return lambda dataset, k: setattr(dataset, keyword, values[k % len(values)])


def _beside(folder: Path) -> None:
    for number, echo in ((1, 2.5), (2, 80.0)):
        _part(folder, number, 1.25, having("EchoTime", echo))


def _ranked(folder: Path) -> None:
    for number in (1, 2, 3):
        _part(folder, number, 0.0, having("TriggerTime", *(100 * number + k for k in range(5))))


def _kinds(folder: Path) -> None:
    for number in (1, 2):
        _part(folder, number, 0.02, having("Columns", 8 - number))


def _chained(folder: Path) -> None:
    """Each spacing is within the tolerance of the next, and the first is not of the last."""
    spacings = (1.0, 1.00008, 1.00016)
    _part(folder, 1, 0.0, lambda dataset, k: setattr(dataset, "PixelSpacing", [spacings[k % 3]] * 2))


def _copies(folder: Path) -> None:
    for number in (1, 2):
        _part(folder, number, 0.0, lambda _dataset, _k: None)


def _part(folder: Path, number: int, offset: float, edit: Edit) -> None:
    def whole(dataset: Dataset, k: int) -> None:
        dataset.SeriesInstanceUID, dataset.SeriesNumber = f"{STUDY_UID}.1", 1
        edit(dataset, k)

    write_series(folder, series=number, slices=5, edit=whole, origin=(0.0, 0.0, offset * (number - 1)))


WRITERS = {"beside": _beside, "ranked": _ranked, "kinds": _kinds, "chained": _chained}


@pytest.fixture(scope="module", params=WRITERS)
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder)
    return folder, made_of(folder)


@settings(max_examples=8, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_file_names_in_any_order_give_the_same_volumes(named: tuple[Path, Made], order: Random) -> None:
    folder, (volumes, codes) = named
    assert volumes
    paths = sorted(folder.iterdir())
    order.shuffle(paths)
    for number, path in enumerate(paths):
        path.rename(folder / f"moved_{number:03d}")
    for path in sorted(folder.iterdir()):
        path.rename(folder / path.name.removeprefix("moved_"))
    assert made_of(folder) == (volumes, codes)


def test_the_chain_of_spacings_is_one_volume(tmp_path: Path) -> None:
    _chained(tmp_path)
    (((_, slices),), codes) = made_of(tmp_path)
    assert (len(slices), codes) == (5, frozenset())


def test_a_copy_that_is_gone_before_it_was_compared_is_named(tmp_path: Path) -> None:
    _copies(tmp_path)
    series = series_in(tmp_path)
    next(iter(sorted(tmp_path.iterdir()))).unlink()
    found, refused = stacks(series)
    assert found == []
    assert [error.code for error in refused] == ["unreadable_dicom"]
    assert "gone" in refused[0].seen


def test_the_same_bytes_scaled_otherwise_are_no_copy(tmp_path: Path) -> None:
    for number in (1, 2):
        _part(tmp_path, number, 0.0, having("RescaleSlope", number))
    assert made_of(tmp_path) == (frozenset(), frozenset(["duplicate_slices"]))


CLOCKS: dict[str, tuple[str, str]] = {
    "AcquisitionTime": ("235959.{}", "000000.{}"),
    "ContentTime": ("2359{}0", "0000{}0"),
}


@pytest.mark.parametrize("keyword", CLOCKS)
@pytest.mark.parametrize("before", range(1, 8))
def test_phases_across_midnight_are_never_mixed(tmp_path: Path, keyword: str, before: int) -> None:
    """Two phases of four slices one after the other, the first `before` pictures of them before midnight.

    Where one phase has slices on both sides, the later picture has the smaller number at some of the places only.
    """
    slices = sorted(slices_of(_written(tmp_path))[0], key=lambda item: item.position or ())
    group = []
    for number in range(8):
        phase, k = divmod(number, 4)
        time = CLOCKS[keyword][number >= before].format(number)
        instance = slices[k].instance
        pixels = replace(instance.pixels, length=instance.pixels.length - 2 * phase)  # another picture
        instance = replace(instance, sop_instance_uid=f"1.2.{phase}.{k}", pixels=pixels)
        group.append(replace(slices[k], instance=instance, moment=((keyword, time),)))
    with pytest.raises(DuplicateSlices):
        split_by_moment(Group(tuple(group)), "series 1")


def _written(folder: Path) -> Series:
    write_series(folder, slices=4)
    return series_in(folder)


def test_phases_of_one_day_come_apart_by_the_clock(tmp_path: Path) -> None:
    """The counterpart: what the test above refuses is midnight, and not the clock."""
    for number in (1, 2):
        times = [f"{10 + number}0{k}00" for k in range(5)]
        _part(tmp_path, number, 0.0, _brighter(times))
    volumes, codes = made_of(tmp_path)
    assert codes == set()
    assert {name for name, _ in volumes} == {"AcquisitionTime#1", "AcquisitionTime#2"}
    assert {frozenset(uid.split(".")[-2] for uid in uids) for _, uids in volumes} == {frozenset("1"), frozenset("2")}


def _brighter(times: Sequence[str]) -> Edit:
    def edit(dataset: Dataset, k: int) -> None:
        dataset.AcquisitionTime = times[k]
        dataset.RescaleIntercept = float(dataset.RescaleIntercept) + int(times[k][:2])

    return edit


def test_six_hundred_directions_are_one_refusal(tmp_path: Path) -> None:
    """As of a radial acquisition: each frame is alone of its kind."""
    write_enhanced(tmp_path, [FrameSpec(0, orientation=turned(0, 0, 0.3 * k)) for k in range(600)])
    found, refused = stacks(series_in(tmp_path))
    assert found == []
    assert [(error.code, error.seen.split()[0]) for error in refused] == [("too_few_slices", "600")]


def test_a_misspelt_policy_is_refused_and_not_read_as_repair(tmp_path: Path) -> None:
    series = _written(tmp_path)
    for policy in ("Strict", "stirct", "", None):
        with pytest.raises(ImagingError) as caught:
            stacks(series, policy=policy)  # type: ignore[arg-type]
        assert caught.value.code == "unknown_name"
