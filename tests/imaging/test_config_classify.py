"""The config of a classifier: the second branch, with refusals as precise as those of the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imaging.config import ClassifyConfig, SegmentConfig, load_config
from imaging.errors import ConfigInvalid, UnknownKey
from imaging.files import shipped

CODE = {"value": "17621005", "meaning": "Normal"}
CONTENT: dict[str, Any] = {
    "name": "toy",
    "version": "1.0",
    "title": "Toy",
    "task": "classify",
    "applies_to": {"modality": ["DX", "CR"]},
    "output": "softmax",
    "classes": [
        {"id": 0, "name": "plain", "title": "Plain", "category": CODE, "code": CODE, "abnormal": False},
        {"id": 1, "name": "odd", "title": "Odd", "category": CODE, "code": CODE, "abnormal": True},
    ],
    "preprocess": {"size": [28, 28]},
    "network": {"name": "ResNet18"},
    "train": {"epochs": 2},
    "card": {"data": "d", "licence": "l", "intended_use": "i", "limits": "l", "command": "c"},
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


def test_task_chooses_the_branch(written: Path) -> None:
    assert isinstance(load_config(written), ClassifyConfig)
    assert isinstance(load_config(shipped("configs") / "hippocampus_mr.yaml"), SegmentConfig)


def test_yaml_of_a_config_is_the_config(written: Path, tmp_path: Path) -> None:
    config = load_config(written, ["preprocess.normalise=range", "preprocess.range=[-1000, 400]"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "again.yaml")
    assert again == config
    assert again.digest() == config.digest()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("clases=1", "did you mean 'classes'"),
        ("classes.0.titel=x", "did you mean 'classes.0.title'"),
        ("preprocess.aspects=pad", "did you mean 'preprocess.aspect'"),
        ("train.label_smooting=0.1", "did you mean 'train.label_smoothing'"),
        ("calibrate.sensitivty=0.9", "did you mean 'calibrate.sensitivity'"),
        ("data.splits=given", "did you mean 'data.split'"),
        ("applies_to.pixel_min=3", "did you mean 'applies_to.pixels_min'"),
    ],
)
def test_unknown_key_names_the_nearest_of_its_own_branch(written: Path, override: str, expected: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        load_config(written, [override])
    assert caught.value.expected == expected


def test_a_segmenter_has_no_key_of_a_classifier(written: Path) -> None:
    with pytest.raises(UnknownKey, match=r"train\.patch"):
        load_config(written, ["train.patch=[1, 1, 1]"])
    with pytest.raises(UnknownKey, match=r"train\.label_smoothing"):
        load_config(shipped("configs") / "hippocampus_mr.yaml", ["train.label_smoothing=0.1"])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("task=paint", "task"),
        ("task=[classify]", "task"),
        ("output=argmax", "output"),
        ("classes=[]", "classes"),
        ("classes.1.id=2", "classes must have the ids"),
        ("classes.1.name=plain", "same name"),
        ("classes.1.abnormal=perhaps", "abnormal"),
        ("preprocess.size=[28]", "size"),
        ("preprocess.size=[28, 28, 28, 28]", "size"),
        ("preprocess.size=[28, 0]", "size"),
        ("preprocess.normalise=range", "range"),
        ("preprocess.range=[0, 1]", "range"),
        ("preprocess={size: [2, 2], normalise: range, range: [1, 1]}", "range"),
        ("train.label_smoothing=1", "label_smoothing"),
        ("train.class_weights=some", "class_weights"),
        ("calibrate.sensitivity=0", "sensitivity"),
        ("calibrate.margin=1.5", "margin"),
        ("predict.flip_axes=[2]", "flip_axes"),
        ("data.duplicates=perhaps", "duplicates"),
    ],
)
def test_wrong_value_is_refused_by_name(written: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(written, [override])
    assert named in caught.value.seen


def test_no_class_has_the_name_of_all_abnormal_ones_together(written: Path) -> None:
    """Thresholds and figures go by names: one of the two would have got the other's."""
    load_config(written, ["classes.1.name=abnormal"])  # of one abnormal class there is no sum
    with pytest.raises(ConfigInvalid, match="no class is called 'abnormal'"):
        load_config(written, ["classes.1.name=abnormal", "classes.0.abnormal=true"])


@pytest.mark.parametrize("misspelt", ["tsk", "taks", "Task"])
def test_misspelt_task_is_told(tmp_path: Path, misspelt: str) -> None:
    content = {misspelt if key == "task" else key: value for key, value in CONTENT.items()}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UnknownKey, match="did you mean 'task'"):
        load_config(tmp_path / "toy.yaml")


def test_config_without_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({key: value for key, value in CONTENT.items() if key != "task"}))
    with pytest.raises(ConfigInvalid, match="segment, classify"):
        load_config(tmp_path / "toy.yaml")


def test_one_class_is_enough_for_sigmoid_only(written: Path) -> None:
    one = "classes=[" + str(CONTENT["classes"][0]).replace("False", "false") + "]"
    with pytest.raises(ConfigInvalid, match="two classes"):
        load_config(written, [one])
    assert len(load_config(written, [one, "output=sigmoid"]).classes) == 1
