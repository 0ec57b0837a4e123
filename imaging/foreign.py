"""Weights from elsewhere, read without running anything that lies in them.

Invariant: no pickle is loaded but with ``weights_only=True``, no TorchScript at all, and nothing is fetched. What is
read is a flat list of named tensors and the hash of the file that held them.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from imaging.checkpoint import CONFIG, WEIGHTS, find_checkpoint, open_checkpoint, shipped_checkpoints
from imaging.errors import StartUnusable

# Under which key of a saved dictionary others keep the weights: Lightning, MONAI's CheckpointSaver, and by custom.
_KEYS = ("state_dict", "network", "model", "model_state_dict", "net", "network_state_dict")
_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# What a MONAI bundle keeps where (its specification, sections "Directory Structure" and "metadata.json").
_BUNDLE_WEIGHTS = ("models/model.safetensors", "models/model.pt")
_BUNDLE_CONFIGS = ("configs/train.json", "configs/train.yaml", "configs/inference.json", "configs/inference.yaml")


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """Named tensors and where they come from.

    Attributes
    ----------
    name
        The source's own name, without its path.
    kind
        ``checkpoint``, ``bundle`` or ``file``.
    sha256
        Of the file that holds the weights.
    network
        The network's class that the source names; empty where it names none.
    tensors
        By name, on the CPU.
    trained_on
        Names of the cases that trained it, and what it began with, where it is a checkpoint.
    """

    name: str
    kind: str
    sha256: str
    network: str
    tensors: Mapping[str, torch.Tensor]
    trained_on: tuple[str, ...] = ()


def read_foreign(source: str | None) -> Foreign:
    """Read the weights that a config's ``train.start.weights`` names.

    Parameters
    ----------
    source
        A shipped checkpoint's name, a checkpoint's folder, a MONAI bundle's folder, or a file of weights.

    Raises
    ------
    StartUnusable
        If there is nothing, if it would have to be fetched, or if it cannot be read without running code.
    CheckpointCorrupt
        If a checkpoint is not what its checksums say.
    """
    if source is None:
        raise StartUnusable("train.start.weights", seen="not given")
    if "://" in source:
        raise StartUnusable(f"start {source}", seen="an address", expected="a place on this machine was expected",
                            remedy="Fetch it yourself, look it over, and give its path")  # fmt: skip
    path = Path(source)
    shipped = {folder.name for folder in shipped_checkpoints()}
    if source in shipped or (path / CONFIG).is_file():
        return _checkpoint(source)
    if path.is_dir():
        return _bundle(path)
    if path.is_file():
        return Foreign(path.name, "file", *_read(path))
    raise StartUnusable(path, seen="nothing is there",
                        expected=f"a file, a folder, or one of {', '.join(sorted(shipped))} was expected")  # fmt: skip


def _checkpoint(source: str) -> Foreign:
    checkpoint = open_checkpoint(find_checkpoint(source))
    if checkpoint.config.members > 1:
        raise StartUnusable(f"start {source}", seen=f"an ensemble of {checkpoint.config.members} networks",
                            expected="one network was expected", remedy="Start from one of its folds")  # fmt: skip
    network, weights = checkpoint.config.network.name, checkpoint.load_weights()
    training = checkpoint.metrics.get("training", {})
    # What it began with itself was trained on cases, too.
    names = (*training.get("names", ()), *(training.get("start") or {}).get("trained_on", ()))
    return Foreign(
        checkpoint.name, "checkpoint", checkpoint.weights_sha256, network, weights, tuple(dict.fromkeys(names))
    )


def _bundle(folder: Path) -> Foreign:
    file = next((folder / name for name in _BUNDLE_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        inside = sorted(path.name for path in (folder / "models").glob("*"))
        seen = f"models/ holds {', '.join(inside)}" if inside else "neither a checkpoint nor a bundle"
        raise StartUnusable(
            folder, seen=seen, expected=f"{CONFIG} and {WEIGHTS}, or {' or '.join(_BUNDLE_WEIGHTS)}, were expected"
        )
    digest, _, tensors = _read(file)
    return Foreign(folder.resolve().name, "bundle", digest, _network_of_bundle(folder), tensors)


def _network_of_bundle(folder: Path) -> str:
    """The class that a bundle's ``network_def`` names; it is read, never built."""
    for name in _BUNDLE_CONFIGS:
        file = folder / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, OSError, RecursionError, yaml.YAMLError):
            continue
        made = content.get("network_def") if isinstance(content, dict) else None
        if isinstance(made, dict) and isinstance(made.get("_target_"), str):
            return str(made["_target_"]).rpartition(".")[2]
    return ""


def _read(path: Path) -> tuple[str, str, dict[str, torch.Tensor]]:
    """SHA-256, the network's name, which such a file does not tell, and the tensors of a file."""
    content = path.read_bytes()
    if path.suffix.lower() == ".safetensors":
        tensors = _safetensors(path, content)
    elif path.suffix.lower() in _FILES and not _is_torchscript(content):
        tensors = _tensors_in(path, _unpickled(path, content))
    else:
        kind = "TorchScript, which is a program" if _is_torchscript(content) else f"a file {path.suffix or path.name}"
        raise StartUnusable(path, seen=kind, expected=f"tensors in one of {', '.join(_FILES)} were expected",
                            remedy="Save the state dictionary of the network, best as safetensors")  # fmt: skip
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StartUnusable(path, seen=f"{name} is not finite")
    return hashlib.sha256(content).hexdigest(), "", tensors


def _safetensors(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise StartUnusable(path, seen=f"is not safetensors ({error})") from error


def _is_torchscript(content: bytes) -> bool:
    """Whether a file is a TorchScript archive: a ZIP with compiled code or its constants."""
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def _unpickled(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise StartUnusable(path, seen=f"holds more than tensors, or is damaged ({first})") from error


def _tensors_in(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The named tensors of what was saved: at the top, or under one of the keys that others use."""
    if isinstance(content, Mapping):
        tensors = max((_named(part) for part in (content, *map(content.get, _KEYS))), key=len)
        if tensors:
            return tensors
    held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    raise StartUnusable(path, seen=f"no named tensors, but {held}")


def _named(part: Any) -> dict[str, torch.Tensor]:
    if not isinstance(part, Mapping):
        return {}
    return {str(name): value for name, value in part.items() if isinstance(value, torch.Tensor)}
