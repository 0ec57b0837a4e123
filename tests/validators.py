"""DICOM validators of other projects: what imgpipe writes is judged by somebody else, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pacs import required

_DSRDUMP = "/usr/bin/dsrdump"


def assert_valid(path: Path) -> None:
    """David Clunie's dciodvfy reports no error (PS3.3: modules and attributes of the IOD)."""
    validator = Path(sys.executable).parent / "dciodvfy"
    done = subprocess.run([validator, "-new", path], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert (done.returncode, errors) == (0, [])


def dumped(path: Path) -> str:
    """What DCMTK's dsrdump reads in a structured report, which it refuses or warns of where it is not one."""
    required(_DSRDUMP)
    done = subprocess.run([_DSRDUMP, "+Pn", "+Pl", path], capture_output=True, check=False)
    told = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, told
    # DCMTK cannot check the values of some character sets, and says so.
    warnings = [line for line in told.splitlines() if line.startswith(("E:", "W:")) and "VR checker" not in line]
    assert not warnings, told
    return done.stdout.decode("utf-8", "replace")
