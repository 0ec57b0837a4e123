"""The JSON Schema in the repository is that of the types, and takes and refuses what they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from reported import OLD, full_report

from imaging.report import schema as room
from imaging.report.schema import DIALECT, schema, schema_text

FILE = Path(room.__file__).parent / "report.schema.json"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(FILE.read_text(encoding="utf-8")))


def test_schema_in_the_repository_is_that_of_the_types() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_text(), "`make docs` writes it anew"


def test_schema_is_one_and_tells_its_version() -> None:
    Draft202012Validator.check_schema(schema())
    assert (schema()["$schema"], schema()["$id"]) == (DIALECT, "urn:imgpipe:report:1.1")


def test_reports_of_every_version_are_taken(validator: Draft202012Validator) -> None:
    validator.validate(OLD)
    validator.validate(json.loads(full_report().to_json()))


@pytest.mark.parametrize(
    "wrong",
    [{"schema_version": "2.0"}, {"mood": "bad"}, {"study": {}}, {"findings": [{}]}, {"texts": [{"role": "letter"}]}],
    ids=str,
)
def test_what_the_types_refuse_is_refused(validator: Draft202012Validator, wrong: dict[str, Any]) -> None:
    assert not validator.is_valid(json.loads(full_report().to_json()) | wrong)


def test_score_beyond_1_is_refused(validator: Draft202012Validator) -> None:
    document = json.loads(full_report().to_json())
    document["fusion"][0]["image"]["probability"] = 1.5
    assert [error.json_path for error in validator.iter_errors(document)] == ["$.fusion[0].image"]
