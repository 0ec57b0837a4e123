"""Train in a process that is killed with SIGKILL at a chosen moment, as the OOM killer does it."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

import lightning
import torch

from pipelines import states
from pipelines.train import train

Moment = Literal["step", "validation", "writing"]


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(number: int, function: Callable[..., Any], first: Callable[..., None]) -> Callable[..., Any]:
    """The function, with `first` called before its call of this number (from 1)."""
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            first(*arguments)
        return function(*arguments, **options)

    return counted


def _write_half(content: Any, stream: io.BufferedWriter) -> None:
    """Write the first half of a state's file, and be killed."""
    whole = io.BytesIO()
    torch.save(content, whole)
    stream.write(whole.getvalue()[: whole.tell() // 2])
    stream.flush()
    _kill()


def train_until_killed(moment: Moment, number: int, *, or_ends: bool = False, **options: Any) -> bool:
    """Train in a child that dies within its `number`-th training step, validation batch or writing of a state.

    Parameters
    ----------
    moment, number
        When.
    or_ends
        Whether it may come to its end before that.
    options
        As `train` takes them.

    Returns
    -------
    bool
        Whether it was killed.

    Raises
    ------
    AssertionError
        If the child ended otherwise.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            if moment == "writing":
                # Within `pipelines.states` alone: torch itself stays as it is.
                patched = type("Torch", (), {"__getattr__": lambda self, name: getattr(torch, name)})()
                patched.save = _at_call(number, torch.save, _write_half)
                states.torch = patched
            else:
                name = "training_step" if moment == "step" else "validation_step"
                strategy = lightning.pytorch.strategies.Strategy
                setattr(strategy, name, _at_call(number, getattr(strategy, name), lambda *_: _kill()))
            train(progress=False, **options)
            os._exit(0)
        except BaseException:  # whatever it is, pytest may not go on in the child
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if or_ends and status == 0:
        return False
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"ended with status {status}"
    return True
