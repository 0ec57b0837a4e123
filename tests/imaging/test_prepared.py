"""The same samples bit for bit wherever they are kept, and made anew when anything that decides them has changed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from classified import toy_config, write_pictures
from PIL import Image
from torch.utils.data import DataLoader

from imaging import content, prepared
from imaging import samples as samples_module
from imaging.cases import ClassifiedCase, read_cases
from imaging.config import ClassifyConfig, SegmentConfig, load_config
from imaging.data import EpochSampler, SegmentationData
from imaging.errors import CaseChanged, ConstantImage, DuplicateCases
from imaging.files import shipped
from imaging.manifest import Case
from imaging.patches import Patches
from imaging.prepared import Keeper, Made
from imaging.samples import CachedCases, CachedPictures, without_copies
from imaging.transforms import IMAGE, LABEL

NUMBERS = ("001", "003", "006")


@pytest.fixture
def cases(data: Path, tmp_path: Path) -> list[Case]:
    """Three real cases in files of their own."""
    found = []
    for number in NUMBERS:
        paths = []
        for kind in ("images", "labels"):
            source = data / "hippocampus" / f"{kind}Tr" / f"hippocampus_{number}.nii.gz"
            paths.append(shutil.copy(source, tmp_path / f"{kind}_{number}.nii.gz"))
        found.append(Case(f"c{number}", (paths[0],), paths[1], f"p{number}"))
    return found


def segmenting(*overrides: str) -> SegmentConfig:
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", ["train.patch=[16, 24, 16]", *overrides])
    assert isinstance(config, SegmentConfig)
    return config


def with_cache(folder: Path, *overrides: str) -> SegmentConfig:
    return segmenting(f"data.cache={folder / 'cache'}", "data.memory_gib=0", *overrides)


def opened(cases: list[Case], config: SegmentConfig, *, augmented: bool = False) -> tuple[CachedCases, Made]:
    keeper = Keeper(config.data)
    return CachedCases(cases, config, Patches(config.train) if augmented else None, keeper), keeper.made


def digest(found: CachedCases | CachedPictures, *, epochs: int = 1, workers: int = 0) -> str:
    """Of every sample of some epochs, types and shapes included."""
    whole = hashlib.sha256()
    for epoch in range(epochs):
        sampler = EpochSampler(len(found), seed=0, shuffle=True)
        sampler.set_epoch(epoch)
        loader = DataLoader(found, batch_size=None, sampler=sampler, num_workers=workers)
        for sample in loader:
            for name in (IMAGE, LABEL):
                tensor = sample[name]
                assert type(tensor) is torch.Tensor
                whole.update(f"{name} {sample['index']} {tensor.dtype} {tuple(tensor.shape)}".encode())
                whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()


def counted(made: Made) -> tuple[int, int, int]:
    return made.reused, made.anew, made.unkept


# -------------------------------------------------------------------------------------------- wherever they are kept


def test_samples_are_the_same_with_a_cache_cold_and_warm(cases: list[Case], tmp_path: Path) -> None:
    expected = digest(opened(cases, segmenting(), augmented=True)[0], epochs=2)
    for reused, anew in ((0, 3), (3, 0)):
        found, made = opened(cases, with_cache(tmp_path), augmented=True)
        assert digest(found, epochs=2) == expected
        assert counted(made) == (reused, anew, 0)


def test_samples_are_what_the_transforms_make(cases: list[Case], tmp_path: Path) -> None:
    found, _ = opened(cases[:1], with_cache(tmp_path, "preprocess.spacing_mm=[1.5, 1.5, 1.5]"))
    made, kept = found._prepare(cases[0]), found[0, 0]
    assert all(torch.equal(kept[name], made[name].as_tensor()) for name in (IMAGE, LABEL))
    assert (kept[IMAGE].dtype, kept[LABEL].dtype) == (torch.float32, torch.uint8)


def test_two_workers_see_the_same_samples(cases: list[Case], tmp_path: Path) -> None:
    expected = digest(opened(cases, segmenting(), augmented=True)[0])
    found, _ = opened(cases, with_cache(tmp_path), augmented=True)
    assert digest(found, workers=2) == expected


def test_both_sides_of_a_run_share_cache_and_count(cases: list[Case], tmp_path: Path) -> None:
    for expected in ((0, 3, 0), (3, 0, 0)):
        assert counted(SegmentationData(with_cache(tmp_path), cases[:2], cases[2:]).made) == expected


def test_a_case_that_is_refused_is_refused_before_the_first_step(cases: list[Case], tmp_path: Path) -> None:
    image = nib.load(cases[1].images[0])
    nib.save(nib.Nifti1Image(np.full(image.shape, 7.0, np.float32), image.affine), cases[1].images[0])
    for config in (segmenting(), with_cache(tmp_path)):
        with pytest.raises(ConstantImage, match="images_003"):
            opened(cases, config)


def race(cases: list[Case], folder: Path, start: Any, told: Any) -> None:
    torch.set_num_threads(1)
    config = with_cache(folder)
    start.wait()
    found, made = opened(cases, config, augmented=True)
    told.put((made.reused, made.anew, digest(found)))


def test_two_processes_on_a_cold_cache_make_each_sample_once(cases: list[Case], tmp_path: Path) -> None:
    expected = digest(opened(cases, segmenting(), augmented=True)[0])
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(2), context.Queue()
    racers = [context.Process(target=race, args=(cases, tmp_path, start, told)) for _ in range(2)]
    for racer in racers:
        racer.start()
    seen = [told.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    assert [samples for _, _, samples in seen] == [expected, expected]
    assert sum(anew for _, anew, _ in seen) == sum(reused for reused, _, _ in seen) == len(cases)


# ------------------------------------------------------------------------------------------------------ made anew when


def test_a_changed_byte_of_a_source_makes_its_sample_anew(cases: list[Case], tmp_path: Path) -> None:
    opened(cases, with_cache(tmp_path))
    image = nib.load(cases[1].images[0])
    array = np.asarray(image.dataobj).copy()
    array[10, 10, 10] += 1
    nib.save(nib.Nifti1Image(array, image.affine), cases[1].images[0])
    found, made = opened(cases, with_cache(tmp_path))
    assert counted(made) == (2, 1, 0)
    assert digest(found) == digest(opened(cases, segmenting())[0])


def test_a_changed_mask_makes_its_sample_anew(cases: list[Case], tmp_path: Path) -> None:
    opened(cases, with_cache(tmp_path))
    shutil.copy(cases[0].label, tmp_path / "kept.nii.gz")
    image = nib.load(cases[0].label)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(array, image.affine), cases[0].label)
    assert counted(opened(cases, with_cache(tmp_path))[1]) == (2, 1, 0)
    shutil.copy(tmp_path / "kept.nii.gz", cases[0].label)
    assert counted(opened(cases, with_cache(tmp_path))[1]) == (3, 0, 0)


def test_files_that_moved_or_are_called_otherwise_are_the_same_content(cases: list[Case], tmp_path: Path) -> None:
    opened(cases, with_cache(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    moved = []
    for case in cases:
        paths = [shutil.move(path, tmp_path / "elsewhere" / f"x{path.name}") for path in (*case.images, case.label)]
        moved.append(Case(f"another_{case.name}", (paths[0],), paths[1], "somebody"))
    assert counted(opened(moved, with_cache(tmp_path))[1]) == (3, 0, 0)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("preprocess.spacing_mm=[1, 1, 1.5]", (0, 3, 0)),
        ("preprocess.orientation=LPS", (0, 3, 0)),
        ("train.seed=5", (3, 0, 0)),
        ("train.learning_rate=0.5", (3, 0, 0)),
        ("labels.0.title=Head", (3, 0, 0)),
        ("data.fold=1", (3, 0, 0)),
    ],
)
def test_a_sample_is_made_anew_when_the_config_decides_so(
    cases: list[Case], tmp_path: Path, override: str, expected: tuple[int, int, int]
) -> None:
    opened(cases, with_cache(tmp_path))
    found, made = opened(cases, with_cache(tmp_path, override))
    assert counted(made) == expected
    assert digest(found) == digest(opened(cases, segmenting(override))[0])


def test_one_label_fewer_makes_samples_anew(cases: list[Case], tmp_path: Path) -> None:
    config = with_cache(tmp_path)
    one = config.model_copy(update={"labels": config.labels[:1]})
    for case in cases:  # masks of one structure, that both configs take
        image = nib.load(case.label)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine), case.label)
    opened(cases, config)
    assert counted(opened(cases, one)[1]) == (0, 3, 0)


def test_another_version_of_the_code_makes_samples_anew(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(cases, with_cache(tmp_path))
    monkeypatch.setattr(prepared, "code_version", lambda: "another")
    assert counted(opened(cases, with_cache(tmp_path))[1]) == (0, 3, 0)


def test_a_version_is_that_of_the_code_that_makes_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    true = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or true(self))
    prepared.code_version.__wrapped__()
    assert {"transforms.py", "gridding.py", "data.py", "nifti.py", "png.py", "npz.py", "pixels.py"} <= set(read)
    assert not {"segment.py", "html.py"} & set(read)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_entry_is_made_anew_and_told(
    cases: list[Case], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = digest(opened(cases, with_cache(tmp_path), augmented=True)[0])
    path = sorted((tmp_path / "cache").glob("samples-*/*/*"))[1]
    content = bytearray(path.read_bytes())
    found, made = opened(cases, with_cache(tmp_path), augmented=True)
    if damage == "gone":  # another process needed the room
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-100])
    else:
        content[-100] ^= 4
        path.write_bytes(content)
    assert digest(found) == expected
    assert ("is damaged" in caplog.text) == (damage != "gone")
    assert path.exists() and counted(made) == (3, 0, 0)


# ----------------------------------------------------------------------------------------------------------- the bounds


def test_what_does_not_fit_in_memory_is_made_anew_and_told(cases: list[Case], caplog: pytest.LogCaptureFixture) -> None:
    expected = digest(opened(cases, segmenting(), augmented=True)[0])
    of_one = 35 * 51 * 35 * 5 / 2**30  # float32 and uint8
    found, made = opened(cases, segmenting(f"data.memory_gib={1.2 * of_one}"), augmented=True)
    assert counted(made) == (0, 3, 2)
    assert "2 of 3 samples do not fit data.memory_gib" in caplog.text and "data.cache=FOLDER" in caplog.text
    assert digest(found) == expected


def test_what_does_not_fit_on_disk_is_held_in_memory_and_told(
    cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_one = 35 * 51 * 35 * 5 / 2**30
    config = segmenting(f"data.cache={tmp_path / 'cache'}", f"data.cache_gib={1.2 * of_one}")
    found, made = opened(cases, config, augmented=True)
    assert len(list((tmp_path / "cache").glob("samples-*/*/*"))) == 1
    assert "does not fit data.cache_gib" in caplog.text
    assert counted(made) == (0, 3, 0)
    assert digest(found) == digest(opened(cases, segmenting(), augmented=True)[0])


def test_a_cache_leaves_config_and_checkpoint_as_they_are(tmp_path: Path) -> None:
    config = with_cache(tmp_path, "data.cache_gib=3")
    assert config.digest() == segmenting().digest()
    assert str(tmp_path) not in config.without_paths().to_yaml()
    assert config.without_paths() == segmenting()


# ---------------------------------------------------------------------------------------------------------- classifiers


def pictured(
    cases: list[ClassifiedCase], folder: Path, *overrides: str, cached: bool = True
) -> tuple[CachedPictures, Made]:
    chosen = [f"data.cache={folder / 'cache'}", "data.memory_gib=0"] if cached else []
    config: ClassifyConfig = toy_config(folder, *chosen, *overrides)
    keeper = Keeper(config.data)
    return CachedPictures(cases, config, None, keeper), keeper.made


def test_pictures_are_the_same_with_a_cache(tmp_path: Path) -> None:
    cases = read_cases(write_pictures(tmp_path, cases=6), toy_config(tmp_path))
    expected = digest(pictured(cases, tmp_path, cached=False)[0])
    for reused, anew in ((0, 6), (6, 0)):
        found, made = pictured(cases, tmp_path)
        assert digest(found) == expected and counted(made) == (reused, anew, 0)


def test_another_label_makes_no_picture_anew(tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path, cases=4)
    pictured(read_cases(manifest, toy_config(tmp_path)), tmp_path)
    manifest.write_text(manifest.read_text().replace(",plain,", ",odd,"))
    found, made = pictured(read_cases(manifest, toy_config(tmp_path)), tmp_path)
    assert counted(made) == (4, 0, 0)
    assert all(found[0, index][LABEL].tolist() == [0.0, 1.0] for index in range(4))


def test_pictures_of_a_medmnist_file_count_by_their_own_values(tmp_path: Path) -> None:
    def write(images: np.ndarray) -> list[ClassifiedCase]:
        file = tmp_path / "toy.npz"
        labels = np.array([[0], [1], [0], [1]], dtype=np.uint8)
        np.savez(file, train_images=images, train_labels=labels)
        from imaging.npz import read_npz

        read_npz.cache_clear()
        return read_cases(file, toy_config(tmp_path))

    images = np.random.default_rng(0).integers(0, 255, (4, 20, 16), dtype=np.uint8)
    pictured(write(images), tmp_path)
    images[2, 3, 4] ^= 1
    assert counted(pictured(write(images), tmp_path)[1]) == (3, 1, 0)
    assert counted(pictured(write(images[::-1]), tmp_path)[1]) == (4, 0, 0)  # in another place of the file


def test_pictures_that_were_compared_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_GRAIN_NS", -(10**12))
    config = toy_config(tmp_path, f"data.cache={tmp_path / 'cache'}")
    cases = read_cases(write_pictures(tmp_path, cases=4), config)
    read: list[str] = []
    true = samples_module.load_picture
    monkeypatch.setattr(samples_module, "load_picture", lambda case: read.append(case.name) or true(case))
    for _ in range(2):
        assert without_copies(cases, "refuse", config.data) == (cases, 0)
    assert sorted(read) == sorted(case.name for case in cases)
    shutil.copy(cases[0].image, cases[3].image)
    with pytest.raises(DuplicateCases):
        without_copies(cases, "refuse", config.data)
    assert read[4:] == []  # the content is one that is known


def test_a_folder_of_dicom_counts_by_all_its_files(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / "hippocrop_study1", tmp_path / "study"))
    cases = [ClassifiedCase("one", folder, ("odd",), "p")]
    found, made = pictured(cases, tmp_path, "preprocess.size=[8, 8, 8]")
    assert counted(made) == (0, 1, 0) and found[0, 0][IMAGE].shape == (1, 8, 8, 8)
    assert counted(pictured(cases, tmp_path, "preprocess.size=[8, 8, 8]")[1]) == (1, 0, 0)
    last = sorted(folder.iterdir())[-1]
    content = bytearray(last.read_bytes())
    content[-2] ^= 1
    last.write_bytes(content)
    assert counted(pictured(cases, tmp_path, "preprocess.size=[8, 8, 8]")[1]) == (0, 1, 0)


def test_a_sample_of_files_that_changed_meanwhile_is_not_kept_under_their_key(data: Path, tmp_path: Path) -> None:
    """An entry that another process removed is made again; the time of modification is set back, the size is kept."""
    folder = Path(shutil.copytree(data / "hippocrop_study1", tmp_path / "study"))
    cases = [ClassifiedCase("one", folder, ("odd",), "p")]
    found, _ = pictured(cases, tmp_path, "preprocess.size=[8, 8, 8]")
    entry = next((tmp_path / "cache").glob("samples-*/*/*"))
    entry.unlink()
    last = sorted(folder.iterdir())[-1]
    content, status = bytearray(last.read_bytes()), last.stat()
    content[-2] ^= 1
    last.write_bytes(content)
    os.utime(last, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CaseChanged, match="changed"):
        found[0, 0]
    assert not entry.exists()


def test_pictures_with_and_without_a_cache_after_one_was_replaced(tmp_path: Path) -> None:
    cases = read_cases(write_pictures(tmp_path, cases=4), toy_config(tmp_path))
    pictured(cases, tmp_path)
    time.sleep(0.01)
    Image.fromarray(np.arange(320, dtype=np.uint8).reshape(20, 16)).save(cases[2].image)
    found, made = pictured(cases, tmp_path)
    assert counted(made) == (3, 1, 0)
    assert digest(found) == digest(pictured(cases, tmp_path, cached=False)[0])
