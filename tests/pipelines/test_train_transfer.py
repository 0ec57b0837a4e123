"""A training that begins with weights from elsewhere ends near them, tells where it began, publishes plain weights."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import yaml
from classified import toy_config, write_config, write_pictures
from safetensors.torch import load_file, save_file

from imaging.checkpoint import find_checkpoint, open_checkpoint
from imaging.classifier import Classifier
from imaging.config import Network, load_config
from imaging.errors import ConfigInvalid, StartMismatch, StartUnusable, UnknownName
from imaging.files import shipped
from imaging.networks import build_network, weights_of
from imaging.predict import Predictor
from pipelines.train import Run, train

LORA = ("train.lora.rank=2", "train.lora.also=['out.*']")
RESNET = ("network.name=ResNet10", "network.options={widen_factor: 0.125}")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("films"), cases=24)


@pytest.fixture(scope="module")
def first(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A checkpoint to begin with. Read only."""
    return toy_run(films, tmp_path_factory.mktemp("first"), "name=first")


def toy_run(films: Path, folder: Path, *overrides: str, resume: bool = False) -> Run:
    given = [f"data.root={films}", "train.epochs=1", *RESNET, *overrides]
    return train(config=write_config(folder / "toy.yaml", *given), out=folder / "run", progress=False, resume=resume)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint.folder / "weights.safetensors")


@pytest.fixture
def four_cases(data: Path, tmp_path: Path) -> list[str]:
    """Overrides for two cases to train on and two to validate on."""
    folder = data / "hippocampus"
    cases = json.loads((folder / "dataset.json").read_text())["training"][:4]
    lines = [f"{folder / case['image']},{folder / case['label']}" for case in cases]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return [f"data.root={tmp_path / 'cases.csv'}", "data.folds=2", "data.test_fraction=0", "train.epochs=1",
            "train.validate_every=1", "train.augment=[]", "predict.flip_axes=[]"]  # fmt: skip


def test_fine_tuning_begins_where_the_shipped_checkpoint_is(four_cases: list[str], tmp_path: Path) -> None:
    """One epoch on two cases: the validation Dice stays near the shipped one, and far from a random start."""
    overrides = [*four_cases, "train.learning_rate=0.0001", "train.ema_decay=0"]
    dice = {}
    for name, more in (("tuned", ["train.start.weights=hippocampus_mr"]), ("random", [])):
        path = tmp_path / f"{name}.yaml"
        path.write_text(load_config(shipped("configs") / "hippocampus_mr.yaml", [*overrides, *more]).to_yaml())
        metrics = train(config=path, out=tmp_path / name, progress=False).checkpoint.metrics
        dice[name] = [value["mean"] for value in metrics["validation"]["dice"].values()]
    start = json.loads((tmp_path / "tuned" / "metrics.json").read_text())["training"]["start"]
    shipped_one = open_checkpoint(find_checkpoint("hippocampus_mr"))
    assert (start["taken_share"], start["random"], start["sha256"]) == (1.0, [], shipped_one.weights_sha256)
    expected = [value["mean"] for value in shipped_one.metrics["cross_validation"]["dice"].values()]
    for tuned, untuned, known in zip(dice["tuned"], dice["random"], expected, strict=True):
        assert abs(tuned - known) < 0.06
        assert untuned < known - 0.3


def test_start_is_told_and_its_path_is_not(films: Path, first: Run, tmp_path: Path) -> None:
    run = toy_run(films, tmp_path, f"train.start.weights={first.checkpoint.folder}")
    start = run.checkpoint.metrics["training"]["start"]
    assert start["name"] == "first"
    assert start["sha256"] == first.checkpoint.weights_sha256
    assert (start["kind"], start["network"], start["taken_share"]) == ("checkpoint", "ResNet10", 1.0)
    told = json.loads((run.folder / "start.json").read_text())
    assert {**told, "held_out_seen": start["held_out_seen"]} == start
    card = (run.checkpoint.folder / "README.md").read_text()
    assert f"`first` (SHA-256 `{first.checkpoint.weights_sha256}`)" in card
    published = yaml.safe_load((run.checkpoint.folder / "config.yaml").read_text())
    assert published["train"]["start"]["weights"] == "checkpoint"
    for file in run.checkpoint.folder.iterdir():
        assert str(first.checkpoint.folder).encode() not in file.read_bytes(), file.name


def test_training_without_a_start_tells_of_none(first: Run) -> None:
    assert "start" not in first.checkpoint.metrics["training"]
    assert not (first.folder / "start.json").exists()


def test_same_seed_gives_the_same_weights_and_another_start_others(films: Path, first: Run, tmp_path: Path) -> None:
    found = []
    for name, start in (("a", [f"train.start.weights={first.checkpoint.folder}"]), ("b", None), ("c", [])):
        (tmp_path / name).mkdir()
        chosen = start if start is not None else [f"train.start.weights={first.checkpoint.folder}"]
        found.append(weights(toy_run(films, tmp_path / name, *chosen)))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not all(torch.equal(found[0][key], found[2][key]) for key in found[0])


