"""The batches that training sees.

Invariant: what a random transform does to a case depends only on (seed, epoch, case), never on how many workers there
are or whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset, Sampler

from imaging.config import SegmentConfig
from imaging.errors import LabelMismatch
from imaging.manifest import Case
from imaging.nifti import read_nifti
from imaging.transforms import IMAGE, LABEL, apply, as_label_tensor, augmentation, preprocessing
from imaging.volume import Volume

Sample = dict[str, Any]


def load_case(case: Case, *, labels: int) -> tuple[Volume, Volume]:
    """Read a case's image and mask and check that they belong together.

    Parameters
    ----------
    case
        What to read.
    labels
        Number of structures; the mask may hold 0 to this.

    Raises
    ------
    LabelMismatch
        If the mask has another shape or lies elsewhere than its image, or holds other values.
    """
    image, mask = read_nifti(case.image), read_nifti(case.label)
    if image.shape != mask.shape:
        raise LabelMismatch(case.label, seen=f"shape {mask.shape}, the image has {image.shape}")
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*image.shape, 1]
    apart = float(np.linalg.norm((corners @ (image.affine - mask.affine).T)[:, :3], axis=1).max())
    if apart > 0.1 * min(image.spacing):
        raise LabelMismatch(case.label, seen=f"it lies up to {apart:.2f} mm from its image")
    values = np.unique(mask.array)
    wrong = [value for value in values.tolist() if value not in range(labels + 1)]
    if wrong:
        raise LabelMismatch(
            case.label, seen=f"the value {wrong[0]:g}", expected=f"whole numbers 0 to {labels} were expected"
        )
    return image, mask


class CachedCases(Dataset[Sample]):
    """Preprocessed cases in memory, augmented on the way out.

    An item is asked for by ``(epoch, index)``, and its random transforms are seeded by (seed, epoch, index); without an
    augmentation the epoch makes no difference.
    """

    def __init__(self, cases: Sequence[Case], config: SegmentConfig, augment: Compose | None) -> None:
        self._augment = augment
        self._seed = config.train.seed
        prepare = preprocessing(config.preprocess, with_label=True)
        self.names = [case.name for case in cases]
        self._samples = [self._prepare(case, prepare, len(config.labels)) for case in cases]

    @staticmethod
    def _prepare(case: Case, prepare: Compose, labels: int) -> Sample:
        image, mask = load_case(case, labels=labels)
        # One grid for both: load_case has checked that the mask lies on its image.
        sample = {IMAGE: image.as_metatensor(), LABEL: as_label_tensor(mask.array[0], image.affine)}
        return apply(prepare, sample, subject=case.image)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        sample = dict(self._samples[index])
        if self._augment is not None:
            seed = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0]
            self._augment.set_random_state(seed=int(seed))
            sample = apply(self._augment, sample, subject=f"case {self.names[index]}")
        return {
            IMAGE: sample[IMAGE].as_tensor(),
            LABEL: sample[LABEL].as_tensor().to(torch.uint8),
            "index": index,
        }


class EpochSampler(Sampler[tuple[int, int]]):
    """Each case once an epoch, as ``(epoch, index)``, in an order that is a function of (seed, epoch) alone.

    Lightning calls `set_epoch` before each epoch, after a resume too.
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool) -> None:
        self._length, self._seed, self._shuffle, self._epoch = length, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self._length)
        if self._shuffle:
            np.random.default_rng([self._seed, self._epoch]).shuffle(order)
        return iter([(self._epoch, int(index)) for index in order])


class SegmentationData(lightning.LightningDataModule):
    """The batches of one run: augmented patches to train on, whole volumes to validate on."""

    def __init__(self, config: SegmentConfig, train: Sequence[Case], validation: Sequence[Case]) -> None:
        super().__init__()
        self._config = config
        augment = augmentation(config.train.augment, patch=config.train.patch)
        self._train = CachedCases(train, config, augment)
        self._validation = CachedCases(validation, config, None)

    @property
    def train_names(self) -> list[str]:
        """Names of the training cases, by the ``index`` of a batch."""
        return self._train.names

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of (B, C, X, Y, Z) patches; a last batch that is not full is left out."""
        return self._loader(self._train, batch_size=self._config.train.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """One whole volume at a time."""
        return self._loader(self._validation, batch_size=1, shuffle=False)

    def _loader(self, cases: CachedCases, *, batch_size: int, shuffle: bool) -> DataLoader[Sample]:
        sampler = EpochSampler(len(cases), seed=self._config.train.seed, shuffle=shuffle)
        drop_last = shuffle and len(cases) > batch_size
        return DataLoader(cases, batch_size=batch_size, sampler=sampler, drop_last=drop_last)
