"""A budget is read as people write it, kept by a whole run, and refused with the smallest that would do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from imaging import predict
from imaging.checkpoint import Checkpoint, find_checkpoint, open_checkpoint, save_checkpoint
from imaging.classifier import Classifier
from imaging.config import Predict, SegmentConfig, load_config
from imaging.errors import MemoryInvalid, MemoryTooSmall
from imaging.files import shipped
from imaging.memory import Budget, in_use, rising, told
from imaging.networks import build_segmenter, weights_of
from imaging.predict import Predictor
from imaging.report import pictures
from imaging.restore import Block, OwnGrid
from imaging.tiles import fitting, layout_of
from imaging.volume import Volume


@pytest.mark.parametrize(
    ("text", "total"),
    [("4GB", 4 * 10**9), ("512MiB", 512 * 2**20), (" 1.5 GiB ", 3 * 2**29), ("1TB", 10**12), ("800000B", 800_000)],
)
def test_amounts_are_read_as_people_write_them(text: str, total: int) -> None:
    assert Budget.parse(text).total == total


@pytest.mark.parametrize("text", ["", "4", "GB", "-4GB", "0GB", "4 gigs", "4gb", "nanGB", "1e9B", "4GB5", "٤GB"])
def test_nonsense_is_refused_by_name(text: str) -> None:
    with pytest.raises(MemoryInvalid, match="4GB or 512MiB"):
        Budget.parse(text)


def test_what_does_not_fit_is_refused_with_the_smallest_budget_that_would() -> None:
    budget = Budget(in_use() + 10**8)
    budget.check(10**7, "series 1.2", "it")
    with pytest.raises(MemoryTooSmall) as refused:
        budget.check(10**9, "series 1.2", "it")
    found = re.search(r"at least ([\d.]+GB)", refused.value.expected)
    assert found is not None
    Budget.parse(found[1]).check(10**9 - 10**7, "series 1.2", "it")


def test_rise_of_memory_is_seen_while_it_lasts() -> None:
    with rising() as rise:
        big, deadline = np.ones(2**25, dtype=np.float32), time.monotonic() + 60
        while rise.bytes < big.nbytes and time.monotonic() < deadline:
            time.sleep(0.001)
        del big
    assert 2**27 <= rise.bytes < 2**28


@pytest.mark.parametrize(("amount", "text"), [(999, "1KB"), (1_000_001, "1.01MB"), (3_420_000_000, "3.42GB")])
def test_amounts_are_told_rounded_up(amount: int, text: str) -> None:
    assert told(amount) == text


def slice_by_slice(size: int) -> Volume:
    """As a DICOM series lies in memory, which is another order than that of the axes."""
    array_CXYZ = np.arange(size**3, dtype=np.float32).reshape(size, 1, size, size).transpose(1, 3, 2, 0)
    return Volume(array_CXYZ, np.eye(4))


@pytest.mark.parametrize(
    "look", [predict.check_not_mask, pictures.window_of], ids=["is_it_a_mask", "window_of_pictures"]
)
def test_a_volume_is_looked_at_without_a_copy(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[Volume], object]
) -> None:
    volume = slice_by_slice(160)
    monkeypatch.setattr(pictures, "_SAMPLED", 2**16)
    monkeypatch.setattr(predict, "_SAMPLED", 2**16)
    tracemalloc.start()
    try:
        look(volume)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < volume.array.nbytes / 8


def test_a_sample_tells_the_window_as_all_voxels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = slice_by_slice(64)
    whole = pictures.window_of(volume)
    assert whole == tuple(np.percentile(volume.array, [0.5, 99.5]))
    monkeypatch.setattr(pictures, "_SAMPLED", 2**12)
    assert pictures.window_of(volume) == pytest.approx(whole, abs=64**3 / 1000)


# -------------------------------------------------------------------------------------------------------------- sharing


def test_less_memory_is_more_strips_and_smaller_batches_and_never_more_than_there_is() -> None:
    settings, size, a_tile = Predict(patch=(32, 32, 32), batch_size=4), (128, 128, 300), 10**6
    whole = layout_of(settings, size).bytes_open(10, 2)
    tiles = []
    for left in (10**10, whole, whole // 2, whole // 8):
        layout, batch, taken = fitting(settings, size, outputs=10, members=2, left=left, a_tile=a_tile, batch_size=4)
        assert taken == layout.bytes_open(10, 2) + batch * a_tile <= left
        tiles.append(layout.tiles())
    assert tiles == sorted(tiles)
    assert tiles[0] < tiles[-1]
    layout, batch, least = fitting(settings, size, outputs=10, members=2, left=0, a_tile=a_tile, batch_size=4)
    assert batch == 1
    assert fitting(settings, size, outputs=10, members=2, left=least, a_tile=a_tile, batch_size=4)[2] == least


def checkpoint_in(folder: Path, labels: int) -> Checkpoint:
    torch.set_num_threads(1)
    content = yaml.safe_load((shipped("configs") / "hippocampus_mr.yaml").read_text())
    content["labels"] = [{**content["labels"][0], "id": n, "name": f"part_{n}"} for n in range(1, labels + 1)]
    content["applies_to"] = {**content["applies_to"], "extent_max_mm": [500] * 3, "extent_min_mm": [1] * 3}
    content["network"] = {"name": "UNet", "options": {"channels": [4, 8], "strides": [2]}}
    content["preprocess"]["spacing_mm"] = [None] * 3
    content["train"]["patch"] = content["predict"]["patch"] = [32, 32, 32]
    content["predict"] |= {"precision": "32", "flip_axes": [], "overlap": 0.25}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    config = load_config(folder / "config.yaml")
    assert isinstance(config, SegmentConfig)
    torch.manual_seed(0)
    return save_checkpoint(folder / "checkpoint", config, weights_of(build_segmenter(config)), {})


def noise(size: int) -> Volume:
    array = np.random.default_rng(0).normal(100, 20, (1, size, size, size)).astype(np.float32)
    return Volume(array, np.eye(4))


def test_budget_changes_the_memory_and_not_the_mask(tmp_path: Path) -> None:
    checkpoint, volume = checkpoint_in(tmp_path, labels=3), noise(40)
    free = Predictor(checkpoint, engine="torch")(volume)
    kept = Predictor(checkpoint, engine="torch", budget=Budget(in_use() + 2**30))(volume)
    assert np.array_equal(free.mask_XYZ, kept.mask_XYZ)
    assert free.mask_XYZ.any()


def test_budget_too_small_for_one_tile_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_in(tmp_path, labels=3)
    predictor = Predictor(checkpoint, engine="torch", budget=Budget(in_use() // 2))
    with pytest.raises(MemoryTooSmall, match="at least"):
        predictor(noise(40))


def test_what_is_written_later_is_refused_before_it_is_read(tmp_path: Path) -> None:
    predictor = Predictor(checkpoint_in(tmp_path, labels=3), engine="torch", budget=Budget(in_use() + 2**30))
    predictor.check_room((40, 40, 40), np.eye(4), subject="series 1.2", unread=1, delivering=2**29)
    with pytest.raises(MemoryTooSmall, match="writing of it needs"):
        predictor.check_room((40, 40, 40), np.eye(4), subject="series 1.2", unread=1, delivering=2**30)


def test_each_processor_at_work_takes_what_is_counted_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    probability_KXYZ = np.random.default_rng(0).random((4, 64, 64, 64), dtype=np.float32)
    grid = OwnGrid(np.eye(4), (64, 64, 64), shape=(256, 256, 256), to_affine=np.diag([0.25, 0.25, 0.25, 1]))
    labels = np.ones((256, 256, 256), dtype=np.uint8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = predict.at_work()
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with rising() as rise:
        grid.add_labels(Block((0, 0, 0), probability_KXYZ), labels)
    assert rise.bytes < predict.at_work() == alone + 7 * predict._A_THREAD


def test_a_classifier_is_bound_by_the_budget() -> None:
    classifier = Classifier(
        open_checkpoint(find_checkpoint("chest_xray")), engine="torch", budget=Budget(in_use() + 10**9)
    )
    classifier.check_room((3000, 3000, 1), subject="film", unread=1)
    with pytest.raises(MemoryTooSmall, match="classifying it"):
        classifier.check_room((10000, 10000, 1), subject="film", unread=1)


@pytest.mark.long
def test_whole_run_keeps_its_budget_where_all_classes_at_once_would_not(tmp_path: Path) -> None:
    """60 classes of 160 x 160 x 160 are 983 MB in float32, of which the probabilities alone were two and more."""
    checkpoint, volume = checkpoint_in(tmp_path, labels=59), noise(160)
    nib.save(nib.Nifti1Image(volume.array[0], volume.affine), tmp_path / "noise.nii.gz")
    imgpipe = str(Path(sys.executable).parent / "imgpipe")

    def run(memory: str) -> tuple[int, int, str]:
        command = [imgpipe, "infer", str(tmp_path / "noise.nii.gz"), "--model", str(checkpoint.folder),
                   "--out", str(tmp_path / "out"), "--memory", memory]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            text = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss * 1024, text

    status, _, text = run("300MB")
    assert status == 3
    assert "memory_too_small" in text
    status, peak, text = run("1100MB")
    assert status == 0, text
    assert peak <= 1100 * 10**6
