"""Runs saboteurs and tells who was caught; exit code 1 when one was not, or when the tests fail without any.

Each is tried in a fork of this process, which has the heavy libraries loaded and nothing of the project: to load them anew
would take longer than the tests.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from . import ROOT, Patch, patches

FOLDERS, FILES = ("persona_lab", "data_gen", "tests", "configs"), ("pyproject.toml",)
"""Of the project: what its tests need."""
ALL_SECONDS = 1800
ONE_SECONDS = 180
"""A test that waits for ever has noticed nothing."""
PRELOADED = ("accelerate", "pandas", "peft", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3")
"""Loaded once, before the forks: what most tests of ours load, and nothing of ours."""
MISTAKES = {"SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError", "AttributeError", "TypeError", "Skipped"}
"""A patch that makes one of these is no saboteur but a broken patch."""


@dataclass(eq=False)
class Failures:
    """A pytest plugin that notes why tests fail."""

    tests: list[str] = field(default_factory=list)
    """Failed in their own body, each with the reason."""
    mistakes: list[str] = field(default_factory=list)
    """Failed before it, or because the patch is no running code."""

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """One part of one test is done."""
        if call.excinfo is not None:
            told = f"{item.name}: {call.excinfo.exconly().splitlines()[0]}"
            ours = call.when == "call" and call.excinfo.typename not in MISTAKES
            (self.tests if ours else self.mistakes).append(told)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """One file is collected."""
        if report.failed:
            self.mistakes.append(f"{report.nodeid} cannot be collected")


def attempt(project: Path, tests: Sequence[str], said: Connection, *, first: bool) -> None:
    """Run tests of the copied project in this process, which ends with it; sends the exit code, and what failed."""
    os.setsid()
    os.chdir(project)
    output = os.open(project / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path.insert(0, str(project))
    # A patched file may have the size and, to the second, the age of the whole one: its bytecode would be taken for it.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
    failures = Failures()
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(project / "temporary"), *(["-x"] if first else [])]
    code = pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[failures])
    assert Path(sys.modules["persona_lab"].__file__ or "").is_relative_to(project), "the tests ran on another copy of the project"
    said.send((int(code), failures.tests, failures.mistakes))


def tried(project: Path, tests: Sequence[str], seconds: float, *, first: bool) -> tuple[int, list[str], list[str]]:
    """Exit code of pytest, tests that failed, and mistakes; in a fork, all of which is gone afterwards."""
    context: Any = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(project, tests, sending), kwargs={"first": first})
    process.start()
    sending.close()
    try:
        found = receiving.recv() if receiving.poll(seconds) else (-1, [], [f"no end after {seconds} s"])
    except EOFError:
        found = (-1, [], ["the process died"])
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    shutil.rmtree(project / "temporary", ignore_errors=True)
    return found


def caught(project: Path, patch: Patch) -> bool:
    """Whether a test of the patch fails because of it; prints the line of the table."""
    file, start = project / patch.file, time.monotonic()
    whole = file.read_text()
    file.write_text(patch.applied(whole))
    try:
        code, failed, mistakes = tried(project, patch.tests, ONE_SECONDS, first=True)
    finally:
        file.write_text(whole)
    found = code == pytest.ExitCode.TESTS_FAILED and bool(failed) and not mistakes
    why = (mistakes or failed or ["every test passes"])[0]
    print(f"{'caught' if found else 'NOT caught':10}  {time.monotonic() - start:5.1f} s  {patch.name:34}  {why[:110]}", flush=True)
    return found


def main() -> int:
    """Copy, run the tests as they are, then with each patch."""
    parser = argparse.ArgumentParser(prog="python -m tests.saboteurs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {patch.name: patch for patch in patches()}
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of: {', '.join(known)}")
    names = parser.parse_args().names or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no saboteur is called {', '.join(unknown)}")
    torch.set_num_threads(1)
    for module in PRELOADED:
        importlib.import_module(module)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="saboteurs-") as folder:
        project = Path(folder) / "project"
        for part in FOLDERS:
            shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in FILES:
            shutil.copy2(ROOT / part, project / part)
        code, failed, mistakes = tried(project, sorted({test for name in names for test in known[name].tests}), ALL_SECONDS, first=False)
        if code != pytest.ExitCode.OK:
            print("the tests fail without any patch:", *(failed + mistakes), (project / "output.txt").read_text()[-3000:], sep="\n  ")
            return 1
        print(f"the tests pass without any patch, {time.monotonic() - start:.0f} s", flush=True)
        free = [name for name in names if not caught(project, known[name])]
    print(f"{len(names) - len(free)} of {len(names)} caught, {time.monotonic() - start:.0f} s" + (f"; NOT caught: {', '.join(free)}" if free else ""))
    return int(bool(free))


if __name__ == "__main__":
    sys.exit(main())
