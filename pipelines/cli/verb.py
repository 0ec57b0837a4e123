"""What every verb shares: its options, its exit status, its JSON and its progress on a terminal."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from imaging.errors import ImagingError

T = TypeVar("T")

PATH = click.Path(path_type=Path)

with_policy = click.option(
    "--policy",
    type=click.Choice(["strict", "repair"]),
    default="repair",
    show_default=True,
    help="Refuse what would have to be changed to be a volume, or change what can be, and tell it.",
)
_OUTPUTS = (
    click.option("--formats", metavar="LIST",
                 help="Some of html,seg,sr,sc,fhir,nifti; by default what fits the input. json: report.json alone."),
    click.option("--seg-type", type=click.Choice(["binary", "labelmap"]), default="binary", show_default=True,
                 help="Label maps are smaller, and not every archive takes them."),
    click.option("--fhir-version", type=click.Choice(["r4", "r5"]), default="r4", show_default=True,
                 help="Of fhir.json."),
    click.option("--fhir-page", type=click.Choice(["hash", "whole"]), default="hash", show_default=True,
                 help="Whether FHIR names report.html by its hash, or holds it."),
    click.option("--explain", type=click.Choice(["abnormal", "all", "none"]), default="abnormal", show_default=True,
                 help="Which findings of a classifier get a map of what raised their probability."),
)  # fmt: skip


with_store = click.option(
    "--store",
    type=PATH,
    default=Path("imgpipe_store"),
    show_default=True,
    metavar="DIR",
    help="Where the watcher keeps what it has and knows.",
)
with_memory = click.option(
    "--memory",
    metavar="SIZE",
    help="The most that a process may have in memory, such as 4GB; by default as much as it takes.",
)
with_engine = click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    show_default=True,
    help="What computes the networks; auto: the fastest that the machine and the checkpoint take.",
)


def with_outputs(function: Callable[..., T]) -> Callable[..., T]:
    """The options of verbs that report on studies: what is written, and how."""
    for option in reversed(_OUTPUTS):
        function = option(function)
    return function


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def verb_of(function: Callable[..., int | None]) -> Callable[..., None]:
    """Turn our errors and the returned status into the exit status, and with `--json` into the document."""

    @wraps(function)
    def run(**options: Any) -> None:
        from imaging.errors import ImagingError, UnexpectedFault

        try:
            status = function(**options)
        except ImagingError as error:
            sys.exit(_fail(error, options))
        except Exception as error:  # its text may quote header values, so only its kind is told
            logging.getLogger(__name__).debug("traceback", exc_info=True)
            sys.exit(_fail(UnexpectedFault(function.__name__, seen=type(error).__name__), options))
        except KeyboardInterrupt:
            click.echo("imgpipe: interrupted", err=True)
            sys.exit(128 + signal.SIGINT)
        sys.exit(status or 0)

    return run


def _fail(error: ImagingError, options: dict[str, Any]) -> int:
    """Tell an error that ended a verb; gives the exit status."""
    status = status_of([error])
    click.echo(f"imgpipe: {error}", err=True)
    if options.get("as_json"):
        print_json({"error": error.as_dict(), "exit_status": status})
    return status


def status_of(problems: Sequence[ImagingError]) -> int:
    """Whose turn it is: ours before the user's before the data's; what is set aside by design is nobody's."""
    from imaging.errors import InternalFault, SetAside, WrongUsage

    if any(isinstance(problem, InternalFault) for problem in problems):
        return 1
    if any(isinstance(problem, WrongUsage) for problem in problems):
        return 2
    return 3 if any(not isinstance(problem, SetAside) for problem in problems) else 0


def print_json(document: dict[str, Any]) -> None:
    """Print the one document of `--json`."""
    click.echo(json.dumps(document, indent=1))


TOLD = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}
TRIED = {
    "dice_with_torch": "Dice with torch's masks", "least_dice_with_torch": "of the worst case",
    "dice": "Dice with the truth", "dice_of_torch": "torch's", "difference": "greatest difference",
    "auc": "AUC", "auc_of_torch": "torch's",
}  # fmt: skip


def interval(value: dict[str, float | None]) -> str:
    """A figure of metrics.json with its interval, for the eye."""
    from imaging.interval import Interval

    return str(Interval(**value))


class progress:
    """A spinner with a changing text on stderr, where that is a terminal; elsewhere nothing."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.status_of: Any = None

    def __enter__(self) -> Callable[[str], None]:
        if sys.stderr.isatty():
            from rich.console import Console

            self.status_of = Console(stderr=True).status(self._text)
            self.status_of.start()
        return self._tell

    def _tell(self, text: str) -> None:
        if self.status_of is not None:
            self.status_of.update(text)

    def __exit__(self, *_: object) -> None:
        if self.status_of is not None:
            self.status_of.stop()


def case_teller(tell: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """An ``on_case`` that tells which case is read."""

    def on_case(name: str, number: int, total: int) -> None:
        tell(f"Case {number + 1} of {total}: {name}")

    return on_case
