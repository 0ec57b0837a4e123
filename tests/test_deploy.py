"""The files of deploy/ say what this version takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from pipelines.cli import main

DEPLOY = Path(__file__).parents[1] / "deploy"
SCRIPTS = sorted((DEPLOY / "slurm").glob("*.sbatch"))


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kuberay" / "infer.yaml").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_is_bash(script: Path) -> None:
    assert len(SCRIPTS) == 2
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_steps_of_a_job_have_the_cpus_of_the_job(script: Path) -> None:
    text = script.read_text()
    assert re.search(r"(?m)^#SBATCH --cpus-per-task=\d+$", text)
    told = text.index('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"')
    assert told < re.search(r"(?m)^[^#\n]*srun ", text).start()


@pytest.mark.parametrize(
    ("file", "verb"),
    [("slurm/infer.sbatch", "infer"), ("slurm/train.sbatch", "train"), ("kuberay/infer.yaml", "infer"),
     ("imgpipe-watch.service", "watch")],
)  # fmt: skip
def test_command_has_the_options_that_are_given(file: str, verb: str) -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", (DEPLOY / file).read_text()).replace("\\\n", " ")
    (command,) = re.findall(rf"imgpipe {verb} .*", text)
    given = set(re.findall(r"--[a-z][a-z-]+", command))
    known = {option for parameter in main.commands[verb].params for option in parameter.opts}
    assert given and given <= known


_SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == --nodelist=* ]] && export ON=${1#*=}; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of deploy/slurm as SLURM would on two nodes; what it calls writes down what it is asked."""
    told = 'echo "${0##*/} $*" >> "$TOLD"'
    programs = {
        "srun": _SRUN,
        "scontrol": "#!/bin/bash\nprintf 'n1\\nn2\\n'",
        # By its own name a machine is often 127.0.1.1.
        "getent": '#!/bin/bash\n[ "$ON" = n1 ] && echo "127.0.1.1 n1" || echo "10.0.0.1 n1"',
        "ray": f'#!/bin/bash\n{told}\nexit "${{RAY_EXIT:-0}}"',
        "imgpipe": f"#!/bin/bash\n{told}",
        "sleep": "#!/bin/bash\nexec /bin/sleep 0.1",
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"], "IMGPIPE_VENV": str(tmp_path), "TOLD": str(tmp_path / "told"),
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "4", "SLURM_NTASKS_PER_NODE": "1",
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(DEPLOY / "slurm" / script), *arguments],
            cwd=tmp_path, env=environment | more, timeout=60, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_nodes_of_a_job_meet_at_the_address_that_others_have_for_the_first(
    cluster: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    said = cluster("infer.sbatch", "studies", "results", "--cluster-cpus", "2")
    assert said.returncode == 0, said.stderr
    told = (tmp_path / "told").read_text().splitlines()
    (call,) = (line for line in told if line.startswith("imgpipe"))
    assert call.startswith("imgpipe infer studies --out results ")
    assert call.endswith("--cluster-address 10.0.0.1:20007 --cluster-cpus 2")
    assert any("--head --node-ip-address=10.0.0.1 --port=20007" in line for line in told)
    assert "127.0.1.1" not in "".join(told)


def test_job_ends_when_ray_cannot_be_started(
    cluster: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    said = cluster("infer.sbatch", "studies", "results", RAY_EXIT="1")
    assert said.returncode != 0
    assert "imgpipe" not in (tmp_path / "told").read_text()


def test_training_goes_on_from_its_state_or_begins_again_where_it_has_none(
    cluster: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    def call() -> str:
        said = cluster("train.sbatch", "mine.yaml", "runs/mine", "name=other")
        assert said.returncode == 0, said.stderr
        return (tmp_path / "told").read_text().splitlines()[-1]

    begins = "imgpipe train mine.yaml name=other --out runs/mine --devices 1 --nodes 2"
    assert call() == begins
    state = tmp_path / "runs" / "mine" / "state"
    state.mkdir(parents=True)
    (state.parent / "split.json").write_text("{}")
    assert call() == begins
    assert not state.parent.exists()
    assert (tmp_path / "runs" / "mine.before_7.0" / "split.json").is_file()
    state.mkdir(parents=True)
    (state / "last.ckpt").write_text("")
    assert call() == begins.replace(" --devices", " --resume --devices")
    assert (state / "last.ckpt").is_file()


def test_nodes_of_kubernetes_have_one_image_and_one_sight_of_the_files(job: dict[str, Any]) -> None:
    spec = job["spec"]["rayClusterSpec"]
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [container for pod in pods for container in pod["template"]["spec"]["containers"]]
    assert len(containers) == 2
    assert len({container["image"] for container in containers}) == 1
    mounted = [{(mount["name"], mount["mountPath"]) for mount in item["volumeMounts"]} for item in containers]
    assert mounted[0] == mounted[1]
    assert all(path in job["spec"]["entrypoint"] for _, path in mounted[0])
    claims = {
        document["metadata"]["name"] for document in yaml.safe_load_all((DEPLOY / "kuberay/volumes.yaml").read_text())
    }
    for pod in pods:
        volumes = pod["template"]["spec"]["volumes"]
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes} == claims


def test_version_of_ray_is_the_one_that_was_tested(job: dict[str, Any]) -> None:
    constraints = (DEPLOY.parent / "constraints.txt").read_text().splitlines()
    tested = next(Requirement(line) for line in constraints if line.startswith("ray=="))
    version = str(tested.specifier).removeprefix("==")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert f"ray[default]=={version}" in (DEPLOY / "kuberay" / "Containerfile").read_text()


@pytest.mark.parametrize("file", ["Containerfile", "kuberay/Containerfile", "slurm/infer.sbatch"])
def test_what_is_installed_there_are_extras_and_a_cpu_has_its_engine(file: str) -> None:
    extras = re.findall(r"(?:whl\)|\.)\[([a-z0-9,]+)\]", (DEPLOY / file).read_text())
    known = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(extras) == 1
    assert {"openvino"} <= set(extras[0].split(",")) <= known.keys()


def test_container_is_run_with_options_that_there_are() -> None:
    text = (DEPLOY / "Containerfile").read_text().replace("# ", "").replace("\\\n", " ")
    (run,) = re.findall(r"podman run .* imgpipe +(--.*)", text)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)", text, flags=re.MULTILINE)
    begun = json.loads(entry)
    assert begun[:2] == ["imgpipe", "watch"]
    context = main.commands["watch"].make_context("watch", [*begun[2:], *run.split()])
    assert context.params["store"].is_relative_to(re.findall(r"^VOLUME (.*)", text, flags=re.MULTILINE)[0])
    assert context.params["listen"].endswith(":" + re.findall(r"^EXPOSE (.*)", text, flags=re.MULTILINE)[0])


def test_what_the_package_is_made_of_is_sent_to_the_container_and_nothing_else() -> None:
    root, project = DEPLOY.parent, tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    lines = [line for line in (root / ".containerignore").read_text().splitlines() if not line.startswith("#")]
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]}
    assert sent == {*needed, project["project"]["readme"], "pyproject.toml", "constraints.txt"}
    assert lines[0] == "*"
    assert all((root / name).exists() for name in sent)
    assert (root / ".dockerignore").readlink() == Path(".containerignore")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="apt-get install systemd")
def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = (DEPLOY / "imgpipe-watch.service").read_text()
    unit = tmp_path / "imgpipe-watch.service"
    unit.write_text(text.replace("/opt/imgpipe/bin/imgpipe", "/bin/true"))
    said = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert str(unit.name) not in said.stderr, said.stderr
    assert said.returncode == 0, said.stderr
