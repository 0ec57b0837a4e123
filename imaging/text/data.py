"""The batches of texts that training sees.

Invariant: as in `imaging.data`; texts have no random transforms, so the order of the cases is all that chance decides.

Shapes: see `imaging.text.network`; ``label_BK`` of 0 and 1, all 0 where a text's class is not known; ``tag_WL`` with
`IGNORED` where a token has no tag of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from imaging.config import TextConfig
from imaging.data import RunData
from imaging.prepared import Made
from imaging.samples import Sample
from imaging.text.cases import TextCase
from imaging.text.encoder import Encoded, Tokens
from imaging.text.words import tags_of
from imaging.transforms import LABEL

IDS, MASK, OWNER, TAG, ENCODED, TRUE_TAGS = "ids", "mask", "owner", "tag", "encoded", "true_tags"
IGNORED = -100


class EncodedTexts(Dataset[Sample]):
    """Texts as the network takes them, each encoded once.

    An item is asked for by ``(epoch, index)``, as `imaging.data.EpochSampler` does.
    """

    def __init__(self, cases: Sequence[TextCase], config: TextConfig, tokens: Tokens) -> None:
        self.names = [case.name for case in cases]
        self._classes = [item.name for item in config.classes]
        self._cases = cases
        self._encoded = [tokens(case.text) for case in cases]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        _, index = key
        case, encoded = self._cases[index], self._encoded[index]
        label = torch.tensor([float(name in case.classes) for name in self._classes])
        tags = None if case.mentions is None else tags_of(encoded.words, case.mentions)
        return {"index": index, ENCODED: encoded, LABEL: label, TRUE_TAGS: tags}


def batch_of(texts: Sequence[Encoded]) -> dict[str, Any]:
    """Some texts as the network takes them: ``ids``, ``mask``, ``owner``."""
    windows = [window for text in texts for window in text.windows]
    ids_WL = torch.zeros(len(windows), max(map(len, windows)), dtype=torch.long)
    mask_WL = torch.zeros(ids_WL.shape)
    for number, window in enumerate(windows):
        ids_WL[number, : len(window)] = torch.tensor(window)
        mask_WL[number, : len(window)] = 1
    owner_W = torch.tensor([at for at, text in enumerate(texts) for _ in text.windows])
    return {IDS: ids_WL, MASK: mask_WL, OWNER: owner_W}


def collated(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of texts with their classes and the tags of their words."""
    texts: list[Encoded] = [sample[ENCODED] for sample in samples]
    batch = batch_of(texts)
    tag_WL = torch.full(batch[IDS].shape, IGNORED)
    begins = 0
    for text, sample in zip(texts, samples, strict=True):
        for place, tag in zip(text.places, sample[TRUE_TAGS] or (), strict=sample[TRUE_TAGS] is not None):
            if place is not None:
                tag_WL[begins + place[0], place[1]] = tag
        begins += len(text.windows)
    return {
        **batch,
        TAG: tag_WL,
        LABEL: torch.stack([sample[LABEL] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        ENCODED: texts,
        TRUE_TAGS: [sample[TRUE_TAGS] for sample in samples],
    }


class TextsData(RunData):
    """Texts to train on and to validate on."""

    def __init__(self, config: TextConfig, train: Sequence[TextCase], validation: Sequence[TextCase]) -> None:
        tokens = Tokens(config.encoder)
        super().__init__(
            EncodedTexts(train, config, tokens),
            EncodedTexts(validation, config, tokens),
            Made(anew=len(train) + len(validation)),
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            validated=config.predict.batch_size,
            workers=config.data.workers,
            collate=collated,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch; the texts stay where they are."""
        return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
