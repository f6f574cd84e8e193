"""Ray and SkyPilot: what is written for them, checked by their own programs; a sweep on a real Ray cluster, of which a task dies."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import ROOT
from test_experiment import BRIEF, keyed, write_config
from wandb_server import wandb_server

from persona_lab.config.cluster import Cluster
from persona_lab.errors import ConfigError, EnvironmentFault
from persona_lab.experiment.reading.runs import Run, find_run
from persona_lab.launch.engine import Engine, Job, engine_named
from persona_lab.launch.ray import ADDRESS, Ray
from persona_lab.launch.sky import Sky

pytestmark = pytest.mark.usefixtures("from_the_root")
GOLDEN = ROOT / "tests" / "golden" / "engines"
SKY_PYTHON = os.environ.get("PERSONA_LAB_SKY", "")
"""The interpreter of an environment that has SkyPilot, which cannot share one with wandb."""
RENTED = Cluster(gpus=2, gpu_type="A100", infra="k8s", volume="lab", spot=True, nodes=2, cpus=8, memory="64G", setup=["module load 'cuda'"])
GOLDENS: list[tuple[str, Engine, Cluster, int, int]] = [
    ("sky_volume", Sky(), RENTED, 3, 2),
    ("sky_own_machines", Sky(), Cluster(infra="ssh/my-nodes"), 1, 1),
    ("ray_gpus", Ray(), Cluster(gpus=2, gpu_type="A100", cpus=8, at_once=3), 8, 2),
]


def job(cluster: Cluster, jobs: int, processes: int, folder: Path = Path("/shared/runs/quickstart-16bab757/launch/1")) -> Job:
    command = ("-m", "persona_lab", "work", str(folder))
    return Job("persona-lab-quickstart-16bab757-1", folder, command, (*command, "--report"), "/shared/env/bin/python", Path("/home/ada/lab"), jobs, processes, cluster)


def shown(engine: Engine, asked: Job) -> dict[str, str]:
    """The files and the commands, without the releases and the paths of this machine."""
    files = {name: re.sub(r"==[^ \n]+", "==RELEASE", text) for name, text in engine.files(asked).items()}
    return files | {"commands.txt": "".join(" ".join([Path(command[0]).name, *command[1:]]) + "\n" for command in engine.commands(asked))}


@pytest.mark.parametrize(("name", "engine", "cluster", "jobs", "processes"), GOLDENS, ids=[golden[0] for golden in GOLDENS])
def test_files_and_commands_are_those_of_the_golden_files(name: str, engine: Engine, cluster: Cluster, jobs: int, processes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ADDRESS, "http://head:8265")
    assert shown(engine, job(cluster, jobs, processes)) == {file.name: file.read_text() for file in (GOLDEN / name).iterdir()}


@pytest.mark.parametrize(("name", "engine", "cluster", "jobs", "processes"), GOLDENS, ids=[golden[0] for golden in GOLDENS])
def test_every_script_is_a_script(name: str, engine: Engine, cluster: Cluster, jobs: int, processes: int):
    scripts = [text if file.endswith(".sh") else yaml.safe_load(text)["run"] for file, text in engine.files(job(cluster, jobs, processes)).items()]
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(("engine", "cluster", "said"), [(Sky(), Cluster(), "volume"), (Sky(), Cluster(infra="k8s", volume="lab", gpus=1), "gpu_type"), (Ray(), Cluster(nodes=2), "nodes")])
def test_what_an_engine_cannot_do_is_said_before_anything_is_submitted(engine: Engine, cluster: Cluster, said: str):
    with pytest.raises(ConfigError, match=f"PL131[12].*machine.cluster.{said}"):
        engine.files(job(cluster, 2, 1))


@pytest.mark.parametrize(("name", "fix"), [("sky", "uv tool install skypilot"), ("ray", re.escape("pip install 'persona-lab[ray]'"))])
def test_an_absent_engine_is_one_clear_error(name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from persona_lab.experiment.launching import launch
    from persona_lab.experiment.planning.plan import make_plan

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("persona_lab.launch.ray.find_spec", lambda name: None)  # Ray may be installed here
    plan = make_plan(write_config(tmp_path), [*BRIEF, "machine.cluster.infra=ssh/nodes"], tmp_path / "runs")
    with pytest.raises(EnvironmentFault, match=f"PL5301.*{fix}"):
        launch(plan, name)
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------ SkyPilot
@pytest.mark.slow
@pytest.mark.skipif(not SKY_PYTHON, reason="PERSONA_LAB_SKY does not name the interpreter of an environment with SkyPilot")  # its click and wandb's do not fit together
@pytest.mark.parametrize(("cluster", "processes"), [(RENTED, 2), (Cluster(infra="ssh/my-nodes"), 1)], ids=["volume", "own"])
def test_skypilot_itself_reads_every_task(cluster: Cluster, processes: int, tmp_path: Path):
    folder = tmp_path / "runs" / "tiny-16bab757" / "launch" / "1"
    folder.mkdir(parents=True)
    for name in ("plan.json", "config.json"):
        (folder.parents[1] / name).write_text("{}")
    for name, text in Sky().files(job(cluster, 2, processes, folder)).items():
        (folder / name).write_text(text)
    code = "import sys, json, sky\nfor file in sys.argv[1:]:\n    task = sky.Task.from_yaml(file); print(json.dumps(task.to_yaml_config()))"
    command = [SKY_PYTHON, "-c", code, str(folder / "task.yaml"), str(folder / "last.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}, check=True)
    for line in done.stdout.splitlines()[-2:]:
        read = json.loads(line)
        assert read.get("num_nodes", 1) == cluster.nodes
        assert read["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
        assert read["resources"].get("accelerators") == ({"A100": 2} if cluster.gpus else None)
    broken = yaml.safe_load((folder / "task.yaml").read_text()) | {"num_node": 2}
    (folder / "task.yaml").write_text(yaml.safe_dump(broken))
    assert subprocess.run(command, capture_output=True, env={**os.environ, "HOME": str(tmp_path)}).returncode != 0, "its validator refuses what is no field"


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """A program `sky` that keeps a table of jobs, and refuses one of the name `full-2`; what it was told."""
    table, calls = tmp_path / "table", tmp_path / "calls"
    table.write_text("")
    script = f"""#!{sys.executable}
