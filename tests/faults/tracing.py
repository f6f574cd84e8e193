"""Kills by strace: at system calls, whoever makes them. It sees what no wrapper in Python can, and costs more."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from . import toy
from .kills import CELL, expected, fresh, torn
from .trials import HARD_FAIL, Journal, Tally, fast_folder, finish

CALLS = ("openat", "write", "fsync", "close", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "getdents64", "newfstatat")

WRITING = (
    *("openat", "write", "pwrite64", "writev", "ftruncate", "fallocate", "fsync", "fdatasync", "sendfile", "copy_file_range"),
    *("rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"),
)
"""Calls that change a disk, and the openings before them: whoever makes them, safetensors' and torch's own writers too."""


def missing() -> str:
    """Why strace cannot be used here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace: {tried.stderr.strip()}" if tried.returncode else ""


def sweep(every: int = 1) -> Tally:
    """A kill on entering the n-th call of each kind while a cell is made, for every `every`-th n that there is."""
    tally = Tally()
    with fast_folder() as folder:
        digest = expected(folder)
        for prepare in (fresh, torn):
            for call in CALLS:
                number, killed = 1, True
                while killed:
                    root = folder / f"{prepare.__name__}-{call}-{number}"
                    prepare(root)
                    journal = Journal(root.with_suffix(".journal"))
                    ended = _traced(call, number, lambda journal=journal, root=root: toy.make(toy.patient(root), CELL, journal.tell))
                    killed = ended == -signal.SIGKILL
                    verdict = finish(root, [CELL], journal, digest) if ended in (0, -signal.SIGKILL) else HARD_FAIL
                    tally.add(verdict, f"{prepare.__name__}, {call} number {number}, ended with {ended}", killed)
                    number += every
    return tally


def _traced(call: str, number: int, action: Callable[[], None]) -> int:
    """How a process of its own ended that was killed on entering its `number`-th such call."""

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        action()

    return attached(stopped, *kill_on(call, number))


def kill_on(call: str, number: int) -> tuple[str, ...]:
    """Options of strace: the process is killed on entering its `number`-th such call."""
    return "-o", "/dev/null", "-e", f"trace=?{call}", "-e", f"inject=?{call}:signal=SIGKILL:when={number}"


def forked(action: Callable[[], None]) -> int:
    """A process of its own that does something and ends, with 1 where it failed; its id."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


def attached(action: Callable[[], None], *options: str) -> int:
    """How a process of its own ended, which strace had joined where it first stopped itself, if it ever did."""
    pid = forked(action)
    stopped = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if stopped is None or stopped.si_code != os.CLD_STOPPED:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    tracer = subprocess.Popen(["strace", "-f", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        assert "attached" in said, said
    finally:
        os.kill(pid, signal.SIGCONT)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    tracer.communicate()
    return ended


def points(action: Callable[[], None], calls: Sequence[str], record: Path) -> list[tuple[str, int]]:
    """Every call of these names, with its number among its like, that a process makes after it has stopped itself; none that only opens for reading."""
    ended = attached(action, "-o", str(record), "-e", "trace=" + ",".join(f"?{call}" for call in calls))
    assert ended == 0, f"ended with {ended}"
    made: Counter[str] = Counter()
    found = []
    for call, arguments in re.findall(r"^\d+ +(\w+)\((.*)", record.read_text(), re.MULTILINE):
        made[call] += 1
        if "O_RDONLY" not in arguments:
            found.append((call, made[call]))
    return found
