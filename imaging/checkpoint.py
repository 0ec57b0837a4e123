"""A checkpoint is a folder: config, weights, metrics, model card, checksums.

Invariant: nothing of a checkpoint is used before its bytes agree with SHA256SUMS, and no pickle is ever loaded: weights
are safetensors. Finding and describing checkpoints imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from imaging.config import (
    AnyConfig,
    ClassifyConfig,
    Config,
    FuseConfig,
    NetworkConfig,
    SegmentConfig,
    TextConfig,
    load_any,
)
from imaging.errors import CheckpointCorrupt, ConfigInvalid, DuplicateName, UnknownCheckpoint, UnknownKey, WrongTask
from imaging.files import sha256_of, shipped, staged_folder, write_whole

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CONFIG, WEIGHTS, METRICS, CARD, SUMS = "config.yaml", "weights.safetensors", "metrics.json", "README.md", "SHA256SUMS"
_SUMMED = (CONFIG, WEIGHTS, METRICS, CARD)
# Before the names of an ensemble's weights, with the member's number; a single network's have nothing before them.
_MEMBER = "member_"


C = TypeVar("C", Config, TextConfig)


@dataclass(frozen=True, slots=True)
class _OfNetworks(Generic[C]):
    """A verified checkpoint of a network, or of several.

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
    sums
        SHA-256 of each of its files by name, as SHA256SUMS has them.
    """

    folder: Path
    config: C
    metrics: dict[str, Any]
    weights_sha256: str
    sums: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The config's name, used in file names and reports."""
        return self.config.name

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

        content = read_verified(self.folder / WEIGHTS, self.weights_sha256)
        try:
            return load(content)
        except SafetensorError as error:
            raise CheckpointCorrupt(self.folder / WEIGHTS, seen=f"is not safetensors ({error})") from error

    def further_files(self, *, but: Collection[str] = ()) -> dict[str, bytes]:
        """The files beside config, weights, metrics and card, by name, but for some; a copy takes them with it.

        Raises
        ------
        CheckpointCorrupt
            If one has changed since the checkpoint was opened.
        """
        left_out = {*_SUMMED, *but}
        return {
            name: read_verified(self.folder / name, sha256)
            for name, sha256 in self.sums.items()
            if name not in left_out
        }


@dataclass(frozen=True, slots=True)
class Checkpoint(_OfNetworks[Config]):
    """A verified checkpoint of a network that looks at images; its attributes are those of `_OfNetworks`."""

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


@dataclass(frozen=True, slots=True)
class TextCheckpoint(_OfNetworks[TextConfig]):
    """A verified checkpoint of a model that reads texts; it holds what was added to the encoder, and the heads."""


NetworkCheckpoint = Checkpoint | TextCheckpoint


@dataclass(frozen=True, slots=True)
class FusionCheckpoint:
    """A verified checkpoint of a fusion; see `Checkpoint`.

    Its config names the checkpoints that it brings together, by the SHA-256 of their weights.
    """

    folder: Path
    config: FuseConfig
    metrics: dict[str, Any]
    weights_sha256: str
    sums: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The config's name, used in file names and reports."""
        return self.config.name

    def load_weights(self) -> dict[str, NDArray[np.float64]]:
        """The arrays in `weights.safetensors`.

        Raises
        ------
        CheckpointCorrupt
            If the file has changed since the checkpoint was opened.
        """
        return read_arrays(self.folder / WEIGHTS, self.weights_sha256)


def read_verified(file: Path, sha256: str) -> bytes:
    """A file of a checkpoint, if it still is what its checksum said.

    Hashing what is loaded, not what lay there a moment before, leaves no gap between check and use.

    Raises
    ------
    CheckpointCorrupt
        If it is not.
    """
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointCorrupt(file, seen="changed after it was verified")
    return content