import json, sys
arguments = sys.argv[1:]
open({str(calls)!r}, "a").write(json.dumps(arguments) + "\\n")
verb = arguments[1]
if verb == "launch":
    name = arguments[arguments.index("--name") + 1]
    if name == "full-2":
        sys.exit("ResourcesUnavailableError: no A100 in any region")
    open({str(table)!r}, "a").write(name + " PENDING\\n")
if verb == "queue":
    print("Fetching managed job statuses...")
    rows = [line.split() for line in open({str(table)!r})]
    print(json.dumps([{{"job_name": name, "status": status}} for name, status in reversed(rows)], indent=2))
if verb == "cancel":
    open({str(table)!r}, "a").write(arguments[arguments.index("--name") + 1] + " CANCELLED\\n")
"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sky").write_text(script)
    (tmp_path / "bin" / "sky").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()]


def test_managed_jobs_are_submitted_found_and_cancelled_by_name(sky: Callable[[], list[list[str]]], tmp_path: Path):
    asked = job(Cluster(infra="ssh/my-nodes"), 3, 1, tmp_path / "runs" / "x" / "launch" / "1")
    ids = Sky().submit(asked)
    assert ids == [f"{asked.name}-{k}" for k in (1, 2, 3)]
    assert [call[-1].rpartition("/")[2] for call in sky()] == ["task.yaml", "task.yaml", "last.yaml"]
    assert [call[call.index("--env") + 1] for call in sky()] == [f"PERSONA_LAB_TASK={k}" for k in range(3)]
    assert Sky().find(tmp_path, asked.name) == ids
    assert Sky().states(tmp_path, [*ids, "gone-1"]) == {**dict.fromkeys(ids, "queued"), "gone-1": "lost"}
    Sky().cancel(tmp_path, ids[:1])
    assert Sky().states(tmp_path, ids) == {ids[0]: "cancelled", ids[1]: "queued", ids[2]: "queued"}


