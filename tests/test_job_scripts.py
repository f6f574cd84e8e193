"""What is written for this machine and for Slurm: golden files, names of folders that would break out of a script, and settings that are refused."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from pydantic import ValidationError
from test_experiment import write_config

from persona_lab.config.cluster import Cluster, minutes_of
from persona_lab.config.load import load_experiment
from persona_lab.errors import ConfigError
from persona_lab.launch.engine import CODE, Engine, Job
from persona_lab.launch.local import Local
from persona_lab.launch.slurm import Slurm

pytestmark = pytest.mark.usefixtures("from_the_root")
GOLDEN = ROOT / "tests" / "golden" / "launch"
GPUS = Cluster(partition="gpu", account="lab", qos="high", time="1-12:00:00", gpus=4, cpus=32, memory="256G", jobs=8, at_once=3)
GPUS = GPUS.model_copy(update={"extra": ["--constraint=[a100|h100]"], "setup": ["module load cuda/12"]})
SHARDED = Cluster(gpus=8, gpu_directive="gres", nodes=2, accelerate="configs/accelerate/fsdp2.yaml")
TYPED = Cluster(partition="gpu", gpus=2, gpu_type="a100", report=["--partition=cpu", "--mem=16G"])
GOLDENS: list[tuple[str, Engine, Cluster, int, int]] = [
    ("local", Local(), Cluster(), 1, 2),
    ("slurm_gpus", Slurm(), GPUS, 8, 4),
    ("slurm_two_machines_a_job", Slurm(), SHARDED, 2, 8),
    ("slurm_gpus_of_a_type", Slurm(), TYPED, 1, 2),
    ("slurm_one_process", Slurm(), Cluster(gpu_directive="none"), 3, 1),
]


def job(cluster: Cluster, jobs: int, processes: int, folder: Path = Path("/shared/runs/quickstart-16bab757/launch/1"), **changes: Any) -> Job:
    command = ("-m", "persona_lab", "work", str(folder))
    python, directory = "/shared/env/bin/python", Path("/home/ada/lab")
    made = Job("persona-lab-quickstart-16bab757-1", folder, command, (*command, "--report"), python, directory, jobs, processes, cluster)
    return replace(made, **changes)


@pytest.mark.parametrize(("name", "engine", "cluster", "jobs", "processes"), GOLDENS, ids=[golden[0] for golden in GOLDENS])
def test_files_and_commands_are_those_of_the_golden_files(name: str, engine: Engine, cluster: Cluster, jobs: int, processes: int):
    asked = job(cluster, jobs, processes)
    written = engine.files(asked) | {"commands.txt": "".join(" ".join(command) + "\n" for command in engine.commands(asked))}
    assert written == {file.name: file.read_text() for file in (GOLDEN / name).iterdir()}


@pytest.mark.parametrize("script", sorted(GOLDEN.rglob("*.sh")), ids=lambda f: f"{f.parent.name}/{f.name}")
def test_every_golden_script_is_a_script(script: Path):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("engine", [Local(), Slurm()])
@pytest.mark.parametrize("processes", [1, 2])
def test_no_name_of_a_folder_breaks_out_of_a_script(tmp_path: Path, engine: Engine, processes: int):
    folder = tmp_path / "it's $(touch broken) \"x\" `touch broken`; touch broken #"
    folder.mkdir()
    show_me = folder / "python $1"
    show_me.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "$PYTHONPATH" "$PWD" > "${PYTHONPATH%/code}/seen"\n')
    show_me.chmod(0o755)
    asked = job(Cluster(), 1, processes, folder, python=str(show_me), directory=folder)
    for name, text in engine.files(asked).items():
        (folder / name).write_text(text)
    done = subprocess.run(["bash", str(folder / "worker.sh")], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    seen = (folder / "seen").read_text().splitlines()
    assert seen[-6:] == [*asked.worker, str(folder / CODE), str(folder)]
    assert not list(tmp_path.rglob("broken"))
    for script in ("job.sh", "report.sh"):
        assert subprocess.run(["bash", "-n", str(folder / script)], capture_output=True, text=True).stderr == ""
        assert "touch broken" not in [line.strip() for line in (folder / script).read_text().splitlines()]


HOSTILE = {
    "partition": "gpu\n#SBATCH --uid=0",
    "account": "a; rm -rf /",
    "qos": "$(id)",
    "time": "soon",
    "gpus": -1,
    "gpu_directive": "gpus",
    "cpus": 0,
    "memory": "64 G",
    "jobs": 0,
    "at_once": 0,
    "nodes": 0,
    "processes": 0,
    "setup": ["module load a\nrm -rf /"],
    "extra": ["--wrap=rm -rf /", "-p gpu"],
    "unknown": 1,
}


def test_what_a_scheduler_would_not_understand_is_told_at_once_with_its_place(tmp_path: Path):
    config = write_config(tmp_path, machine={"cluster": HOSTILE})
    with pytest.raises(ConfigError) as caught:
        load_experiment(config, [])
    said = [problem.message for problem in caught.value.problems]
    for field in HOSTILE:
        assert [message for message in said if f"machine.cluster.{field}" in message or (field == "unknown" and "'unknown'" in message)], field
    assert all(str(config) in problem.where for problem in caught.value.problems)


@pytest.mark.parametrize(("time", "minutes"), [("90", 90), ("90:30", 90.5), ("1:30:00", 90), ("1-12", 2160), ("2-01:30", 2970), ("1-12:00:30", 2160.5)])
def test_a_time_is_read_as_sbatch_documents_it(time: str, minutes: float):
    assert minutes_of(time) == minutes
    assert Cluster(time=time).time == time


def test_a_time_in_which_no_job_could_do_anything_is_refused():
    with pytest.raises(ValidationError, match="at least 10 minutes"):
        Cluster(time="9:59")
