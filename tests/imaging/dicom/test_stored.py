"""Stored samples and what is scaled from them do not depend on the codec, on threads, or on what was read before."""

from __future__ import annotations

import os
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from encapsulated import DEFLATED, HTJ2K, JPEG_2000, JPEG_LS, LOSSLESS_JPEG, RLE, encode
from phantom import Edit, write_series
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from imaging.dicom import frames, header, load_series, pixels
from imaging.dicom.regrid import regrid
from imaging.errors import ImagingError
from imaging.volume import Volume

# 100 in the 12 bits that are stored, and an overlay above them.
WITH_OVERLAY = np.full((5, 7), 0xF064, "<u2")


def overlaid(syntax: str) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        if not syntax:
            dataset.PixelData = WITH_OVERLAY.tobytes()
            return
        if syntax == JPEG_2000:  # declares all the bits of the type
            stream = bytes(imagecodecs.jpeg2k_encode(WITH_OVERLAY, codecformat="J2K", level=0, reversible=True))
        else:
            stream = encode(syntax, WITH_OVERLAY, 16)
        # pydicom knows no deflated frames and would not save them under their own syntax.
        dataset.file_meta.TransferSyntaxUID = UID(RLE if syntax == DEFLATED else syntax)
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return edit


def _under(path: Path, syntax: str) -> None:
    """Write another transfer syntax into a meta header."""
    content = path.read_bytes()
    old = b"UI" + struct.pack("<H", len(RLE) + len(RLE) % 2) + RLE.encode() + b"\0" * (len(RLE) % 2)
    new = b"UI" + struct.pack("<H", len(syntax) + len(syntax) % 2) + syntax.encode() + b"\0" * (len(syntax) % 2)
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("syntax", ["", RLE, DEFLATED, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K])
def test_what_lies_above_the_stored_bits_is_no_value_whatever_the_codec(tmp_path: Path, syntax: str) -> None:
    made = write_series(tmp_path, edit=overlaid(syntax))
    for path in made.paths if syntax == DEFLATED else ():
        _under(path, DEFLATED)
    volume = load_series(tmp_path)
    assert np.unique(volume.array).tolist() == [100]


# -------------------------------------------------------------------------------------------------------------- threads


def padded(dataset: Dataset, _k: int) -> None:
    values = np.frombuffer(dataset.PixelData, "<i2").copy()
    values[:3] = -2000
    dataset.PixelData = values.tobytes()
    dataset.add_new("PixelPaddingValue", "SS", -2000)


SHIFTS: dict[str, Callable[[int], tuple[float, float, float]]] = {
    "regular": lambda _: (0.0, 0.0, 0.0),
    "tilted": lambda k: (0.0, 0.4 * k, 0.0),
    "uneven": lambda k: (0.0, 0.0, 0.3 * (k % 2)),
    "both": lambda k: (0.1 * k, 0.4 * k, 0.3 * (k % 3)),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_padding_is_counted_once_with_any_number_of_threads(
    tmp_path: Path, shift: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads read the slice between their parts; it counts once."""
    write_series(tmp_path, slices=9, modality="CT", edit=padded, shift=SHIFTS[shift])
    found: dict[int, Volume] = {}
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, threads=threads: set(range(threads)))
        found[threads] = load_series(tmp_path)
    told = {next(note.detail for note in volume.defects if note.code == "padding") for volume in found.values()}
    assert len(told) == 1
    assert told.pop().startswith("27 pixels")
    assert {volume.defects for volume in found.values()} == {found[1].defects}
    for volume in found.values():
        np.testing.assert_array_equal(volume.array, found[1].array)


def test_the_threads_of_the_test_above_do_share_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would say nothing."""
    write_series(tmp_path, slices=9, modality="CT", edit=padded, shift=SHIFTS["uneven"])
    read: list[int] = []

    def counted(acquired: Callable[[int], object], *rest: object) -> None:
        def once(number: int) -> object:
            read.append(number)
            return acquired(number)

        regrid(once, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pixels, "regrid", counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    load_series(tmp_path)
    assert sorted(set(read)) == list(range(9))
    assert len(read) > 9


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("lock", [header.INFLATING, frames._FILTERS], ids=["inflating", "filters"])
def test_a_process_forked_while_another_thread_reads_can_read(lock: AbstractContextManager[object]) -> None:
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            forked.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=30) else 1)  # type: ignore[attr-defined]
    forked.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def coloured(dataset: Dataset, _k: int) -> None:
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "PALETTE COLOR", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.Rows = dataset.Columns = 32
    dataset.PixelData = bytes(32 * 32)
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", np.arange(256, dtype="<u2").tobytes())


def test_reading_palettes_in_threads_leaves_the_filters_of_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`warnings.catch_warnings` in several threads at once puts back what another thread had set."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write_series(tmp_path, slices=40, edit=coloured)
    filters = list(warnings.filters)
    for _ in range(3):
        assert load_series(tmp_path).array.shape == (3, 32, 32, 40)
        assert warnings.filters == filters


# ---------------------------------------------------------------------------------------------------------- one meaning


def test_half_of_the_slices_scaled_is_refused_and_all_or_none_is_read(tmp_path: Path) -> None:
    """MR needs no rescale, but one slice without it is in other numbers than the rest."""
    for count in range(5):

        def edit(dataset: Dataset, k: int, count: int = count) -> None:
            if k < count:
                del dataset.RescaleSlope, dataset.RescaleIntercept

        folder = tmp_path / str(count)
        write_series(folder, edit=edit)
        if count in (0, 4):
            assert load_series(folder).shape == (7, 5, 4)
            continue
        with pytest.raises(ImagingError) as caught:
            load_series(folder)
        assert caught.value.code == "missing_attribute"
        assert f"{count} of 4 slices" in caught.value.seen


def test_a_unit_is_not_guessed_from_an_unspecified_type(tmp_path: Path) -> None:
    for number, (rescale_type, unit) in enumerate([("US", ""), ("HU", "HU"), (None, "HU"), ("MGML", "MGML")]):

        def edit(dataset: Dataset, _k: int, rescale_type: str | None = rescale_type) -> None:
            dataset.RescaleType = rescale_type
            if rescale_type is None:
                del dataset.RescaleType

        write_series(tmp_path / str(number), modality="CT", edit=edit)
        volume = load_series(tmp_path / str(number))
        assert volume.unit == unit
