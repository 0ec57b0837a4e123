"""The batches that training sees.

Invariant: what a random transform does to a case depends only on (seed, epoch, case) and, where a case gives several
patches an epoch, on the patch's number; never on how many workers there are or whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from imaging.cache import Tensors
from imaging.cases import ClassifiedCase, load_picture
from imaging.channels import check_channels, read_channels, read_mask
from imaging.config import ClassifyConfig, Config, Data, SegmentConfig
from imaging.content import ContentIndex, files_in
from imaging.dataset_check import mismatches
from imaging.errors import CaseChanged, DuplicateCases, ImagingError
from imaging.gridding import classify_augmentation, classify_preprocessing
from imaging.manifest import Case
from imaging.patches import Patches, Places, places_of
from imaging.prepared import Keeper, Made, Prepared, key_of
from imaging.selection import check_grey
from imaging.transforms import IMAGE, LABEL, apply, as_label_tensor, preprocessing
from imaging.volume import Volume

Sample = dict[str, Any]


def load_case(case: Case, *, values: Sequence[int], channels: int = 1) -> tuple[Volume, Volume]:
    """Read a case's image (C, X, Y, Z) and mask (1, X, Y, Z) and check that they belong together.

    Parameters
    ----------
    case
        What to read.
    values
        What the mask may hold beside 0.
    channels
        How many the network takes.

    Raises
    ------
    ChannelMismatch
        If the image has another number of channels, or they do not lie on one grid.
    LabelMismatch
        If the mask has another shape or lies elsewhere than its image, or holds other values. One whose axes run in
        another order or direction on the same grid is turned.
    """
    image = read_channels(case.images)
    mask = read_mask(case.label, image)
    check_channels(image, channels, f"case {case.name}")
    for problem in mismatches(image, mask, case.label, values):
        raise problem
    return image, mask


def without_copies(
    cases: Sequence[ClassifiedCase], duplicates: Literal["keep", "drop", "refuse"], kept_in: Data | None = None
) -> tuple[list[ClassifiedCase], int]:
    """The cases of which no other has the same pixels, and how many were left out.

    Parameters
    ----------
    cases
        In any order. Of copies on several given sides the one for test is kept before that for validation, and that
        before the one for training, so that what is held out stays as it was given. Copies whose classes differ are
        all left out: one of them is wrong.
    duplicates
        ``keep`` looks at nothing.
    kept_in
        Where it may say to keep what is found; a picture that has not changed is then not read again.

    Raises
    ------
    DuplicateCases
        If there are copies and they are to be refused.
    """
    if duplicates == "keep":
        return list(cases), 0
    groups: dict[str, list[ClassifiedCase]] = {}
    disk = Keeper(kept_in).disk if kept_in is not None else None
    with ContentIndex(disk.contents if disk else None) as index:
        for case in cases:
            read = partial(_pixels_of, case)
            digest = index.pixels_of(key_of(case, {}, index), read) if disk else read()
            groups.setdefault(digest, []).append(case)
    kept = set()
    for copies in groups.values():
        if len(copies) > 1 and duplicates == "refuse":
            raise DuplicateCases(f"case {copies[1].name}", seen=f"the same pixels as in case {copies[0].name}")
        if len({case.classes for case in copies}) == 1:
            kept.add(max(copies, key=lambda case: ("train", "validation", "test").index(case.side or "train")).name)
    found = [case for case in cases if case.name in kept]
    return found, len(cases) - len(found)


def _pixels_of(case: ClassifiedCase) -> str:
    return load_picture(case).content_sha256()


# Of a config, what decides nothing of a prepared sample; whatever else there is may. Of the labels, their meaning.
_NOT_THE_SAMPLE: dict[str, Any] = dict.fromkeys(
    ("name", "version", "title", "applies_to", "classes", "output", "data", "network", "members", "train", "calibrate",
     "predict", "explain", "card", "tune"), True
) | {
    "channels": {"__all__": {"series"}},
    "labels": {"__all__": {"name", "title", "category", "code", "modifier", "colour"}},
}  # fmt: skip


class _Cached(Dataset[Sample]):
    """Prepared samples, augmented on the way out.

    An item is asked for by ``(epoch, index)``. The first items are the cases, one after another; where each gives
    several draws, the cases follow again for the second, the third. Random transforms are seeded by (seed, epoch,
    case), and from the second draw on by its number, too; without an augmentation neither makes a difference. The
    ``index`` of a sample is its case's.

    Parameters
    ----------
    cases
        What to prepare; all of them are, before the first is asked for.
    config
        How.
    keeper
        Where the prepared samples are kept; shared by all sides of a run.
    draws
        How many items of each case there are.
    """

    def __init__(self, cases: Sequence[Any], config: Config, keeper: Keeper | None, *, draws: int = 1) -> None:
        self.names = [case.name for case in cases]
        self._cases, self._seed, self._draws = cases, config.train.seed, draws
        self._stamps = [_stamps(case) for case in cases]
        keeper = keeper or Keeper(config.data)
        keys: list[str] = []
        if keeper.disk is not None:
            decided_by = config.model_dump(mode="json", exclude=_NOT_THE_SAMPLE)
            with ContentIndex(keeper.disk.contents) as index:
                keys = [key_of(case, decided_by, index) for case in cases]
        self._prepared = Prepared(self._plainly, len(cases), keys, keeper)

    def _plainly(self, index: int) -> Tensors:
        """The prepared sample of a case, whenever it is made.

        Raises
        ------
        CaseChanged
            If a file of the case is another one since the run began.
        """
        before, now = self._stamps[index], _stamps(self._cases[index])
        for path in {**before, **now}:
            if now.get(path) != before.get(path):
                raise CaseChanged(path, seen=f"{'changed' if now.get(path) else 'is gone'} (case {self.names[index]})")
        return {name: _plain(value).contiguous() for name, value in self._prepare(self._cases[index]).items()}

    def _prepare(self, case: Any) -> Sample:
        """What the deterministic transforms make of a case."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names) * self._draws

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, item = key
        number, index = divmod(item, len(self.names))
        seed = np.random.SeedSequence([self._seed, epoch, index, *([number] if number else [])])
        return {**self._finished(self._augmented(self._sample(index), index, seed)), "index": index}

    def _sample(self, index: int) -> Sample:
        """What the random transforms begin with; it is not to be written into."""
        return self._prepared[index]

    def _augmented(self, sample: Sample, index: int, seed: np.random.SeedSequence) -> Sample:
        """The sample changed at random; what is kept is left as it is."""
        raise NotImplementedError

    @staticmethod
    def _finished(sample: Sample) -> Sample:
        """As the network takes it: plain tensors."""
        return {key: _plain(value) for key, value in sample.items()}


