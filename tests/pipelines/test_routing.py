"""A file of rules: what it takes, what it refuses, and which study goes which way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imaging.errors import ConfigInvalid, UnknownKey
from pipelines.routing import Routing, SeriesTold, StudyTold, load_routing

SHIPPED = Path(__file__).parents[2] / "deploy" / "rules.yaml"
CHEST = StudyTold("1.2.3", "Chest PA", "STAT", frozenset({"ER_XRAY"}), (SeriesTold("DX", "PA erect", "CHEST", 1),))
BRAIN = StudyTold("1.2.4", "Brain", "", frozenset(), (SeriesTold("MR", "T1 MPRAGE", "BRAIN", 40),
                                                      SeriesTold("MR", "FLAIR", "BRAIN", 20)))  # fmt: skip


def written(folder: Path, **content: Any) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_shipped_example_sends_each_study_by_the_first_rule_that_takes_it() -> None:
    routing = load_routing(SHIPPED)
    taken = [routing.rule_of(study) for study in (CHEST, BRAIN, StudyTold("1.2.5"))]
    assert [rule.name for rule in taken if rule] == ["emergency chest", "hippocampus", "everything else"]
    assert [rule.priority for rule in taken if rule] == ["stat", "routine", "low"]


@pytest.mark.parametrize(
    ("when", "takes"),
    [
        ({}, True),
        ({"modality": ["MR"]}, True),
        ({"modality": ["CT"]}, False),
        ({"modality": ["MR"], "series_description": "mprage"}, True),
        ({"series_description": "^flair$", "body_part": ["BRAIN"]}, True),
        ({"series_description": "flair", "body_part": ["KNEE"]}, False),
        ({"study_description": "brain"}, True),
        ({"study_description": "chest"}, False),
        ({"aet": ["ER_XRAY"]}, False),
        ({"urgency": ["STAT"]}, False),
    ],
)
def test_all_that_a_rule_asks_must_hold(when: dict[str, Any], takes: bool) -> None:
    routing = Routing.model_validate({"rules": [{"name": "a", "when": when}]})
    assert (routing.rule_of(BRAIN) is not None) is takes


def test_urgency_and_sender_are_asked() -> None:
    routing = Routing.model_validate({"rules": [{"name": "a", "when": {"urgency": ["stat"], "aet": ["ER_XRAY"]}}]})
    assert routing.rule_of(CHEST) is not None


def test_conditions_on_series_hold_for_one_series_and_not_for_two_together() -> None:
    mixed = StudyTold("1", series=(SeriesTold("CT", "head", "", 1), SeriesTold("MR", "knee", "", 1)))
    when = {"modality": ["CT"], "series_description": "knee"}
    assert Routing.model_validate({"rules": [{"name": "a", "when": when}]}).rule_of(mixed) is None


def test_a_required_series_with_too_few_instances_is_lacking() -> None:
    wanted = [{"modality": ["MR"], "description": "flair", "instances": 21}]
    [rule] = Routing.model_validate({"rules": [{"name": "a", "required": wanted}]}).rules
    assert rule.lacks(BRAIN)
    [rule] = Routing.model_validate({"rules": [{"name": "a", "required": [{**wanted[0], "instances": 20}]}]}).rules
    assert not rule.lacks(BRAIN)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ({"rules": [{"name": "a", "whem": {}}]}, UnknownKey, "rules.0.when"),
        ({"rules": [{"name": "a", "when": {"modalty": []}}]}, UnknownKey, "rules.0.when.modality"),
        ({"rules": [{"name": "a", "when": {"study_description": "("}}]}, ConfigInvalid, "regular expression"),
        ({"rules": [{"name": "a", "formats": ["pdf"]}]}, ConfigInvalid, "rules.0.formats"),
        ({"rules": [{"name": "a", "priority": "urgent"}]}, ConfigInvalid, "rules.0.priority"),
        ({"rules": [{"name": "a", "to": [{"outbox": "o", "send": "A@b:1"}]}]}, ConfigInvalid, "one of outbox"),
        ({"rules": [{"name": "a"}, {"name": "a"}]}, ConfigInvalid, "two rules are named 'a'"),
        ({"rules": []}, ConfigInvalid, "rules"),
        ({"rules": [{"name": "a"}], "disk": {"high": 0.5, "low": 0.6}}, ConfigInvalid, "low is above high"),
        ({"rules": [{"name": "a"}], "retention": {"delivered_days": -1}}, ConfigInvalid, "delivered_days"),
        ({"rules": [{"name": "a"}], "retension": {}}, UnknownKey, "retention"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(
    tmp_path: Path, content: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says.replace(".", r"\.")):
        load_routing(written(tmp_path, **content), places=["outbox"])


def test_a_rule_must_say_where_to_unless_the_command_line_does(tmp_path: Path) -> None:
    path = written(tmp_path, rules=[{"name": "mute"}])
    assert load_routing(path, places=["outbox /o"]).rules[0].to == ()
    with pytest.raises(ConfigInvalid, match="'mute' has no `to`"):
        load_routing(path)


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    rule = {
        "name": "a",
        "to": [{"outbox": "out"}],
        "deidentify": {"key": "the.key"},
        "checkpoints": ["mine", "chest_xray"],
    }
    [read] = load_routing(written(tmp_path, rules=[rule])).rules
    assert read.to[0].outbox == tmp_path / "out"
    assert read.deidentify is not None
    assert read.deidentify.key == tmp_path / "the.key"
    assert read.checkpoints == (str(tmp_path / "mine"), "chest_xray")
