"""Each case comes once an epoch, in an order that depends on nothing but seed and epoch, whoever shares the batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segmented import case_in, several_patches

from imaging.config import SegmentConfig
from imaging.data import EpochSampler, Position, SegmentationData
from imaging.manifest import Case
from imaging.transforms import IMAGE, LABEL


@given(length=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_has_each_case_once(length: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(length, seed=seed, shuffle=True)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert sorted(keys) == [(epoch, index) for index in range(length)]
    assert keys == list(sampler)


@given(length=st.integers(1, 40), epoch=st.integers(0, 9), share=st.floats(0, 1))
def test_continued_epoch_is_the_rest_of_the_whole_one(length: int, epoch: int, share: float) -> None:
    whole = EpochSampler(length, seed=3, shuffle=True)
    skip = int(share * length)
    rest = EpochSampler(length, seed=3, shuffle=True, epoch=epoch, skip=skip)
    whole.set_epoch(epoch)
    assert list(rest) == list(whole)[skip:], "before Lightning says which epoch it is: loaders look ahead"
    rest.set_epoch(epoch)
    assert list(rest) == list(whole)[skip:]
    assert len(rest) == length
    for sampler in (rest, whole):
        sampler.set_epoch(epoch + 1)
    assert list(rest) == list(whole)


def test_whole_volumes_are_validated_once_however_many_patches_there_are(
    two_cases: Path, small_patches: SegmentConfig
) -> None:
    case = case_in(two_cases)
    module = SegmentationData(several_patches(small_patches, 3), [case, replace(case, name="two")], [case])
    assert [batch["index"].tolist() for batch in module.val_dataloader()] == [[0]]
    trained = [index for batch in module.train_dataloader() for index in batch["index"].tolist()]
    assert sorted(trained) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("patches", [1, 2])
def test_continued_run_begins_with_the_batch_after_the_last(
    two_cases: Path, small_patches: SegmentConfig, patches: int
) -> None:
    case = case_in(two_cases)
    cases = [replace(case, name=f"{number}") for number in range(5)]
    config = several_patches(small_patches, patches)

    def batches(begin: Position) -> list[tuple[list[int], float]]:
        module = SegmentationData(config, cases, [case])
        module.begin_at(begin)
        loader = module.train_dataloader()
        loader.sampler.set_epoch(2)
        assert len(loader) == {1: 2, 2: 5}[patches]
        return [(batch["index"].tolist(), float(batch[IMAGE].sum())) for batch in loader]

    assert batches(Position(2, 1)) == batches(Position(0, 0))[1:]


@given(
    length=st.integers(1, 40),
    ranks=st.integers(1, 4),
    each=st.integers(1, 3),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_share_the_batches_of_one(length: int, ranks: int, each: int, shuffle: bool, epoch: int) -> None:
    def batches(rank: int, ranks: int, size: int) -> list[set[int]]:
        sampler = EpochSampler(length, seed=1, shuffle=shuffle, batch_size=each * total, rank=rank, ranks=ranks)
        sampler.set_epoch(epoch)
        indices = [index for _, index in sampler]
        assert len(indices) == len(sampler) >= 1
        return [set(indices[at : at + size]) for at in range(0, len(indices), size)]

    total = ranks
    whole = batches(0, 1, each * total)
    shares = [batches(rank, ranks, each) for rank in range(ranks)]
    if shuffle and length >= ranks:
        assert {len(share) for share in shares} == {len(whole)}, "the ranks step together"
        assert [set.union(*parts) for parts in zip(*shares, strict=True)] == whole
    covered = set.union(*(part for share in shares for part in share))
    assert covered == set.union(*whole)
    assert shuffle or covered == set(range(length))


def test_order_changes_with_the_epoch_and_not_without_shuffling() -> None:
    def order(epoch: int, *, shuffle: bool) -> list[int]:
        sampler = EpochSampler(20, seed=0, shuffle=shuffle)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, shuffle=True) != order(1, shuffle=True)
    assert order(0, shuffle=False) == order(1, shuffle=False) == list(range(20))


def test_batches_are_patches_to_train_on_and_whole_volumes_to_validate_on(
    two_cases: Path, small_patches: SegmentConfig
) -> None:
    second = Case("two", (two_cases / "i003.nii.gz",), two_cases / "l003.nii.gz", "two")
    module = SegmentationData(small_patches, [case_in(two_cases), second], [second])
    (batch,) = module.train_dataloader()
    assert batch[IMAGE].shape == batch[LABEL].shape == (2, 1, 16, 24, 16)
    assert batch[LABEL].dtype == torch.uint8
    assert [module.train_names[index] for index in sorted(batch["index"].tolist())] == ["one", "two"]
    (whole,) = module.val_dataloader()
    assert whole[IMAGE].shape == (1, 1, 34, 52, 35)