def read_arrays(file: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file of a checkpoint, read without torch; see `read_verified`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(read_verified(file, sha256))
    except SafetensorError as error:
        raise CheckpointCorrupt(file, seen=f"is not safetensors ({error})") from error


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


def task_of(folder: Path) -> str:
    """What the checkpoint in a folder does (``segment``, ``classify``, ``fuse``), before it is verified.

    Raises
    ------
    ConfigInvalid, UnknownKey
        If its config is of another version of imgpipe.
    """
    return load_any(folder / CONFIG).task


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify the files of a checkpoint that looks at images against SHA256SUMS and read all but the weights.

    Raises
    ------
    CheckpointCorrupt
        If a file is missing or differs.
    ConfigInvalid, UnknownKey
        If its config is of another version of imgpipe.
    WrongTask
        If it does not look at images.
    """
    config, metrics, sums = _opened(folder)
    if not isinstance(config, SegmentConfig | ClassifyConfig):
        raise WrongTask(f"checkpoint {config.name}", seen=f"its task is {config.task}",
                        expected="one that looks at images was expected")  # fmt: skip
    return Checkpoint(folder, config, metrics, sums[WEIGHTS], sums)


def open_text(folder: Path) -> TextCheckpoint:
    """The same for a checkpoint of a model that reads texts.

    Raises
    ------
    CheckpointCorrupt, ConfigInvalid, UnknownKey, WrongTask
        As `open_checkpoint`.
    """
    config, metrics, sums = _opened(folder)
    if not isinstance(config, TextConfig):
        raise WrongTask(f"checkpoint {config.name}", seen=f"its task is {config.task}",
                        expected="one that reads texts was expected",
                        remedy="Give a checkpoint that reads texts")  # fmt: skip
    return TextCheckpoint(folder, config, metrics, sums[WEIGHTS], sums)


def open_texts() -> tuple[list[TextCheckpoint], list[CheckpointCorrupt]]:
    """The checkpoints that ship and read texts, and those of them that are not what their checksums say."""
    checkpoints, unusable = [], []
    for folder in shipped_checkpoints():
        try:
            with suppress(ConfigInvalid, UnknownKey):  # what cannot be read is told by its checksums
                if task_of(folder) != "text":
                    continue
            checkpoints.append(open_text(folder))
        except CheckpointCorrupt as error:
            unusable.append(error)
    return checkpoints, unusable


def open_network(folder: Path) -> NetworkCheckpoint:
    """The same for a checkpoint of any network; see `open_checkpoint`."""
    config, metrics, sums = _opened(folder)
    if isinstance(config, FuseConfig):
        raise WrongTask(f"checkpoint {config.name}", seen=f"its task is {config.task}",
                        expected="a network was expected", remedy="Give a checkpoint of a network")  # fmt: skip
    if isinstance(config, TextConfig):
        return TextCheckpoint(folder, config, metrics, sums[WEIGHTS], sums)
    return Checkpoint(folder, config, metrics, sums[WEIGHTS], sums)


def open_shipped() -> tuple[list[NetworkCheckpoint], list[CheckpointCorrupt]]:
    """The networks that ship, each verified once, and those that are not what their checksums say."""
    checkpoints, unusable = [], []
    for folder in shipped_checkpoints():
        try:
            checkpoints.append(open_network(folder))
        except CheckpointCorrupt as error:
            unusable.append(error)
        except WrongTask:
            continue
    return checkpoints, unusable


def open_fusion(folder: Path) -> FusionCheckpoint:
    """The same for a checkpoint of a fusion.

    Raises
    ------
    CheckpointCorrupt, ConfigInvalid, UnknownKey, WrongTask
        As `open_checkpoint`.
    """
    config, metrics, sums = _opened(folder)
    if not isinstance(config, FuseConfig):
        raise WrongTask(f"checkpoint {config.name}", seen=f"its task is {config.task}",
                        expected="a fusion was expected", remedy="Give a checkpoint of a fusion")  # fmt: skip
    return FusionCheckpoint(folder, config, metrics, sums[WEIGHTS], sums)


def _opened(folder: Path) -> tuple[AnyConfig, dict[str, Any], dict[str, str]]:
    """Config, metrics and checksums of a folder whose files are what the checksums say."""
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
    return load_any(folder / CONFIG), metrics, sums


def open_checkpoints(names: Sequence[str]) -> tuple[list[Checkpoint], list[CheckpointCorrupt]]:
    """The named checkpoints that look at images, or all that ship.

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
        shipped, unusable = open_shipped()
        return [one for one in shipped if isinstance(one, Checkpoint)], unusable
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


@overload
def save_checkpoint(
    folder: Path,
    config: Config,
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
) -> Checkpoint: ...


@overload
def save_checkpoint(
    folder: Path,
    config: TextConfig,
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
) -> TextCheckpoint: ...


def save_checkpoint(
    folder: Path,
    config: NetworkConfig,
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
) -> NetworkCheckpoint:
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
    extras
        Further files by name.
    """
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    _save(folder, config, content, metrics, extras or {})
    return open_network(folder)


def save_fusion(
    folder: Path, config: FuseConfig, weights: Mapping[str, NDArray[np.float64]], metrics: Mapping[str, Any]
) -> FusionCheckpoint:
    """The same for a fusion, whose weights are arrays."""
    import numpy as np
    from safetensors.numpy import save

    _save(folder, config, save({name: np.ascontiguousarray(array) for name, array in weights.items()}), metrics, {})
    return open_fusion(folder)


def with_extras(
    folder: Path, checkpoint: Checkpoint, metrics: Mapping[str, Any], extras: Mapping[str, bytes]
) -> Checkpoint:
    """A copy of a checkpoint, its config and weights byte for byte, with other metrics and further files."""
    config = read_verified(checkpoint.folder / CONFIG, checkpoint.sums[CONFIG])
    weights = read_verified(checkpoint.folder / WEIGHTS, checkpoint.weights_sha256)
    _write(folder, {CONFIG: config, WEIGHTS: weights, **_told(checkpoint.config, metrics), **extras})
    return open_checkpoint(folder)


def _save(
    folder: Path, config: AnyConfig, weights: bytes, metrics: Mapping[str, Any], extras: Mapping[str, bytes]
) -> None:
    published = config.without_paths()
    _write(folder, {CONFIG: published.to_yaml().encode(), WEIGHTS: weights, **_told(published, metrics), **extras})


def _told(config: AnyConfig, metrics: Mapping[str, Any]) -> dict[str, bytes]:
    from imaging.card import model_card  # with numpy, which a list of checkpoints need not wait for

    return {METRICS: (json.dumps(metrics, indent=1) + "\n").encode(), CARD: model_card(config, metrics).encode()}


def _write(folder: Path, content: Mapping[str, bytes]) -> None:
    with staged_folder(folder) as stage:
        for name, data in content.items():
            write_whole(stage / name, data)
        write_whole(stage / SUMS, "".join(f"{sha256_of(stage / name)}  {name}\n" for name in content))
