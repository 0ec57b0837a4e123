"""What processes of a training do in the tests of `pipelines.devices`; a new interpreter must find it by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from imaging.errors import TrainingDiverged


def refuse_on_rank_one(*, folder: Path) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise TrainingDiverged(folder / "case", seen="nothing good")
    wait_for_the_end()


def die_on_rank_one() -> None:
    if os.environ["LOCAL_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_the_end()


def wait_for_the_end() -> None:
    time.sleep(120)
