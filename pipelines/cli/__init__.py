"""The command line: `imgpipe VERB`, each verb a keyword-only Python function of the same name in a file of its own.

Invariant: stdout carries the result only (with `--json` one JSON document), stderr carries logs and progress; the exit
status is 0 all done, 1 a fault of ours, 2 wrong usage or config, 3 some input was refused, 130 or 143 stopped by Ctrl-C
or SIGTERM. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import logging
import signal
import sys

import click

from pipelines.cli.checkpoints import accept, calibrate, evaluate, export, models
from pipelines.cli.jobs import jobs
from pipelines.cli.privacy import deidentify
from pipelines.cli.studies import convert, infer, inspect
from pipelines.cli.training import plan, train, tune
from pipelines.cli.watching import watch


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--verbose", "-v", is_flag=True, help="Log more, with tracebacks of our own faults.")
@click.version_option(package_name="imgpipe")
def main(verbose: bool) -> None:
    """From a folder of DICOM or NIfTI to a report that can be checked line by line.

    For research use, not for diagnosis.

    Exit status: 0 all done, 1 a fault of imgpipe, 2 wrong usage or config, 3 some input was refused (it says
    which, and why).
    """
    # A container or a service manager stops with SIGTERM: clean up as for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        for told in ("pipelines", "imaging.transfer"):
            logging.getLogger(told).setLevel(logging.INFO)
    for noisy in ("PIL", "monai", "fsspec", "pydicom", "highdicom"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


VERBS = (
    infer,
    watch,
    jobs,
    train,
    tune,
    evaluate,
    inspect,
    plan,
    convert,
    deidentify,
    models,
    calibrate,
    accept,
    export,
)

for command in VERBS:
    main.add_command(command)
