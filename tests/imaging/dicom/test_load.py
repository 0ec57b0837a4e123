"""From a path to the one volume that lies there, whatever lies beside it or happens to it on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from phantom import ORIENTATIONS, STUDY_UID, Edit, Phantom, change, write_series
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from imaging.dicom import Policy, load_series, read_series, read_stack, scan, stacks
from imaging.errors import ImagingError

POLICIES: tuple[Policy, ...] = ("strict", "repair")


def refusal(folder: Path, **options: str) -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        load_series(folder, **options)  # type: ignore[arg-type]
    return caught.value


def as_localizer(dataset: Dataset, _k: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


@pytest.mark.parametrize("given", [str, Path, lambda path: [str(path)], lambda path: iter([path])])
def test_a_path_may_be_text_or_several(tmp_path: Path, given: object) -> None:
    phantom = write_series(tmp_path)
    assert callable(given)
    volume = load_series(given(tmp_path))
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert len(scan(given(tmp_path)).studies) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_localizer_beside_the_volume_is_left_out_and_told(tmp_path: Path, policy: Policy) -> None:
    phantom = write_series(tmp_path / "a")
    write_series(tmp_path / "b", series=2, slices=1, orientation=ORIENTATIONS["sagittal"], edit=as_localizer)
    volume = load_series(tmp_path, policy=policy)
    assert phantom.worst_error(volume) <= phantom.tolerance
    (note,) = volume.defects
    assert (note.code, note.action) == ("left_out", "noted")
    assert note.detail.startswith("localizer: 1 x")


def test_a_bad_file_beside_the_volume_is_left_out_and_told_or_refused(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=6)
    phantom.paths[5].write_bytes(phantom.paths[5].read_bytes()[:300])
    assert refusal(tmp_path, policy="strict").code == "unreadable_dicom"
    volume = load_series(tmp_path, policy="repair")
    assert volume.shape == (7, 5, 5)
    assert [(note.code, note.detail.split(":")[0]) for note in volume.defects] == [("left_out", "unreadable_dicom")]


def test_one_of_several_volumes_is_chosen_by_its_series_and_name(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path, series=number)

    def echo_of(echo: float) -> Edit:
        def edit(dataset: Dataset, _k: int) -> None:
            dataset.EchoTime, dataset.SeriesInstanceUID = echo, "1.2.9"

        return edit

    for echo, origin in ((3.0, 0.0), (9.0, 0.5)):
        write_series(tmp_path, series=int(echo), origin=(0, 0, origin), edit=echo_of(echo))
    error = refusal(tmp_path)
    assert error.code == "several_series"
    assert f"{STUDY_UID}.1" in error.seen and "1.2.9 EchoTime=9" in error.seen
    assert load_series(tmp_path, series=f"{STUDY_UID}.2").facts.series_uid == f"{STUDY_UID}.2"
    assert refusal(tmp_path, series="1.2.9").code == "several_series"
    volume = load_series(tmp_path, series="1.2.9", volume="EchoTime=9")
    assert volume.facts.volume == "EchoTime=9"
    assert volume.affine[2, 3] == 0.5
    assert refusal(tmp_path, series="1.2.10").code == "nothing_found"
    assert refusal(tmp_path, series="1.2.9", volume="EchoTime=4").code == "nothing_found"


@pytest.mark.parametrize("policy", ["Strict", "stirct", "", None])
def test_a_misspelt_policy_is_refused(tmp_path: Path, policy: Policy) -> None:
    write_series(tmp_path, slices=6, keep=[0, 1, 2, 4, 5])
    assert refusal(tmp_path, policy=policy).code == "unknown_name"
    ((series,),) = (study.series for study in scan(tmp_path).studies)
    with pytest.raises(ImagingError) as caught:
        read_series(series, policy=policy)
    assert caught.value.code == "unknown_name"


# ------------------------------------------------------------------------------------- between the scan and the reading


def _unlinked(phantom: Phantom) -> None:
    phantom.paths[1].unlink()


def _rewritten(phantom: Phantom) -> None:
    """A longer header moves the pixels, and another slope changes what they mean."""
    change(phantom.paths[1], SeriesDescription="A text that is much longer than the one before", RescaleSlope="0.2")


def _replaced(phantom: Phantom) -> None:
    """By a file of the same size and time."""
    path = phantom.paths[1]
    about = path.stat()
    other = path.with_name("other")
    shutil.copy(phantom.paths[2], other)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)


def _cut(phantom: Phantom) -> None:
    phantom.paths[1].write_bytes(phantom.paths[1].read_bytes()[:-20])


def _made_a_folder(phantom: Phantom) -> None:
    phantom.paths[1].unlink()
    phantom.paths[1].mkdir()


DEEDS = {"unlinked": _unlinked, "rewritten": _rewritten, "replaced": _replaced, "cut": _cut, "folder": _made_a_folder}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99", "words"])
def test_a_file_that_is_not_the_one_that_was_scanned_is_named(tmp_path: Path, deed: str, syntax: str) -> None:
    def edit(dataset: Dataset, _k: int) -> None:
        if syntax == "1.2.840.10008.1.2.5":
            dataset.compress(syntax, generate_instance_uid=False)
        elif syntax == "words":
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit, dataset.PixelRepresentation = 7, 0
            dataset.PixelData = bytes(36)
            dataset["PixelData"].VR = "OW"
        else:
            dataset.file_meta.TransferSyntaxUID = UID(syntax)

    phantom = write_series(tmp_path, edit=edit)
    ((series,),) = (study.series for study in scan(tmp_path).studies)
    ((stack,), _) = stacks(series)
    assert read_stack(series, stack).shape == (7, 5, 4)
    DEEDS[deed](phantom)
    with pytest.raises(ImagingError) as caught:
        read_stack(series, stack)
    assert caught.value.code == "unreadable_dicom"
    assert phantom.paths[1].name in caught.value.subject


def test_a_pipe_in_the_folder_is_named_and_not_waited_for(tmp_path: Path) -> None:
    """In a process of its own, which a pipe that is opened would keep for ever."""
    phantom = write_series(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    program = "import imaging, sys; found = imaging.scan(sys.argv[1]); print([e.code for e in found.refused])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "['unreadable_dicom']"
    assert phantom.worst_error(load_series(tmp_path)) <= phantom.tolerance
