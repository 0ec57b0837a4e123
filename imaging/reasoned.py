"""A config as choices, each with its reason, and as YAML that tells the reasons as comments.

Invariant: whatever a data set says of itself stays within its comment or its value: a reason is one line of printable
text, wrapped, and a value is written by YAML's own rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from textwrap import wrap
from typing import Any

import yaml

_WIDTH = 118


@dataclass(frozen=True, slots=True)
class Choice:
    """A key of the config with dots for sections, its value, and why; without a reason the key explains itself."""

    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A config as a list of choices, in the order of the file."""

    heading: str
    choices: tuple[Choice, ...]

    def as_dict(self) -> dict[str, Any]:
        """The config as nested mappings."""
        content: dict[str, Any] = {}
        for choice in self.choices:
            *sections, last = choice.key.split(".")
            node = content
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = choice.value
        return content

    def to_yaml(self) -> str:
        """The config as YAML, each reason as a comment above its key."""
        lines = _comment(self.heading, "")
        open_sections: list[str] = []
        for choice in self.choices:
            *sections, key = choice.key.split(".")
            # Two sections share the names that they begin with.
            shared = sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(open_sections, sections, strict=False))
            )
            if sections and not shared:
                lines.append("")
            lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
            open_sections = sections
            indent = "  " * len(sections)
            lines += [*_comment(choice.why, indent), *_entry(key, choice.value, indent)]
        return "\n".join([*lines, ""])


def printable(told: str) -> str:
    """One line of printable text, whatever a data set says."""
    return " ".join("".join(c if c.isprintable() else " " for c in told).split())


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(printable(text), _WIDTH - len(indent))]


def _entry(key: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{indent}{key}:", *(f"{indent}  - {_flow(item)}" for item in value)]
    return [f"{indent}{key}: {_flow(value)}"]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
