"""A checkpoint is what its checksums say, or it is not used."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.checkpoint import (
    CARD,
    CONFIG,
    METRICS,
    SUMS,
    WEIGHTS,
    Checkpoint,
    find_checkpoint,
    open_checkpoint,
    open_network,
    save_checkpoint,
    shipped_checkpoints,
)
from imaging.config import SegmentConfig, TextConfig, load_config
from imaging.errors import CheckpointCorrupt, OutputNotWritable, UnknownCheckpoint
from imaging.files import sha256_of, shipped
from imaging.judgement import targets_of

FILES = (CONFIG, WEIGHTS, METRICS, CARD)
WEIGHTS_SAVED = {"layer.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4), "layer.bias": torch.ones(2)}
INTERVAL = {"mean": 0.81234, "low": 0.79, "high": 0.83}
MEASURED = {
    "test": {"cases": 5, "dice": {"hippocampus_anterior": INTERVAL, "hippocampus_posterior": INTERVAL}},
    "volume_interval": {"hippocampus_anterior": {"coverage": 0.9, "low": 0.8, "high": 1.25, "held_on_test": 0.93}},
}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """A checkpoint of the shipped config with weights of no network."""
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", ["data.root=/home/somebody/data"])
    return save_checkpoint(tmp_path / "checkpoint", config, WEIGHTS_SAVED, MEASURED)


def resign(folder: Path) -> None:
    """Make the checksums agree with what lies there."""
    (folder / SUMS).write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in FILES))


# -------------------------------------------------------------------------------------------------------- save and open


def test_what_was_saved_is_opened(saved: Checkpoint) -> None:
    opened = open_checkpoint(saved.folder)
    assert opened == saved
    assert opened.metrics == MEASURED
    assert opened.name == "hippocampus_mr"
    weights = opened.load_weights()
    assert set(weights) == set(WEIGHTS_SAVED)
    assert all(torch.equal(weights[name], tensor) for name, tensor in WEIGHTS_SAVED.items())


def test_folder_holds_exactly_its_files(saved: Checkpoint) -> None:
    assert {path.name for path in saved.folder.iterdir()} == {*FILES, SUMS}
    assert [path.name for path in saved.folder.parent.iterdir()] == ["checkpoint"]


def test_checksums_are_those_of_sha256sum(saved: Checkpoint) -> None:
    lines = (saved.folder / SUMS).read_text().splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{64}  \S+", line) for line in lines)
    assert {line[66:]: line[:64] for line in lines} == {name: sha256_of(saved.folder / name) for name in FILES}
    assert saved.weights_sha256 == sha256_of(saved.folder / WEIGHTS)


def test_saving_the_same_again_gives_the_same_bytes(saved: Checkpoint, tmp_path: Path) -> None:
    again = save_checkpoint(tmp_path / "again", saved.config, WEIGHTS_SAVED, MEASURED)
    for name in (*FILES, SUMS):
        assert (again.folder / name).read_bytes() == (saved.folder / name).read_bytes()


def test_no_path_of_this_machine_is_published(saved: Checkpoint) -> None:
    assert saved.config.data.root is None
    assert not [path for path in saved.folder.iterdir() if b"somebody" in path.read_bytes()]


def test_card_says_what_it_is_for_and_how_well_it_does(saved: Checkpoint) -> None:
    text = (saved.folder / CARD).read_text(encoding="utf-8")
    card = saved.config.card
    for said in (saved.config.title, card.intended_use, card.limits, card.data, card.licence, card.command):
        assert said in text
    assert "| test | 5 | 0.812 [0.790, 0.830] | 0.812 [0.790, 0.830] |" in text
    assert "between 0.800 and 1.250 times" in text and "90% coverage" in text and "93% of the test cases" in text
    assert "not for diagnosis" in text


def test_saving_below_a_file_is_refused(saved: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputNotWritable):
        save_checkpoint(tmp_path / "file" / "checkpoint", saved.config, WEIGHTS_SAVED, MEASURED)


# ----------------------------------------------------------------------------------------------------- what is not used


@pytest.mark.parametrize("name", [*FILES, SUMS])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_changed_byte_is_refused(saved: Checkpoint, name: str, where: str) -> None:
    path = saved.folder / name
    content = bytearray(path.read_bytes())
    # The last byte of SHA256SUMS ends the line of the model card, so the one before it is changed.
    at = {"first": 0, "middle": len(content) // 2, "last": len(content) - (2 if name == SUMS else 1)}[where]
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt) as caught:
        open_checkpoint(saved.folder)
    assert str(saved.folder) in caught.value.subject
    assert name == SUMS or caught.value.subject.endswith(name)


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_any_changed_bit_of_the_weights_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    config = load_config(shipped("configs") / "hippocampus_mr.yaml")
    saved = save_checkpoint(tmp_path_factory.mktemp("bits") / "checkpoint", config, WEIGHTS_SAVED, {})
    content = bytearray((saved.folder / WEIGHTS).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (saved.folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointCorrupt):
        open_checkpoint(saved.folder)
    with pytest.raises(CheckpointCorrupt, match="after it was verified"):
        saved.load_weights()


@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_missing_file_is_refused(saved: Checkpoint, name: str) -> None:
    (saved.folder / name).unlink()
    with pytest.raises(CheckpointCorrupt, match=re.escape(name)):
        open_checkpoint(saved.folder)


@pytest.mark.parametrize("name", FILES)
def test_file_that_the_checksums_do_not_list_is_refused(saved: Checkpoint, name: str) -> None:
    lines = [
        line for line in (saved.folder / SUMS).read_text().splitlines(keepends=True) if not line.endswith(f"{name}\n")
    ]
    (saved.folder / SUMS).write_text("".join(lines))
    with pytest.raises(CheckpointCorrupt, match=f"does not list {re.escape(name)}"):
        open_checkpoint(saved.folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "."])
def test_checksums_reach_no_file_outside_the_folder(saved: Checkpoint, name: str) -> None:
    (saved.folder.parent / "secret").write_text("")
    with (saved.folder / SUMS).open("a") as stream:
        stream.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(CheckpointCorrupt):
        open_checkpoint(saved.folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"nonsense\n"])
def test_checksums_that_are_none_are_refused(saved: Checkpoint, content: bytes) -> None:
    (saved.folder / SUMS).write_bytes(content)
    with pytest.raises(CheckpointCorrupt):
        open_checkpoint(saved.folder)


class Witness:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickle_in_place_of_the_weights_is_never_loaded(saved: Checkpoint, tmp_path: Path, kind: str) -> None:
    witness = tmp_path / "witness"
    if kind == "pickle":
        (saved.folder / WEIGHTS).write_bytes(pickle.dumps(Witness(witness)))
    else:
        torch.save({"w": Witness(witness)}, saved.folder / WEIGHTS)
    resign(saved.folder)
    checkpoint = open_checkpoint(saved.folder)
    with pytest.raises(CheckpointCorrupt):
        checkpoint.load_weights()
    assert not witness.exists()


def test_metrics_that_are_no_json_are_refused(saved: Checkpoint) -> None:
    (saved.folder / METRICS).write_text("{")
    resign(saved.folder)
    with pytest.raises(CheckpointCorrupt, match="metrics"):
        open_checkpoint(saved.folder)


# ----------------------------------------------------------------------------------------------------------------- find


@pytest.mark.parametrize("name", ["nothing", "", ".", "/", "hippocampus_mr/..", "configs"])
def test_unknown_name_lists_the_known(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownCheckpoint) as caught:
        find_checkpoint(name)
    assert all(folder.name in caught.value.expected for folder in shipped_checkpoints())


def test_folder_is_found_by_its_path(saved: Checkpoint) -> None:
    assert find_checkpoint(str(saved.folder)) == saved.folder


@pytest.mark.parametrize("folder", shipped_checkpoints(), ids=lambda folder: folder.name)
def test_shipped_checkpoint_is_found_by_name_and_is_whole(folder: Path) -> None:
    assert find_checkpoint(folder.name) == folder
    checkpoint = open_network(folder)
    assert checkpoint.name == folder.name
    assert checkpoint.config.data.root is None
    measured = (checkpoint.metrics.get(side) for side in ("test", "cross_validation", "validation"))
    test = next(found for found in measured if found)
    if isinstance(checkpoint.config, SegmentConfig):
        assert {label.name for label in checkpoint.config.labels} == set(test["dice"])
    else:
        assert {target.name for target in targets_of(checkpoint.config)} == set(test.get("scores", ()))
        kinds = checkpoint.config.kinds if isinstance(checkpoint.config, TextConfig) else ()
        assert {kind.name for kind in kinds} == set(test.get("spans", ()))


def test_checkpoint_may_be_copied(saved: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(saved.folder, tmp_path / "elsewhere")
    assert open_checkpoint(tmp_path / "elsewhere").metrics == json.loads((saved.folder / METRICS).read_text())
