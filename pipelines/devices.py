"""How many processes train together, and who starts them.

Invariant: the batch of the config is that of all devices together, so that a run means the same on one device and on
many. Every process runs the same code from the first line on; the one of rank 0 alone writes files. Whoever started the
processes, they are all there or the run is refused by name.

Who starts them: torchrun or SLURM's srun, where one of them runs us; else, for several devices of one machine,
`launch`. It starts new interpreters through `torch.multiprocessing` rather than through Lightning's launchers: the one
of these calls the script that is running once more with its arguments, which in a notebook or a test is not imgpipe and
which kills all without a word when one ends; the other sends the trainer and the data set through a pipe.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessException, start_processes

from imaging.errors import ConfigInvalid, DevicesInvalid, ImagingError, ProcessLost


@dataclass(frozen=True, slots=True)
class World:
    """The processes of one training.

    Attributes
    ----------
    devices
        Of each machine; one process each.
    nodes
        Machines.
    launcher
        Who started the processes; None where nobody has.
    """

    devices: int
    nodes: int
    launcher: ClusterEnvironment | None

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes

    @property
    def complete(self) -> bool:
        """Whether all of its processes run."""
        return self.size == 1 or self.launcher is not None

    @property
    def rank(self) -> int:
        """Which of the processes this one is."""
        if self.launcher is None or self.size == 1:
            return 0
        if isinstance(self.launcher, LightningEnvironment):
            return self.launcher.node_rank() * self.devices + self.launcher.local_rank()
        return self.launcher.global_rank()

    @property
    def cluster(self) -> ClusterEnvironment:
        """What Lightning asks for its rank and for the address to meet at."""
        return self.launcher or LightningEnvironment()


def open_world(*, devices: int, nodes: int, batch_size: int) -> World:
    """The world of a training, checked.

    Parameters
    ----------
    devices, nodes
        As given on the command line.
    batch_size
        Of all devices together.

    Raises
    ------
    DevicesInvalid
        If the batch cannot be shared evenly, there are fewer devices, or whoever started the processes started another
        number of them.
    """
    world = World(devices, nodes, _launcher())
    if batch_size % world.size:
        raise DevicesInvalid("train.batch_size", seen=f"{batch_size}, to be shared by {world.size} devices",
                             expected="a multiple of the number of devices was expected")  # fmt: skip
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise DevicesInvalid("--devices", seen=f"{devices}, and this machine has {torch.cuda.device_count()} GPU(s)")
    if world.launcher is None and nodes > 1:
        raise DevicesInvalid("--nodes", seen=f"{nodes}, and neither torchrun nor srun has started this process",
                             remedy="Start imgpipe on every machine with torchrun or srun")  # fmt: skip
    started = _started(world.launcher)
    if started is not None and started != world.size:
        raise DevicesInvalid("--devices", seen=f"{devices} on {nodes} machine(s), and {started} were started",
                             remedy="Give --devices and --nodes as torchrun or srun has them")  # fmt: skip
    return world


def check_precision(precision: str) -> None:
    """Refuse what this machine would silently compute otherwise.

    Raises
    ------
    ConfigInvalid
        If it is 16-mixed and there is no GPU; Lightning would take bf16-mixed in its place.
    """
    if precision == "16-mixed" and not torch.cuda.is_available():
        raise ConfigInvalid("train.precision", seen="16-mixed, and there is no GPU",
                            expected="bf16-mixed or 32 was expected on a CPU",
                            remedy="Give --precision bf16-mixed or --precision 32")  # fmt: skip


def _launcher() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if "LOCAL_RANK" in os.environ:
        return LightningEnvironment()
    # In a batch script SLURM's variables are there too; only srun starts a process a task.
    if SLURMEnvironment.detect() and "SLURM_STEP_ID" in os.environ:
        return SLURMEnvironment(auto_requeue=False)
    return None


def _started(launcher: ClusterEnvironment | None) -> int | None:
    if isinstance(launcher, LightningEnvironment):
        return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None
    return launcher.world_size() if launcher is not None else None


def launch(function: Callable[..., object], world: World, arguments: Mapping[str, Any]) -> None:
    """Call a function in a process of its own for each device, and wait for them all; when one fails, none goes on.

    Parameters
    ----------
    function
        Of a module, so that a new interpreter finds it.
    world
        Of one machine.
    arguments
        Given to each by name.

    Raises
    ------
    ImagingError
        The first that one of the processes raised.
    ProcessLost
        If one ended without a word.
    """
    told = multiprocessing.get_context("spawn").SimpleQueue()
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "WORLD_SIZE": str(world.size),
        "NODE_RANK": "0",
    }
    context = start_processes(  # type: ignore[no-untyped-call]
        _rank, (function, arguments, environment, LogSettings.of_this_process(), told), nprocs=world.size, join=False
    )
    assert context is not None
    try:
        while not context.join():
            pass
    except ProcessException as error:
        if not told.empty():
            raise told.get() from error
        raise ProcessLost(f"process {error.error_index}", seen=str(error).strip().splitlines()[-1]) from error
    except (KeyboardInterrupt, SystemExit):
        for process in context.processes:
            process.terminate()  # they write a state first
        for process in context.processes:
            process.join()
        raise
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What a new interpreter needs to log as this one does.

    Attributes
    ----------
    layout
        Of a line.
    level
        Of all loggers that have none of their own.
    levels
        Of those that have one, by name.
    """

    layout: str
    level: int
    levels: Mapping[str, int]

    @classmethod
    def of_this_process(cls) -> LogSettings:
        """The settings as they are."""
        root = logging.getLogger()
        layouts = [handler.formatter._fmt or "" for handler in root.handlers if handler.formatter]
        known = {name: logging.getLogger(name).level for name in list(root.manager.loggerDict)}
        levels = {name: level for name, level in known.items() if level != logging.NOTSET}
        return cls(layouts[0] if layouts else logging.BASIC_FORMAT, root.level, levels)

    def apply(self) -> None:
        """Log like that from now on."""
        logging.basicConfig(stream=sys.stderr, format=self.layout, level=self.level)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)


def _rank(
    rank: int,
    function: Callable[..., object],
    arguments: Mapping[str, Any],
    environment: Mapping[str, str],
    log_settings: LogSettings,
    told: Any,
) -> None:
    """What each process does."""
    os.setsid()  # Ctrl-C is for the process that started this one; it passes it on, once
    os.environ.update(environment, LOCAL_RANK=str(rank))
    log_settings.apply()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(environment["WORLD_SIZE"])))
    try:
        function(**arguments)
    except ImagingError as error:
        told.put(error)
        sys.exit(1)
