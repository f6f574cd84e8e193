"""The short tier of real adapters: killed wherever a checkpoint or a commit writes, and asked to stop, they end the same to the bit.

The families run in a process of their own that has loaded torch on one thread, because it forks.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from tests.faults import tracing


@pytest.mark.parametrize(("family", "broken"), [("lora_calls", 8), ("lora_relay", 2)])
def test_real_adapters_end_the_same_to_the_bit(family: str, broken: int) -> None:
    if family == "lora_calls" and (why := tracing.missing()):
        pytest.skip(why)
    command = [sys.executable, "-m", "tests.faults", "--tier", "short", "--only", family, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["verdicts"] == {"PASS": found["trials"]}, found["failures"]
    assert found["kills"] >= broken
    assert found["is the largest difference of a weight"] == 0.0
    assert done.returncode == 0
