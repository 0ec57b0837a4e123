"""The report's types: what is old stays readable, what is wrong is refused, and everything comes back as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from reported import OLD, full_report

from imaging.report import report as types
from imaging.report.report import Report


def test_report_of_1_0_is_read_and_keeps_its_version() -> None:
    old = Report.model_validate_json(json.dumps(OLD))
    assert old.schema_version == "1.0"
    assert (old.texts, old.fusion, old.disagreements, old.not_looked_at, old.findings[0].novelty) == ((),) * 5
    assert Report.model_validate_json(old.to_json()) == old


def test_report_with_every_part_comes_back_as_it_was() -> None:
    report = full_report()
    assert report.schema_version == "1.1"
    assert Report.model_validate_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("texts", {"probability": 1.2}),
        ("texts", {"role": "letter"}),
        ("texts", {"interval": [0.1]}),
        ("fusion", {"method": "guess"}),
        ("fusion", {"image": {"probability": -0.1, "logit": 0.0, "source": "image x"}}),
        ("disagreements", {"kind": "both_unsure"}),
        ("disagreements", {"mood": "bad"}),
    ],
    ids=str,
)
def test_wrong_part_is_refused(part: str, wrong: dict[str, Any]) -> None:
    document = json.loads(full_report().to_json())
    document[part][0] |= wrong
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Report.model_validate_json(json.dumps(document))


def test_every_part_is_frozen_and_refuses_unknown_keys() -> None:
    parts = [item for item in vars(types).values() if isinstance(item, type) and issubclass(item, BaseModel)]
    assert len(parts) > 20
    for part in set(parts) - {BaseModel}:
        assert part.model_config.get("frozen") and part.model_config.get("extra") == "forbid", part
