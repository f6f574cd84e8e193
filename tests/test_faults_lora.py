"""The short tier of real adapters: killed wherever a checkpoint or a commit writes, and asked to stop, they end the same to the bit.

The families run in one process of their own that has loaded torch and forks.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from tests.faults import tracing

LEAST = {"lora_calls": 8, "lora_relay": 2}
"""Family to how many workers must have been broken."""


def test_real_adapters_end_the_same_to_the_bit() -> None:
    if why := tracing.missing():
        pytest.skip(why)  # no strace here: the kills are made by it
    command = [sys.executable, "-m", "tests.faults", "--tier", "short", "--json", *(word for family in LEAST for word in ("--only", family))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    families = [json.loads(line) for line in done.stdout.splitlines()]
    assert [found["family"] for found in families] == list(LEAST)
    for found in families:
        assert found["verdicts"] == {"PASS": found["trials"]}, found["failures"]
        assert found["kills"] >= LEAST[found["family"]]
        assert found["is the largest difference of a weight"] == 0.0