def test_of_a_submission_that_is_refused_half_way_nothing_is_left(sky: Callable[[], list[list[str]]], tmp_path: Path):
    asked = job(Cluster(infra="ssh/my-nodes"), 3, 1, tmp_path / "runs" / "x" / "launch" / "1")
    with pytest.raises(EnvironmentFault, match=r"PL5302.*no A100 in any region"):
        Sky().submit(Job(**{**asked.__dict__, "name": "full"}))
    assert sky()[-1] == ["jobs", "cancel", "--yes", "--name", "full-1"]


# ------------------------------------------------------------------ Ray
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """End a node of Ray: everything that `ray start --block` has started is in its session."""
    for line in subprocess.run(["ps", "-eo", "pid,sess"], capture_output=True, text=True, check=True).stdout.splitlines()[1:]:
        pid, session = map(int, line.split())
        if session == process.pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    process.wait()


@pytest.fixture(scope="module")
def ray_head() -> Iterator[None]:
    """A Ray cluster of one node with two cores, named by the variable that launching reads."""
    if not (find_spec("ray") and find_spec("aiohttp_cors")):
        pytest.skip("the extra `ray` is not installed")  # an extra, which `make test` does not install
    # Ray gives up on a node that has not registered after 30 s, which a busy machine may need more than.
    for _ in range(4):
        folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Ray's sockets need a short path
        server = free_port()
        head = started_head(folder, server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ADDRESS, f"http://127.0.0.1:{server}")
            try:
                until(lambda head=head, server=server: head.poll() is not None or registered(server), 200)
                if head.poll() is None:
                    yield
                    return
            finally:
                ended(head)
                shutil.rmtree(folder, ignore_errors=True)
    pytest.fail("no Ray cluster could be started in four attempts")


