"""The run folder before the first step: what explains the run, and whether a run to be resumed is the same one.

Invariant: a folder that holds another run is never written into.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from imaging.config import AnyConfig, FuseConfig, NetworkConfig, load_network
from imaging.config.section import FOR_DIGEST
from imaging.config.task import OF_THE_MACHINE
from imaging.errors import NothingToResume, OutputNotWritable, ResumeMismatch, RunExists
from imaging.files import write_whole
from imaging.manifest import Split
from imaging.prepared import hash_of

log = logging.getLogger(__name__)

_PACKAGES = ("imgpipe", "torch", "monai", "lightning", "numpy", "nibabel", "simpleitk", "pydicom", "highdicom")

_DATA, _VERSIONS = "data.json", "versions.json"
# So many of the cases that have changed are told by name.
_TOLD = 5

# Keys that decide nothing of a training: those of the machine, what is said of a checkpoint, where figures are told.
NO_TRAINING = (*(f"data.{key}." for key in OF_THE_MACHINE), "card.", "train.loggers.")
# Keys that change no step of it: these, whose weights are published, and what a search may vary.
_NO_STEP = (*NO_TRAINING, "train.keep.", "tune.")


def open_run(folder: Path, config: AnyConfig, split: Split, contents: Mapping[str, str], *, resume: bool) -> None:
    """Write what explains the run, or check that a run to be resumed is the same one; see `check_same`."""
    if resume:
        assert not isinstance(config, FuseConfig)  # it is trained in one go
        check_state(folder)
        check_same(folder, config, split, contents)
        write_whole(folder / "config.yaml", config.to_yaml())
        return
    if folder.exists() and not folder.is_dir():
        raise OutputNotWritable(folder, seen="it is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise RunExists(folder, seen="the folder is not empty")
    try:
        (folder / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(folder, seen=error.strerror or "cannot be made") from error
    write_whole(folder / "config.yaml", config.to_yaml())
    write_whole(folder / "split.json", split.to_json())
    data = {"sha256": hash_of(contents), "cases": contents}
    write_whole(folder / _DATA, json.dumps(data, indent=1) + "\n")
    write_whole(folder / _VERSIONS, json.dumps(versions(), indent=1) + "\n")
    write_whole(folder / "environment.json", json.dumps(environment(config), indent=1) + "\n")


def check_state(folder: Path) -> None:
    """Refuse to go on with a run of which this machine sees no state.

    Raises
    ------
    NothingToResume
        If there is none.
    """
    if not (folder / "state" / "last.ckpt").is_file():
        raise NothingToResume(folder, seen="no state/last.ckpt")


def check_same(
    folder: Path, config: NetworkConfig, split: Split, contents: Mapping[str, str], *, but: tuple[str, ...] = _NO_STEP
) -> None:
    """Refuse to go on with a run that was started with another config or on other cases.

    Parameters
    ----------
    folder
        That of the run.
    config, split
        What it is to be continued with.
    contents
        What the cases hold now, by name; more than those of the run may be there.
    but
        Keys that may differ, each with a dot at its end.

    Raises
    ------
    ResumeMismatch
        With the keys that differ, or the cases.
    """
    started = load_network(folder / "config.yaml")
    differing = differing_keys(started.model_dump(), config.model_dump(), but=but)
    if differing:
        raise ResumeMismatch(folder, seen=f"other values for {', '.join(sorted(differing))}")
    if (folder / "split.json").read_text(encoding="utf-8") != split.to_json():
        raise ResumeMismatch(folder, seen="the data set's cases have changed, so the split is another")
    _tell_versions(folder)
    data = _data_of(folder)
    if data is None:
        log.warning("%s is of an earlier version: whether the files of its cases have changed is not known", folder)
        return
    changed = [name for name, content in data["cases"].items() if contents.get(name) != content]
    if changed:
        told = ", ".join(changed[:_TOLD]) + (", ..." if len(changed) > _TOLD else "")
        raise ResumeMismatch(folder, seen=f"files or classes of {len(changed)} case(s) have changed: {told}")


def _tell_versions(folder: Path) -> None:
    """Warn where the run began with other versions: these decide the last bits of the weights, or more."""
    file, now = folder / _VERSIONS, versions()
    before: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    differing = [
        f"{name} {before.get(name, 'not told')}, now {now[name]}" for name in now if before.get(name) != now[name]
    ]
    if differing:
        log.warning(
            "%s began with other versions (%s): it does not end as if it had not been stopped",
            folder,
            "; ".join(differing),
        )


def _data_of(folder: Path) -> dict[str, Any] | None:
    """What the run's cases held when it began; None where an earlier version began it."""
    if not (folder / _DATA).is_file():
        return None
    data: dict[str, Any] = json.loads((folder / _DATA).read_text(encoding="utf-8"))
    return data


def data_digest(folder: Path) -> dict[str, str]:
    """``data_sha256``, over all cases that were trained or validated on; nothing where an earlier version began."""
    data = _data_of(folder)
    return {} if data is None else {"data_sha256": data["sha256"]}


def identity(config: NetworkConfig) -> str:
    """SHA-256 of what decides the steps of a training, to know its states by: the config without `_NO_STEP`.

    As for a digest, a key that a later version added and that holds its default makes no difference.
    """
    content = config.model_dump(mode="json", context=FOR_DIGEST)
    for key in _NO_STEP:
        *sections, last = key.removesuffix(".").split(".")
        section = content
        for name in sections:
            section = section[name]
        section.pop(last, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], *, but: tuple[str, ...], prefix: str = "") -> set[str]:
    """Keys with dots for sections and numbers for those in lists, as overrides name them.

    Those are left out that begin as `but` says, where each ends in a dot.
    """
    differing: set[str] = set()
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if _are_sections(left) and _are_sections(right) and len(left) == len(right):
            left, right = ({str(number): part for number, part in enumerate(parts)} for parts in (left, right))
        if isinstance(left, dict) and isinstance(right, dict):
            differing |= differing_keys(left, right, but=but, prefix=f"{prefix}{key}.")
        elif left != right and not f"{prefix}{key}.".startswith(but):
            differing.add(prefix + key)
    return differing


def _are_sections(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, list | tuple) and all(isinstance(part, dict) for part in value)


def environment(config: AnyConfig) -> dict[str, Any]:
    """Where and how a run was started: its command, seeds, threads and devices. It stays in the run folder."""
    import torch

    gpus = range(torch.cuda.device_count())
    return {
        "command": sys.argv,
        "seeds": {"split": config.data.seed, "training": config.train.seed},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
    }


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
