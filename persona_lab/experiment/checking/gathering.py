"""Whether processes reach one another: an all-gather between them, started as training starts them.

    gather(2)    ->   ok    all-gather         2 processes, gloo, MULTI_CPU, 0.1 s

Over several machines the same program is what `accelerate launch --num_machines 2 ... -m persona_lab.experiment.checking.gathering` runs on each.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from persona_lab.errors import printable
from persona_lab.experiment.checking.finding import Finding

NAME = "all-gather"
LIMIT_SECONDS = 120.0
"""From the command to the answer; imports take most of it."""
GATHER_SECONDS = 60
"""How long one process waits for the others."""
HINT = "Look at NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME name the network interface, and a firewall must let the processes' ports through."


def gather(processes: int, seconds: float = LIMIT_SECONDS) -> Finding:
    """An all-gather between new processes on this machine; those that are left when it hangs are ended."""
    gpus = _gpus()
    if gpus and processes > gpus:
        return Finding(NAME, "fail", f"{processes} processes on {gpus} GPUs: NCCL needs one for each. Use --processes {gpus}.")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if gpus else {"ACCELERATE_USE_CPU": "true"})
    # Its own session: a process that hangs is ended together with the launcher that waits for it.
    started = subprocess.Popen(
        launched(processes), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        out, err = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Finding(NAME, "fail", f"{processes} processes hang: no answer within {seconds:g} s. {HINT}")
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    if started.returncode != 0:
        return Finding(NAME, "fail", f"{processes} processes do not reach one another: {_reason(err)}. {HINT}")
    # NCCL_DEBUG prints on the same channel, before and after.
    report = next((line for line in out.splitlines() if line.startswith("{")), None)
    return judged(json.loads(report), processes) if report else Finding(NAME, "fail", f"{processes} processes ended without an answer. {HINT}")


def launched(processes: int) -> list[str]:
    """The command: with `--multi_gpu`, or accelerate would start one process on a machine without GPUs and say nothing."""
    geometry = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *geometry, "-m", "persona_lab.experiment.checking.gathering"]


def judged(found: Mapping[str, object], processes: int) -> Finding:
    """What the first process reported, against what was asked for."""
    said = f"{found['processes']} processes, {found['backend']}, {found['type']}, {found['seconds']} s"
    if found["gathered"] != list(range(processes)):
        return Finding(NAME, "fail", f"{said}, asked for {processes}: gathered {found['gathered']}. See `accelerate env` for a default config that changes the number.")
    return Finding(NAME, "ok", said)


def take_part() -> dict[str, object]:
    """As one of the processes: send the own number to all others, and say what came."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    accelerator = Accelerator(cpu=not _gpus(), kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=GATHER_SECONDS))])
    begun = time.monotonic()
    gathered_P = accelerator.gather(torch.tensor([accelerator.process_index], device=accelerator.device))
    found = {
        "processes": accelerator.num_processes,
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else "none",
        "type": accelerator.distributed_type.value,
        "seconds": round(time.monotonic() - begun, 2),
        "gathered": torch.as_tensor(gathered_P).tolist(),
    }
    accelerator.end_training()
    return found if accelerator.is_main_process else {}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _reason(said: str) -> str:
    """The line of an error among what accelerate and torch print around it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line and "Traceback" not in line]
    return printable((errors or lines or ["it says nothing"])[0], 200)


if __name__ == "__main__":
    if report := take_part():
        print(json.dumps(report), flush=True)
