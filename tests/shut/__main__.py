"""Runs commands of persona-lab one after the other, each in a process of its own that is forked from this one, which has imported what takes long.

A command has ended when all that it has started has: what is orphaned becomes a child of this process.

For each line of its input, `{"argv": [...], "at": FOLDER, "said": FILE}`, a line of its output: `{"code": 0, "unrouted": 0}`. What the command prints goes to
FILE. `unrouted` counts what the kernel had no route for, whoever sent it: in a network namespace with nothing but loopback, every attempt to leave.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import accelerate
import peft

from persona_lab.cli import main
from persona_lab.experiment import run
from persona_lab.experiment.instruments import findings, verifying
from persona_lab.experiment.making import scoring, stacks
from persona_lab.experiment.reading import show

PRELOADED = (accelerate, peft, run, findings, verifying, scoring, stacks, show)
FORKED = multiprocessing.get_context("fork")
SUBREAPER = 36
"""Of prctl: PR_SET_CHILD_SUBREAPER."""


def unrouted() -> int:
    """Packets and connections without a route, since the namespace began."""
    names, counts = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip: "))
    later = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(counts[names.index("OutNoRoutes")]) + int(later["Ip6OutNoRoutes"])


def become(command: dict[str, Any]) -> None:
    """The command itself: where it runs, with which words, and where its output goes."""
    with Path(command["said"]).open("w") as said, Path(os.devnull).open() as nothing:
        for stream, number in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(stream.fileno(), number)
    os.chdir(command["at"])
    sys.argv = ["persona-lab", *command["argv"]]
    main()


def serve() -> None:
    """Until the end of the input."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    gc.freeze()  # what is imported is never looked at again, so that children share it
    for line in iter(sys.stdin.readline, ""):
        process = FORKED.Process(target=become, args=(json.loads(line),))
        process.start()
        process.join()
        with suppress(ChildProcessError):
            while True:
                os.wait()
        print(json.dumps({"code": process.exitcode, "unrouted": unrouted()}), flush=True)


serve()
