"""The library: no command line, no process control; usable from a notebook.

What most callers need is here; each name is imported when it is first used, so that `import imaging` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imaging.checkpoint import find_checkpoint, open_checkpoint
    from imaging.classifier import Classifier
    from imaging.dicom import load_series, read_series, read_stack, scan, stacks
    from imaging.nifti import read_nifti
    from imaging.png import read_png
    from imaging.predict import Predictor
    from imaging.predictors import open_predictor
    from imaging.transforms import LoadSeriesd
    from imaging.volume import Volume

_HOME = {
    "Classifier": "imaging.classifier",
    "LoadSeriesd": "imaging.transforms",
    "Predictor": "imaging.predict",
    "Volume": "imaging.volume",
    "find_checkpoint": "imaging.checkpoint",
    "load_series": "imaging.dicom",
    "open_checkpoint": "imaging.checkpoint",
    "open_predictor": "imaging.predictors",
    "read_nifti": "imaging.nifti",
    "read_png": "imaging.png",
    "read_series": "imaging.dicom",
    "read_stack": "imaging.dicom",
    "scan": "imaging.dicom",
    "stacks": "imaging.dicom",
}

__all__ = [
    "Classifier",
    "LoadSeriesd",
    "Predictor",
    "Volume",
    "find_checkpoint",
    "load_series",
    "open_checkpoint",
    "open_predictor",
    "read_nifti",
    "read_png",
    "read_series",
    "read_stack",
    "scan",
    "stacks",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'imaging' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
