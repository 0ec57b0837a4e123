"""Every key of a config with what it takes and its default, as Markdown: docs/config.md, which a test compares.

Invariant: nothing is said here that the models do not say. `make docs` writes the page anew.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imaging.config.section import Section
from imaging.config.tasks import TASKS

_HEAD = """# Every key of a config

Made of the models in `imaging/config/` (`make docs`); [training](training.md) says how they go together. A key without
a default must be given; None is YAML's `null`. `N` stands for an element's number in a list, `KEY` for a dotted key.
"""
_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
_LENGTHS = (("minItems", "at least"), ("maxItems", "at most"))
_PLAIN = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "null": "`null`",
}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation such as ``tuple[Label, ...] | None`` mentions."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def sections() -> dict[str, dict[str, type[BaseModel]]]:
    """The model of each section for each task that has it; the whole config is the section ``""``."""
    found: dict[str, dict[str, type[BaseModel]]] = {}
    for task, root in TASKS.items():
        for path, model in _below("", root):
            found.setdefault(path, {})[task] = model
    return found


def _below(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for key, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from _below(f"{path}.{key}".lstrip(".") + _element(field), inner)


def _element(field: FieldInfo) -> str:
    """What stands for an element's number or name, where a key holds several sections."""
    return {"tuple": ".N", "dict": ".KEY"}.get(
        getattr(getattr(field.annotation, "__origin__", None), "__name__", ""), ""
    )


def explanations(model: type[BaseModel]) -> list[str]:
    """The words of a model and of those that it is made from, the most general first."""
    made_from = [item for item in reversed(model.__mro__) if issubclass(item, Section) and item is not Section]
    return [inspect.cleandoc(item.__doc__).replace("``", "`") for item in made_from if item.__doc__]


def page() -> str:
    """docs/config.md."""
    grouped: dict[tuple[type[BaseModel], ...], list[str]] = {}
    by_path = sections()
    for path, models in by_path.items():
        grouped.setdefault(tuple(models.values()), []).append(path)
    parts = [_HEAD]
    for paths in grouped.values():
        models = by_path[paths[0]]
        heading = ", ".join(f"`{path}`" for path in paths) if paths[0] else "The whole"
        tasks = [task for task in TASKS if any(task in by_path[path] for path in paths)]
        only = f" ({', '.join(tasks)} only)" if len(tasks) < len(TASKS) else ""
        parts.append("\n".join([f"## {heading}{only}\n", *_words(models), *_table(models)]) + "\n")
    return "\n".join(parts)


def _words(models: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    """The explanations of a section; what is not said of every task that has it begins with those of which it is."""
    tasks_of: dict[str, list[str]] = {}
    for task, model in models.items():
        for text in explanations(model):
            tasks_of.setdefault(text, []).append(task)
    for text, tasks in tasks_of.items():
        yield f"{text}\n" if len(tasks) == len(models) else f"({', '.join(tasks)}) {text}\n"


def _table(models: Mapping[str, type[BaseModel]]) -> list[str]:
    tasks_of: dict[tuple[str, str, str], list[str]] = {}
    for task, model in models.items():
        for row in _rows(model):
            tasks_of.setdefault(row, []).append(task)
    # Together what is called alike, in the order in which it is first met.
    order = list(dict.fromkeys(key for key, _, _ in tasks_of))
    rows = sorted(tasks_of.items(), key=lambda item: order.index(item[0][0]))
    lines = [
        f"| `{key}` | {takes} | {default} | {'' if len(tasks) == len(models) else ', '.join(tasks)} |"
        for (key, takes, default), tasks in rows
    ]
    return ["| key | takes | default | only for |", "| --- | --- | --- | --- |", *lines]


def _rows(model: type[BaseModel]) -> list[tuple[str, str, str]]:
    properties = model.model_json_schema()["properties"]
    return [
        (key, _takes(properties[key]), "" if field.is_required() else _default(field))
        for key, field in model.model_fields.items()
    ]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value)}`"


def _takes(schema: Mapping[str, Any]) -> str:
    """What a part of a JSON schema takes, in words."""
    if "anyOf" in schema:
        return " or ".join(_takes(part) for part in schema["anyOf"])
    if "$ref" in schema:
        return "a section"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return _list_taken(schema)
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"keys, each with {_takes(inner if isinstance(inner, dict) else {})}"
    return _value_taken(schema)


def _value_taken(schema: Mapping[str, Any]) -> str:
    if "type" not in schema:
        return "any value"
    if "pattern" in schema:
        return f"text that matches `{schema['pattern']}`".replace("|", "\\|")
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS if key in schema]
    return ", ".join([_PLAIN[schema["type"]], *bounds])


def _list_taken(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        kinds = [_takes(part) for part in schema["prefixItems"]]
        return f"a list of {len(kinds)}: {', '.join(dict.fromkeys(kinds))}"
    lengths = " and ".join(f"{word} {schema[key]}" for key, word in _LENGTHS if key in schema)
    return f"a list{f' ({lengths})' if lengths else ''} of: {_takes(schema['items'])}"


if __name__ == "__main__":
    sys.stdout.write(page())