def _stamps(case: Any) -> dict[Path, tuple[int, int, int] | None]:
    """Size and times of modification and of change (ns) of each file of a case, those of its folders too.

    None where there is none. Nobody can set the time of change back.
    """
    values = [getattr(case, item.name) for item in fields(case)]
    paths = [path for value in values for path in (value if isinstance(value, tuple) else (value,))]
    named = [path for path in paths if isinstance(path, Path)]
    return {path: _stamp(path) for path in (*named, *(file for path in named for file in files_in(path)))}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


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


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.as_tensor() if isinstance(value, MetaTensor) else value


class CachedCases(_Cached):
    """Volumes with their masks: patches of them, or whole where there are no patches to draw."""

    def __init__(
        self, cases: Sequence[Case], config: SegmentConfig, patches: Patches | None, keeper: Keeper | None = None
    ) -> None:
        self._transform = preprocessing(config.preprocess, with_label=True, scales=config.scales)
        self._values, self._channels = config.mask_values, len(config.scales)
        self._patches = patches
        self._places: dict[int, Places] = {}
        super().__init__(cases, config, keeper, draws=1 if patches is None else config.train.patches_per_case)

    def _augmented(self, sample: Sample, index: int, seed: np.random.SeedSequence) -> Sample:
        if self._patches is None:
            return sample
        if self._patches.foreground and index not in self._places:
            self._places[index] = places_of(sample[LABEL], seed=[self._seed, index])
        return self._patches(sample, self._places.get(index, {}), seed, subject=f"case {self.names[index]}")

    def _prepare(self, case: Case) -> Sample:
        image, mask = load_case(case, values=self._values, channels=self._channels)
        # One grid for both: load_case has checked that the mask lies on its image.
        sample = {IMAGE: image.as_metatensor(), LABEL: as_label_tensor(mask.array[0], image.affine)}
        prepared = apply(self._transform, sample, subject=case.images[0])
        return {**prepared, LABEL: prepared[LABEL].to(torch.uint8)}

    @staticmethod
    def _finished(sample: Sample) -> Sample:
        return {IMAGE: _plain(sample[IMAGE]), LABEL: _plain(sample[LABEL]).to(torch.uint8)}


class CachedPictures(_Cached):
    """Pictures or volumes with their classes, as K numbers 0 or 1 under ``label``."""

    def __init__(
        self,
        cases: Sequence[ClassifiedCase],
        config: ClassifyConfig,
        augment: Compose | None,
        keeper: Keeper | None = None,
    ) -> None:
        self._transform = classify_preprocessing(config.preprocess)
        self._classes = [item.name for item in config.classes]
        self._augment = augment
        super().__init__(cases, config, keeper)

    def _augmented(self, sample: Sample, index: int, seed: np.random.SeedSequence) -> Sample:
        if self._augment is None:
            return sample
        self._augment.set_random_state(seed=int(seed.generate_state(1)[0]))
        # Some of MONAI's transforms (RandCoarseDropout) write into what they are given.
        copied = {key: value.clone() for key, value in sample.items()}
        return apply(self._augment, copied, subject=f"case {self.names[index]}")

    def _prepare(self, case: ClassifiedCase) -> Sample:
        volume = load_picture(case)
        check_grey(volume.facts, volume.array.shape[0])
        return apply(self._transform, {IMAGE: volume.as_metatensor()}, subject=f"case {case.name}")

    def _sample(self, index: int) -> Sample:
        # The classes are the manifest's, not the picture's: another label makes no other sample.
        classes = self._cases[index].classes
        return {**super()._sample(index), LABEL: torch.tensor([float(name in classes) for name in self._classes])}


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
