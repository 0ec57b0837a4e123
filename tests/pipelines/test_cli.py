"""What a script around imgpipe relies on: exit status, one JSON document on stdout, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from imaging.predict import Prediction, Predictor
from imaging.report.report import Report
from imaging.volume import Volume

Invoke = Callable[..., Result]
Console = Callable[..., "subprocess.CompletedProcess[str]"]

CONSOLE_SCRIPT = Path(sys.executable).parent / "imgpipe"
SECRETS = ("Avasarala", "Chrisjen", "PGBM-002", "Thanos", "PGBM-006")


def document(result: Any) -> dict[str, Any]:
    """The one JSON document on stdout."""
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    return content


# --------------------------------------------------------------------------------------------------- the console script


def test_infer_as_a_user_runs_it(console: Console, both_studies: Path, model: str, tmp_path: Path) -> None:
    (both_studies / "notes.txt").write_text("hello")
    result = console("--verbose", "infer", both_studies, "--model", model, "--out", tmp_path / "out", "--json")
    assert result.returncode == 3, result.stderr
    content = document(result)
    assert content["exit_status"] == 3
    assert [error["code"] for error in content["refused"]] == ["not_dicom"]
    for study in content["studies"]:
        folder = Path(study["folder"])
        Report.model_validate(study["report"])
        assert json.loads((folder / "report.json").read_text()) == study["report"]
        assert sorted(path.name for path in folder.iterdir()) == [
            "report.html", "report.json", "seg_hippocampus_mr.dcm", "sr.dcm"
        ]  # fmt: skip
    assert not [secret for secret in SECRETS if secret in result.stderr]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["infer", "--help"], ["train", "--help"], ["models"]], ids=" ".join)
def test_light_commands_succeed(console: Console, arguments: list[str]) -> None:
    result = console(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout and not result.stderr


@pytest.mark.parametrize("moment", ["started", "writing"])
def test_interrupted_run_leaves_no_part_of_an_output(
    study1: Path, study2: Path, model: str, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    command = [str(CONSOLE_SCRIPT), "infer", str(study1), str(study2), "--model", model, "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        begun = [path for path in out.iterdir() if path.is_dir()] if out.is_dir() else []
        if begun or (moment == "started" and out.is_dir()):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    process.communicate(timeout=120)
    assert process.returncode is not None
    left = [path for path in out.rglob("*") if ".partial" in path.name]
    assert left == []
    for folder in out.iterdir():
        report = Report.model_validate_json((folder / "report.json").read_text())
        assert {output.file for output in report.outputs} == {path.name for path in folder.iterdir()} - {"report.json"}
    assert process.returncode != 0 or len(list(out.iterdir())) == 2, "an interrupted run does not say that all is done"


# ---------------------------------------------------------------------------------------------------------- exit status


@pytest.fixture
def infer(invoke: Invoke, model: str, tmp_path: Path) -> Invoke:
    """`imgpipe infer ... --json` with the tiny checkpoint, into a folder of the test's own."""

    def call(*arguments: object, out: Path | None = None) -> Result:
        return invoke("infer", *arguments, "--model", model, "--out", out or tmp_path / "out", "--json")

    return call


def test_all_done_is_0(infer: Invoke, study1: Path) -> None:
    result = infer(study1)
    assert result.exit_code == document(result)["exit_status"] == 0
    taken = document(result)["stages_s"]
    assert set(taken) == {"open", "scan", "read", "prepare", "network", "restore", "report", "write"}
    assert all(seconds > 0 for seconds in taken.values())


def test_refused_input_is_3_and_is_told(infer: Invoke, study1: Path, tmp_path: Path) -> None:
    result = infer(study1, tmp_path / "missing", "--formats", "json")
    content = document(result)
    assert result.exit_code == content["exit_status"] == 3
    assert [error["code"] for error in content["refused"]] == ["nothing_found"]
    assert content["studies"][0]["report"]["findings"]


def test_series_that_nobody_takes_is_3(infer: Invoke, data: Path) -> None:
    result = infer(data / "philips_localiser")
    (study,) = document(result)["studies"]
    assert result.exit_code == 3
    assert study["report"]["series"][0]["refusals"][0]["code"] == "localizer"


