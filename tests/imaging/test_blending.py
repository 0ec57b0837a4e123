"""Tiles that serve give what MONAI's sliding window gives, whatever is flipped, padded or cut into strips."""

from __future__ import annotations

import tracemalloc
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.blending import Ask, blocks_of
from imaging.config import Predict
from imaging.restore import OwnGrid, restore_labels
from imaging.tasks.whole import logits_of
from imaging.tiles import layout_of

Array = np.ndarray[Any, Any]


def network_of(seed: int, axes: int, channels: int = 1, outputs: int = 3) -> torch.nn.Module:
    """Random weights, and an answer that depends on where in its tile a voxel lies, as that of every padding does."""
    torch.manual_seed(seed)
    layer = (torch.nn.Conv2d, torch.nn.Conv3d)[axes - 2]
    return torch.nn.Sequential(layer(channels, 6, 5, padding=2), torch.nn.Tanh(), layer(6, outputs, 3, padding=1))


def ask_of(network: torch.nn.Module) -> Ask:
    @torch.inference_mode()
    def ask(tiles: Array) -> Array:
        return network(torch.from_numpy(tiles)).numpy()

    return ask


@torch.inference_mode()
def plainly(networks: list[torch.nn.Module], image: Array, config: Predict, *, overlapping: bool) -> Array:
    """Whole, by MONAI: flips and members averaged after the softmax."""
    flips = [flip for n in range(4) for flip in product(config.flip_axes, repeat=n) if list(flip) == sorted(set(flip))]
    total = []
    for network, flip in product(networks, flips):
        axes = [axis + 2 for axis in flip]
        logits = logits_of(network, torch.from_numpy(image)[None].flip(axes), config).flip(axes)
        total.append((logits.sigmoid() if overlapping else logits.softmax(1))[0].numpy())
    return np.mean(total, axis=0)


def joined(networks: list[torch.nn.Module], image: Array, config: Predict, *, overlapping: bool = False,
           cuts: tuple[int, int] = (1, 1), skip_air: bool = False) -> Array:  # fmt: skip
    """The blocks put together; every voxel must be owned once."""
    _, x, y, z = image.shape
    layout = layout_of(config, (x, y, z), cuts=cuts)
    whole, owners = np.full((3, x, y, z), np.nan, np.float32), np.zeros((x, y, z), int)
    for block in blocks_of([ask_of(network) for network in networks], image, layout, outputs=3,
                           overlapping=overlapping, batch_size=config.batch_size, skip_air=skip_air):  # fmt: skip
        owned = block.owned((x, y, z))
        place = tuple(slice(low, low + part.indices(n)[1]) for low, part, n in
                      zip(block.low, owned, block.probability_KXYZ.shape[1:], strict=True))  # fmt: skip
        whole[:, *place] = block.probability_KXYZ[:, *owned]
        owners[place] += 1
    assert (owners == 1).all()
    return whole


@given(
    size=st.tuples(*[st.integers(3, 21)] * 3),
    patch=st.one_of(st.tuples(*[st.sampled_from([4, 6, 9, 12])] * 3), st.tuples(*[st.sampled_from([5, 8, 16])] * 2)),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    flips=st.sampled_from([(), (0,), (2,), (0, 1)]),
    cuts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(1, 5),
    members=st.integers(1, 2),
    channels=st.integers(1, 2),
    overlapping=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_blocks_are_the_whole_by_monai(
    size: tuple[int, int, int], patch: tuple[int, ...], overlap: float, flips: tuple[int, ...], cuts: tuple[int, int],
    batch: int, members: int, channels: int, overlapping: bool,
) -> None:  # fmt: skip
    config = Predict(patch=patch, overlap=overlap, batch_size=batch, precision="32", flip_axes=flips)
    networks = [network_of(seed, len(patch), channels) for seed in range(members)]
    image = np.random.default_rng(1).normal(0, 2, (channels, *size)).astype(np.float32)
    expected = plainly(networks, image, config, overlapping=overlapping)
    found = joined(networks, image, config, overlapping=overlapping, cuts=cuts)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_slices_of_a_thin_network_come_in_full_batches() -> None:
    asked: list[int] = []

    def ask(tiles: Array) -> Array:
        asked.append(len(tiles))
        return np.zeros((len(tiles), 2, *tiles.shape[2:]), np.float32)

    config = Predict(patch=(16, 16), batch_size=6)
    list(blocks_of([ask], np.ones((1, 16, 16, 20), np.float32), layout_of(config, (16, 16, 20)), outputs=2,
                   overlapping=False, batch_size=6))  # fmt: skip
    assert asked == [6, 6, 6, 2]


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_threads_change_no_bit(flips: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Predict(patch=(12, 10, 9), overlap=0.5, batch_size=2, precision="32", flip_axes=flips)
    image = np.random.default_rng(2).normal(size=(1, 23, 17, 19)).astype(np.float32)
    monkeypatch.setattr("imaging.blending._WORTH_THREADS", 0)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(joined([network_of(0, 3)], image, config))
    monkeypatch.undo()
    assert found[0].std() > 0.01
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], joined([network_of(0, 3)], image, config))


def test_what_goes_wrong_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaging.blending._WORTH_THREADS", 0)

    def too_small(tiles: Array) -> Array:
        return np.zeros((len(tiles), 2, 7, 8, 8), np.float32)

    with pytest.raises(ValueError, match="broadcast"):
        list(blocks_of([too_small], np.ones((1, 8, 8, 8), np.float32), layout_of(Predict(patch=(8, 8, 8)), (8, 8, 8)),
                       outputs=2, overlapping=False))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ air


