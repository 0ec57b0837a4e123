"""Who trains, who validates and who tests in a run, before anything of it is loaded.

Invariant: no patient is on two sides, and what a data set can be wrong about as a list is met here, before the first
file of a run is written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning

from imaging.cases import ClassifiedCase, read_cases, split_cases
from imaging.checkpoint import Checkpoint, NetworkCheckpoint, TextCheckpoint
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig, NetworkConfig, SegmentConfig, TextConfig
from imaging.data import ClassificationData, SegmentationData
from imaging.errors import ConfigInvalid, TooFewCases
from imaging.manifest import Case, Split, cases_of, read_manifest, split_by_patient
from imaging.networks import check_patches
from imaging.predict import Predictor
from imaging.prepared import contents_of
from imaging.samples import without_copies
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from imaging.tasks.text import TextTask
from imaging.text.cases import TextCase, read_spans, read_texts
from imaging.text.data import TextsData
from imaging.text.reading import TextModel
from pipelines.measure_classifier import measure_classifier
from pipelines.measure_segmenter import measure_segmenter
from pipelines.measure_texts import measure_texts
from pipelines.result import Measured

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Masked:
    """Cases with masks, and on which side of a run each one stands.

    Attributes
    ----------
    config
        The run's.
    split, sides
        The same by name, and as cases.
    facts
        What else there is to tell of the training cases.
    """

    config: SegmentConfig
    split: Split
    sides: Mapping[str, list[Case]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, config: NetworkConfig) -> Masked:
        """The same cases, to be trained on otherwise; what splits them must be the same."""
        assert isinstance(config, SegmentConfig)
        return replace(self, config=config)

    def without_test(self) -> Masked:
        """The same without the test cases."""
        return replace(self, sides=_seen(self.sides))

    def contents(self) -> dict[str, str]:
        """What each case holds that is trained or validated on; see `imaging.prepared.contents_of`."""
        return contents_of([*self.sides["train"], *self.sides["validation"]], self.config.data)

    def loaded(self) -> tuple[SegmentTask, SegmentationData]:
        """What Lightning fits, and on which batches."""
        lightning.seed_everything(self.config.train.seed, workers=True, verbose=False)
        data = SegmentationData(self.config, self.sides["train"], self.sides["validation"])
        return SegmentTask(self.config, data.train_names), data

    def measure(self, checkpoint: NetworkCheckpoint) -> Measured:
        """Measure a checkpoint on the validation and test cases."""
        assert isinstance(checkpoint, Checkpoint)
        return measure_segmenter(Predictor(checkpoint), _held(self.sides), data=_data(self.config))


@dataclass(frozen=True, slots=True)
class Classified:
    """Cases with classes, and on which side of a run each one stands; see `Masked`."""

    config: ClassifyConfig
    split: Split
    sides: Mapping[str, list[ClassifiedCase]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, config: NetworkConfig) -> Classified:
        """The same cases, to be trained on otherwise; what splits them must be the same."""
        assert isinstance(config, ClassifyConfig)
        return replace(self, config=config)

    def without_test(self) -> Classified:
        """The same without the test cases."""
        return replace(self, sides=_seen(self.sides))

    def contents(self) -> dict[str, str]:
        """What each case holds that is trained or validated on; see `imaging.prepared.contents_of`."""
        return contents_of([*self.sides["train"], *self.sides["validation"]], self.config.data)

    def loaded(self) -> tuple[ClassifyTask, ClassificationData]:
        """What Lightning fits, and on which batches."""
        lightning.seed_everything(self.config.train.seed, workers=True, verbose=False)
        data = ClassificationData(self.config, self.sides["train"], self.sides["validation"])
        return ClassifyTask(self.config, data.train_names, list(self.facts["cases_by_class"].values())), data

    def measure(self, checkpoint: NetworkCheckpoint) -> Measured:
        """Calibrate a checkpoint on the validation cases, and measure it on these and the test cases.

        Where the manifest has facts (age, sex, view), what they alone would have said stands beside it.
        """
        assert isinstance(checkpoint, Checkpoint)
        return measure_classifier(
            Classifier(checkpoint), _held(self.sides), data=_data(self.config), trained=self.sides["train"]
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts with classes or marked mentions, and on which side of a run each one stands; see `Masked`."""

    config: TextConfig
    split: Split
    sides: Mapping[str, list[TextCase]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, config: NetworkConfig) -> Texts:
        """The same cases, to be trained on otherwise; what splits them must be the same."""
        assert isinstance(config, TextConfig)
        return replace(self, config=config)

    def without_test(self) -> Texts:
        """The same without the test cases."""
        return replace(self, sides=_seen(self.sides))

    def contents(self) -> dict[str, str]:
        """What each case holds that is trained or validated on, by its SHA-256."""
        return {case.name: case.content_sha256() for side in _seen(self.sides).values() for case in side}

    def loaded(self) -> tuple[TextTask, TextsData]:
        """What Lightning fits, and on which batches."""
        lightning.seed_everything(self.config.train.seed, workers=True, verbose=False)
        data = TextsData(self.config, self.sides["train"], self.sides["validation"])
        return TextTask(self.config, data.train_names), data

    def measure(self, checkpoint: NetworkCheckpoint) -> Measured:
        """Calibrate a checkpoint on the validation cases, and measure it on these and the test cases."""
        assert isinstance(checkpoint, TextCheckpoint)
        return measure_texts(
            TextModel(checkpoint, encoder=self.config.encoder), _held(self.sides), data=_data(self.config)
        )


