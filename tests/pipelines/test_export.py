"""What is exported says in another program what torch says."""

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
from click.testing import CliRunner
from untrained import tiny_segmenter, toy_classifier

from imaging.checkpoint import CONFIG, Checkpoint
from imaging.engines import runtime
from imaging.engines.choice import tile_shape
from imaging.engines.torch_engine import networks_of
from imaging.errors import ExportImpossible, MissingPackage, OutputMismatch
from imaging.nifti import read_nifti
from imaging.predict import Predictor
from pipelines.cli import main
from pipelines.export import export


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_segmenter(tmp_path_factory.mktemp("export") / "segmenter")


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
    checkpoint = toy_classifier(tmp_path)
    with pytest.raises(ExportImpossible, match="classify"):
        export(checkpoint=str(checkpoint.folder), to="monai-bundle", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
