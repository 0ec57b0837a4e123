"""A watcher to be killed: `python watched.py ROOT SECONDS PORT`, a process of its own with a stand-in for its model."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path


def main(root: Path, seconds: float, port: int) -> None:
    from watching import Stub

    from pipelines.receive import Listening
    from pipelines.runner import Patience
    from pipelines.store.rules import Completeness, Retries
    from pipelines.watch import In, Out, watch
    from pipelines.watcher import Rules

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    rules = Rules(
        complete=Completeness(series_quiet_s=0.2, study_quiet_s=0.4, timeout_s=60),
        # A job that is interrupted is no faulty one; here it is interrupted all the time.
        retries=Retries(most=50, first_s=0.05, longest_s=0.2, most_interruptions=1000),
        redeliveries=Retries(most=50, first_s=0.05, longest_s=0.2),
        patience=Patience(study_s=60),
        settle_s=0.1,
    )
    devices: list[dict[str, str]] = [{}, {}]
    watch(
        come_from=In(root / "in", Listening("IMGPIPE", port, host="127.0.0.1")),
        go_to=Out(root / "out"),
        store=root / "store",
        reading=Stub(seconds=seconds, log=root / "log"),
        stop=stop,
        devices=devices,
        rules=rules,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
