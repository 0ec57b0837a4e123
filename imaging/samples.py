"""The samples that batches are made of: read and prepared once, kept, changed at random each time.

Invariant: what a random transform does to a case depends only on (seed, epoch, case) and, where a case gives several
patches an epoch, on the patch's number. A sample is of the files as they were when the run began, or it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.utils.data import Dataset

from imaging.cache import Tensors
from imaging.cases import ClassifiedCase, load_picture
from imaging.channels import check_channels, read_channels, read_mask
from imaging.config import ClassifyConfig, Config, Data, SegmentConfig
from imaging.content import ContentIndex, files_in
from imaging.dataset_check import mismatches
from imaging.errors import CaseChanged, DuplicateCases, ImagingError
from imaging.gridding import classify_preprocessing
from imaging.manifest import Case
from imaging.patches import Patches, Places, places_of
from imaging.prepared import Keeper, Prepared, key_of
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
            If a file of the case is another one since the run began, or becomes one while it is read.
        """
        self._unchanged(index)
        try:
            sample = {name: _plain(value).contiguous() for name, value in self._prepare(self._cases[index]).items()}
        except (ImagingError, OSError):
            self._unchanged(index)  # a file that went while it was read is not one that is damaged
            raise
        self._unchanged(index)
        return sample

    def _unchanged(self, index: int) -> None:
        before, now = self._stamps[index], _stamps(self._cases[index])
        for path in {**before, **now}:
            if now.get(path) != before.get(path):
                raise CaseChanged(path, seen=f"{'changed' if now.get(path) else 'is gone'} (case {self.names[index]})")

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
