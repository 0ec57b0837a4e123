"""Manifests, splits by patient, and the batches that training sees.

Invariant: no patient is on two sides of a split, and what a random transform does to a case depends only on (seed,
epoch, case), never on how many workers there are or whether the run was interrupted.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset, Sampler

from imaging.config import Config
from imaging.errors import ImagingError, LabelMismatch, ManifestInvalid, PatientLeak, TooFewCases
from imaging.nifti import case_name, read_nifti
from imaging.transforms import IMAGE, LABEL, as_label_tensor, augmentation, preprocessing
from imaging.volume import Volume

Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a manifest: an image, its mask, and whose it is.

    Attributes
    ----------
    name
        Name of the case, unique in the manifest.
    image, label
        Files.
    patient
        Who it is of; the case's own name where the manifest does not say.
    """

    name: str
    image: Path
    label: Path
    patient: str


@dataclass(frozen=True, slots=True)
class Split:
    """Names of the cases on each side."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def to_json(self) -> str:
        """As the run folder keeps it."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_manifest(root: Path) -> list[Case]:
    """Read the cases of a data set.

    Parameters
    ----------
    root
        A CSV with the columns ``image`` and ``label`` (paths relative to the CSV) and optionally ``case`` and
        ``patient``; or a folder with a Medical Segmentation Decathlon ``dataset.json``; or that file itself.

    Raises
    ------
    ManifestInvalid
        If it cannot be read, names a file that does not exist, or names a case twice.
    """
    manifest = root / "dataset.json" if root.is_dir() else root
    try:
        cases = _read_csv(manifest) if manifest.suffix.lower() == ".csv" else _read_decathlon(manifest)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ManifestInvalid(manifest, seen=f"cannot be read ({type(error).__name__}: {error})") from error
    if not cases:
        raise ManifestInvalid(manifest, seen="no case")
    for case in cases:
        for file in (case.image, case.label):
            if not file.is_file():
                raise ManifestInvalid(manifest, seen=f"case {case.name!r} names {file}, which does not exist")
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ManifestInvalid(manifest, seen=f"the case {min(twice)!r} is there more than once")
    return cases


def _read_csv(manifest: Path) -> list[Case]:
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    cases = []
    for row in rows:
        image, label = manifest.parent / row["image"], manifest.parent / row["label"]
        name = row.get("case") or case_name(image)
        cases.append(Case(name, image, label, row.get("patient") or name))
    return cases


def _read_decathlon(manifest: Path) -> list[Case]:
    content = json.loads(manifest.read_text(encoding="utf-8"))
    cases = []
    for row in content["training"]:
        image, label = manifest.parent / row["image"], manifest.parent / row["label"]
        cases.append(Case(case_name(image), image, label, case_name(image)))
    return cases


def split_by_patient(cases: Sequence[Case], *, test_fraction: float, folds: int, fold: int, seed: int) -> Split:
    """Divide the cases into train, validation and test, all cases of a patient on one side.

    The test part is drawn first and is the same in every fold; the rest is dealt into `folds`, of which number `fold`
    validates. The order of the manifest does not matter.

    Raises
    ------
    TooFewCases
        If train or validation would be empty.
    """
    patients = sorted({case.patient for case in cases})
    random.Random(seed).shuffle(patients)
    tested = set(patients[: round(len(patients) * test_fraction)])
    rest = [patient for patient in patients if patient not in tested]
    validated = set(rest[fold::folds])
    sides: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for case in sorted(cases, key=lambda case: case.name):
        side = "test" if case.patient in tested else "validation" if case.patient in validated else "train"
        sides[side].append(case.name)
    if not sides["train"] or not sides["validation"]:
        raise TooFewCases("split", seen=f"{len(patients)} patients for {folds} folds and a test part")
    return Split(*(tuple(sides[side]) for side in ("train", "validation", "test")))


def cases_of(split: Split, cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases on each side of a split.

    Raises
    ------
    ManifestInvalid
        If the split names a case that the manifest does not have.
    PatientLeak
        If a patient is on two sides.
    """
    by_name = {case.name: case for case in cases}
    unknown = {*split.train, *split.validation, *split.test} - set(by_name)
    if unknown:
        raise ManifestInvalid("split", seen=f"the case {min(unknown)!r} is not in the manifest")
    sides = {side: [by_name[name] for name in names] for side, names in asdict(split).items()}
    seen: dict[str, str] = {}
    for side, members in sides.items():
        for case in members:
            if seen.setdefault(case.patient, side) != side:
                raise PatientLeak(f"case {case.name}", seen=f"its patient is in {seen[case.patient]} and in {side}")
    return sides


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
    apart = np.abs((image.affine - mask.affine) @ [*image.shape, 1]).max()
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

    def __init__(self, cases: Sequence[Case], config: Config, augment: Compose | None) -> None:
        self._augment = augment
        self._seed = config.train.seed
        prepare = preprocessing(config.preprocess, with_label=True)
        self.names = [case.name for case in cases]
        self._samples = [self._prepare(case, prepare, len(config.labels)) for case in cases]

    @staticmethod
    def _prepare(case: Case, prepare: Compose, labels: int) -> Sample:
        image, mask = load_case(case, labels=labels)
        try:
            sample: Sample = prepare({IMAGE: image.as_metatensor(), LABEL: as_label_tensor(mask.array[0], mask.affine)})
        except RuntimeError as error:
            # MONAI wraps what a transform raises; the named refusal inside says more.
            if isinstance(error.__cause__, ImagingError):
                raise error.__cause__ from error
            raise
        return sample

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        sample = dict(self._samples[index])
        if self._augment is not None:
            seed = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)[0]
            self._augment.set_random_state(seed=int(seed))
            sample = dict(self._augment(sample))
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

    def __init__(self, config: Config, train: Sequence[Case], validation: Sequence[Case]) -> None:
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
