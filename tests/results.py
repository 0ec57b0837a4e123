"""Results as imgpipe writes them, to be sent to a PACS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from phantom import OBLIQUE, write_series
from pydicom import dcmread
from reported import judged

from imaging.config import Code, Label
from imaging.dicom import load_series
from imaging.dicom.seg import Algorithm, write_seg
from imaging.report.report import Report, StudyEntry
from imaging.report.sr import write_sr


def seg_of(folder: Path) -> Path:
    """A result: a SEG of a small MR series."""
    write_series(folder / "mr", orientation=OBLIQUE, rows=8, columns=11, slices=6)
    volume = load_series(folder / "mr")
    mask = np.zeros(volume.shape, dtype=np.uint8)
    mask[2:5, 3:6, 1:4] = 1
    anatomy = Code(value="91723000", meaning="Anatomical Structure")
    label = Label(id=1, name="part", title="Part", category=anatomy, code=Code(value="5366008", meaning="Hippocampus"),
                  colour="#e69f00")  # fmt: skip
    path = folder / "seg.dcm"
    write_seg(path, mask, volume, (label,), Algorithm("phantom_mr", "1.0", "ab" * 32, "cd" * 32, "0.1.0"))
    return path


def sr_of(folder: Path) -> Path:
    """A result: an SR about the same series."""
    write_series(folder / "mr", orientation=OBLIQUE, rows=8, columns=11, slices=6)
    files = sorted((folder / "mr").iterdir())
    uid = str(dcmread(files[0]).StudyInstanceUID)
    report = Report(created="2026-01-01T00:00:00+00:00", software="imgpipe", software_version="0",
                    study=StudyEntry(name=uid, uid=uid), findings=(judged("nodule", 0.91, "abnormal"),),
                    series=())  # fmt: skip
    write_sr(folder / "sr.dcm", report, files)
    return folder / "sr.dcm"
