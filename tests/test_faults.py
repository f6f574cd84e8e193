"""The short tier of the fault harness: whatever breaks, no cell is lost, none is made twice, none is silently another one.

Each family runs in a process of its own that loads no torch, because it forks hundreds of times.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

LEAST = {
    "files": (100, 100),
    "sweep": (60, 60),
    "rivals": (15, 15),
    "chains": (5, 80),
    "tracing": (40, 20),
    "errors": (50, 45),
    "small_disks": (8, 1),
    "power": (150, 0),
    "power_files": (200, 0),
    "lying_disk": (50, 0),
    "mutations": (600, 0),
    "clean_opens": (300, 0),
    "crowd": (90, 0),
}
"""Family to how many trials there must be, and how many processes must have been broken: a fault that hits nothing proves nothing."""


@pytest.mark.parametrize("family", LEAST)
def test_the_store_keeps_its_promise(family: str) -> None:
    command = [sys.executable, "-m", "tests.faults", "--tier", "short", "--only", family, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    if "skipped" in found:
        pytest.skip(found["skipped"])  # no strace, or no right to mount: the family says which
    assert found["verdicts"] == {"PASS": found["trials"]}, found["failures"]
    trials, broken = LEAST[family]
    assert found["trials"] >= trials
    assert found["kills"] >= broken
    assert done.returncode == 0
