"""Weights from elsewhere are read as what they are, and nothing that lies in them is ever run."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from imaging.errors import CheckpointCorrupt, StartUnusable
from imaging.foreign import read_foreign

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}


def same(found: Any) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "network", "model_state_dict"])
def test_state_is_found_at_the_top_or_under_the_usual_keys(tmp_path: Path, ending: str, key: str | None) -> None:
    path = tmp_path / f"weights{ending}"
    torch.save(TENSORS if key is None else {key: TENSORS, "epoch": 3, "step": torch.tensor(7)}, path)
    found = read_foreign(str(path))
    assert same(found.tensors)
    assert (found.name, found.kind, found.network) == (f"weights{ending}", "file", "")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert same(read_foreign(str(tmp_path / "weights.safetensors")).tensors)


class Harm:
    """What a pickle may hold: a call that is made while it is loaded."""

    def __reduce__(self) -> Any:
        return open, ("harm_was_done", "w")


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": TENSORS, "more": Harm()}, "weights.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(StartUnusable, match="more than tensors"):
        read_foreign("weights.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(StartUnusable):
        read_foreign("plain.pt")
    assert not Path("harm_was_done").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.ts"])
def test_torchscript_is_refused(tmp_path: Path, name: str) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / name)  # type: ignore[no-untyped-call]
    with pytest.raises(StartUnusable, match="TorchScript"):
        read_foreign(str(tmp_path / name))


@pytest.mark.parametrize("address", ["https://example.org/model.pt", "hf://someone/model", "s3://bucket/model.pt"])
def test_nothing_is_fetched(address: str) -> None:
    with pytest.raises(StartUnusable, match="an address"):
        read_foreign(address)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "more than tensors, or is damaged"), (b"no weights", "damaged"), (b"PK\x03\x04 no archive", "damaged")],
)
def test_damaged_file_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(StartUnusable, match=told):
        read_foreign(str(tmp_path / "weights.pt"))
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(StartUnusable, match="not safetensors"):
        read_foreign(str(tmp_path / "weights.safetensors"))


def test_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "history": [1.0]}, tmp_path / "weights.pt")
    with pytest.raises(StartUnusable, match="no named tensors, but epoch, history"):
        read_foreign(str(tmp_path / "weights.pt"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "weights.pt")
    with pytest.raises(StartUnusable, match=r"conv\.weight is not finite"):
        read_foreign(str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("source", [None, "nowhere", "nowhere.pt"])
def test_what_is_not_there_is_refused(source: str | None) -> None:
    with pytest.raises(StartUnusable):
        read_foreign(source)


# ------------------------------------------------------------------------------------------------ checkpoints, bundles


def test_shipped_checkpoint_goes_by_its_name() -> None:
    found = read_foreign("hippocampus_mr")
    assert (found.name, found.kind, found.network) == ("hippocampus_mr", "checkpoint", "DynUNet")
    assert len(found.sha256) == 64


def test_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    import shutil

    from imaging.checkpoint import find_checkpoint

    shutil.copytree(find_checkpoint("chest_xray"), tmp_path / "mine")
    with (tmp_path / "mine" / "weights.safetensors").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(CheckpointCorrupt):
        read_foreign(str(tmp_path / "mine"))


def bundle(folder: Path, *, target: str = "monai.networks.nets.DynUNet") -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    torch.save(TENSORS, folder / "models" / "model.pt")
    content = {"network_def": {"_target_": target, "spatial_dims": 3}, "device": "$torch.device('cpu')"}
    (folder / "configs" / "train.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("target", ["monai.networks.nets.DynUNet", "DynUNet"])
def test_bundle_tells_its_network(tmp_path: Path, target: str) -> None:
    found = read_foreign(str(bundle(tmp_path / "spleen", target=target)))
    assert (found.name, found.kind, found.network) == ("spleen", "bundle", "DynUNet")
    assert same(found.tensors)


def test_bundle_without_a_readable_config_names_no_network(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "spleen")
    (folder / "configs" / "train.json").write_text("{")
    assert read_foreign(str(folder)).network == ""


def test_bundle_with_torchscript_only_is_refused_and_tells_what_is_there(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "spleen")
    (folder / "models" / "model.pt").rename(folder / "models" / "model.ts")
    with pytest.raises(StartUnusable, match=r"models/ holds model\.ts"):
        read_foreign(str(folder))


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartUnusable, match="neither a checkpoint nor a bundle"):
        read_foreign(str(tmp_path))
