"""The documents keep up with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from imaging import errors
from imaging.config.reference import explanations, models_in, page, sections
from pipelines.store.moves import MOVES, State

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


def codes() -> set[str]:
    classes = [item for item in vars(errors).values() if isinstance(item, type)]
    own = {vars(item).get("code") for item in classes if issubclass(item, errors.ImagingError)}
    return {code for code in own if isinstance(code, str)} - {"imaging_error", "series_refused"}


def test_every_error_code_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE))
    assert documented == codes()


def test_every_defect_is_documented_and_no_other() -> None:
    made = re.compile(r'Defect\(\s*"(\w+)"')
    code = "".join(path.read_text() for path in (ROOT / "imaging").rglob("*.py"))
    table = (ROOT / "docs/reader.md").read_text().split("## Defects")[1].split("## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
    assert documented == set(made.findall(code))


def test_every_code_the_readme_names_exists() -> None:
    table = (ROOT / "README.md").read_text().split("## Right or explained")[1].split("## A tour")[0]
    named = set(re.findall(r"`([a-z]+[a-z0-9_]*)`", table)) - {"repair", "strict"}
    assert named
    assert named <= codes()


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target, anchor in LINK.findall((ROOT / page).read_text()):
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


def test_the_index_leads_to_every_page_and_the_readme_to_the_index() -> None:
    index = {target for target, _ in LINK.findall((ROOT / "docs/README.md").read_text())}
    assert index == {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert "docs/README.md" in {target for target, _ in LINK.findall((ROOT / "README.md").read_text())}


def test_readme_names_every_dependency() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("dependencies = [")[1].split("]")[0]
    names = set(re.findall(r'"([a-z0-9]+)>=', block))
    table = (ROOT / "README.md").read_text().split("## What each dependency is for")[1]
    assert names == set(re.findall(r"^\| ([a-z0-9]+) \|", table, flags=re.MULTILINE)) - {"package"}


def test_picture_of_the_states_has_the_moves_of_the_code_and_no_other() -> None:
    picture = (ROOT / "docs/watcher.md").read_text().split("```mermaid")[1].split("```")[0]
    arrows = re.findall(r"^ +(\S+) --> ([a-z]+|\[\*\])", picture, flags=re.MULTILINE)
    assert arrows.count(("[*]", "receiving")) == arrows.count(("done", "[*]")) == 1
    drawn = [(State(before), State(after)) for before, after in arrows if "[*]" not in (before, after)]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == MOVES


def test_page_of_the_config_keys_is_that_of_the_models() -> None:
    assert (ROOT / "docs/config.md").read_text() == page(), "`make docs` writes it anew"


def test_every_key_of_a_config_is_explained() -> None:
    models = {model for by_task in sections().values() for model in by_task.values()}
    keys = {(model, key) for model in models for key, field in model.model_fields.items()
            if not models_in(field.annotation)}  # fmt: skip
    assert len(keys) > 80
    unexplained = [f"{model.__name__}.{key}" for model, key in keys if f"`{key}`" not in "".join(explanations(model))]
    assert unexplained == []


def test_page_shows_bounds_choices_and_defaults() -> None:
    rows = (ROOT / "docs/config.md").read_text().splitlines()
    assert "| `ema_decay` | number, at least 0, below 1 | `0.995` | segment, classify, text |" in rows
    assert '| `schedule` | `cosine`, `poly` | `"cosine"` | segment, classify, text |' in rows
    assert "| `epochs` | whole number, at least 1 |  | segment, classify, text |" in rows
    assert "| `foreground` | number, at least 0, at most 1 | `0.0` | segment |" in rows


def test_readme_says_what_every_extra_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"imgpipe\[([a-z0-9]+)\]", (ROOT / "README.md").read_text()))
    assert named == set(project["optional-dependencies"]) - {"test"}


def test_readme_names_what_is_for_tests_only() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    names = {re.split(r"[\[>]", package)[0] for package in extra} - {"imgpipe"}
    readme = (ROOT / "README.md").read_text()
    assert len(names) > 10
    assert {name for name in names if name not in readme and not name.startswith("pylibjpeg-")} == set()
