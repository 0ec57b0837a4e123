"""The batches that training sees.

Invariant: which samples make a batch, and in what order, depends only on (seed, epoch); never on how many workers there
are or whether the run was interrupted. What is in a sample is the business of `imaging.samples`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from imaging.cases import ClassifiedCase
from imaging.config import ClassifyConfig, SegmentConfig
from imaging.errors import ImagingError
from imaging.gridding import classify_augmentation
from imaging.manifest import Case
from imaging.patches import Patches
from imaging.prepared import Keeper, Made
from imaging.samples import CachedCases, CachedPictures, Sample


class _Telling(Dataset[Any]):
    """A data set whose refusals are its values: what is raised in a worker reaches the training as text alone."""

    def __init__(self, cases: Items) -> None:
        self._cases = cases

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, key: tuple[int, int]) -> Sample | ImagingError:
        try:
            return self._cases[key]
        except ImagingError as error:
            return error


def _batch_of(samples: list[Any], *, collate: Callable[[list[Sample]], Any]) -> Any:
    """Samples as a batch, or the first refusal among them."""
    return next((sample for sample in samples if isinstance(sample, ImagingError)), None) or collate(samples)


@dataclass(frozen=True, slots=True)
class Position:
    """How far into a run's training batches: `batches` of epoch `epoch` (counted from 0) are done."""

    epoch: int = 0
    batches: int = 0


class EpochSampler(Sampler[tuple[int, int]]):
    """Each item of a data set once an epoch, as ``(epoch, index)``; their order is a function of (seed, epoch) alone.

    Lightning calls `set_epoch` before each epoch, after a resume too. Its loader may ask for the first epoch before
    that, so a resumed run's sampler begins in the epoch where the run was stopped.

    Several ranks deal each batch out among them, so that together they see what one rank sees. With `shuffle` a last
    batch that is not full is left out, unless it is the only one. A rank without an item takes the first one.

    Parameters
    ----------
    length
        Number of items: of cases, or of the patches that all of them give.
    seed
        Of the run.
    shuffle
        Whether the order changes.
    batch_size
        Of all ranks together.
    rank, ranks
        Whose share this is, and among how many.
    epoch, skip
        Where it begins: in this epoch (and in no other) the first `skip` items of the share are left out. `len` counts
        them still, since it is the epoch's length that Lightning counts batches against.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        batch_size: int = 1,
        rank: int = 0,
        ranks: int = 1,
        epoch: int = 0,
        skip: int = 0,
    ) -> None:
        self._length, self._seed, self._shuffle = length, seed, shuffle
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        self._epoch, self._begun, self._skip = epoch, epoch, skip

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._share())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        left = self._share()[self._skip if self._epoch == self._begun else 0 :]
        return iter([(self._epoch, index) for index in left])

    def _share(self) -> list[int]:
        order = np.arange(self._length)
        if self._shuffle:
            np.random.default_rng([self._seed, self._epoch]).shuffle(order)
            if self._length > self._batch_size:
                order = order[: self._length // self._batch_size * self._batch_size]
        starts = range(0, len(order), self._batch_size)
        share = [int(index) for at in starts for index in order[at : at + self._batch_size][self._rank :: self._ranks]]
        return share or [int(order[0])]


class Items(Protocol):
    """Cases as they are batched: each asked for by ``(epoch, index)``, with their names by their index."""

    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int], /) -> Sample: ...


class RunData(lightning.LightningDataModule):
    """The batches of one run, whatever its task.

    Parameters
    ----------
    train, validation
        The cases on either side.
    made
        How their samples came about.
    seed
        Of the run.
    batch_size, validated
        How many are trained on, and validated on, at a time.
    workers
        Processes that make the batches.
    collate
        Samples -> a batch.
    """

    def __init__(
        self,
        train: Items,
        validation: Items,
        made: Made,
        *,
        seed: int,
        batch_size: int,
        validated: int,
        workers: int,
        collate: Callable[[list[Sample]], Any] = default_collate,
    ) -> None:
        super().__init__()
        self.made = made
        self._train, self._validation = train, validation
        self._seed, self._batch_size, self._validated = seed, batch_size, validated
        self._workers = workers
        self._collate = partial(_batch_of, collate=collate)
        self._begin = Position()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what a worker was refused."""
        if isinstance(batch, ImagingError):
            raise batch
        return batch

    def begin_at(self, position: Position) -> None:
        """Where a resumed run's training batches begin; to be called before Lightning asks for them."""
        self._begin = position

    @property
    def train_names(self) -> list[str]:
        """Names of the training cases, by the ``index`` of a batch."""
        return self._train.names

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented batches, this rank's share of each; a last batch that is not full is left out."""
        rank, ranks = self._place()
        own = self._batch_size // ranks
        sampler = EpochSampler(len(self._train), seed=self._seed, shuffle=True, batch_size=self._batch_size, rank=rank,
                               ranks=ranks, epoch=self._begin.epoch, skip=self._begin.batches * own)  # fmt: skip
        return self._loader(self._train, sampler, batch_size=own)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Whole images, without augmentation, this rank's share of them."""
        rank, ranks = self._place()
        sampler = EpochSampler(len(self._validation), seed=self._seed, shuffle=False, batch_size=ranks, rank=rank,
                               ranks=ranks)  # fmt: skip
        return self._loader(self._validation, sampler, batch_size=self._validated)

    def _loader(self, cases: Items, sampler: EpochSampler, *, batch_size: int) -> DataLoader[Sample]:
        workers = self._workers
        return DataLoader(_Telling(cases), batch_size=batch_size, sampler=sampler, collate_fn=self._collate,
                          num_workers=workers, persistent_workers=workers > 0,
                          pin_memory=torch.cuda.is_available())  # fmt: skip

    def _place(self) -> tuple[int, int]:
        """Which of how many ranks this is."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class SegmentationData(RunData):
    """Augmented patches (B, C, X, Y, Z) to train on, one whole volume at a time to validate on."""

    def __init__(self, config: SegmentConfig, train: Sequence[Case], validation: Sequence[Case]) -> None:
        keeper = Keeper(config.data)
        super().__init__(
            CachedCases(train, config, Patches(config.train), keeper),
            CachedCases(validation, config, None, keeper),
            keeper.made,
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            validated=1,
            workers=config.data.workers,
        )


class ClassificationData(RunData):
    """Pictures (B, C, X, Y) or volumes (B, C, X, Y, Z): augmented to train on, as they are to validate on."""

    def __init__(
        self, config: ClassifyConfig, train: Sequence[ClassifiedCase], validation: Sequence[ClassifiedCase]
    ) -> None:
        augment = classify_augmentation(config.train.augment, axes=len(config.preprocess.size))
        keeper = Keeper(config.data)
        super().__init__(
            CachedPictures(train, config, augment, keeper),
            CachedPictures(validation, config, None, keeper),
            keeper.made,
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            validated=config.predict.batch_size,
            workers=config.data.workers,
        )
