"""A Ray cluster as the driver sees it: nodes with devices, seats on them, and what these say.

Invariant: all of Ray is in here. What happens to a node or a process comes out as news, never as an exception.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from imaging.errors import ClusterUnreachable, ConfigInvalid, ImagingError, MissingPackage
from pipelines.cluster.ledger import Mark
from pipelines.cluster.seat import Answer, Opening, Seat, Task

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger(__name__)

LOCAL = "local"
# Of a cluster that is started for one call: what goes over it is small.
_OBJECT_STORE_BYTES = 200 * 1024**2
# In which the head must take a connection.
_ANSWER_S = 10.0
# What the clusters of this process ask for that are started for one call. Ray reads it once in a process.
_TOKEN = secrets.token_hex(32)
_TOKEN_NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster.

    Attributes
    ----------
    address
        ``HOST:PORT`` of its head; ``auto`` for the one that this machine belongs to; ``local`` for one of this machine
        alone, which is started and ends with the call.
    cpus
        For each study, on a node without a GPU; on one with GPUs at most.

    Raises
    ------
    ConfigInvalid
        If `cpus` is less than 1.
    """

    address: str = "auto"
    cpus: int = 4

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ConfigInvalid("cluster.cpus", seen=self.cpus, expected="at least 1 was expected")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster.

    Attributes
    ----------
    id
        Ray's.
    name
        Its address and host name, for people.
    places
        How many studies it reads at once: one for each GPU, or where there is none for each so many CPUs.
    cpus, gpus
        Of each place.
    """

    id: str
    name: str
    places: int
    cpus: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A seat has opened its checkpoints, or says why not."""

    error: ImagingError | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A seat is no more; `why` says what is known of it."""

    why: str


News = Opened | Answer | Lost


class Nodes(Protocol):
    """The machines of a cluster, and the seats on them, each under a key of the driver's."""

    def alive(self) -> list[Node]:
        """The nodes that have a place."""
        ...

    def hire(self, key: str, node: Node, opening: Opening, mark: Mark) -> None:
        """Start a seat on a node; it says `Opened`."""
        ...

    def give(self, key: str, task: Task) -> None:
        """Give a seat a study; it says an `Answer`."""
        ...

    def dismiss(self, key: str) -> None:
        """End a seat at once; it says nothing more."""
        ...

    def news(self, timeout_s: float) -> list[tuple[str, News]]:
        """What seats have said since the last time; waits so long for the first."""
        ...


