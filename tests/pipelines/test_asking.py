"""What is done with the pictures of a study, and where the time goes that it takes."""

from __future__ import annotations

import time
from pathlib import Path

from imaging.checkpoint import Checkpoint
from imaging.predict import Predictor
from imaging.stages import listening
from pipelines.infer import Inference


def test_opening_a_checkpoint_counts_as_that(data: Path, tmp_path: Path) -> None:
    held: list[Predictor] = []

    def opened(checkpoint: Checkpoint) -> Predictor:
        if not held:
            time.sleep(0.5)
            held.append(Predictor(checkpoint, engine="torch"))
        return held[0]

    inference = Inference(models=["hippocampus_mr"], formats=["json"], opened=opened)
    image = min((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    with listening() as heard:
        done = inference([image], tmp_path)
    assert done.studies[0].report is not None
    assert heard.seconds()["open"] >= 0.5