def test_frozen_part_is_published_as_it_began_with_its_statistics(films: Path, first: Run, tmp_path: Path) -> None:
    run = toy_run(
        films, tmp_path, f"train.start.weights={first.checkpoint.folder}",
        "train.freeze=['conv1.*', 'bn1.*', 'layer[1-3].*']", "train.epochs=3", "train.ema_decay=0.9",
    )  # fmt: skip
    before, after = weights(first), weights(run)
    frozen = {name for name in before if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3")}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    moved = before.keys() - frozen
    assert {"fc.weight", "layer4.0.bn1.running_mean", "layer4.0.conv1.weight"} <= moved
    assert not any(torch.equal(before[name], after[name]) for name in moved if "downsample.0.bias" not in name)
    Classifier(run.checkpoint)


def test_run_is_resumed_without_its_start(films: Path, first: Run, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    save_file(weights(first), path)
    given = (f"train.start.weights={path}", "train.freeze=['layer1.*']")
    run = toy_run(films, tmp_path, *given)
    before = weights(run)
    path.unlink()
    resumed = toy_run(films, tmp_path, *given, resume=True)
    assert resumed.checkpoint.metrics["training"]["start"] == run.checkpoint.metrics["training"]["start"]
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(resumed).items())


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("train.start.weights=hippocampus_mr", StartMismatch),
        ("train.start.weights=https://example.org/model.pt", StartUnusable),
        ("train.start.weights=nowhere.pt", StartUnusable),
        ("train.freeze=['encoder.*']", UnknownName),
        ("train.lora.rank=2", UnknownName),
        ("explain.layer=layer9", UnknownName),
    ],
)
def test_what_cannot_be_is_refused_before_the_run_folder_is_made(
    films: Path, tmp_path: Path, override: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        toy_run(films, tmp_path, override)
    assert not (tmp_path / "run").exists()


def test_config_without_weights_to_begin_with_is_refused(films: Path, tmp_path: Path) -> None:
    with pytest.raises(StartUnusable, match="not given"):
        toy_run(films, tmp_path, "train.start.least_share=1.0")


@pytest.fixture
def attentive(four_cases: list[str], tmp_path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights of a tiny segmenter with attention, and overrides that begin with it, with a moving average."""
    options = {"img_size": [16, 16, 16], "hidden_size": 24, "num_heads": 2, "mlp_dim": 24, "feature_size": 4}
    network = build_network(Network(name="UNETR", options=options), in_channels=1, out_channels=3)
    before = {name: tensor.clone() for name, tensor in weights_of(network).items()}
    torch.save(before, tmp_path / "start.pt")
    overrides = [
        *four_cases, "network.name=UNETR", f"network.options={options}", "train.patch=[16, 16, 16]",
        "predict.patch=[16, 16, 16]", "predict.overlap=0", "predict.batch_size=16", "train.ema_decay=0.5",
        f"train.start.weights={tmp_path / 'start.pt'}",
    ]  # fmt: skip
    return before, overrides


def test_lora_publishes_a_plain_network(attentive: tuple[dict[str, torch.Tensor], list[str]], tmp_path: Path) -> None:
    before, overrides = attentive
    run = train(config=Path("hippocampus_mr"), overrides=[*overrides, *LORA], out=tmp_path / "run", progress=False)
    assert run.checkpoint.metrics["training"]["start"]["taken_share"] == 1
    after = weights(run)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    attention = {name for name in before if name.endswith("attn.qkv.weight")}
    assert changed == attention | {name for name in before if name.startswith("out.")}
    Predictor(run.checkpoint)


@pytest.mark.parametrize(
    ("held", "trained"),
    [
        # It freezes all else by the same means as train.freeze.
        pytest.param(LORA, ("*.attn.qkv.weight", "out.*"), id="lora"),
        pytest.param(("train.freeze=['vit.*', 'encoder*', 'decoder*']",), ("out.*",), id="freeze",
                     marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_what_is_frozen_stays_so_with_two_processes(
    attentive: tuple[dict[str, torch.Tensor], list[str]],
    tmp_path: Path,
    held: tuple[str, ...],
    trained: tuple[str, ...],
) -> None:
    """Bit for bit; and what is trained ends where one process takes it."""
    before, given = attentive
    overrides = [*given, *held, "train.batch_size=2", "train.epochs=2"]
    one, two = (
        weights(train(config=Path("hippocampus_mr"), overrides=overrides, devices=n, out=tmp_path / str(n),
                      progress=False))
        for n in (1, 2)
    )  # fmt: skip
    expected = {name for name in before if any(fnmatchcase(name, pattern) for pattern in trained)}
    assert 1 < len(expected) < len(before) and two.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], two[name])} == expected
    for name in expected:
        moved = (one[name] - before[name]).abs().max()
        assert (two[name] - one[name]).abs().max() < 0.05 * moved, name


def test_config_that_needs_no_path_is_published_as_it_is(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "train.start.weights=chest_xray")
    assert config.without_paths().train.start == config.train.start
    elsewhere = toy_config(tmp_path, "train.start.weights=/home/somebody/chest_xray")
    assert elsewhere.without_paths().train.start == config.train.start
    assert elsewhere.digest() == config.digest()


def test_keys_of_a_start_are_known(tmp_path: Path) -> None:
    for override in ("train.start.least_share=0", "train.lora.rank=0", "train.lora.target=[]"):
        with pytest.raises(ConfigInvalid):
            toy_config(tmp_path, override)