def node_of(told: dict[str, Any], cpus: int) -> Node | None:
    """A node as `ray.nodes` tells it, with places of so many CPUs; None where it is gone or has no device for us."""
    resources = told.get("Resources", {})
    own, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if not told.get("Alive") or own < 1:
        return None
    places = min(gpus, int(own)) if gpus else max(int(own) // cpus, 1)
    name = f"node {told['NodeManagerAddress']} ({told['NodeManagerHostname']}, {told['NodeID'][:8]})"
    return Node(told["NodeID"], name, places, float(min(cpus, int(own) // places)), 1 if gpus else 0)


class RayNodes:
    """The nodes of the Ray cluster that this process is connected to.

    Parameters
    ----------
    cpus
        Of a place on a node without a GPU; of one with GPUs at most.
    """

    def __init__(self, cpus: int) -> None:
        import ray

        self._ray, self._cpus = ray, cpus
        self._seats: dict[str, Any] = {}
        self._waiting: dict[ObjectRef[Any], str] = {}

    def alive(self) -> list[Node]:
        """The nodes that have a place."""
        found = (node_of(told, self._cpus) for told in self._ray.nodes())
        return sorted((node for node in found if node is not None), key=lambda node: node.name)

    def hire(self, key: str, node: Node, opening: Opening, mark: Mark) -> None:
        """Start a seat on a node; it says `Opened`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        # A seat that is lost is given up: the driver knows how often a study was tried, and Ray does not.
        remote = self._ray.remote(Seat).options(num_cpus=node.cpus, num_gpus=node.gpus, scheduling_strategy=there,
                                                max_restarts=0, max_task_retries=0)  # fmt: skip
        self._seats[key] = remote.remote(node.name, opening, mark)
        self._waiting[self._seats[key].open.remote()] = key

    def give(self, key: str, task: Task) -> None:
        """Give a seat a study; it says an `Answer`."""
        self._waiting[self._seats[key].report.remote(task)] = key

    def dismiss(self, key: str) -> None:
        """End a seat at once; it says nothing more."""
        self._waiting = {ref: other for ref, other in self._waiting.items() if other != key}
        seat = self._seats.pop(key, None)
        if seat is not None:
            self._ray.kill(seat, no_restart=True)

    def news(self, timeout_s: float) -> list[tuple[str, News]]:
        """What seats have said since the last time; waits so long for the first."""
        if not self._waiting:
            threading.Event().wait(timeout_s)
            return []
        self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        return [(self._waiting.pop(ref), self._said(ref)) for ref in ready]

    def _said(self, ref: ObjectRef[Any]) -> News:
        from ray.exceptions import RayError, RayTaskError

        try:
            said = self._ray.get(ref)
        except RayTaskError as error:
            return Lost(f"it ended with {type(error.cause).__name__}")
        except RayError as error:
            return Lost(f"it is gone ({type(error).__name__})")
        return said if isinstance(said, Answer) else Opened(said)


@contextmanager
def connected(cluster: Cluster) -> Iterator[RayNodes]:
    """The nodes of a cluster, for as long as the block runs.

    Raises
    ------
    MissingPackage
        If ray is not installed.
    ClusterUnreachable
        If there is none.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackage("--engine-cluster ray", seen="ray is not installed",
                             remedy="Install it: pip install 'imgpipe[ray]'")  # fmt: skip
    import ray

    if ray.is_initialized():
        yield RayNodes(cluster.cpus)
        return
    with _own_token(cluster.address):
        _connect(cluster.address)
        try:
            yield RayNodes(cluster.cpus)
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    try:
        with _own_signals():
            _start(address)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if isinstance(error.__cause__, ray.exceptions.AuthenticationError):
            raise ClusterUnreachable(address, seen="it asks for another token than ours, or ours is not sent",
                                     expected="the token of its nodes was expected",
                                     remedy="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as its "
                                            "nodes have it") from error  # fmt: skip
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ClusterUnreachable(address, seen=said) from error


def _start(address: str) -> None:
    import ray

    # Where nobody answers Ray itself tries again for a quarter of an hour.
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    # What runs where is nobody's business but the hospital's.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = (
        {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False} if address == LOCAL else {}
    )
    job = ray.job_config.JobConfig()
    job._py_driver_sys_path = _NoFolders()
    ray.init(address=address, job_config=job, log_to_driver=False, logging_level=logging.ERROR, **own)


class _NoFolders(list[str]):
    """Where the processes of a call look for modules before all else, by Ray's will: in the folder that we run in.

    What lies there may have come from outside, such as studies with a `numpy.py` among them.
    """

    def extend(self, folders: Iterable[str], /) -> None:
        """Take none."""


@contextmanager
def _own_token(address: str) -> Iterator[None]:
    """A token for a cluster of one call, unless the user has named one.

    Ray would make one, and leave it in the user's home for all who may read there; from then on each cluster of this
    machine would ask for it.
    """
    if address != LOCAL or any(name in os.environ for name in _TOKEN_NAMES):
        yield
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
        if mode is None:  # Ray has set it
            os.environ.pop("RAY_AUTH_MODE", None)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does, which Ray would change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listing(nodes: Sequence[Node]) -> str:
    """What there is, for a log."""
    return ", ".join(
        f"{node.name}: {node.places} at a time, each with {f'{node.gpus} GPU' if node.gpus else f'{node.cpus:g} CPUs'}"
        for node in nodes
    )
