"""An entry is what was put there, or it is told and gone; the folder stays within its bound."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.cache import DiskCache, checksum
from imaging.errors import OutputNotWritable

GENEROUS = 2**30


def key(number: int) -> str:
    return f"{number:064x}"


def sample(seed: int = 0, voxels: int = 1000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((1, voxels), generator=generator)
    return {"image": image, "image.affine": torch.eye(4, dtype=torch.float64), "label": (image > 0.5).to(torch.uint8)}


def same(left: dict[str, torch.Tensor] | None, right: dict[str, torch.Tensor]) -> bool:
    assert left is not None
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def entries(root: Path) -> list[Path]:
    return sorted(root.glob("samples-*/*/*.safetensors"))


def bytes_in(root: Path) -> int:
    return sum(path.stat().st_size for path in entries(root))


def test_what_is_read_is_what_was_put(tmp_path: Path) -> None:
    assert DiskCache(tmp_path, most_bytes=GENEROUS).put(key(1), sample())
    found = DiskCache(tmp_path, most_bytes=GENEROUS).read(key(1))
    assert same(found, sample())
    assert found["image.affine"].dtype == torch.float64 and found["label"].dtype == torch.uint8


def test_what_is_read_is_mapped_and_not_held(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, most_bytes=GENEROUS)
    cache.put(key(1), sample(voxels=4_000_000))

    def anonymous_kib() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    before = anonymous_kib()
    held = [cache.read(key(1)) for _ in range(8)]
    assert float(held[0]["image"].sum()) > 0
    assert anonymous_kib() - before < 16_000  # one copy alone would be 15,625 KiB, eight 125,000


def test_key_without_entry_has_none(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, most_bytes=GENEROUS)
    assert not cache.has(key(1)) and cache.read(key(1)) is None


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_read(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    root = tmp_path_factory.mktemp("cache")
    DiskCache(root, most_bytes=GENEROUS).put(key(1), sample(voxels=30))
    (path,) = entries(root)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    found = DiskCache(root, most_bytes=GENEROUS).read(key(1))
    assert found is None or same(found, sample(voxels=30))  # padding of the header may change unnoticed
    assert found is not None or not entries(root)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_an_entry_cut_short_is_told_and_removed(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    root = tmp_path_factory.mktemp("cache")
    DiskCache(root, most_bytes=GENEROUS).put(key(1), sample(voxels=30))
    (path,) = entries(root)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert DiskCache(root, most_bytes=GENEROUS).read(key(1)) is None
    assert not entries(root)


def test_damage_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path, most_bytes=GENEROUS)
    cache.put(key(1), sample())
    (path,) = entries(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    cache.read(key(1))
    assert "is damaged" in caplog.text


def test_entry_without_a_checksum_is_not_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    cache = DiskCache(tmp_path, most_bytes=GENEROUS)
    cache.put(key(1), sample())
    save_file(sample(), entries(tmp_path)[0])
    assert cache.read(key(1)) is None


def test_checksum_covers_names_types_and_shapes() -> None:
    image = torch.zeros(2, 3)
    others = [
        {"picture": image},
        {"image": image.reshape(3, 2)},
        {"image": image.to(torch.int32)},
        {"image": image + 1},
        {"image": image, "more": torch.zeros(0)},
    ]
    assert len({checksum(other) for other in [{"image": image}, *others]}) == 6


# ------------------------------------------------------------------------------------------------------------ the bound


@pytest.fixture
def size(tmp_path: Path) -> int:
    """Bytes of one entry of these tests."""
    DiskCache(tmp_path / "measured", most_bytes=GENEROUS).put(key(1), sample())
    return bytes_in(tmp_path / "measured")


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, size: int) -> None:
    root = tmp_path / "cache"
    earlier = DiskCache(root, most_bytes=GENEROUS)
    for number in range(4):
        earlier.put(key(number), sample())
        os.utime(root / "samples-1" / "00" / f"{key(number)}.safetensors", (number, number))
    now = DiskCache(root, most_bytes=4 * size)
    assert now.has(key(0))  # used again, so that number 1 is the oldest
    assert now.put(key(9), sample())
    assert [path.stem for path in entries(root)] == [key(0), key(2), key(3), key(9)]


def test_what_the_run_uses_is_never_removed(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "cache"
    cache = DiskCache(root, most_bytes=3 * size)
    kept = [cache.put(key(number), sample(number)) for number in range(5)]
    assert kept == [True, True, True, False, False]
    assert caplog.text.count("data.cache_gib") == 1  # told, and once
    assert all(same(cache.read(key(number)), sample(number)) for number in range(3))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=20), most=st.integers(1000, 40_000))
def test_the_bound_holds(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int) -> None:
    root = tmp_path_factory.mktemp("cache")
    for start in range(0, len(sizes), 5):  # a run uses five
        cache = DiskCache(root, most_bytes=most)
        for number, voxels in enumerate(sizes[start : start + 5], start=start):
            cache.put(key(number), sample(voxels=voxels))
            assert bytes_in(root) <= most


def test_entries_of_another_format_count_and_are_never_read(tmp_path: Path, size: int) -> None:
    cache = DiskCache(tmp_path, most_bytes=GENEROUS)
    cache.put(key(1), sample())
    (tmp_path / "samples-1").rename(tmp_path / "samples-0")
    now = DiskCache(tmp_path, most_bytes=size)
    assert not now.has(key(1)) and now.read(key(1)) is None
    assert now.put(key(2), sample())
    assert [path.parts[-3] for path in entries(tmp_path)] == ["samples-1"]


def test_what_is_not_a_caches_is_left_alone(tmp_path: Path, size: int) -> None:
    (tmp_path / "thesis.tex").write_text("x" * 10_000)
    (tmp_path / "samples-1" / "00").mkdir(parents=True)
    (tmp_path / "samples-1" / "00" / "notes.txt").write_text("y" * 10_000)
    cache = DiskCache(tmp_path, most_bytes=size)
    assert cache.put(key(1), sample())
    assert DiskCache(tmp_path, most_bytes=size).put(key(2), sample())
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "samples-1" / "00" / "notes.txt").exists()


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, most_bytes=GENEROUS)
    cache.put(key(1), sample())
    old, new = (entries(tmp_path)[0].with_name(f".{name}.1.partial") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    DiskCache(tmp_path, most_bytes=GENEROUS)
    assert not old.exists() and new.exists()


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_full_disk_is_told_once_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path, most_bytes=GENEROUS)

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert not cache.put(key(1), sample()) and not cache.put(key(2), sample())
    assert caplog.text.count("No space left on device") == 1
    assert [path for path in tmp_path.rglob("*") if "partial" in path.name or path.suffix == ".safetensors"] == []


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(closed: Path) -> None:
    with pytest.raises(OutputNotWritable):
        DiskCache(closed / "cache", most_bytes=GENEROUS)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputNotWritable):
        DiskCache(tmp_path / "cache", most_bytes=GENEROUS)


def test_one_process_at_a_time_may_make_an_entry(tmp_path: Path) -> None:
    first, second = (DiskCache(tmp_path, most_bytes=GENEROUS) for _ in range(2))
    with first.lock(key(1), wait=False) as mine:
        assert mine
        with second.lock(key(1), wait=False) as also:
            assert not also
    with second.lock(key(1), wait=True) as free:
        assert free
