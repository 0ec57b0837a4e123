"""The encoder that text models stand on: found on this machine, known by its checksum, and thinly adapted.

Invariant: nothing is fetched and no pickle is read: weights are safetensors, and they are hashed as they are loaded.
Whatever was adapted, the encoder's own weights stay as they were; a checkpoint holds what was added.

transformers, peft and tokenizers come with ``imgpipe[text]`` and are imported where a text model is made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imaging.config import Encoder, Tuning
from imaging.errors import EncoderUnusable, MissingPackage
from imaging.files import sha256_of
from imaging.text.words import words_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
# The environment variable that names the folder where encoders lie by their names.
SHELF = "IMGPIPE_ENCODERS"
_NEEDED = ("transformers", "peft", "tokenizers")
# Parts of a BERT that say nothing of single words, or nothing at all.
_NOT_TAKEN = ("pooler.", "embeddings.position_ids", "cls.")


def folder_of(settings: Encoder) -> Path:
    """Where the encoder lies.

    A published config has the last part of the folder's path: that is looked for here, and then in the folder that the
    environment variable ``IMGPIPE_ENCODERS`` names.

    Raises
    ------
    MissingPackage
        If the packages that text models need are not installed, or the one that holds the encoder.
    EncoderUnusable
        If it is not there, or not the one that the config means.
    """
    wanted = [*_NEEDED, *([settings.package] if settings.package else [])]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingPackage("text models", seen=f"{absent[0]} is not installed",
                             remedy="Install it: pip install 'imgpipe[text]'")  # fmt: skip
    if settings.folder is not None:
        shelf = os.environ.get(SHELF)
        places = [Path(settings.folder), *([Path(shelf) / Path(settings.folder).name] if shelf else [])]
        folder = next((place for place in places if place.is_dir()), places[0])
    else:
        spec = importlib.util.find_spec(str(settings.package))
        roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        found = sorted(path.parent for root in roots for path in root.rglob(WEIGHTS))
        if len(found) != 1:
            raise EncoderUnusable(f"package {settings.package}", seen=f"{len(found)} files called {WEIGHTS}")
        folder = found[0]
    for name in (WEIGHTS, TOKENIZER, CONFIG):
        if not (folder / name).is_file():
            raise EncoderUnusable(folder, seen=f"no {name}")
    return folder


# --------------------------------------------------------------------------------------------------------------- words


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as the encoder takes it.

    Attributes
    ----------
    windows
        Token ids of each window, with the marks of beginning and end.
    words
        Where the words of the text are.
    places
        For each word the window and the place in it of its first token, from the window in which it stands farthest
        from an edge; None for a word that has no token.
    """

    windows: tuple[tuple[int, ...], ...]
    words: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int] | None, ...]


