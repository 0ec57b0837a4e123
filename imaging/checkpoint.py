"""A checkpoint is a folder: config, weights, metrics, model card, checksums.

Invariant: nothing of a checkpoint is used before its bytes agree with SHA256SUMS, and no pickle is ever loaded: weights
are safetensors. Finding and describing checkpoints imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.config import Config, load_config
from imaging.errors import CheckpointCorrupt, UnknownCheckpoint
from imaging.files import sha256_of, staged_folder, write_whole

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS, METRICS, CARD, SUMS = "config.yaml", "weights.safetensors", "metrics.json", "README.md", "SHA256SUMS"
_SUMMED = (CONFIG, WEIGHTS, METRICS, CARD)

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes
    ----------
    folder
        Where it lies.
    config
        The whole task, preprocessing included.
    metrics
        What was measured on held-out cases, as `metrics.json` has it.
    weights_sha256
        SHA-256 of `weights.safetensors`.
    """

    folder: Path
    config: Config
    metrics: dict[str, Any]
    weights_sha256: str

    @property
    def name(self) -> str:
        """The config's name, used in file names and reports."""
        return self.config.name

    def load_weights(self) -> dict[str, torch.Tensor]:
        """The network's state dictionary, on the CPU.

        Raises
        ------
        CheckpointCorrupt
            If the file has changed since the checkpoint was opened.
        """
        from safetensors.torch import load

        content = (self.folder / WEIGHTS).read_bytes()
        # Hashing what is loaded, not what lay there a moment before, leaves no gap between check and use.
        if hashlib.sha256(content).hexdigest() != self.weights_sha256:
            raise CheckpointCorrupt(self.folder / WEIGHTS, seen="changed after it was verified")
        return load(content)


def shipped(kind: str) -> Path:
    """The folder `configs` or `checkpoints` that comes with imgpipe, in a checkout and in an installed wheel alike."""
    installed = _HERE / "shipped" / kind
    return installed if installed.is_dir() else _HERE.parent / kind


def shipped_checkpoints() -> list[Path]:
    """The folders of the checkpoints that come with imgpipe, by name."""
    return sorted(path.parent for path in shipped("checkpoints").glob(f"*/{CONFIG}"))


def find_checkpoint(name: str) -> Path:
    """The folder of a shipped checkpoint by its name, or a folder by its path.

    Raises
    ------
    UnknownCheckpoint
        If there is neither.
    """
    known = {path.name: path for path in shipped_checkpoints()}
    if name in known:
        return known[name]
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    raise UnknownCheckpoint(
        name, seen="no such checkpoint", expected=f"known: {', '.join(known) or 'none'}; or a folder with {CONFIG}"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify a checkpoint's files against SHA256SUMS and read all but the weights.

    Raises
    ------
    CheckpointCorrupt
        If a file is missing or differs.
    ConfigInvalid, UnknownKey
        If its config is of another version of imgpipe.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointCorrupt(folder / SUMS, seen="cannot be read") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in _SUMMED:
        if name not in sums:
            raise CheckpointCorrupt(folder / SUMS, seen=f"does not list {name}")
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise CheckpointCorrupt(folder / name, seen="cannot be read") from error
        if found != sums[name]:
            raise CheckpointCorrupt(folder / name, seen="differs from its checksum")
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return Checkpoint(folder, load_config(folder / CONFIG), metrics, sums[WEIGHTS])


def save_checkpoint(
    folder: Path, config: Config, weights: Mapping[str, torch.Tensor], metrics: Mapping[str, Any]
) -> Checkpoint:
    """Write a checkpoint, its model card and its checksums, and open it again.

    Parameters
    ----------
    folder
        Where it goes.
    config
        The resolved config; `data.root` is left out.
    weights
        The network's state dictionary.
    metrics
        What was measured, JSON-serialisable.
    """
    from safetensors.torch import save

    published = config.without_paths()
    content: dict[str, bytes] = {
        CONFIG: published.to_yaml().encode(),
        WEIGHTS: save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}),
        METRICS: (json.dumps(metrics, indent=1) + "\n").encode(),
        CARD: model_card(published, metrics).encode(),
    }
    with staged_folder(folder) as stage:
        for name, data in content.items():
            write_whole(stage / name, data)
        write_whole(stage / SUMS, "".join(f"{sha256_of(stage / name)}  {name}\n" for name in _SUMMED))
    return open_checkpoint(folder)


def model_card(config: Config, metrics: Mapping[str, Any]) -> str:
    """The README of a checkpoint: what it is for, on what it was trained, how well it does, and where it ends."""
    card = config.card
    lines = [
        f"# {config.title}",
        "",
        f"`{config.name}` version {config.version}. For research use, not for diagnosis.",
        "",
        f"**Intended use.** {card.intended_use}",
        "",
        f"**Limits.** {card.limits}",
        "",
        f"**Data and licence.** {card.data} {card.licence}",
        "",
        "**How it was trained.**",
        "",
        f"    {card.command}",
        "",
        "## Measured",
        "",
        "Dice of the masks on each image's own grid, restored by the same code that serves; mean over cases with the",
        "95 % bootstrap interval over cases.",
        "",
        "| cases | n | " + " | ".join(label.title for label in config.labels) + " |",
        "| --- | --- |" + " --- |" * len(config.labels),
    ]
    for side in ("validation", "test"):
        if side in metrics:
            part = metrics[side]
            cells = [_cell(part["dice"][label.name]) for label in config.labels]
            lines.append(f"| {side} | {part['cases']} | " + " | ".join(cells) + " |")
    lines += ["", metrics.get("note", ""), ""]
    return "\n".join(lines)


def _cell(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"
