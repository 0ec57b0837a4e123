"""Which engines may answer is measured, not hoped: against torch, on cases that neither trained nor calibrated."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from untrained import tiny_segmenter, toy_classifier

from imaging.checkpoint import CONFIG, METRICS, WEIGHTS, Checkpoint, open_checkpoint, with_extras
from imaging.engines import engines_of, runtime
from imaging.engines.accepted import FILE, Compared, Trial, Trials, trials_of
from imaging.engines.choice import tile_shape
from imaging.engines.openvino_engine import OpenVinoEngine
from imaging.engines.quantized import as_files, files_of, kept_int8
from imaging.errors import (
    CheckpointCorrupt,
    EngineRefused,
    ExportImpossible,
    MissingPackage,
    OutputNotWritable,
    TooFewCases,
)
from imaging.manifest import read_manifest
from pipelines.accept import accept, own_cases
from pipelines.cli import main
from pipelines.export import export
from pipelines.quantize import Int8, int8_of

CASES = ("001", "003", "006", "007", "008", "011", "014", "017")
TRAINED, OTHERS = CASES[:6], CASES[6:]


def named(*numbers: str) -> list[str]:
    return [f"hippocampus_{number}" for number in numbers]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its metrics say who trained it."""
    metrics = {"training": {"cases": len(TRAINED), "names": named(*TRAINED)}}
    return tiny_segmenter(tmp_path_factory.mktemp("accept") / "segmenter", metrics)


