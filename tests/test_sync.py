"""What was tracked offline reaches wandb's server once: by wandb's own client, over HTTP, at a server that plays wandb's."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import ROOT
from test_cli import QUICK, TINY, configs_in
from wandb_server import KEY, Server, wandb_server

from persona_lab.config import load_experiment
from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading import syncing
from persona_lab.experiment.reading.syncing import offline_files, send, to_send
from persona_lab.experiment.reading.workspace import SWEEP, WORKSPACE, built, push, write_specs
from persona_lab.tracking import METRICS, chosen_mode, open_tracker, run_id

NODES = ("a1" * 32, "b2" * 32)


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a login, outside any job of a cluster."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "NETRC", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with wandb_server() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield found


@pytest.fixture
def plan(tmp_path: Path, from_the_root: None) -> Plan:
    planned = make_plan(QUICK, ["underpowered=true"], tmp_path / "runs")
    planned.write()
    return planned


def tell(plan: Plan, node: str, steps: range) -> None:
    """As a worker does that trains a node from one step to another."""
    folder = plan.folder / "attempts" / f"{node[:4]}-{steps.start}"
    about = {"experiment": plan.folder.name, "node": node, "job_type": "train", "name": "linked", "config": {"ln_ratio": 1.386}}
    with open_tracker(mode="offline", folder=folder, wandb_folder=plan.folder, **about) as tracker:
        for step in steps:
            tracker.log({"train/step": step, "train/loss": 1 / (1 + step)})
        tracker.summary({"recall": 0.96})
    assert tracker.fault == ""


def sent(server: Server, node: str) -> list[int]:
    """The steps of a node that the server has."""
    return [row["train/step"] for row in server.history[run_id(node, "train")] if "train/loss" in row]


@pytest.mark.slow
def test_every_offline_file_is_sent_once_and_a_resumed_run_stays_one_run(plan: Plan, server: Server) -> None:
    tell(plan, NODES[0], range(3))
    tell(plan, NODES[1], range(2))
    files = offline_files(plan.folder)
    assert [file.run_id for file in to_send(plan, files)] == [run_id(node, "train") for node in NODES]
    send(plan.folder, to_send(plan, files))
    assert set(server.runs) == {run_id(node, "train") for node in NODES}
    assert (sent(server, NODES[0]), sent(server, NODES[1])) == ([0, 1, 2], [0, 1])
    about = server.runs[run_id(NODES[0], "train")]
    assert (about["groupName"], about["jobType"], json.loads(about["config"])["ln_ratio"]["value"]) == (plan.folder.name, "train", 1.386)
    assert server.summary[run_id(NODES[0], "train")]["recall"] == 0.96
    # The first node goes on, in another process and another file.
    tell(plan, NODES[0], range(3, 5))
    left = to_send(plan, offline_files(plan.folder))
    assert [file.run_id for file in left] == [run_id(NODES[0], "train")]
    send(plan.folder, left)
    assert sent(server, NODES[0]) == [0, 1, 2, 3, 4], "what came first is still there"
    assert len(server.runs) == 2
    assert to_send(plan, offline_files(plan.folder)) == []
    assert dict(server.begun) == {run_id(NODES[0], "train"): 2, run_id(NODES[1], "train"): 1}, "each file was begun once"


@pytest.mark.slow
def test_a_server_that_refuses_loses_nothing(plan: Plan, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(plan, NODES[0], range(2))
    files = offline_files(plan.folder)
    server.failing = True
    with pytest.raises(EnvironmentFault, match=r"PL5603.*has not taken 1 of 1 files.*Nothing is lost"):
        send(plan.folder, files)
    assert [file.synced for file in offline_files(plan.folder)] == [False]
    server.failing = False
    send(plan.folder, offline_files(plan.folder))
    assert sent(server, NODES[0]) == [0, 1]


def test_a_server_that_is_away_is_told_of_before_anything_is_sent(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(plan, NODES[0], range(1))
    files = offline_files(plan.folder)
    with pytest.raises(EnvironmentFault, match=r"PL5602.*wandb login"):
        send(plan.folder, files)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match=r"PL5603.*does not answer.*login node") as caught:
        send(plan.folder, files)
    assert caught.value.exit_code == 5
    assert [file.synced for file in offline_files(plan.folder)] == [False]
    files[0].path.with_suffix(".wandb.synced").touch()  # somebody else has, since they were looked at
    monkeypatch.setattr(syncing, "_check_answers", lambda: None)
    monkeypatch.setattr(syncing, "_sync", lambda batch: pytest.fail("nothing is left to send"))
    send(plan.folder, files)
    with syncing._alone(plan.folder), pytest.raises(EnvironmentFault, match="PL5601"):
        send(plan.folder, files)


def test_a_file_that_still_grows_waits(plan: Plan) -> None:
    tracker = open_tracker(mode="offline", folder=plan.folder / "attempt", wandb_folder=plan.folder, experiment="e", node=NODES[0], job_type="train", name="n")
    leases = plan.store.root / "leases"
    leases.mkdir(parents=True)
    (leases / plan.base.id).write_text("{}")
    assert to_send(plan, offline_files(plan.folder)) == [], "somebody is at work"
    tracker.finish()
    assert len(to_send(plan, offline_files(plan.folder))) == 1
    (offline_files(plan.folder)[0].path.parent / "ended").unlink()  # as when the process was killed
    assert to_send(plan, offline_files(plan.folder)) == []
    later = plan.folder / "wandb" / "offline-run-29991231_235959-later"  # the node goes on in another process
    shutil.copytree(offline_files(plan.folder)[0].path.parent, later)
    (later / "ended").touch()
    assert to_send(plan, offline_files(plan.folder)) == [], "what came first is sent first"
    (leases / plan.base.id).unlink()
    assert [file.ended for file in to_send(plan, offline_files(plan.folder))] == [False, True], "nobody is at work"


def test_a_job_of_a_cluster_tracks_offline_without_asking_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://192.0.2.1")  # an address that nobody has (RFC 5737): a connection would hang
    assert chosen_mode("auto") == "online"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert chosen_mode("auto") == "offline"
    assert chosen_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert chosen_mode("auto") == "online"


@pytest.mark.slow
def test_a_dead_network_is_found_out_once_and_later_nodes_are_tracked_offline(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from persona_lab import tracking
tracking.SETTINGS["init_timeout"] = 1.0
for node in {NODES}:
    about = dict(experiment="e", node=node, job_type="train", name="n")
    with tracking.open_tracker(mode="auto", folder=Path(sys.argv[1]) / node[:4], wandb_folder=Path(sys.argv[1]), **about) as tracker:
        tracker.log({{"train/step": 0, "train/loss": 1.0}})
    print(tracker.tried, tracker.mode)
"""
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["online disabled", "offline offline"]
    assert len({(tmp_path / node[:4] / METRICS).read_text() for node in NODES}) == 1, "the local file does not depend on it"
    assert [file.run_id for file in offline_files(tmp_path)] == [run_id(NODES[1], "train")]


