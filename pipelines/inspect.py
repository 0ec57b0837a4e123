"""`imgpipe inspect`: describe what lies under some paths, and which checkpoint would take each series.

Invariant: no pixel is read, no patient data is told. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imaging.checkpoint import open_checkpoints
from imaging.dicom.stack import Policy
from imaging.inputs import gather, view_nifti, view_picture, view_series


def inspect(*, paths: Sequence[Path], models: Sequence[str] = (), policy: Policy = "repair") -> dict[str, Any]:
    """Describe everything under some paths.

    Parameters
    ----------
    paths
        Folders or files.
    models
        Checkpoints to ask; by default all that ship.
    policy
        Whether what can be repaired is taken or refused.

    Returns
    -------
    dict
        JSON-serialisable: ``studies`` (each with its ``series``), ``nifti``, ``pictures``, ``refused`` and ``strays``.
        Patient data is left out.
    """
    checkpoints, unusable = open_checkpoints(models)
    inputs = gather(paths)
    named = bool(models)
    return {
        "studies": [
            {
                "uid": study.uid,
                "description": study.description,
                "series": [
                    view.as_dict()
                    for item in study.series
                    for view, _ in view_series(item, checkpoints, named=named, policy=policy)
                ],
            }
            for study in inputs.scan.studies
        ],
        "nifti": [{"path": str(path), **view_nifti(path, checkpoints, named=named).as_dict()} for path in inputs.nifti],
        "pictures": [
            {"path": str(path), **view_picture(path, checkpoints, named=named).as_dict()} for path in inputs.pictures
        ],
        "refused": [error.as_dict() for error in (*unusable, *inputs.scan.refused)],
        "strays": [str(path) for path in inputs.scan.strays],
    }
