"""A capture says in its pixels that it is not for diagnosis, and is of the patient of its source, or is not there."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from films import STUDY, write_film
from PIL import Image, ImageDraw, ImageFont
from validators import assert_valid

from imaging.dicom import capture as room
from imaging.dicom.capture import Capture, burnt, check_capture, write_capture
from imaging.dicom.source import read_source
from imaging.errors import OutputMismatch, OutputNotBuilt

PICTURE = np.random.default_rng(0).integers(0, 255, (300, 512, 3), dtype=np.uint8)
CAPTURE = Capture(PICTURE, ("Pneumonia: abnormal", "toy"), ("L", "F"), "0.1.0", datetime(2026, 1, 2, 3, 4, 5))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path / "film.dcm", np.arange(80).reshape(8, 10))


def yellow(pixels: np.ndarray) -> np.ndarray:
    return np.asarray((pixels[..., 0] > 200) & (pixels[..., 1] > 160) & (pixels[..., 2] < 60))


def test_the_warning_stands_above_the_picture_and_the_caption_below(tmp_path: Path, film: Path) -> None:
    write_capture(tmp_path / "capture.dcm", CAPTURE, film)
    dataset = pydicom.dcmread(tmp_path / "capture.dcm")
    pixels = dataset.pixel_array
    at = next(row for row in range(100) if np.array_equal(pixels[row : row + 300], PICTURE))
    assert at > 20 and yellow(pixels[:at]).sum() > 300, "the words are drawn, in yellow on black"
    across = np.flatnonzero(yellow(pixels[:at]).any(axis=0))
    assert across[0] < 20 and across[-1] > 300
    assert (pixels[at + 300 :] > 200).all(axis=-1).sum() > 100
    assert (dataset.BurnedInAnnotation, dataset.ConversionType) == ("YES", "WSD")
    assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
    assert "PixelSpacing" not in dataset and list(dataset.PatientOrientation) == ["L", "F"]
    assert "NOT FOR DIAGNOSIS" in dataset.DerivationDescription
    assert_valid(tmp_path / "capture.dcm")


@pytest.mark.parametrize("columns", [240, 351, 437, 512, 700, 1024])
def test_the_warning_is_whole_at_any_width(columns: int) -> None:
    made = burnt(np.zeros((4, columns, 3), dtype=np.uint8), ())
    height = made.shape[0] - 4 - 1
    (size,) = (size for size in range(8, 30) if int(size * 1.5) == height)
    free = Image.new("RGB", (2000, height))
    text, at = "NOT FOR DIAGNOSIS - FOR RESEARCH USE ONLY", (4, size // 4)
    ImageDraw.Draw(free).text(at, text, fill=(255, 214, 0), font=ImageFont.load_default(size))
    drawn = np.asarray(free)
    assert not drawn[:, columns:].any() and np.array_equal(drawn[:, :columns], made[:height])


def test_a_picture_without_room_for_the_warning_is_refused(tmp_path: Path, film: Path) -> None:
    narrow = Capture(PICTURE[:, :100], (), None, "0.1.0", CAPTURE.moment)
    with pytest.raises(OutputNotBuilt):
        write_capture(tmp_path / "capture.dcm", narrow, film)
    assert not (tmp_path / "capture.dcm").exists()


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 192", "王^小东")],
    ids=["latin", "japanese", "utf8"],
)
def test_it_is_of_the_patient_of_its_source(tmp_path: Path, charset: object, name: str) -> None:
    film = write_film(
        tmp_path / "film.dcm", np.arange(80).reshape(8, 10), SpecificCharacterSet=charset, PatientName=name,
        IssuerOfPatientID="Hospital", StudyDescription="Thorax",
    )  # fmt: skip
    write_capture(tmp_path / "capture.dcm", CAPTURE, film)
    dataset = pydicom.dcmread(tmp_path / "capture.dcm")
    assert str(dataset.PatientName) == name
    assert (dataset.PatientID, dataset.AccessionNumber, dataset.StudyInstanceUID) == ("F1", "A77", STUDY)
    assert (dataset.IssuerOfPatientID, dataset.StudyDescription) == ("Hospital", "Thorax")
    assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.1.1"
    assert dataset.SeriesInstanceUID != f"{STUDY}.1"
    assert_valid(tmp_path / "capture.dcm")


def test_where_nobody_knows_directions_it_tells_none(tmp_path: Path, film: Path) -> None:
    write_capture(tmp_path / "capture.dcm", Capture(PICTURE, (), None, "0.1.0", CAPTURE.moment), film)
    assert not pydicom.dcmread(tmp_path / "capture.dcm").PatientOrientation
    assert_valid(tmp_path / "capture.dcm")


def test_the_same_picture_is_the_same_file(tmp_path: Path, film: Path) -> None:
    contents = []
    for _ in range(2):
        write_capture(tmp_path / "capture.dcm", CAPTURE, film, series=("a",), number=2)
        contents.append((tmp_path / "capture.dcm").read_bytes())
    assert contents[0] == contents[1]
    other = Capture(PICTURE[::-1], CAPTURE.caption, CAPTURE.directions, "0.1.0", CAPTURE.moment)
    write_capture(tmp_path / "other.dcm", other, film, series=("a",), number=1)
    one, two = (pydicom.dcmread(tmp_path / name) for name in ("capture.dcm", "other.dcm"))
    assert one.SOPInstanceUID != two.SOPInstanceUID and one.SeriesInstanceUID == two.SeriesInstanceUID
    assert (one.InstanceNumber, two.InstanceNumber) == (2, 1)


@pytest.mark.parametrize(
    ("keyword", "value"), [("PatientID", "F2"), ("BurnedInAnnotation", "NO"), ("PatientName", "Other^One")]
)
def test_of_somebody_else_or_without_its_word_it_is_a_mismatch(
    tmp_path: Path, film: Path, keyword: str, value: str
) -> None:
    write_capture(tmp_path / "capture.dcm", CAPTURE, film)
    dataset = pydicom.dcmread(tmp_path / "capture.dcm")
    setattr(dataset, keyword, value)
    stream = io.BytesIO()
    dataset.save_as(stream)
    with pytest.raises(OutputMismatch):
        check_capture(stream.getvalue(), burnt(PICTURE, CAPTURE.caption), read_source(film))


def test_without_the_warning_in_its_pixels_it_is_withheld(
    tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = room._build
    monkeypatch.setattr(room, "_build", lambda capture, pixels, *rest: build(capture, capture.picture, *rest))
    with pytest.raises(OutputMismatch, match="pixels"):
        write_capture(tmp_path / "capture.dcm", CAPTURE, film)
    assert not (tmp_path / "capture.dcm").exists()
