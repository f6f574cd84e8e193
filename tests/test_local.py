"""The engine of this machine: a job in the background ends, fails, is cancelled or killed; and what keeps several machines apart."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_experiment import BRIEF, keyed, silent
from test_job_scripts import job
from test_launch import two_jobs

from persona_lab.config.cluster import Cluster
from persona_lab.errors import EnvironmentFault
from persona_lab.experiment.launching import last, launch
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.launch.local import Local
from persona_lab.launch.states import jobs_of
from persona_lab.store import Store
from persona_lab.store.lease import Leases

pytestmark = pytest.mark.usefixtures("from_the_root")


def started(folder: Path, code: str, report: str = "pass") -> tuple[Path, list[str]]:
    """A job in the background that runs lines of Python in the place of a worker."""
    for name in ("logs", "exits"):
        (folder / name).mkdir(parents=True)
    asked = job(Cluster(), 1, 1, folder, python=sys.executable, directory=folder, worker=("-c", code), aggregate=("-c", report))
    for name, text in Local().files(asked).items():
        (folder / name).write_text(text)
    return folder, Local().submit(asked)


def ended(folder: Path, ids: list[str]) -> str:
    """The state of a job once its process has ended."""
    process = int(ids[0].partition(".")[0])
    if os.waitpid(process, 0)[0] == process:
        return Local().states(folder, ids)[ids[0]]
    raise AssertionError


@pytest.mark.parametrize(
    ("code", "report", "state"), [("pass", "print('shown')", "done"), ("exit(4)", "print('shown')", "failed"), ("pass", "exit(1)", "failed")]
)
def test_a_local_job_leaves_its_exit_code_and_its_log(tmp_path: Path, code: str, report: str, state: str):
    folder, ids = started(tmp_path / "1", code, report)
    assert ended(folder, ids) == state
    assert (folder / "logs" / f"{ids[0]}.log").read_text() == ("shown\n" if "shown" in report else "")


WAITS = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('kept').touch(), exit(75)))
pathlib.Path('ready').touch()
while True: time.sleep(1)
"""


def test_a_local_job_that_is_cancelled_lets_its_worker_finish_and_writes_no_report(tmp_path: Path):
    folder, ids = started(tmp_path / "1", WAITS, "print('shown')")
    while not (folder / "ready").exists():
        assert Local().states(folder, ids) == {ids[0]: "running"}
    Local().cancel(folder, ids)
    assert ended(folder, ids) == "cancelled"
    assert (folder / "kept").exists()
    assert "shown" not in (folder / "logs" / f"{ids[0]}.log").read_text()
    Local().cancel(folder, ids)  # once more: nobody is there


def test_a_local_job_that_was_killed_is_lost_and_one_on_another_machine_is_not(tmp_path: Path):
    folder, ids = started(tmp_path / "1", "import time; time.sleep(60)")
    os.killpg(int(ids[0].partition(".")[0]), signal.SIGKILL)
    assert ended(folder, ids) == "lost"
    start, host = ids[0].partition(".")[2].split("@")
    used_again = f"{os.getpid()}.{start}@{host}"
    assert Local().states(folder, [used_again]) == {used_again: "lost"}
    elsewhere = f"{os.getpid()}.{start}@another"
    assert Local().states(folder, [elsewhere]) == {elsewhere: "running"}
    with pytest.raises(EnvironmentFault, match="Cancel it on another"):
        Local().cancel(folder, [elsewhere])


def test_a_local_launch_of_two_processes_makes_the_table_of_a_run(tmp_path: Path):
    plan = two_jobs(tmp_path)
    launched = launch(plan, "local")
    assert launched is not None
    with pytest.raises(EnvironmentFault, match="PL5305"):
        launch(plan, "local")
    assert ended(launched.job.folder, launched.ids) == "done", jobs_of(plan.folder)
    assert launch(plan, "local") is None, "nothing is missing, nothing is submitted"
    manifests = [manifest for _, _, manifest in Store(tmp_path / "runs" / "store").nodes()]
    assert {manifest["git_commit"] for manifest in manifests} == {last(plan.folder).commit}
    alone = make_plan(tmp_path / "tiny.yaml", BRIEF, tmp_path / "alone")
    make_nodes(alone, silent)
    show(alone)
    together, one = (keyed(Run(each.folder).table()) for each in (plan, alone))
    assert list(together.index) == list(one.index)
    np.testing.assert_allclose(together["logprob_nats"], one["logprob_nats"], rtol=0, atol=1e-4)


OBSERVER = """
import socket, sys, time, pathlib
from persona_lab.store.lease import Leases
leases = Leases(pathlib.Path(sys.argv[1]), time.monotonic)
print(socket.gethostname(), time.monotonic(), flush=True)
for ttl in sys.stdin:
    print("taken" if leases.take("node", float(ttl)) else "held", flush=True)
"""


def test_a_lease_holds_between_machines_of_other_names_clocks_and_processes(tmp_path: Path):
    elsewhere = ["unshare", "--uts", "--time", "--monotonic", "86400", "--pid", "--fork", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*elsewhere, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for another host name and another clock here")
    lease = Leases(tmp_path, time.monotonic).take("node", 60)
    assert lease is not None
    command = [*elsewhere, sys.executable, "-c", OBSERVER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as observer:
        assert observer.stdin is not None
        assert observer.stdout is not None

        def looks(ttl: float) -> str:
            print(ttl, file=observer.stdin, flush=True)
            return observer.stdout.readline().strip() if observer.stdout else ""

        host, clock = observer.stdout.readline().split()
        assert host == "elsewhere"
        assert float(clock) > time.monotonic() + 80_000, "a day ahead"
        assert looks(0) == "held", "what was never seen before is not silent"
        assert lease.renew()
        assert looks(0) == "held", "it beats"
        assert looks(60) == "held", "it is not silent for long enough"
        assert looks(0) == "taken", "it has not beaten since"
        assert not lease.held()
        assert not lease.renew(), "who lost it learns so before anything is written"
