"""Signals: noted at once, obeyed at the next safe point, passed on to the workers that were hired."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_experiment import write_config

from persona_lab.experiment.making.interruption import PARENT, Interrupted, Interruption
from persona_lab.store.checkpoints import stacks_under_way


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_is_only_noted_and_leaves_at_the_next_safe_point(number: signal.Signals, code: int):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.leave()
        for _ in range(3):
            signal.raise_signal(number)
        assert interruption.asked()
        with pytest.raises(Interrupted) as left:
            interruption.leave()
    assert left.value.code == code
    assert signal.getsignal(number) is before


def test_the_first_signal_decides_the_exit_code():
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted) as left:
            interruption.leave()
    assert left.value.code == 75


def test_hired_workers_are_told_as_soon_as_it_is_known():
    with Interruption() as interruption:
        interruption.hired.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        assert not interruption.asked()
        assert interruption.hired[0].poll() is None
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked()
        assert interruption.hired[0].wait(timeout=60) == -signal.SIGTERM


def test_a_hired_worker_whose_employer_is_gone_stops(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert not Interruption().asked()
    monkeypatch.setenv(PARENT, str(os.getpid()))
    with pytest.raises(Interrupted, match="75"):
        Interruption().leave()


def test_a_crew_that_is_stopped_leaves_checkpoints_no_leases_and_nobody_behind(tmp_path: Path):
    config = write_config(tmp_path, stages={"injection": {"mixture": {"john": 40, "sam": 40}, "steps": 2000, "batch": 4, "rate": 3e-3}}, conditions={"linked": {"order": ["injection"]}})
    command = [sys.executable, "-m", "persona_lab", "run", str(config), "probes=[says]", "samples=0", "machine.workers=2", "machine.stack=1", "--runs", str(tmp_path / "runs")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as parent:
        assert parent.stderr is not None
        said: list[str] = []
        for line in parent.stderr:
            said.append(line)
            if line.startswith("training"):
                children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
                parent.send_signal(signal.SIGTERM)
                parent.send_signal(signal.SIGTERM)
                break
        said += parent.stderr.readlines()
        assert parent.wait() == 75, "".join(said)
    assert "the same command goes on from here" in said[-1]
    assert "Traceback" not in "".join(said)
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    store = tmp_path / "runs" / "store"
    assert not list((store / "leases").iterdir())
    stacks = list(stacks_under_way(store / "attempts"))
    assert stacks
    for stack in stacks:
        assert stack.newest() is not None
        assert stack.furthest >= 1