class Tokens:
    """Texts -> token ids in windows.

    Parameters
    ----------
    settings
        Whose tokenizer, and how long a window is.

    Raises
    ------
    MissingPackage, EncoderUnusable
        See `folder_of`.
    """

    def __init__(self, settings: Encoder) -> None:
        path = folder_of(settings) / TOKENIZER
        _check(path, settings.tokenizer_sha256, sha256_of(path))
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        # The file may say both, for another use.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        first, last = (self._tokenizer.token_to_id(mark) for mark in ("[CLS]", "[SEP]"))
        if first is None or last is None:
            raise EncoderUnusable(path, seen="its tokens have no [CLS] and [SEP]")
        self._first, self._last = first, last
        self._length, self._overlap = settings.window - 2, settings.overlap

    def __call__(self, text: str) -> Encoded:
        """Encode a text; one without a token is a window of the two marks."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        count, step = len(found.ids), self._length - self._overlap
        starts = [at * step for at in range(max(1, math.ceil((count - self._overlap) / step)))]
        windows = [(self._first, *found.ids[at : at + self._length], self._last) for at in starts]
        token_at: dict[int, int] = {}
        for number, (start, _) in enumerate(found.offsets):
            token_at.setdefault(start, number)
        words = words_of(text)
        places = tuple(self._place(token_at.get(start), starts, count) for start, _ in words)
        return Encoded(tuple(windows), tuple(words), places)

    def _place(self, token: int | None, starts: Sequence[int], count: int) -> tuple[int, int] | None:
        if token is None:
            return None

        def room(number: int) -> int:
            """Tokens to the nearer edge that is not an end of the text."""
            start, end = starts[number], min(starts[number] + self._length, count)
            before = token - start if start else count
            return min(before, end - 1 - token if end < count else count)

        inside = [number for number, start in enumerate(starts) if start <= token < start + self._length]
        window = max(inside, key=room)
        return window, token - starts[window] + 1


def _check(path: Path, wanted: str, found: str) -> None:
    if found != wanted:
        raise EncoderUnusable(path, seen=f"SHA-256 {found}", expected=f"{wanted} was expected")


# ------------------------------------------------------------------------------------------------------------- weights


def load_encoder(settings: Encoder, *, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The encoder with its own weights, none of them trained.

    Raises
    ------
    MissingPackage, EncoderUnusable
        See `folder_of`; or if it is no BERT, or its weights do not fit it.
    """
    folder = folder_of(settings)
    content = (folder / WEIGHTS).read_bytes()
    # Hashing what is loaded leaves no gap between check and use.
    _check(folder / WEIGHTS, settings.sha256, hashlib.sha256(content).hexdigest())
    from safetensors import SafetensorError
    from safetensors.torch import load
    from transformers import BertConfig, BertModel

    try:
        shape: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise EncoderUnusable(folder, seen=f"cannot be read ({type(error).__name__})") from error
    if shape.get("model_type") != "bert":
        raise EncoderUnusable(folder / CONFIG, seen=f"model_type {shape.get('model_type')!r}",
                              expected="bert was expected")  # fmt: skip
    if settings.window > shape.get("max_position_embeddings", 512):
        raise EncoderUnusable(folder / CONFIG, seen=f"it takes {shape['max_position_embeddings']} tokens",
                              expected=f"{settings.window} of encoder.window were expected")  # fmt: skip
    model = BertModel(BertConfig(**shape), add_pooling_layer=False)
    named = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    own = {name: tensor for name, tensor in named.items() if not name.startswith(_NOT_TAKEN)}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise EncoderUnusable(folder / WEIGHTS, seen="its weights do not fit its config") from error
    model.requires_grad_(False)
    whole: torch.nn.Module = model
    return whole.to(dtype)


# Of a BERT's layers; the second dense layer of a block is not that of its attention.
_DENSE = ["query", "key", "value", "dense"]
_SCALED = r".*layer\.\d+\.(attention\.self\.(key|value)|output\.dense)"
# Whether a layer of PEFT turns what it is given into the precision of its own weights.
_CAST = "cast_input_dtype_enabled"
_FEED_FORWARD = r".*layer\.\d+\.output\.dense"


def adapted(encoder: torch.nn.Module, tuning: Tuning) -> torch.nn.Module:
    """The encoder with what `tuning` adds to it, which begins as nothing, or with all its layers to be trained."""
    if tuning.method == "full":
        encoder.encoder.requires_grad_(True)  # the embeddings stay: few of the words occur
        return encoder
    import peft

    if tuning.method == "ia3":
        config: Any = peft.IA3Config(target_modules=_SCALED, feedforward_modules=_FEED_FORWARD)
    else:
        # PEFT calls alpha a whole number and divides by it as it is.
        alpha: Any = tuning.alpha
        config = peft.LoraConfig(r=tuning.rank, lora_alpha=alpha, target_modules=_DENSE, lora_dropout=0.0)
    peft.inject_adapter_in_model(config, encoder)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            # What is trained needs all its digits, whatever the frozen weights beside it have.
            parameter.data = parameter.data.float()
    for module in encoder.modules():
        if getattr(module, _CAST, False):
            # Under autocast both sides come in one precision; PEFT would copy every input to and fro.
            setattr(module, _CAST, False)
    return encoder