def test_changed_checkpoint_is_3_and_nothing_is_written(
    invoke: Invoke, model: str, study1: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    with (broken / "README.md").open("a") as stream:
        stream.write("!")
    result = invoke("infer", study1, "--model", broken, "--out", tmp_path / "out", "--json")
    assert result.exit_code == document(result)["exit_status"] == 3
    assert document(result)["error"]["code"] == "checkpoint_corrupt"
    assert not (tmp_path / "out").exists()


def test_fault_of_ours_is_1_and_the_other_study_is_done(
    infer: Invoke, both_studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, calls = Predictor.__call__, iter(range(2))

    def broken(self: Predictor, volume: Volume) -> Prediction:
        if next(calls) == 0:
            raise RuntimeError
        return predict(self, volume)

    monkeypatch.setattr(Predictor, "__call__", broken)
    result = infer(both_studies, "--formats", "json")
    failed, done = document(result)["studies"]
    assert result.exit_code == 1
    assert (failed["folder"], failed["problems"][0]["code"]) == (None, "study_failed")
    assert done["report"]["findings"] and not done["problems"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model", "nothing"], "unknown_checkpoint"),
        (["--formats", "pdf"], "unknown_name"),
    ],
)
def test_wrong_usage_of_infer_is_2(infer: Invoke, study1: Path, arguments: list[str], code: str) -> None:
    result = infer(study1, *arguments)
    assert result.exit_code == 2
    assert document(result)["error"]["code"] == code


def test_output_folder_that_cannot_be_written_is_2(infer: Invoke, study1: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = infer(study1, out=tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert document(result)["error"]["code"] == "output_not_writable"


@pytest.mark.parametrize(
    "arguments",
    [["infer"], ["inspect"], ["nothing"], ["infer", "--nothing"], ["train"], ["infer", "x", "--cluster-cpus", "2"]],
    ids=" ".join,
)
def test_wrong_command_line_is_2(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr


def test_error_is_told_on_stderr_and_not_on_stdout(invoke: Invoke, study1: Path) -> None:
    result = invoke("infer", study1, "--model", "nothing")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "unknown_checkpoint" in result.stderr


def test_infer_for_a_person_tells_volumes_and_where_they_are(
    invoke: Invoke, study1: Path, model: str, tmp_path: Path
) -> None:
    result = invoke("infer", study1, "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "Hippocampus, anterior part" in result.stdout and " mL" in result.stdout
    (report,) = tmp_path.glob("out/*/report.html")
    assert str(report) in result.stdout
    assert not [secret for secret in SECRETS if secret in result.output]


# ---------------------------------------------------------------------------------------------------------------- train


def test_train_prints_one_document(invoke: Invoke, tiny: Path, tmp_path: Path) -> None:
    overrides = (
        "train.epochs=1",
        "network.options.filters=[4, 8, 8]",
        "train.patch=[16, 16, 16]",
        "data.test_fraction=0",
    )
    result = invoke("train", tiny, *overrides, "--fold", 1, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0
    content = document(result)
    assert Path(content["checkpoint"]).is_dir()
    assert set(content["metrics"]["validation"]["dice"]) == {"hippocampus_anterior", "hippocampus_posterior"}
    assert "fold: 1" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.learnin_rate=1", "did you mean 'train.learning_rate'"),
        ("trian.epochs=1", "did you mean 'train'"),
        ("train.epochs=many", "train.epochs"),
        ("train.epochs", "KEY=VALUE"),
        ("data.root=/nonexistent", "manifest_invalid"),
    ],
)
def test_wrong_config_is_2_and_says_what_is_meant(
    invoke: Invoke, tiny: Path, tmp_path: Path, override: str, told: str
) -> None:
    result = invoke("train", tiny, override, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "run").exists()


def test_train_without_a_config_file_is_2(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("train", tmp_path / "missing.yaml")
    assert result.exit_code == 2
    assert "config_invalid" in result.stderr
