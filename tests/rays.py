"""Ray nodes on this machine, each with processes of its own, which a test may kill as a power cut does it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
# Whoever has it may call the cluster; without it no other process of this machine may.
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
_SECONDS = "900"


class RayNode:
    """A node of a cluster; the first one, at `port`, is its head. It has the imgpipe that lies in `root`.

    GPUs are what it says of itself: Ray gives them out, whether they are there or not. Every node ends after some
    minutes, whatever becomes of the test.
    """

    def __init__(self, port: int, folder: Path, *, number: int = 0, cpus: int = 1, gpus: int = 0,
                 root: Path = ROOT) -> None:  # fmt: skip
        first = port + 10 + 100 * number
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}",
                f"--ray-client-server-port={port + 5}"]  # fmt: skip
        command = ["timeout", _SECONDS, RAY, "start", *([f"--address=127.0.0.1:{port}"] if number else head),
                   "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f"--num-gpus={gpus}",
                   "--object-store-memory=80000000",
                   f"--min-worker-port={first + 10}", f"--max-worker-port={first + 60}",
                   f"--dashboard-agent-listen-port={first}", f"--metrics-export-port={first + 1}",
                   "--disable-usage-stats", "--block"]  # fmt: skip
        path = os.pathsep.join([str(root), str(ROOT / "tests")])
        environment = {**os.environ, **AUTHENTICATION, "PYTHONPATH": path, "RAY_worker_register_timeout_seconds": "300"}
        self._log = (folder.parent / f"node{number}.log").open("w")
        self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        """End all of its processes at once, with SIGKILL."""
        own = [psutil.Process(self._process.pid)] if psutil.pid_exists(self._process.pid) else []
        for process in [*own, *(child for parent in own for child in parent.children(recursive=True))]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._log.close()


def until_there(port: int, nodes: int, seconds: float = 120.0) -> None:
    """Wait until so many nodes of a cluster are there."""
    check = ("import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40); "
             "sys.exit(sum(node['Alive'] for node in ray.nodes()) < int(sys.argv[2]))")  # fmt: skip
    ends, environment = time.monotonic() + seconds, {**os.environ, **AUTHENTICATION}
    while time.monotonic() < ends:
        command = [sys.executable, "-c", check, f"127.0.0.1:{port}", str(nodes)]
        if subprocess.run(command, capture_output=True, check=False, env=environment).returncode == 0:
            return
        time.sleep(0.5)
    raise AssertionError(f"the {nodes} Ray nodes at port {port} are not there after {seconds} s")