@pytest.fixture(scope="module")
def as_it_comes() -> Iterator[None]:
    """int8 of an untrained network is never close to it: no layer is looked at, which `test_sparing` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.sparing._ROOM", np.inf)
        yield


@pytest.fixture(scope="module")
def quantized(as_it_comes: None, segmenter: Checkpoint, data: Path) -> Int8:
    return int8_of(segmenter, read_manifest(data / "hippocampus"))


def test_segmenter_is_compared_on_cases_that_did_not_train_it(
    segmenter: Checkpoint, data: Path, tmp_path: Path
) -> None:
    made, trials = accept(checkpoint=str(segmenter.folder), data=data / "hippocampus", out=tmp_path / "copy")
    by_precision = {trial.precision: trial for trial in trials.trials}
    fp32 = by_precision["fp32"]
    assert fp32.why_not() == ""
    assert (fp32.side, fp32.cases) == ("other", len(OTHERS))
    assert (fp32.version, fp32.instructions) == (runtime.version(), runtime.instructions("fp32"))
    assert fp32.speed is not None
    assert fp32.speed > 0
    for compared in fp32.compared.values():
        assert compared.dice_with_torch is not None
        assert compared.dice_with_torch > 0.999
        assert compared.dice == pytest.approx(compared.dice_of_torch, abs=0.001)
    assert trials_of(made) == trials.trials
    for name in (CONFIG, WEIGHTS, METRICS):
        assert (made.folder / name).read_bytes() == (segmenter.folder / name).read_bytes()
    assert engines_of(made).choice.name == "openvino"
    with pytest.raises(OutputNotWritable):
        accept(checkpoint=str(segmenter.folder), data=data / "hippocampus", out=tmp_path / "copy")


def test_what_another_processor_was_compared_in_is_kept(
    segmenter: Checkpoint, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {"hippocampus_anterior": Compared(dice_with_torch=0.9, dice=0.5, dice_of_torch=0.5)}
    bf16 = Trial(engine="openvino", precision="bf16", version="1", processor="another", data="some", side="other",
                 cases=1, compared=compared)  # fmt: skip
    content = Trials(trials=(bf16,)).model_dump_json().encode()
    before = with_extras(tmp_path / "before", segmenter, segmenter.metrics, {FILE: content, "more": b"as it was"})
    monkeypatch.setattr(runtime, "has_bf16", lambda: False)
    made, _ = accept(checkpoint=str(before.folder), data=data / "hippocampus", out=tmp_path / "copy")
    assert [trial.precision for trial in trials_of(made)] == ["bf16", "fp32"]
    assert trials_of(made)[0] == bf16
    assert (made.folder / "more").read_bytes() == b"as it was"


def test_classifier_is_compared_by_its_probabilities(tmp_path: Path) -> None:
    checkpoint = toy_classifier(tmp_path)
    films = str(tmp_path / "films" / "films.csv")
    done = CliRunner().invoke(
        main, ["accept", str(checkpoint.folder), "--data", films, "--out", str(tmp_path / "copy")]
    )
    assert done.exit_code == 0, done.output
    assert "openvino in fp32" in done.output
    (fp32,) = (trial for trial in trials_of(open_checkpoint(tmp_path / "copy")) if trial.precision == "fp32")
    assert fp32.why_not() == ""
    for compared in fp32.compared.values():
        assert compared.difference is not None
        assert compared.difference < 0.001
        assert compared.auc == pytest.approx(compared.auc_of_torch)
    assert FILE in open_checkpoint(tmp_path / "copy").sums


def test_cases_that_trained_a_checkpoint_say_nothing(segmenter: Checkpoint) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    cases = [Named(name) for name in "abcd"]
    known = replace(segmenter, metrics={"training": {"names": ["a", "b"]}, "validation": {"each": {"c": {}}}})
    assert [(side, [case.name for case in own]) for side, own in [own_cases(known, cases)]] == [("validation", ["c"])]
    crossed = replace(segmenter, metrics={"training": {"names": ["a"]}, "cross_validation": {"each": {"a": 1, "b": 1}}})
    assert [case.name for case in own_cases(crossed, cases)[1]] == ["b"]
    other = replace(segmenter, metrics={"training": {"names": ["a"]}})
    assert own_cases(other, cases)[0] == "other"
    with pytest.raises(TooFewCases):
        own_cases(other, cases[:1])


def test_int8_is_made_of_cases_that_trained_and_says_nearly_the_same(segmenter: Checkpoint, quantized: Int8) -> None:
    assert (len(quantized.calibrated), len(quantized.chosen_by)) == (3, 3)
    assert {*quantized.calibrated, *quantized.chosen_by} == set(named(*TRAINED))
    tiles = np.random.default_rng(0).normal(size=(2, *tile_shape(segmenter)[1:])).astype(np.float32)
    said = quantized.engines.members[0](tiles)
    expected = engines_of(segmenter, wanted="torch", device="cpu", precision="fp32").members[0](tiles)
    assert 0 < np.abs(said - expected).max() < 0.5 * np.abs(expected).max()
    assert np.corrcoef(said.ravel(), expected.ravel())[0, 1] > 0.98
    # Whole numbers are what it computes with.
    kinds = {str(op.get_element_type()) for op in quantized.models[0].get_ops() if op.get_type_name() == "Constant"}
    assert any("i8" in kind or "int8" in kind for kind in kinds), kinds


def test_making_int8_leaves_everybodys_log_as_it_was(quantized: Int8, caplog: pytest.LogCaptureFixture) -> None:
    assert quantized
    assert type(logging.getLogger("pipelines.made_afterwards")) is logging.Logger
    assert caplog.handler.level == logging.NOTSET
    logging.getLogger("pipelines.made_afterwards").warning("it is heard")
    assert "it is heard" in caplog.text


@pytest.mark.parametrize("good", [True, False])
def test_int8_goes_with_the_copy_where_it_is_good_enough_and_only_there(
    segmenter: Checkpoint, quantized: Int8, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    # What is good enough is set, so that the same figures are, or are not.
    monkeypatch.setattr("imaging.engines.accepted.LEAST_DICE", 0.0 if good else 1.1)
    monkeypatch.setattr("imaging.engines.accepted.LOWER_DICE", 1.0)
    monkeypatch.setattr("pipelines.accept.int8_of", lambda *_: quantized)
    arguments = ["accept", str(segmenter.folder), "--data", str(data / "hippocampus"), "--int8", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    told = {trial["precision"]: trial for trial in json.loads(done.output)["trials"]}["int8"]
    assert sorted(told["calibrated"] + told["chosen_by"]) == named(*TRAINED)
    assert told["spared"] == [[]]
    assert told["made_by"].startswith("nncf ")
    assert told["cases"] == len(OTHERS)
    copy = open_checkpoint(tmp_path / "copy")
    assert ({*files_of(0)} <= copy.sums.keys()) is good
    if not good:
        choice = engines_of(copy).choice
        assert choice.name == "torch"
        assert "not openvino in int8: hippocampus_anterior: Dice" in choice.why
        return
    tiles = np.random.default_rng(0).normal(size=(1, *tile_shape(copy)[1:])).astype(np.float32)
    kept = OpenVinoEngine(kept_int8(copy, 0), precision="int8")
    assert np.array_equal(kept(tiles), quantized.engines.members[0](tiles))


def test_model_in_int8_that_is_not_there_or_changed_is_refused(segmenter: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="though int8 was accepted"):
        kept_int8(segmenter, 0)
    files = dict.fromkeys(files_of(0), b"nothing")
    copy = with_extras(tmp_path / "copy", segmenter, {}, files)
    (copy.folder / files_of(0)[1]).write_bytes(b"another")
    with pytest.raises(CheckpointCorrupt, match="changed"):
        kept_int8(copy, 0)


def test_int8_is_refused_where_it_cannot_be_made(
    segmenter: Checkpoint, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_manifest(data / "hippocampus")
    with pytest.raises(TooFewCases, match="none of the manifest's cases trained it"):
        int8_of(segmenter, [case for case in cases if case.name not in named(*TRAINED)])
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        with pytest.raises(EngineRefused, match=r"no int8 \(ONEDNN_MAX_CPU_ISA=AVX2\)"):
            int8_of(segmenter, cases)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackage, match="nncf is not installed"):
        int8_of(segmenter, cases)


def test_int8_of_a_classifier_is_made_of_its_films(as_it_comes: None, tmp_path: Path) -> None:
    trained = [f"film{number:03d}" for number in range(8)]
    checkpoint = toy_classifier(tmp_path, metrics={"training": {"cases": len(trained), "names": trained}})
    films = tmp_path / "films" / "films.csv"
    _, trials = accept(checkpoint=str(checkpoint.folder), data=films, out=tmp_path / "copy", int8=True)
    (int8,) = (trial for trial in trials.trials if trial.precision == "int8")
    assert (sorted(int8.calibrated + int8.chosen_by), int8.cases) == (trained, 4)
    assert {name: compared.difference is not None for name, compared in int8.compared.items()} == {
        "plain": True, "odd": True,
    }  # fmt: skip


def test_int8_is_exported_as_it_was_compared(
    segmenter: Checkpoint, quantized: Int8, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.export.int8_of", lambda *_: quantized)
    arguments = ["export", str(segmenter.folder), "--to", "openvino", "--int8", "--json"]
    done = CliRunner().invoke(main, [*arguments, "--data", str(data / "hippocampus"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert {*files_of(0), CONFIG, "export.json"} <= set(told["files"])
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["int8"] == told["int8"]
    assert about["int8"]["compared"].keys() == {"hippocampus_anterior", "hippocampus_posterior"}
    model = runtime.core().read_model(tmp_path / "out" / files_of(0)[0])
    tiles = np.random.default_rng(1).normal(size=tile_shape(segmenter)).astype(np.float32)
    said: Any = runtime.compiled(model, "int8")(tiles)[0]
    assert np.array_equal(said, quantized.engines.members[0](tiles))


def test_checkpoints_own_int8_is_exported_without_cases(segmenter: Checkpoint, quantized: Int8, tmp_path: Path) -> None:
    compared = {"part": Compared(dice_with_torch=1.0, dice=0.9, dice_of_torch=0.9)}
    trial = Trial(engine="openvino", precision="int8", version=runtime.version(), processor="one", data="some",
                  side="validation", cases=1, compared=compared)  # fmt: skip
    files = as_files(quantized.models)
    extras = {FILE: Trials(trials=(trial,)).model_dump_json().encode(), **files}
    copy = with_extras(tmp_path / "copy", segmenter, segmenter.metrics, extras)
    done = export(checkpoint=str(copy.folder), to="openvino", out=tmp_path / "out", int8=True)
    assert done.int8 == trial
    for name in files_of(0):
        assert (tmp_path / "out" / name).read_bytes() == files[name]
    with pytest.raises(ExportImpossible, match="no model in int8"):
        export(checkpoint=str(segmenter.folder), to="openvino", out=tmp_path / "other", int8=True)
    with pytest.raises(ExportImpossible, match="OpenVINO alone"):
        export(checkpoint=str(copy.folder), to="onnx", out=tmp_path / "other", int8=True)
    with pytest.raises(ExportImpossible, match="only int8"):
        export(checkpoint=str(copy.folder), to="openvino", out=tmp_path / "other", data=tmp_path)
    assert not (tmp_path / "other").exists()