Cases = Masked | Classified | Texts


def _seen(sides: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {side: sides[side] for side in ("train", "validation")}


def _held(sides: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {side: sides[side] for side in ("validation", "test") if sides[side]}


def _data(config: NetworkConfig) -> str:
    """What a page calls the data set: its own name, and no path of this machine."""
    return Path(config.data.root).resolve().name if config.data.root else config.name


@dataclass(frozen=True, slots=True)
class Listed:
    """The cases of a data set, and how many copies of them were left out."""

    cases: Sequence[Case] | Sequence[ClassifiedCase] | Sequence[TextCase]
    copies: int = 0


def list_for(config: NetworkConfig) -> Listed:
    """The cases of the data set that a config names.

    Raises
    ------
    ConfigInvalid
        If it names none.
    ManifestInvalid, DuplicateCases
        If the data set cannot be used.
    """
    if isinstance(config, TextConfig):
        return _texts_for(config)
    if config.data.root is None:
        raise ConfigInvalid("data.root", seen="not given", expected="the data set's folder or CSV was expected",
                            remedy="Add data.root=PATH to the command")  # fmt: skip
    root = Path(config.data.root)
    if isinstance(config, SegmentConfig):
        return Listed(read_manifest(root))
    cases, copies = without_copies(read_cases(root, config), config.data.duplicates, config.data)
    if copies:
        log.info("%d cases are left out: others have the same pixels", copies)
    return Listed(cases, copies)


def _texts_for(config: TextConfig) -> Listed:
    """Texts with classes where there are classes to learn, and marked sentences where there are kinds."""
    if (config.data.root is None and not config.data.spans) or (config.classes and config.data.root is None):
        raise ConfigInvalid("data.root", seen="not given", expected="the CSV of the texts was expected",
                            remedy="Add data.root=PATH to the command")  # fmt: skip
    if config.kinds and not config.data.spans:
        raise ConfigInvalid("data.spans", seen="not given", expected="folders of marked sentences were expected",
                            remedy="Add data.spans=[PATH] to the command")  # fmt: skip
    texts, empty = read_texts(Path(config.data.root), config) if config.data.root else ([], 0)
    if empty:
        log.info("%d texts are left out: there is no word in them", empty)
    return Listed([*texts, *(case for folder in config.data.spans for case in read_spans(Path(folder), config))])


def deal_unseen(config: NetworkConfig) -> Cases:
    """The training and validation cases of a run, as `deal` puts them; no test case can be loaded from what this gives.

    Nor is one opened: copies are looked for among the cases that are given. Only where copies are to be dropped all
    cases are compared, since what is dropped decides who is on which side.
    """
    if not isinstance(config, ClassifyConfig) or config.data.duplicates != "refuse":
        dealt = deal(config, list_for(config))
    else:
        keeping = config.model_copy(update={"data": config.data.model_copy(update={"duplicates": "keep"})})
        dealt = deal(config, list_for(keeping))
        assert isinstance(dealt, Classified)
        without_copies([*dealt.sides["train"], *dealt.sides["validation"]], "refuse", config.data)
    return dealt.without_test()


def deal(config: NetworkConfig, listed: Listed) -> Cases:
    """Put every case on its side.

    Raises
    ------
    TooFewCases
        If a side would be empty, or lack a class.
    PatientLeak
        If a given split has a patient on two sides.
    ConfigInvalid
        If the network does not take the config's patches.
    """
    if isinstance(config, SegmentConfig):
        check_patches(config)
        masked = [case for case in listed.cases if isinstance(case, Case)]
        settings = config.data
        split = split_by_patient(
            masked,
            test_fraction=settings.test_fraction,
            folds=settings.folds,
            fold=settings.fold,
            seed=settings.seed,
        )
        return Masked(config, split, cases_of(split, masked))
    if isinstance(config, TextConfig):
        return _dealt_texts(config, [case for case in listed.cases if isinstance(case, TextCase)])
    classified = [case for case in listed.cases if isinstance(case, ClassifiedCase)]
    split = split_cases(classified, config)
    sides = cases_of(split, classified)
    counts = {item.name: sum(item.name in case.classes for case in sides["train"]) for item in config.classes}
    return Classified(config, split, sides, {"copies_left_out": listed.copies, "cases_by_class": counts})


def _dealt_texts(config: TextConfig, cases: Sequence[TextCase]) -> Texts:
    """Texts by their classes and patients, marked sentences as their files say."""
    judged = [case for case in cases if case.mentions is None]
    split = split_cases(judged, config) if judged else Split((), (), ())
    named: dict[str, list[str]] = {side: list(getattr(split, side)) for side in ("train", "validation", "test")}
    for case in cases:
        if case.mentions is not None:
            named[case.side or "train"].append(case.name)
    for side in ("train", "validation"):
        if not named[side]:
            raise TooFewCases(f"data.spans, {side}", seen="no sentence")
    whole = Split(*(tuple(named[side]) for side in ("train", "validation", "test")))
    return Texts(config, whole, cases_of(whole, cases), {"patients": len({case.patient for case in cases})})
