"""A capture shows the picture of the page, drawn into the pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from films import STUDY, write_film
from PIL import Image
from validators import assert_valid

from imaging.checkpoint import find_checkpoint, open_checkpoint
from imaging.classifier import Classifier
from imaging.codes import code_of
from imaging.dicom import load_series
from imaging.errors import FormatNotApplicable
from imaging.predict import Predictor
from imaging.predictors import open_predictor
from imaging.report.capture import draw, key_of, write_captures
from imaging.report.findings import findings_of
from imaging.report.pictures import Outline, Picture, _png, key_pictures, outline_path
from imaging.report.report import Finding, Report, StudyEntry

GREY = np.full((20, 40), 90, dtype=np.uint8)


def picture_of(*outlines: Outline, **values: object) -> Picture:
    given = Picture(
        index=0, of=1, series_uid=f"{STUDY}.1", volume="", sop_instance_uid=f"{STUDY}.1.1", png=_png(GREY), columns=40,
        rows=20, width_mm=40.0, height_mm=40.0, left="R", right="L", top="A", bottom="P", outlines=outlines,
    )  # fmt: skip
    return replace(given, **values)  # type: ignore[arg-type]


def outline_of(mask: np.ndarray, colour: str = "#ff0000") -> Outline:
    return Outline("Part", colour, outline_path(mask))


def report_of(*findings: Finding) -> Report:
    return Report(
        created="2026-01-02T03:04:05+00:00", software="imgpipe", software_version="0.1.0", series=(),
        study=StudyEntry(name=STUDY, uid=STUDY), findings=findings,
    )  # fmt: skip


def test_a_picture_is_drawn_in_the_proportions_of_the_patient() -> None:
    assert draw(picture_of()).shape == (512, 512, 3), "20 rows of 2 mm, 40 columns of 1 mm"
    assert draw(picture_of(width_mm=80.0)).shape == (256, 512, 3)
    large = np.zeros((2000, 1000), dtype=np.uint8)
    film = picture_of(png=_png(large), rows=2000, columns=1000, width_mm=200.0, height_mm=400.0)
    assert draw(film).shape == (1024, 512, 3)


def test_an_outline_is_drawn_around_its_pixels_and_nowhere_else() -> None:
    mask = np.zeros((20, 40), dtype=bool)
    mask[5:10, 10:20] = True
    pixels = draw(picture_of(outline_of(mask), left="", right="", top="", bottom=""))
    red = (pixels == (255, 0, 0)).all(axis=-1)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    scale_y, scale_x = 512 / 20, 512 / 40
    assert abs(rows[0] - 5 * scale_y) <= 2 and abs(rows[-1] - 10 * scale_y) <= 2
    assert abs(columns[0] - 10 * scale_x) <= 2 and abs(columns[-1] - 20 * scale_x) <= 2
    inside = red[round(6 * scale_y) : round(9 * scale_y), round(11 * scale_x) : round(19 * scale_x)]
    assert not inside.any() and (pixels[~red] == 90).all()


def test_directions_are_written_on_the_edges() -> None:
    blank = draw(picture_of(left="", right="", top="", bottom=""))
    assert (blank == 90).all()
    left = draw(picture_of(right="", top="", bottom=""))
    assert (left != blank).any(axis=(0, 2)).nonzero()[0].max() < 40


def test_each_volume_has_the_picture_that_shows_most() -> None:
    small, large = np.zeros((2, 20, 40), dtype=bool)
    small[1:3, 1:3] = large[1:9, 1:9] = True
    plain, one, two = picture_of(), picture_of(outline_of(small)), picture_of(outline_of(large))
    other = picture_of(volume="EchoTime=4")
    assert key_of([plain, one, two, other]) == [two, other]


def test_nothing_without_a_dicom_instance(tmp_path: Path) -> None:
    with pytest.raises(FormatNotApplicable):
        write_captures(tmp_path, report_of(), [picture_of(sop_instance_uid="")], [])
    with pytest.raises(FormatNotApplicable):
        write_captures(tmp_path, report_of(), [picture_of()], [])
    assert not list(tmp_path.iterdir())


def test_a_heat_map_of_a_film_is_captured(data: Path, tmp_path: Path) -> None:
    pictures = sorted((data / "pneumoniamnist" / "images").glob("*.png"))
    image = np.asarray(Image.open(pictures[-1]).convert("L").resize((256, 300)))
    film = write_film(tmp_path / "film" / "1.dcm", image)
    classify = open_predictor(open_checkpoint(find_checkpoint("chest_xray")))
    assert isinstance(classify, Classifier)
    said = classify.explain(classify(load_series(film.parent)), of="all")
    report = report_of(*findings_of(said))
    (path,) = write_captures(tmp_path, report, key_pictures(said), [film])
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.astype(int)
    assert np.ptp(pixels[100:400], axis=-1).max() > 20, "there are colours in the picture"
    assert not dataset.PatientOrientation, "a film does not tell its sides"
    assert_valid(path)


def test_the_outlines_of_a_real_series_are_captured_and_the_same_again(data: Path, tmp_path: Path) -> None:
    predict = open_predictor(open_checkpoint(find_checkpoint("hippocampus_mr")))
    assert isinstance(predict, Predictor)
    said = predict(load_series(data / "hippocrop_study1"))
    files = [frame.path for frame in said.volume.sources]
    report = report_of(*findings_of(said))
    (path,) = write_captures(tmp_path, report, key_pictures(said), files)
    first = path.read_bytes()
    dataset = pydicom.dcmread(path)
    assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID in {f.sop_instance_uid for f in said.volume.sources}
    orange = (dataset.pixel_array == (0xE6, 0x9F, 0x00)).all(axis=-1)
    blue = (dataset.pixel_array == (0x56, 0xB4, 0xE9)).all(axis=-1)
    assert orange.sum() > 50 and blue.sum() > 50
    assert len(dataset.PatientOrientation) == 2
    assert_valid(path)
    assert write_captures(tmp_path, report, key_pictures(said), files)[0].read_bytes() == first


def test_a_caption_is_cut_where_there_are_many_findings(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", np.arange(80).reshape(8, 10))
    finding = Finding(
        name="x", title="Something", category=code_of("finding"), code=code_of("pneumonia"), modifier=None,
        assessment="normal", assessment_reason="", model="toy", series_uid=f"{STUDY}.1",
    )  # fmt: skip
    heights = []
    for count in (1, 20, 30):
        (path,) = write_captures(tmp_path, report_of(*[finding] * count), [picture_of()], [film])
        heights.append(pydicom.dcmread(path).Rows)
    assert heights[0] < heights[1] == heights[2]
