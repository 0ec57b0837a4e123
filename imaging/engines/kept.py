"""Converted models on disk: made once from torch, read by every later process.

Invariant: a model is what its key says or it is not used. The key covers the weights, the config, the member, the shape
of a tile, and the versions of all that converts it: OpenVINO, torch, MONAI and this room. An entry appears whole, by
one rename, and carries checksums; one that is damaged is told and made anew. What cannot be kept is told and done
without.

Only the model is kept, not what OpenVINO compiles of it: reading that back saves a small network a fifth of a second
once a process, and a larger one nothing that is sure (docs/performance.md); and a second file of the same size would
have to be kept whole, and be told from that of another processor, precision and number of cores.

In the folder (``$IMGPIPE_CACHE``, or ``imgpipe`` in the user's cache folder)::

    engines/<key>/           model.xml, model.bin, SHA256SUMS; its time of modification is that of its last use
    engines/locks/<2 hex>    held by the process that makes an entry whose key begins so
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.checkpoint import Checkpoint
from imaging.engines.runtime import runtime, version
from imaging.errors import OutputNotWritable
from imaging.files import sha256_of, staged_folder, write_whole
from imaging.locks import locked

if TYPE_CHECKING:
    import openvino

log = logging.getLogger(__name__)

# The environment variable that names the cache's folder.
FOLDER = "IMGPIPE_CACHE"
MODEL, WEIGHTS, SUMS = "model.xml", "model.bin", "SHA256SUMS"
# Of what is made of a network here; another format has other keys.
_FORMAT = 1
# What nobody has used for so long was of a checkpoint or a version that is gone.
_FORGOTTEN_S = 90 * 24 * 3600


def cache_folder() -> Path:
    """Where converted models are kept; the XDG base directories decide where nobody else does."""
    chosen = os.environ.get(FOLDER)
    if chosen:
        return Path(chosen) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgpipe" / "engines"


def key_of(checkpoint: Checkpoint, member: int, shape: tuple[int, ...]) -> str:
    """Everything that decides what a converted model is, as 64 hex digits."""
    # Of what builds and traces the network only the version is asked for: it is not imported.
    by = [version(), *(importlib.metadata.version(name) for name in ("torch", "monai"))]
    decides = [_FORMAT, by, checkpoint.weights_sha256, checkpoint.config.digest(), member, list(shape)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def kept_model(key: str, make: Callable[[], openvino.Model]) -> Path | openvino.Model:
    """The file of a model, made and kept if it is not there; the model itself where it cannot be kept.

    Several processes that want one model wait for the first of them to make it.

    Parameters
    ----------
    key
        As `key_of` gives it.
    make
        Converts the network.
    """
    root = cache_folder()
    entry = root / key
    if _is_whole(entry):
        return entry / MODEL
    try:
        (root / "locks").mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        log.warning("converted models cannot be kept in %s (%s)", root, error.strerror)
        return make()
    with locked(root / "locks" / key[:2], wait=True, mode=0o600):
        if _is_whole(entry):  # another process made it meanwhile
            return entry / MODEL
        if entry.exists():
            log.warning("the converted model %s is damaged: it is made anew", entry.name[:16])
            shutil.rmtree(entry, ignore_errors=True)
        model = make()
        try:
            _write(entry, model)
        except OutputNotWritable as error:
            # Without locks another process may have been quicker.
            if _is_whole(entry):
                return entry / MODEL
            log.warning("a converted model cannot be kept: %s", error)
            return model
    _sweep(root)
    return entry / MODEL


def _is_whole(entry: Path) -> bool:
    """Whether an entry is there and its files are what its checksums say; if so, it is used now."""
    try:
        lines = (entry / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        whole = sums.keys() == {MODEL, WEIGHTS} and all(sha256_of(entry / name) == sums[name] for name in sums)
    except (OSError, UnicodeDecodeError):
        whole = False
    if whole:
        with suppress(OSError):  # another user's
            os.utime(entry)
    return whole


def _write(entry: Path, model: openvino.Model) -> None:
    with staged_folder(entry) as stage:
        runtime().save_model(model, stage / MODEL, compress_to_fp16=False)
        lines = "".join(f"{sha256_of(stage / name)}  {name}\n" for name in (MODEL, WEIGHTS))
        write_whole(stage / SUMS, lines)


def _sweep(root: Path) -> None:
    """Remove what nobody has used for a long time."""
    for entry in root.iterdir():
        with suppress(OSError):
            if entry.name != "locks" and time.time() - entry.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(entry, ignore_errors=True)
