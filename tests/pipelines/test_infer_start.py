"""What is imported is what is used: a segmenter through a kept model needs neither torch nor MONAI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imaging.checkpoint import Checkpoint, find_checkpoint, open_checkpoint, with_extras
from imaging.engines import engines_of
from imaging.engines.accepted import FILE, Compared, Trial, Trials

ROOT = Path(__file__).parents[2]
# What takes seconds to import, and is of no use to a study without a text.
HEAVY = ("torch", "monai", "lightning", "transformers", "tokenizers", "matplotlib", "sklearn", "scipy.ndimage",
         "SimpleITK", "nncf", "tensorboard", "mlflow", "ray", "imagecodecs")  # fmt: skip

REPORT = """
import sys
from pipelines.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    code = end.code or 0
print("loaded", code, *(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def run(arguments: list[str], heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Exit status, and the heavy packages that were loaded, of a call in a process of its own."""
    code = REPORT.format(arguments=arguments, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
                          timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()[1:]


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The shipped checkpoint as if it had been accepted with OpenVINO, its model converted and kept."""
    pytest.importorskip("openvino")
    compared = Compared(dice_with_torch=1.0, dice=0.9, dice_of_torch=0.9)
    trial = Trial(engine="openvino", precision="fp32", version="1", processor="one", data="some", side="validation",
                  cases=1, compared={"part": compared})  # fmt: skip
    shipped = open_checkpoint(find_checkpoint("hippocampus_mr"))
    folder = tmp_path_factory.mktemp("start") / "hippocampus_mr"
    checkpoint = with_extras(
        folder, shipped, shipped.metrics, {FILE: Trials(trials=(trial,)).model_dump_json().encode()}
    )
    assert engines_of(checkpoint, wanted="openvino").choice.name == "openvino"
    return checkpoint


def test_a_segmenter_through_a_kept_model_loads_nothing_heavy(accepted: Checkpoint, data: Path, tmp_path: Path) -> None:
    study = data / "hippocrop_study1"
    arguments = ["infer", str(study), "--model", str(accepted.folder), "--engine", "openvino", "--out", str(tmp_path)]
    assert run(arguments) == ["0"]
    (folder,) = tmp_path.iterdir()
    assert {"report.json", "report.html", "sr.dcm", "seg_hippocampus_mr.dcm"} <= {
        file.name for file in folder.iterdir()
    }


def test_monai_is_imported_alone_and_what_was_spared_is_there_afterwards() -> None:
    code = """
import sys
from pipelines.spared import SPARED, spare
spare()
import monai.networks.nets, monai.visualize
print(*(name for name in sorted(SPARED) if name in sys.modules), '|', end=' ')
import tensorboard
print(tensorboard.__name__)
from imaging.networks import build_segmenter
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False,
                          cwd=ROOT, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["|", "tensorboard"]
