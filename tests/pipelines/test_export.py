"""What is exported says in another program what torch says; what engines may answer is measured, not hoped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from classified import toy_config, write_pictures
from click.testing import CliRunner

from imaging.checkpoint import CONFIG, METRICS, WEIGHTS, Checkpoint, open_checkpoint, save_checkpoint, with_extras
from imaging.config import SegmentConfig, load_config
from imaging.engines import engines_of, runtime
from imaging.engines.accepted import FILE, Compared, Trial, Trials, trials_of
from imaging.engines.choice import tile_shape
from imaging.engines.torch_engine import networks_of
from imaging.errors import ExportImpossible, MissingPackage, OutputMismatch, OutputNotWritable, TooFewCases
from imaging.files import shipped
from imaging.networks import build_classifier, build_segmenter, weights_of
from imaging.nifti import read_nifti
from imaging.predict import Predictor
from pipelines.accept import accept, overlap, own_cases
from pipelines.cli import main
from pipelines.export import export

TINY = (
    "network.options.filters=[4, 8, 8]",
    "network.options.kernel_size=[3, 3, 3]",
    "network.options.strides=[1, 2, 2]",
    "network.options.upsample_kernel_size=[2, 2]",
    "predict.patch=[40, 56, 40]",
    "predict.precision='32'",
)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random weights: every label somewhere."""
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", TINY)
    assert isinstance(config, SegmentConfig)
    torch.manual_seed(3)
    weights = weights_of(build_segmenter(config))
    return save_checkpoint(tmp_path_factory.mktemp("export") / "segmenter", config, weights, {})


@pytest.mark.parametrize(("to", "suffix"), [("openvino", "xml"), ("onnx", "onnx")])
def test_model_says_what_torch_says(segmenter: Checkpoint, tmp_path: Path, to: Any, suffix: str) -> None:
    done = CliRunner().invoke(
        main, ["export", str(segmenter.folder), "--to", to, "--out", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert {f"hippocampus_mr.{suffix}", CONFIG, "export.json"} <= set(told["files"])
    tiles = np.random.default_rng(1).normal(size=(2, *tile_shape(segmenter)[1:])).astype(np.float32)
    model = runtime.core().read_model(tmp_path / "out" / f"hippocampus_mr.{suffix}")
    ask = runtime.compiled(model, "fp32")
    (network,) = networks_of(segmenter)
    with torch.no_grad():
        expected = network(torch.from_numpy(tiles)).numpy()
    said = np.concatenate([ask(tile[None])[0] for tile in tiles])
    assert np.abs(said - expected).max() < 1e-3 * np.abs(expected).max()
    assert told["difference"] < 1e-3


def test_model_that_says_something_else_is_withheld(
    segmenter: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(_network: torch.nn.Module, shape: tuple[int, ...]) -> Any:
        opset = runtime.runtime().opset13
        given = opset.parameter(list(shape), np.float32)
        return runtime.runtime().Model([opset.concat([given, given, given], axis=1)], [given])

    monkeypatch.setattr("imaging.engines.runtime.converted", other)
    with pytest.raises(OutputMismatch):
        export(checkpoint=str(segmenter.folder), to="openvino", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long  # a process of its own imports torch and MONAI
def test_bundle_is_run_by_monai_alone(segmenter: Checkpoint, data: Path, tmp_path: Path) -> None:
    export(checkpoint=str(segmenter.folder), to="monai-bundle", out=tmp_path / "bundle")
    image = data / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    code = "from monai.bundle import run; run(config_file='configs/inference.json', bundle_root='.', images=[{!r}])"
    command = [sys.executable, "-c", code.format(str(image))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path / "bundle", env=environment, capture_output=True, text=True,
                          check=False, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (mask,) = (tmp_path / "bundle" / "eval").glob("*.nii.gz")
    found = np.asarray(nib.load(mask).dataobj).squeeze()
    volume = read_nifti(image)
    facts = replace(volume.facts, modality="MR")
    expected = Predictor(segmenter, engine="torch")(replace(volume, facts=facts)).mask_XYZ
    assert found.shape == expected.shape
    assert len(np.unique(expected)) == 3
    assert (found == expected).mean() > 0.999
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "hippocampus_anterior"


@pytest.mark.parametrize(("to", "package"), [("openvino", "openvino"), ("onnx", "onnx"), ("onnx", "openvino")])
def test_package_that_is_not_there_is_named(
    segmenter: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=package):
        export(checkpoint=str(segmenter.folder), to=to, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_bundle_cannot_say_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    torch.manual_seed(0)
    weights = weights_of(build_classifier(config.network, spatial_dims=2, in_channels=1, classes=2))
    checkpoint = save_checkpoint(tmp_path / "checkpoint", config, weights, {})
    with pytest.raises(ExportImpossible, match="classify"):
        export(checkpoint=str(checkpoint.folder), to="monai-bundle", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_segmenter_is_compared_on_cases_that_did_not_train_it(
    segmenter: Checkpoint, data: Path, tmp_path: Path
) -> None:
    made, trials = accept(checkpoint=str(segmenter.folder), data=data / "hippocampus", out=tmp_path / "copy")
    by_precision = {trial.precision: trial for trial in trials.trials}
    fp32 = by_precision["fp32"]
    assert fp32.accepted
    assert (fp32.side, fp32.cases) == ("other", len(list((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))))
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
                 cases=1, compared=compared, accepted=False)  # fmt: skip
    content = Trials(trials=(bf16,)).model_dump_json().encode()
    before = with_extras(tmp_path / "before", segmenter, segmenter.metrics, {FILE: content})
    monkeypatch.setattr(runtime, "has_bf16", lambda: False)
    made, _ = accept(checkpoint=str(before.folder), data=data / "hippocampus", out=tmp_path / "copy")
    assert [trial.precision for trial in trials_of(made)] == ["bf16", "fp32"]
    assert trials_of(made)[0] == bf16


def test_classifier_is_compared_by_its_probabilities(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    config = toy_config(tmp_path, f"data.root={write_pictures(tmp_path / 'films', cases=12)}")
    torch.manual_seed(0)
    weights = weights_of(build_classifier(config.network, spatial_dims=2, in_channels=1, classes=2))
    checkpoint = save_checkpoint(tmp_path / "checkpoint", config, weights, {})
    arguments = ["accept", str(checkpoint.folder), "--data", str(config.data.root), "--out", str(tmp_path / "copy")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "openvino in fp32: accepted" in done.output
    (fp32,) = (trial for trial in trials_of(open_checkpoint(tmp_path / "copy")) if trial.precision == "fp32")
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


def test_two_empty_masks_agree() -> None:
    empty, full = np.zeros((2, 2, 2), dtype=np.bool_), np.ones((2, 2, 2), dtype=np.bool_)
    assert [overlap(empty, empty), overlap(empty, full), overlap(full, full)] == [1.0, 0.0, 1.0]
