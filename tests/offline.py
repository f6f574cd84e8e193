"""Runs an experiment on a local model folder where every connection is refused: `python offline.py CONFIG RUNS TRIED`.

Nothing in the environment says that there is no network. TRIED gets a line for each attempt to reach one.
"""

import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

config, runs, tried = sys.argv[1:]
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE"):
    os.environ.pop(name, None)


def refuse(*args: Any, **_: Any) -> None:
    if args and isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX:
        raise ConnectionRefusedError(111, "there is nobody")
    with Path(tried).open("a") as file:
        file.write(f"{args[1:] or args}\n")
    raise OSError(101, "Network is unreachable")


for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket.socket, "sendto"), (socket, "getaddrinfo"), (socket, "gethostbyname")):
    setattr(owner, name, refuse)

sys.argv = ["persona-lab", "run", config, "--runs", runs, "--json"]
runpy.run_module("persona_lab", run_name="__main__")
