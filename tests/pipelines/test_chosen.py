"""A checkpoint is told from another by all that decides its answer, and by nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imaging import checkpoint as checkpoints
from imaging.checkpoint import CARD, CONFIG, METRICS, SUMS, find_checkpoint
from imaging.files import sha256_of
from pipelines.chosen import choose
from pipelines.infer import Inference


def copied(folder: Path, name: str) -> Path:
    shutil.copytree(find_checkpoint(name), folder)
    return folder


def rewrite(folder: Path, name: str, content: str) -> None:
    """Change a file of a checkpoint and its checksum with it."""
    before = sha256_of(folder / name)
    (folder / name).write_text(content)
    sums = (folder / SUMS).read_text()
    assert before in sums
    (folder / SUMS).write_text(sums.replace(before, sha256_of(folder / name)))


@pytest.mark.parametrize("name", ["chest_xray", "report_text"])
def test_another_calibration_is_another_checkpoint(tmp_path: Path, name: str) -> None:
    whole, other = copied(tmp_path / "whole", name), copied(tmp_path / "other", name)
    metrics = json.loads((other / METRICS).read_text())
    metrics["calibration"]["temperature"] *= 5
    rewrite(other, METRICS, json.dumps(metrics))
    same = choose([str(find_checkpoint(name))]).digests()
    assert choose([str(whole)]).digests() == same != choose([str(other)]).digests()
    assert Inference(models=(str(whole),)).setup != Inference(models=(str(other),)).setup


def test_another_card_is_the_same_checkpoint(tmp_path: Path) -> None:
    whole = copied(tmp_path / "whole", "chest_xray")
    before = choose([str(whole)]).digests()
    rewrite(whole, CARD, "# Said in other words\n")
    assert choose([str(whole)]).digests() == before


@pytest.mark.parametrize("file", [CONFIG, METRICS])
def test_a_damaged_reader_of_texts_is_left_out_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    films = str(find_checkpoint("chest_xray"))
    (copied(tmp_path / "request_text", "request_text") / file).write_text("task: [")
    monkeypatch.setattr(checkpoints, "shipped", lambda _kind: tmp_path)
    for names in ((), (films,)):
        chosen = choose(names)
        assert (len(chosen.images), chosen.texts) == (len(names), ())
        assert [error.code for error in chosen.unusable] == ["checkpoint_corrupt"]


def test_of_what_ships_each_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    verified = checkpoints._opened

    def opening(folder: Path) -> object:
        opened.append(folder.name)
        return verified(folder)

    monkeypatch.setattr(checkpoints, "_opened", opening)
    chosen = choose(())
    assert sorted(opened) == sorted(one.name for one in (*chosen.images, *chosen.texts))
