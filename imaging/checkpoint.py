"""A checkpoint is a folder: config, weights, metrics, model card, checksums.

Invariant: nothing of a checkpoint is used before its bytes agree with SHA256SUMS, and no pickle is ever loaded: weights
are safetensors. Finding and describing checkpoints imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.card import model_card
from imaging.config import ClassifyConfig, Config, SegmentConfig, load_config
from imaging.errors import CheckpointCorrupt, DuplicateName, UnknownCheckpoint, WrongTask
from imaging.files import sha256_of, shipped, staged_folder, write_whole

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS, METRICS, CARD, SUMS = "config.yaml", "weights.safetensors", "metrics.json", "README.md", "SHA256SUMS"
_SUMMED = (CONFIG, WEIGHTS, METRICS, CARD)
# Before the names of an ensemble's weights, with the member's number; a single network's have nothing before them.
_MEMBER = "member_"


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

    def segmenter(self) -> SegmentConfig:
        """The config of a checkpoint that labels voxels.

        Raises
        ------
        WrongTask
            If it does something else.
        """
        if not isinstance(self.config, SegmentConfig):
            raise WrongTask(f"checkpoint {self.name}", seen=f"its task is {self.config.task}")
        return self.config

    def classifier(self) -> ClassifyConfig:
        """The config of a checkpoint that says what a picture shows.

        Raises
        ------
        WrongTask
            If it does something else.
        """
        if not isinstance(self.config, ClassifyConfig):
            raise WrongTask(f"checkpoint {self.name}", seen=f"its task is {self.config.task}")
        return self.config

    def load_members(self) -> tuple[dict[str, torch.Tensor], ...]:
        """The state dictionary of each network of the checkpoint, on the CPU: of one, or of the members of an ensemble.

        Raises
        ------
        CheckpointCorrupt
            If the file has changed since the checkpoint was opened, or is not of as many members as the config says.
        """
        weights, members = self.load_weights(), self.config.members
        if members == 1:
            return (weights,)
        found: dict[str, dict[str, torch.Tensor]] = {f"{_MEMBER}{number}": {} for number in range(members)}
        for name, tensor in weights.items():
            member, _, own = name.partition(".")
            if member not in found:
                raise CheckpointCorrupt(
                    self.folder / WEIGHTS, seen=f"{name!r} is of none of the {members} members of the config"
                )
            found[member][own] = tensor
        return tuple(found.values())

    def load_weights(self) -> dict[str, torch.Tensor]:
        """What is in `weights.safetensors`, on the CPU.

        Raises
        ------
        CheckpointCorrupt
            If the file has changed since the checkpoint was opened.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = (self.folder / WEIGHTS).read_bytes()
        # Hashing what is loaded, not what lay there a moment before, leaves no gap between check and use.
        if hashlib.sha256(content).hexdigest() != self.weights_sha256:
            raise CheckpointCorrupt(self.folder / WEIGHTS, seen="changed after it was verified")
        try:
            return load(content)
        except SafetensorError as error:
            raise CheckpointCorrupt(self.folder / WEIGHTS, seen=f"is not safetensors ({error})") from error


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
    absent = set(_SUMMED) - set(sums)
    if absent:
        raise CheckpointCorrupt(folder / SUMS, seen=f"does not list {min(absent)}")
    for name, digest in sums.items():
        if Path(name).name != name:
            raise CheckpointCorrupt(folder / SUMS, seen=f"lists {name!r}, which is not a file name")
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise CheckpointCorrupt(folder / name, seen="cannot be read") from error
        if found != digest:
            raise CheckpointCorrupt(folder / name, seen="differs from its checksum")
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointCorrupt(folder / METRICS, seen="is not JSON") from error
    return Checkpoint(folder, load_config(folder / CONFIG), metrics, sums[WEIGHTS])


def open_checkpoints(names: Sequence[str]) -> tuple[list[Checkpoint], list[CheckpointCorrupt]]:
    """The named checkpoints, or all that ship.

    Returns
    -------
    checkpoints
        Verified.
    unusable
        Where none was named, the shipped ones that are not what their checksums say.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt
        If a named one is not there, or not what its checksums say.
    DuplicateName
        If two of them have one name: their outputs could not be told apart.
    """
    if not names:
        checkpoints, unusable = [], []
        for folder in shipped_checkpoints():
            try:
                checkpoints.append(open_checkpoint(folder))
            except CheckpointCorrupt as error:
                unusable.append(error)
        return checkpoints, unusable
    folders = dict.fromkeys(find_checkpoint(name).resolve() for name in names)
    checkpoints = [open_checkpoint(folder) for folder in folders]
    called = [checkpoint.name for checkpoint in checkpoints]
    twice = {name for name in called if called.count(name) > 1}
    if twice:
        raise DuplicateName(min(twice), seen="two checkpoints have this name")
    return checkpoints, []


def joined(members: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights of an ensemble as one dictionary, as `save_checkpoint` takes them; of one network, its own."""
    if len(members) == 1:
        return dict(members[0])
    return {
        f"{_MEMBER}{number}.{name}": tensor
        for number, weights in enumerate(members)
        for name, tensor in weights.items()
    }


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
        The network's state dictionary, or where the config says `members`, theirs as `joined` gives them.
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
