"""The JSON Schema of report.json, for whoever reads reports in another language: report.schema.json beside this file.

Invariant: nothing is said there that the types do not say. `make docs` writes the file anew, and a test compares.
"""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from imaging.report.report import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION: str = Report.model_fields["schema_version"].default


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12) that every report.json of the versions told in it keeps, unknown keys refused."""
    versions = ", ".join(get_args(Report.model_fields["schema_version"].annotation))
    return {
        "$schema": DIALECT,
        "$id": f"urn:imgpipe:report:{VERSION}",
        "$comment": f"Made of imaging/report/report.py; holds for the versions {versions}.",
        **Report.model_json_schema(mode="validation"),
    }


def schema_text() -> str:
    """report.schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
