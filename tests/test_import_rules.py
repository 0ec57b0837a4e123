"""Who may import whom, and what stays light: the rules of the design, held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "monai", "lightning")
LIGHT = (
    "imaging", "imaging.errors", "imaging.volume", "imaging.config", "imaging.nifti", "imaging.selection",
    "imaging.checkpoint", "imaging.dicom.scan", "imaging.dicom.geometry", "pipelines.cli", "pipelines.inspect",
    "pipelines.models", "pipelines.plan", "imaging.plan", "imaging.proposal", "imaging.dataset_check",
    "imaging.text.document", "imaging.text.intake", "imaging.text.mentions", "pipelines.receive", "pipelines.watch",
)  # fmt: skip
IMAGING = sorted((ROOT / "imaging").rglob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)


def heavy_after(code: str) -> list[str]:
    """Which heavy packages are loaded when the code has run in a fresh interpreter."""
    tell = f"import sys; print('loaded', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    result = run(sys.executable, "-c", f"{code}\n{tell}")
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()[-1].split()[1:]


def test_rooms_import_only_from_rooms_below() -> None:
    result = run(str(Path(sys.executable).parent / "lint-imports"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_light_modules_load_nothing_heavy() -> None:
    assert heavy_after(f"import {', '.join(LIGHT)}") == []


def test_the_check_for_heavy_modules_would_see_one() -> None:
    assert "torch" in heavy_after("import imaging.networks")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["infer", "--help"],
        ["train", "--help"],
        ["watch", "--help"],
        ["evaluate", "--help"],
        ["models"],
        ["inspect", "tests/data/hippocrop_study1"],
        ["inspect", "tests/data/hippocampus/dataset.json"],
    ],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    call = f"from pipelines.cli import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert not end.code"
    assert heavy_after(call) == []


def imported_by(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", IMAGING, ids=lambda path: str(path.relative_to(ROOT)))
def test_lightning_stays_in_tasks_and_data(path: Path) -> None:
    allowed = path.parent.name == "tasks" or path.name == "data.py"
    assert allowed or not {"lightning", "pytorch_lightning"} & imported_by(path)


@pytest.mark.parametrize("path", IMAGING, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_has_no_command_line(path: Path) -> None:
    # The one room that starts processes: compressed pixels are decoded where a crash costs nothing.
    allowed = {"subprocess"} if path.name == "decoder.py" else set()
    assert not ({"click", "pipelines", "subprocess"} - allowed) & imported_by(path)
