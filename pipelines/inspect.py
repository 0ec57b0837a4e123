"""`imgpipe inspect`: describe what lies under some paths, and which checkpoint would take each series.

Invariant: no patient data is told, and no pixel is read but those of a data set that is named by its manifest: only
they can tell what is wrong with it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imaging.checkpoint import Checkpoint, open_checkpoints
from imaging.config import ClassifyConfig, Config, find_config, load_config
from imaging.dataset_check import OnCase, is_mask, survey, survey_classes
from imaging.dicom.scan import Study
from imaging.dicom.stack import Policy
from imaging.inputs import gather, view_nifti, view_picture
from imaging.manifest import rows_of
from imaging.npz import is_npz
from imaging.study_channels import view_study


def inspect(
    *,
    paths: Sequence[Path],
    models: Sequence[str] = (),
    policy: Policy = "repair",
    config: Path | None = None,
    on_case: OnCase | None = None,
) -> dict[str, Any]:
    """Describe everything under some paths.

    Parameters
    ----------
    paths
        Folders or files; a CSV, a MedMNIST ``.npz``, or a file called ``dataset.json``, is taken as the manifest of a
        data set: of masks where its labels are files, else of classes. With a config that has `data.labels` a folder is
        the data set whose classes these are.
    models
        Checkpoints to ask; by default all that ship.
    policy
        Whether what can be repaired is taken or refused.
    config
        What data sets with classes are to be held against: a config file, or the name of a shipped one.
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
    ConfigInvalid, UnknownKey
        If the config cannot be read.
    """
    checkpoints, unusable = open_checkpoints(models)
    against = load_config(find_config(config)) if config else None
    labelled = isinstance(against, ClassifyConfig) and against.data.labels is not None
    manifests = [path for path in paths if is_manifest(path) or (labelled and path.is_dir())]
    datasets = [_dataset(path, against, on_case) for path in manifests]
    inputs = gather([path for path in paths if path not in manifests])
    named = bool(models)
    return {
        "studies": [
            {"uid": study.uid, "description": study.description, "series": _series(study, checkpoints, named, policy)}
            for study in inputs.scan.studies
        ],
        "nifti": [
            {"path": str(path), **view_nifti((path,), checkpoints, named=named).as_dict()} for path in inputs.nifti
        ],
        "pictures": [
            {"path": str(path), **view_picture(path, checkpoints, named=named).as_dict()} for path in inputs.pictures
        ],
        "datasets": datasets,
        "refused": [error.as_dict() for error in (*unusable, *inputs.scan.refused)],
        "strays": [str(path) for path in inputs.scan.strays],
    }


def _series(study: Study, checkpoints: Sequence[Checkpoint], named: bool, policy: Policy) -> list[dict[str, Any]]:
    return [item.view.as_dict() for item in view_study(study, checkpoints, named=named, policy=policy)]


def is_manifest(path: Path) -> bool:
    """Whether a path names the manifest of a data set rather than images."""
    return path.is_file() and (path.suffix.lower() == ".csv" or path.name == "dataset.json" or is_npz(path))


def _dataset(path: Path, config: Config | None, on_case: OnCase | None) -> dict[str, Any]:
    if isinstance(config, ClassifyConfig) or not _has_masks(path):
        against = config if isinstance(config, ClassifyConfig) else None
        return survey_classes(path, config=against, on_case=on_case).as_dict()
    return survey(path, on_case=on_case).as_dict()


def _has_masks(path: Path) -> bool:
    """Whether the labels of a manifest are files."""
    if path.suffix.lower() != ".csv":
        return not is_npz(path)
    return any(is_mask(Path(row.get("label") or "")) for row in rows_of(path))
