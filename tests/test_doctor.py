"""`doctor`: processes that really gather, releases that really clash, a plan against this machine, and programs that are asked what they are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_experiment import BRIEF, TINY, write_config
from transformers import PreTrainedModel

from persona_lab.config.schema import HuggingFaceBase
from persona_lab.experiment.checking import gathering, needs, shared_disk
from persona_lab.experiment.checking.engines import engines
from persona_lab.experiment.checking.finding import Finding, answer
from persona_lab.experiment.checking.gathering import gather, judged
from persona_lab.experiment.checking.needs import model
from persona_lab.experiment.checking.releases import KNOWN, known_breaks, releases, requirements
from persona_lab.experiment.checking.shared_disk import examine_disk, kind_of
from persona_lab.experiment.planning.plan import make_plan

pytestmark = pytest.mark.usefixtures("from_the_root")
OF_THE_WORLD = {"kind": "hf", "world": "configs/worlds/beach.yaml"}


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


# ------------------------------------------------------------------ processes
@pytest.mark.slow
def test_two_processes_reach_one_another_by_gloo() -> None:
    found = gather(2)
    assert found.state == "ok"
    assert found.said.startswith("2 processes, gloo, MULTI_CPU")


@pytest.mark.slow
def test_processes_that_cannot_listen_are_told_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    found = gather(2)
    assert found.state == "fail"
    assert "Unable to find address for: nowhere0" in found.said
    assert "GLOO_SOCKET_IFNAME" in found.said


def test_processes_that_hang_are_ended_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    hanging = f"import os, subprocess, sys; child = subprocess.Popen(['sleep', '300']); open({str(mine)!r}, 'w').write(str(child.pid)); child.wait()"
    monkeypatch.setattr(gathering, "launched", lambda processes: [sys.executable, "-c", hanging])  # real processes hang on a broken network only
    found = gather(2, seconds=3.0)
    assert (found.state, "hang: no answer within 3 s" in found.said) == ("fail", True)
    state = Path(f"/proc/{mine.read_text()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", "nothing of it is left running"


def test_fewer_processes_than_asked_for_are_no_success() -> None:
    alone = {"processes": 1, "backend": "none", "type": "NO", "seconds": 0.0, "gathered": [0]}
    assert judged(alone, 2).state == "fail"
    assert judged(alone | {"processes": 2, "gathered": [0, 1]}, 2).state == "ok"
    assert judged(alone | {"processes": 2, "gathered": [0, 0]}, 2).state == "fail"


# ------------------------------------------------------------------ releases
@pytest.mark.parametrize(
    ("installed", "named"),
    [
        ({"accelerate": "1.14.0", "peft": "0.21.2"}, ["accelerate"]),
        ({"accelerate": "1.14.0"}, []),
        ({"accelerate": "1.15.0", "peft": "0.21.2"}, []),
        ({"transformers": "5.8.0", "torch": "2.4.1"}, ["transformers"]),
        ({"transformers": "5.23.0", "torch": "2.13.0+cpu"}, []),
        ({"wandb": "0.30.0"}, ["wandb"]),
        ({"wandb": "0.31.0", "skypilot": "0.14.1"}, ["skypilot"]),
        ({"litellm": "1.82.8"}, ["litellm"]),
        ({"litellm": "1.83.7"}, []),
    ],
)
def test_releases_that_are_known_to_break_are_found_together_only(installed: dict[str, str], named: list[str]) -> None:
    assert [finding.name for finding in known_breaks(installed)] == named


def test_every_known_breakage_has_a_fix_and_a_source() -> None:
    assert all(broken.fix and broken.source and broken.shows for broken in KNOWN)
    assert {"torch", "wandb", "accelerate"} <= releases().keys()
    assert list(known_breaks(releases())) == []
    assert requirements().state in ("ok", "warn")


# ------------------------------------------------------------------ the disk
def test_this_disk_does_what_leases_and_commits_need(tmp_path: Path) -> None:
    [found] = examine_disk(tmp_path)
    assert found.state in ("ok", "warn")
    known = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout.strip()
    assert kind_of(tmp_path)[:3] == known[:3]  # coreutils says ext2/ext3 where the kernel says ext4
    assert list(tmp_path.iterdir()) == []


def test_a_disk_in_memory_or_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    monkeypatch.setattr(shared_disk, "MOUNTS", mounts)  # a test mounts nothing
    assert kind_of(Path("/usr")) == "ext4"
    assert [(f.name, f.state) for f in examine_disk(tmp_path)] == [("store disk", "warn")]
    monkeypatch.setattr(shared_disk, "_locks", lambda folder: "keeps nobody out")  # no disk of a test machine is so broken
    monkeypatch.setattr(shared_disk, "_skew", lambda folder: -90.0)  # nor is its clock
    assert [(f.name, f.state) for f in examine_disk(tmp_path)] == [("store disk", "warn"), ("clock", "warn"), ("locks", "warn")]


# ------------------------------------------------------------------ programs
def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_scheduler_is_asked_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [(f.name, f.state) for f in engines() if f.name != "ray"] == [("slurm", "ok"), ("sky", "ok")]
    assert all(f.said.startswith("none: ") for f in engines() if f.name != "ray")
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        program(tmp_path, name, "exit 0")
    program(tmp_path, "sinfo", 'case "$1" in --version) echo slurm-wlm 22.05.8;; *) [[ "$*" == *%F* ]] && echo 0/2/0/2 || echo idle;; esac')
    program(tmp_path, "sky", "echo skypilot, version 0.14.1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = by_name(list(engines()))
    assert "slurm-wlm 22.05.8" in found["slurm"].said
    assert "0/2/0/2" in found["slurm"].said
    assert found["sky"].said == "skypilot, version 0.14.1"
    program(tmp_path, "sinfo", 'echo "slurm_load_partitions: Unable to contact slurm controller" >&2; exit 1')
    assert by_name(list(engines()))["slurm"].state == "warn"


def test_a_program_that_is_silent_does_not_hold_doctor_up() -> None:
    assert answer(["sleep", "60"], seconds=0.2) == (False, "does not answer within 0.2 s")
    assert answer(["no-such-program-anywhere"]) == (False, "is not found")


# ------------------------------------------------------------------ a plan
def test_a_plan_is_held_against_this_machine(tmp_path: Path) -> None:
    plan = make_plan(write_config(tmp_path), [*BRIEF], tmp_path / "runs")
    found = by_name(list(needs.needs(plan, memory=8e9)))
    assert {name: f.state for name, f in found.items()} == {"plan disk": "warn", "plan memory": "warn", "engine": "ok"}
    assert "persona-lab plan CONFIG --measure" in found["plan memory"].said
    foreseen = needs.Forecast(10.0, 2, {}, 3e9, 6e9, 1e15, 0.0)
    assert needs._memory(foreseen, 8e9).state == "ok"
    assert needs._memory(foreseen, 4e9).state == "fail"
    assert needs._disk(plan, foreseen).state == "fail"


def test_training_on_a_model_is_held_against_the_device_before_it_is_measured(qwen_folder: Path, tmp_path: Path) -> None:
    plan = make_plan(write_config(tmp_path, base={"path": str(qwen_folder), **OF_THE_WORLD}), [*BRIEF], tmp_path / "runs")
    assert (needs._foretold(plan, memory=8e9).state, needs._foretold(plan, memory=1e4).state) == ("ok", "fail")


def test_an_engine_that_a_plan_asks_for_and_that_is_absent_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = make_plan(write_config(tmp_path), [*BRIEF, "machine.engine=sky"], tmp_path / "runs")
    found = by_name(list(needs.needs(plan, memory=8e9)))
    assert (found["engine"].state, "uv tool install skypilot" in found["engine"].said) == ("fail", True)


def test_a_model_in_a_folder_is_looked_at_whole(qwen_folder: Path, tmp_path: Path) -> None:
    assert model(HuggingFaceBase(path=str(qwen_folder), **OF_THE_WORLD)).state == "ok"
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in qwen_folder.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    assert model(HuggingFaceBase(path=str(broken), **OF_THE_WORLD)).state == "fail"


def test_a_model_of_the_hub_is_looked_for_in_the_cache_alone(qwen: PreTrainedModel, qwen_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, because the hub's library reads its variables once; connections are refused, so that none can help."""
    cached = tmp_path / "hub" / "models--ann--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("f" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("f" * 40)).symlink_to(qwen_folder)
    code = f"""
from persona_lab.config.schema import HuggingFaceBase
from persona_lab.experiment.checking.needs import model
for path in ("ann/tiny", "ann/other"):
    print(str(model(HuggingFaceBase(path=path, **{OF_THE_WORLD!r}))))
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    here, absent = done.stdout.splitlines()
    assert here.startswith("ok")
    assert absent.startswith("fail")
    assert "hf download ann/other" in absent
    online = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment | {"HF_HUB_OFFLINE": "0"}, capture_output=True, text=True, check=True)
    assert online.stdout.splitlines()[1].startswith("warn"), "it would be downloaded"


@pytest.mark.slow
def test_the_command_says_all_of_it(tmp_path: Path) -> None:
    config: dict[str, Any] = TINY | {"name": "looked_at"}
    (tmp_path / "looked_at.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "persona_lab", "doctor", str(tmp_path / "looked_at.yaml"), "--processes", "2", "--runs", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    names = {finding["name"] for finding in json.loads(done.stdout)}
    assert {"python", "torch", "threads", "memory", "disk", "store disk", "hub", "wandb login", "slurm", "ray", "sky", "plan disk", "plan memory", "engine", "all-gather"} <= names
    assert list((tmp_path / "runs").rglob("*.json")) == [], "nothing is made"
