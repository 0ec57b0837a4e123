"""DICOM validators of other projects: what imgpipe writes is judged by somebody else, too.

A validator that is missing skips a test, but never in continuous integration (`CI` or `IMGPIPE_REQUIRE_TOOLS` is set).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def assert_valid(path: Path) -> None:
    """David Clunie's dciodvfy reports no error (PS3.3: modules and attributes of the IOD)."""
    validator = Path(sys.executable).parent / "dciodvfy"
    done = subprocess.run([validator, "-new", path], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert (done.returncode, errors) == (0, [])


def dumped(path: Path) -> str:
    """What DCMTK's dsrdump reads in a structured report, which it refuses or warns of where it is not one."""
    done = subprocess.run([_tool("dsrdump", package="dcmtk"), "+Pn", "+Pl", path], capture_output=True, check=False)
    told = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, told
    # DCMTK cannot check the values of some character sets, and says so.
    warnings = [line for line in told.splitlines() if line.startswith(("E:", "W:")) and "VR checker" not in line]
    assert not warnings, told
    return done.stdout.decode("utf-8", "replace")


def _tool(name: str, *, package: str) -> str:
    found = shutil.which(name)
    if found is None and {"CI", "IMGPIPE_REQUIRE_TOOLS"} & set(os.environ):
        pytest.fail(f"{name} is missing: apt-get install {package}")
    if found is None:
        pytest.skip(f"{name} is missing: apt-get install {package}")
    return found
