"""Key pictures of a report -> Secondary Captures: the slice with its outlines or its heat map, drawn into the pixels.

Invariant: what is drawn is what the page draws, in the same proportions and directions; the caption says what the
report says of the series, and nothing of the patient.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageColor, ImageDraw, ImageFont

from imaging.dicom.capture import Capture, write_capture
from imaging.dicom.capture import Picture as Pixels
from imaging.dicom.frames import quietly
from imaging.errors import FormatNotApplicable
from imaging.report.pictures import Picture
from imaging.report.report import Finding, Report

# The longer edge of a capture: a small slice is made larger by whole pixels, a film smaller.
_SHORTEST, _LONGEST = 512, 1024
_STROKE = re.compile(r"M(\d+) (\d+)([hv])(\d+)")
_LINES = 6


def write_captures(folder: Path, report: Report, pictures: Sequence[Picture], instances: Sequence[Path]) -> list[Path]:
    """Write a capture of the key picture of each series, or of each of its volumes, that was measured.

    Parameters
    ----------
    folder
        Where they go, as ``capture.dcm``, ``capture_2.dcm``, ...
    report
        What their captions say.
    pictures
        As `imaging.report.pictures.key_pictures` gives them, of all predictions.
    instances
        The DICOM files that were read.

    Returns
    -------
    list of Path
        One for each.

    Raises
    ------
    FormatNotApplicable
        If no picture shows a DICOM instance.
    OutputNotBuilt, OutputMismatch
        As `imaging.dicom.capture.write_capture` raises them.
    """
    shown = [picture for picture in key_of(pictures) if picture.sop_instance_uid]
    if not shown:
        raise FormatNotApplicable(report.study.name, seen="no picture of a DICOM instance")
    files = _files({picture.sop_instance_uid for picture in shown}, instances)
    drawn = [draw(picture) for picture in shown]
    series = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in drawn]
    moment = datetime.fromisoformat(report.created).astimezone().replace(tzinfo=None)
    paths = []
    for number, (picture, pixels) in enumerate(zip(shown, drawn, strict=True), start=1):
        known = (picture.right, picture.bottom) if picture.right and picture.bottom else None
        capture = Capture(pixels, _caption(picture, report), known, report.software_version, moment)
        path = folder / ("capture.dcm" if number == 1 else f"capture_{number}.dcm")
        write_capture(path, capture, files[picture.sop_instance_uid], series=series, number=number)
        paths.append(path)
    return paths


def _files(wanted: set[str], instances: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in instances:
        if wanted <= set(found):
            break
        with quietly():
            header = pydicom.dcmread(file, specific_tags=["SOPInstanceUID"], stop_before_pixels=True, force=True)
        found.setdefault(str(header.get("SOPInstanceUID", "")), file)
    lost = wanted - set(found)
    if lost:
        raise FormatNotApplicable(f"instance {min(lost)}", seen="it is not among the files that were read")
    return found


def key_of(pictures: Sequence[Picture]) -> list[Picture]:
    """Of each volume the one picture that shows most: a heat map before outlines, more outlines before fewer."""
    best: dict[tuple[str, str], Picture] = {}
    for picture in pictures:
        of = (picture.series_uid, picture.volume)
        if of not in best or _shows(picture) > _shows(best[of]):
            best[of] = picture
    return list(best.values())


def _shows(picture: Picture) -> tuple[bool, int, int]:
    strokes = sum(int(length) for outline in picture.outlines for *_, length in _STROKE.findall(outline.path))
    return (picture.heat is not None and not picture.heat.blank, len(picture.outlines), strokes)


def draw(picture: Picture) -> Pixels:
    """A picture with all that lies on it as RGB (rows, columns, 3), in the proportions of the patient."""
    grey = _image(picture.png)
    longest = min(max(picture.columns, picture.rows, _SHORTEST), _LONGEST)
    per_mm = longest / max(picture.width_mm, picture.height_mm)
    size = (max(1, round(picture.width_mm * per_mm)), max(1, round(picture.height_mm * per_mm)))
    larger = size[0] >= picture.columns and size[1] >= picture.rows
    canvas = grey.convert("RGB").resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
    if picture.heat is not None:
        heat = _image(picture.heat.png).convert("RGBA").resize(size, Image.Resampling.BILINEAR)
        canvas.paste(heat, (0, 0), heat)
    pen = ImageDraw.Draw(canvas)
    scale = (size[0] / picture.columns, size[1] / picture.rows)
    for outline in picture.outlines:
        _trace(pen, outline.path, scale, ImageColor.getrgb(outline.colour))
    if picture.heat is not None:
        _trace(pen, picture.heat.unseen, scale, (160, 160, 160))
    _directions(pen, picture, size)
    return np.asarray(canvas)


def _image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def _trace(pen: ImageDraw.ImageDraw, path: str, scale: tuple[float, float], colour: tuple[int, ...]) -> None:
    """Draw an outline as `imaging.report.pictures.outline_path` writes it: strokes along the pixels' edges."""
    for x, y, way, length in _STROKE.findall(path):
        begin, end = (int(x), int(y)), (int(x), int(y))
        end = (end[0] + int(length), end[1]) if way == "h" else (end[0], end[1] + int(length))
        points = [(round(at[0] * scale[0]), round(at[1] * scale[1])) for at in (begin, end)]
        pen.line(points, fill=colour, width=2)


def _directions(pen: ImageDraw.ImageDraw, picture: Picture, size: tuple[int, int]) -> None:
    font, (width, height) = ImageFont.load_default(18), size
    places = {"la": (4, height / 2, picture.left), "ra": (width - 4, height / 2, picture.right),
              "ma": (width / 2, 2, picture.top), "md": (width / 2, height - 2, picture.bottom)}  # fmt: skip
    for anchor, (x, y, letter) in places.items():
        pen.text((x, y), letter, fill=(255, 255, 255), font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _caption(picture: Picture, report: Report) -> tuple[str, ...]:
    findings = [f for f in report.findings if (f.series_uid, f.volume) == (picture.series_uid, picture.volume)]
    lines = [_in_words(finding) for finding in findings]
    more = [f"and {len(lines) - _LINES} more: see the report"] if len(lines) > _LINES else []
    where = f"Slice {picture.index + 1} of {picture.of}" if picture.of > 1 else ""
    heat = "" if picture.heat is None else f"Colours: what raised {picture.heat.title}, no outline of a disease"
    models = ", ".join(dict.fromkeys(finding.model for finding in findings))
    made = f"{models}, imgpipe {report.software_version}" if models else f"imgpipe {report.software_version}"
    return tuple(line for line in (*lines[:_LINES], *more, heat, where, made) if line)


def _in_words(finding: Finding) -> str:
    if finding.classification is not None:
        value = finding.classification.probability
        told = "above 0.99" if value > 0.99 else "below 0.01" if value < 0.01 else f"{value:.2f}"
        return f"{finding.title}: {finding.assessment}, probability {told}"
    if finding.structure is not None and finding.structure.voxels:
        return f"{finding.title}: {finding.structure.volume_ml:.2f} mL"
    return f"{finding.title}: {'not found' if finding.structure is not None else finding.assessment}"