def started_head(folder: Path, server: int) -> subprocess.Popen[bytes]:
    ports = ["--port=0", f"--dashboard-port={server}", f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", "--object-store-memory=80000000"]
    return subprocess.Popen(
        [*command, f"--temp-dir={folder}", *ports], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def registered(server: int) -> bool:
    """Whether the cluster's one node is up, and its job server."""
    try:
        nodes = httpx.get(f"http://127.0.0.1:{server}/nodes", params={"view": "summary"}, timeout=20).json()["data"]["summary"]
        return [node["raylet"].get("state") for node in nodes] == ["ALIVE"] and httpx.get(f"http://127.0.0.1:{server}/api/jobs/", timeout=20).is_success
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


def lab(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "persona_lab", *arguments, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_sweep_of_which_a_task_dies_gives_the_table_of_a_local_run(ray_head: None, tmp_path: Path):
    # Each cell is trained alone, so that its bits are the same whoever trains it.
    settings = [*BRIEF, "stages.injection.steps=60", "machine.stack=1", "machine.checkpoint_seconds=.5"]
    config, runs = str(write_config(tmp_path)), str(tmp_path / "runs")
    launched = lab("launch", config, "--engine", "ray", "--runs", runs, *settings, "machine.cluster.jobs=2", "machine.cluster.cpus=1")
    [name], folder = launched["ids"], Path(launched["submission"])

    def states() -> Mapping[str, str]:
        return Ray().states(folder, [name])

    until(lambda: len(states()) == 3, 240)
    assert set(states()) == {name, f"{name}_0", f"{name}_1"}, "both shares have begun"
    [killed, *_] = tasks(folder)
    os.kill(killed, signal.SIGKILL)  # as when its machine dies
    until(lambda: states()[name] not in ("queued", "running"), 300)
    assert states() == dict.fromkeys((name, f"{name}_0", f"{name}_1", f"{name}_report"), "done"), {log.name: log.read_text() for log in (folder / "logs").iterdir()}
    found = find_run("tiny", Path(runs))
    assert (found / "report.html").is_file()
    alone = lab("run", config, "--runs", str(tmp_path / "alone"), *settings)
    assert keyed(Run(found).table()).equals(keyed(Run(Path(alone["run"])).table()))
    assert lab("launch", config, "--engine", "ray", "--runs", runs, *settings)["jobs"] == 0, "nothing is missing"


def tasks(folder: Path) -> list[int]:
    """The processes of Ray that run a share of this submission."""
    shares = subprocess.run(["pgrep", "-f", f"^bash {folder}/share.sh"], capture_output=True, text=True).stdout.split()
    return [int(subprocess.run(["ps", "-o", "ppid=", "-p", share], capture_output=True, text=True, check=True).stdout) for share in shares]


@pytest.mark.slow
def test_a_job_that_is_stopped_from_another_shell_lets_its_workers_leave(ray_head: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "runs" / "x" / "launch" / "1"
    (folder / "logs").mkdir(parents=True)
    (folder / "again").mkdir()
    (folder / "code").symlink_to(ROOT)
    asked = job(Cluster(cpus=1), 1, 1, folder)
    asked = Job(**{**asked.__dict__, "python": sys.executable, "directory": tmp_path, "name": f"stopped-{os.getpid()}"})
    for name, text in Ray().files(asked).items():
        (folder / name).write_text(text)
    (folder / "worker.sh").write_text("#!/bin/bash\ntrap 'echo asked; exit 75' TERM\necho begun\nwhile true; do sleep 0.2; done\n")
    ids = Ray().submit(asked)
    monkeypatch.delenv(ADDRESS)
    assert Ray().find(folder, asked.name) == ids == [asked.name]
    log = folder / "logs" / f"{asked.name}_0.log"
    until(lambda: log.exists() and "begun" in log.read_text(), 120)
    Ray().cancel(folder, ids)
    until(lambda: "asked" in log.read_text(), 60)
    assert Ray().states(folder, ids) == dict.fromkeys((asked.name, f"{asked.name}_0"), "cancelled")
    assert Ray().find(folder, "nobody") == []


def test_a_cluster_that_is_away_is_told_apart_from_one_that_forgot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("persona_lab.launch.ray.AT_HOME", "http://127.0.0.1:9")  # a cluster may run on this machine: here nobody answers
    monkeypatch.delenv(ADDRESS, raising=False)
    assert Ray().states(tmp_path, ["tiny-1"]) == {"tiny-1": "lost"}, "one on this machine that is gone runs nothing"
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match=r"PL5303.*no Ray cluster answers"):
        Ray().states(tmp_path, ["tiny-1"])
    (tmp_path / "exits").mkdir()
    (tmp_path / "exits" / "tiny-1").write_text("0\n")
    assert Ray().states(tmp_path, ["tiny-1"]) == {"tiny-1": "done"}, "what has ended needs no cluster"


def test_a_job_is_asked_after_where_it_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "ray"
    script.write_text("#!/bin/bash\n")
    script.chmod(0o755)
    monkeypatch.setattr("persona_lab.launch.ray._program", lambda: str(script))  # the one on PATH, where there is one, would look for a cluster
    monkeypatch.setattr("persona_lab.launch.ray.AT_HOME", "http://127.0.0.1:9")  # nobody answers here
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:10/")
    folder = tmp_path / "1"
    folder.mkdir()
    ids = Ray().submit(job(Cluster(), 1, 1, folder))
    monkeypatch.delenv(ADDRESS)
    with pytest.raises(EnvironmentFault, match=r"PL5303.*http://127\.0\.0\.1:10: no Ray cluster answers"):
        Ray().states(folder, ids)
    where = json.loads((folder / "cluster.json").read_text())
    (folder / "cluster.json").write_text(json.dumps(where | {"machine": "login2"}))
    with pytest.raises(EnvironmentFault, match=r"PL5303.*an address of login2, where the job was submitted.*Ask there"):
        Ray().states(folder, ids)
    monkeypatch.setenv(ADDRESS, "http://ada:secret@127.0.0.1:10")
    (folder / "cluster.json").unlink()
    Ray().submit(job(Cluster(), 1, 1, folder))
    assert "secret" not in "".join(file.read_text() for file in folder.iterdir())


def test_a_server_that_is_no_job_server_is_not_taken_for_one_that_forgot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ADDRESS, "http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match="PL5303"):
        Ray().find(tmp_path, "tiny-1")
    with wandb_server() as other:
        monkeypatch.setattr("persona_lab.launch.ray.AT_HOME", other.url)  # Ray's own port may be taken: a server of the test answers
        monkeypatch.delenv(ADDRESS)
        other.failing = True
        with pytest.raises(EnvironmentFault, match=r"PL5303.*answers as no Ray cluster does.*400"):
            Ray().states(tmp_path, ["tiny-1"])


def test_engines_are_found_by_name():
    assert isinstance(engine_named("ray"), Ray)
    assert isinstance(engine_named("sky"), Sky)
