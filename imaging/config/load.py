"""A YAML file and ``KEY=VALUE`` overrides -> a config, or a refusal that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from imaging.config.section import Section
from imaging.config.task import Config, Described, NetworkConfig
from imaging.config.tasks import IMAGE_TASKS, NETWORK_TASKS, TASKS, AnyConfig
from imaging.errors import ConfigInvalid, UnknownKey
from imaging.files import shipped

# Lists and mappings within one another; a config has five.
_DEEPEST = 100

_Kind = TypeVar("_Kind", bound=Described)
_Part = TypeVar("_Part", bound=Section)


def find_config(name: str | Path) -> Path:
    """A config file by its path, or a shipped one by its name.

    Raises
    ------
    ConfigInvalid
        If there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(shipped("configs").glob("*.yaml"))}
    if str(name) in known:
        return known[str(name)]
    raise ConfigInvalid(name, seen="no such file", expected=f"a config file, or one of {', '.join(known)} was expected")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate the config of a network that looks at images; see `load_any`."""
    return _validated(path, _content(path, overrides), IMAGE_TASKS)


def load_network(path: Path, overrides: Sequence[str] = ()) -> NetworkConfig:
    """Read and validate the config of a network that is trained, whatever it looks at; see `load_any`."""
    return _validated(path, _content(path, overrides), NETWORK_TASKS)


def load_any(path: Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read and validate a config of any task.

    Parameters
    ----------
    path
        A YAML file.
    overrides
        ``KEY=VALUE`` with dots for sections (``train.epochs=3``); VALUE is read as YAML. An element of a list is named
        by its number (``labels.0.title=Head``).

    Raises
    ------
    UnknownKey
        If the file or an override has a key that configs do not have.
    ConfigInvalid
        If the file is not YAML, or a value is not what its key takes.
    """
    return _validated(path, _content(path, overrides), TASKS)


def load_section(path: Path, model: type[_Part]) -> _Part:
    """Read and validate a YAML file that is no task's config; see `load_any`.

    Parameters
    ----------
    path
        A YAML file.
    model
        What it should be.

    Raises
    ------
    UnknownKey, ConfigInvalid
        As `load_any` says.
    """
    try:
        return model.model_validate(_content(path, ()))
    except ValidationError as error:
        raise _explain(path, error, model) from error


def _content(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What a file says with the overrides in it."""
    try:
        content = _read_yaml(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # PyYAML lets int() and date() raise ValueError
        raise ConfigInvalid(path, seen=f"cannot be read as YAML ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ConfigInvalid(path, seen="the top level is not a mapping")
    for override in overrides:
        _set(content, override)
    return content


def _read_yaml(text: str) -> Any:
    """Plain values alone, by libyaml where PyYAML has it, in a fraction of the time that its own parser takes."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        # What libyaml's events are made into is made by recursion in C, which no limit of Python's stops.
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise RecursionError("nested too deep")
    return yaml.load(text, Loader=loader)  # noqa: S506


def with_values(config: NetworkConfig, values: Mapping[str, Any]) -> NetworkConfig:
    """A config with other values for some of its dotted keys.

    Raises
    ------
    UnknownKey
        If configs do not have a key.
    ConfigInvalid
        If a value is not what its key takes.
    """
    content = config.model_dump(mode="json")
    for key, value in values.items():
        _place(content, key, value, f"key {key!r}")
    return _validated(f"config {config.name}", content, NETWORK_TASKS)


def _validated(subject: Path | str, content: dict[str, Any], tasks: Mapping[str, type[_Kind]]) -> _Kind:
    model = _model_of(subject, content, tasks)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(subject, error, model) from error


def _model_of(path: Path | str, content: dict[str, Any], tasks: Mapping[str, type[_Kind]]) -> type[_Kind]:
    """The kind of config that `task` names."""
    known = ", ".join(tasks)
    if "task" not in content:
        meant = difflib.get_close_matches("task", [str(key) for key in content], n=1)
        if meant:
            raise UnknownKey(path, seen=f"unknown key {meant[0]!r}", expected="did you mean 'task'")
        raise ConfigInvalid(path, seen="task: Field required", expected=f"one of {known} was expected")
    task = content["task"]
    if not isinstance(task, str) or task not in tasks:
        raise ConfigInvalid(path, seen=f"task: {task!r}", expected=f"one of {known} was expected")
    return tasks[task]


def _set(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigInvalid(f"override {override!r}", seen="no KEY=VALUE", remedy="Write it as KEY=VALUE")
    try:
        value = _read_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigInvalid(f"override {override!r}", seen="VALUE is not YAML") from error
    _place(content, key, value, f"override {override!r}")


def _place(content: dict[str, Any], key: str, value: Any, subject: str) -> None:
    """Put a value at a dotted key."""
    node: Any = content
    *sections, last = key.split(".")
    for section in sections:
        if isinstance(node, list) and section.isdecimal() and int(section) < len(node):
            node = node[int(section)]
        elif isinstance(node, dict):
            # A section that is left out is written as null in a config that was written by imgpipe.
            node[section] = {} if node.get(section) is None else node[section]
            node = node[section]
        else:
            raise UnknownKey(subject, seen=f"{section!r} leads nowhere", expected="a known key was expected")
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UnknownKey(subject, seen=f"{last!r} leads nowhere", expected="a known key was expected")


def _explain(path: Path | str, error: ValidationError, root: type[BaseModel]) -> ConfigInvalid | UnknownKey:
    """The first problem of a validation, in this project's words; an unknown key before all others."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *section, unknown = (str(part) for part in problem["loc"])
        known = list(_section_at(section, root).model_fields)
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
        near = ".".join([*section, *nearest])
        expected = f"did you mean {near!r}" if nearest else f"one of {', '.join(known)} was expected"
        return UnknownKey(path, seen=f"unknown key {where!r}", expected=expected)
    return ConfigInvalid(path, seen=f"{where or 'config'}: {problem['msg']}")


def _section_at(location: Sequence[str], root: type[BaseModel]) -> type[BaseModel]:
    """The section's model at a path of keys below a config's own."""
    model = root
    named = False
    for part in location:
        if named:  # a name that the config's author gave
            named = False
        elif not part.isdecimal():
            annotation = model.model_fields[part].annotation
            named = get_origin(annotation) is dict
            model = _model_in(get_args(annotation)[1] if named else annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel]:
    """The one model inside an annotation such as ``tuple[Label, ...]`` or ``Code | None``."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return annotation
    models = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    return _model_in(models[0])
