"""The studies of a worker through the code of `imgpipe infer`, with the checkpoints opened once.

Invariant: a report of the task's study, or the error that says why there is none.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict

from imaging.report.report import Replaced
from pipelines.asking import TOOK
from pipelines.infer import Inference
from pipelines.worker import Reporting, Task, why_not


class WarmReader:
    """A `Reader` with the checkpoints in memory.

    Parameters
    ----------
    reporting
        What to report, and how.

    Raises
    ------
    ImagingError
        As `pipelines.infer.Inference` says.
    """

    def __init__(self, reporting: Reporting) -> None:
        self._inference = Inference(
            models=reporting.models,
            formats=reporting.formats,
            seg_type=reporting.seg_type,
            fhir_version=reporting.fhir_version,
            policy=reporting.policy,
            explain=reporting.explain,
        )
        self._inference.warm_up()
        checkpoints = [[c.name, c.weights_sha256, c.config.digest()] for c in self._inference.checkpoints]
        # Which checkpoints there are is told by their digests; one that was named takes what it else would not.
        options = {**asdict(reporting), "models": bool(reporting.models)}
        decides = [importlib.metadata.version("imgpipe"), checkpoints, options]
        self.setup = hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def __call__(self, task: Task) -> dict[str, float]:
        """Report on the study of a task; gives how long each checkpoint took, in s."""
        took: dict[str, float] = {}
        TOOK.set(took)
        replaces = None
        if task.replaces is not None:
            replaces = Replaced(version=task.replaces[0], report_sha256=task.replaces[1])
        done = self._inference(task.files, task.out, version=task.version, replaces=replaces)
        problems = list(done.refused)
        for study in done.studies:
            if study.name == task.study_uid and study.report is not None:
                return took
            problems += study.problems
        raise why_not(problems, task.study_uid)