def test_mirrored_tiles_of_a_network_go_with_the_others() -> None:
    config = Predict(patch=(8, 8, 8), flip_axes=(0, 1), batch_size=3)
    asked: list[tuple[int, int]] = []

    def ask_by(member: int) -> Ask:
        def ask(tiles: Array) -> Array:
            asked.append((member, len(tiles)))
            return np.zeros((len(tiles), 3, 8, 8, 8), dtype=np.float32)

        return ask

    image = np.zeros((1, 7, 8, 5), dtype=np.float32)
    blocks = blocks_of([ask_by(0), ask_by(1)], image, layout_of(config, (7, 8, 5)), outputs=3, overlapping=False,
                       batch_size=3)  # fmt: skip
    assert len(list(blocks)) == 1
    assert asked == [(0, 3), (0, 1), (1, 3), (1, 1)]


def body_in_air(shape: tuple[int, ...] = (40, 24, 24)) -> Array:
    image = np.full((1, *shape), -1.5, np.float32)
    image[0, :9, 5:15, 5:15] = np.random.default_rng(0).random((9, 10, 10))
    return image


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_skipped_air_has_the_very_answer_that_it_would_have_had(flips: tuple[int, ...]) -> None:
    """Also of a network that finds something in air, and other things in other corners of its tile."""
    config = Predict(patch=(8, 8, 8), batch_size=3, precision="32", flip_axes=flips)
    networks, image = [network_of(seed, 3) for seed in range(2)], body_in_air()
    for network in networks:
        network[2].bias.data[1] += 1
    plain = joined(networks, image, config)
    np.testing.assert_allclose(joined(networks, image, config, skip_air=True), plain, atol=2e-6)
    assert (plain.argmax(0)[20:] == 1).any(), "in the air, too, there is something to lose"


def test_network_is_asked_once_for_all_air() -> None:
    asked: list[Array] = []

    def ask(tiles: Array) -> Array:
        asked.extend(tiles)
        return np.zeros((len(tiles), 3, *tiles.shape[2:]), np.float32)

    config = Predict(patch=(8, 8, 8), overlap=0.5)
    image = body_in_air()
    layout = layout_of(config, (40, 24, 24))
    list(blocks_of([ask], image, layout, outputs=3, overlapping=False, skip_air=True))
    of_air = [tile for tile in asked if (tile == -1.5).all()]
    assert len(of_air) == 1
    assert len(asked) < layout.tiles() / 2


def test_tile_of_nearly_nothing_but_air_is_asked() -> None:
    config = Predict(patch=(8, 8, 8), batch_size=3, precision="32")
    image = body_in_air()
    image[0, 30, 12, 12] += 1e-3
    networks = [network_of(0, 3)]
    changed, unchanged = joined(networks, image, config, skip_air=True), joined(networks, body_in_air(), config)
    assert not np.array_equal(changed[:, 29:32], unchanged[:, 29:32])


# ----------------------------------------------------------------------------------------------------- to the own grid


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.8, 1.7), (-2.0, 0.5, 0.5)], ids=str)
def test_own_grid_from_blocks_is_that_from_the_whole(spacing: tuple[float, ...], overlapping: bool) -> None:
    """Bit for bit, with ties: the network is certain everywhere."""
    labels = np.random.default_rng(2).integers(0, 3, (18, 20, 26))
    certain = np.stack([labels == k for k in range(3)]).astype(np.float32)
    image = certain * np.float32(200)

    def ask(tiles: Array) -> Array:
        return tiles - 100

    to_affine = np.array([[0, spacing[0], 0, 17.0 if spacing[0] < 0 else 0.1], [spacing[1], 0, 0, 0],
                          [0, 0, spacing[2], -1], [0, 0, 0, 1]])  # fmt: skip
    config = Predict(patch=(8, 8, 8), batch_size=2)
    shape, size = (30, 22, 31), (18, 20, 26)
    grid = OwnGrid(np.eye(4), size, shape=shape, to_affine=to_affine)
    masks = []
    for cuts in [(1, 1), (2, 3)]:
        blocks = blocks_of([ask], image, layout_of(config, size, cuts=cuts), outputs=3, overlapping=overlapping)
        mask = np.zeros((3, *shape), bool) if overlapping else np.zeros(shape, np.uint8)
        for block in blocks:
            (grid.add_regions if overlapping else grid.add_labels)(block, mask)  # type: ignore[operator, arg-type]
        masks.append(mask)
    assert masks[0].any()
    assert np.array_equal(masks[0], masks[1])
    if not overlapping:
        assert np.array_equal(masks[0], restore_labels(certain, np.eye(4), shape=shape, to_affine=to_affine))


@pytest.mark.parametrize(("cuts", "flips", "batch"), [((1, 1), (), 1), ((2, 2), (), 1), ((3, 1), (0,), 2)])
def test_memory_is_that_of_the_layout_and_of_one_answer(
    cuts: tuple[int, int], flips: tuple[int, ...], batch: int
) -> None:
    outputs, size, patch = 40, (28, 28, 40), (16, 16, 16)
    layout = layout_of(Predict(patch=patch, overlap=0.25, flip_axes=flips, batch_size=batch), size, cuts=cuts)
    image = np.zeros((1, *size), dtype=np.float32)

    def ask(tiles: Array) -> Array:
        return np.zeros((len(tiles), outputs, *patch), dtype=np.float32)

    answer = 4 * batch * outputs * 16**3
    tracemalloc.start()
    try:
        for block in blocks_of([ask], image, layout, outputs=outputs, overlapping=False, batch_size=batch):
            assert block.probability_KXYZ.shape[0] == outputs
            del block
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert layout.bytes_open(outputs, 1) < most < layout.bytes_open(outputs, 1) + answer + 400_000
