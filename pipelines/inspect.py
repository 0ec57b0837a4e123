"""`imgpipe inspect`: describe what lies under some paths, and which checkpoint would take each series.

Invariant: no patient data is told, and no pixel is read but those of a data set that is named by its manifest: only
they can tell what is wrong with it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imaging.checkpoint import open_checkpoints
from imaging.dataset_check import OnCase, survey
from imaging.dicom.stack import Policy
from imaging.inputs import gather, view_nifti, view_picture, view_series


def inspect(
    *,
    paths: Sequence[Path],
    models: Sequence[str] = (),
    policy: Policy = "repair",
    on_case: OnCase | None = None,
) -> dict[str, Any]:
    """Describe everything under some paths.

    Parameters
    ----------
    paths
        Folders or files; a CSV, or a file called ``dataset.json``, is taken as the manifest of a data set.
    models
        Checkpoints to ask; by default all that ship.
    policy
        Whether what can be repaired is taken or refused.
    on_case
        Called before each case of a data set with its name, its number from 0 and how many there are.

    Returns
    -------
    dict
        JSON-serialisable: ``studies`` (each with its ``series``), ``nifti``, ``pictures``, ``datasets`` (each with its
        ``problems`` and ``notes``), ``refused`` and ``strays``. Patient data is left out.

    Raises
    ------
    ManifestInvalid
        If a manifest cannot be read as a list of cases.
    """
    checkpoints, unusable = open_checkpoints(models)
    manifests = [path for path in paths if is_manifest(path)]
    datasets = [survey(path, on_case=on_case).as_dict() for path in manifests]
    others = [path for path in paths if path not in manifests]
    inputs = gather(others)
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
        "datasets": datasets,
        "refused": [error.as_dict() for error in (*unusable, *inputs.scan.refused)],
        "strays": [str(path) for path in inputs.scan.strays],
    }


def is_manifest(path: Path) -> bool:
    """Whether a path names the manifest of a data set rather than images."""
    return path.is_file() and (path.suffix.lower() == ".csv" or path.name == "dataset.json")