@pytest.mark.slow
def test_several_processes_make_one_run_of_each_node(tmp_path: Path, server: Server) -> None:
    """The whole way: `accelerate launch` with two processes, tracked offline, then `persona-lab sync`."""
    here = configs_in(tmp_path)
    settings = [setting for setting in TINY if not setting.startswith("machine.wandb")]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", *launch, "--main_process_port", "0", "-m", "persona_lab", "run", QUICK, *settings, "machine.wandb=offline", "probes=[says]"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned = json.loads(next(here.glob("runs/quickstart-*/plan.json")).read_text())
    run = next(folder for folder in here.glob("runs/quickstart-*") if not folder.is_symlink())
    tracked = [file.run_id for file in offline_files(run)]
    assert len(tracked) == len(set(tracked)), "no process tells of a node that another one made"
    scores = {entry["node"] for cell in planned["cells"] for entry in cell["scores"]}
    assert {run_id(node, "probe") for node in scores} <= set(tracked)
    assert {name.rpartition("-")[2] for name in tracked} == {"pretrain", "train", "probe", "generate", "analyse"}

    sync = [sys.executable, "-m", "persona_lab", "sync", "quickstart", "--json"]
    looked = json.loads(subprocess.run([*sync, "--dry-run"], cwd=here, env=environment, capture_output=True, text=True, check=True).stdout)
    assert (len(looked["to_send"]), looked["sent"], server.runs) == (len(tracked), [], {})
    first = json.loads(subprocess.run(sync, cwd=here, env=environment, capture_output=True, text=True, check=True).stdout)
    again = json.loads(subprocess.run(sync, cwd=here, env=environment, capture_output=True, text=True, check=True).stdout)
    assert (len(first["sent"]), again["sent"], again["growing"]) == (len(tracked), [], 0)
    assert set(server.runs) == set(tracked)
    assert set(server.begun.values()) == {1}
    assert {about["groupName"] for about in server.runs.values()} == {run.name}
    assert (run / WORKSPACE).is_file()
    assert (run / SWEEP).is_file()


def test_every_panel_is_what_wandb_workspaces_takes(plan: Plan) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `track` is not installed")
    spec = json.loads(write_specs(plan).workspace.read_text())
    assert json.loads(json.dumps(spec)) == spec
    made = built(spec, "ann")
    sections = made._to_model().spec.section.panel_bank_config.sections
    assert [[panel.view_type for panel in section.panels] for section in sections if section.name in ("Which persona", "Training")] == [["Vega2", "Vega2", "Bar Chart"], ["Run History Line Plot"]]
    spec["sections"][1]["panels"][0]["log_z"] = True
    with pytest.raises(ValueError, match="log_z"):
        built(spec, "ann")


def test_every_point_of_the_sweep_is_a_config_that_loads(plan: Plan) -> None:
    spec = yaml.safe_load(write_specs(plan).sweep.read_text())
    assert spec["method"] == "grid"
    config, fixed = spec["command"][3], spec["command"][4:-1]
    points = [[f"{name}={values['values'][k % len(values['values'])]}" for name, values in spec["parameters"].items()] for k in range(6)]
    for point in points:
        loaded = load_experiment(Path(config), [*fixed, *point])
        assert {len(factor) for factor in loaded.experiment.factors.values() if isinstance(factor, list)} == {1}


def test_a_workspace_is_pushed_by_its_own_library(plan: Plan, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `track` is not installed")
    spec = write_specs(plan).workspace
    assert httpx.get(server.url).is_success
    server.failing = True
    with pytest.raises(EnvironmentFault, match="PL5603"):
        push(spec)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(EnvironmentFault, match="PL5602"):
        push(spec)
