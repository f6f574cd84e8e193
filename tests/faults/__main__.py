"""Runs the harness and prints its counts; exit code 1 when a single trial is not PASS.

    python -m tests.faults --tier long
    python -m tests.faults --tier short --only power --json
"""

import argparse
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from . import crowd, disks, kills, mutations, power, tracing
from .trials import PASS, Tally


def _lora(family: str, long: tuple[Any, ...], short: tuple[Any, ...]) -> Callable[[bool], Tally]:
    """A family of real adapters: torch is loaded when it is its turn, after the others have forked."""
    return lambda is_long: getattr(importlib.import_module(f"{__package__}.lora"), family)(*(long if is_long else short))


FAMILIES: dict[str, tuple[str, Callable[[bool], Tally], Callable[[], str]]] = {
    "files": ("a kill at every operation of every writer of one file", lambda long: kills.files(), str),
    "sweep": ("a kill before and in the midst of every file operation of a cell", lambda long: kills.sweep(1 if long else 31), str),
    "rivals": ("a kill at every operation of a second commit with other bytes", lambda long: kills.rivals(1 if long else 3), str),
    "chains": ("chains of 20 random kills", lambda long: kills.chains(380 if long else 5), str),
    "tracing": ("a kill at system calls, by strace", lambda long: tracing.sweep(2 if long else 41), tracing.missing),
    "errors": ("the disk full, bad, read-only or elsewhere at every operation", lambda long: disks.errors(1 if long else 13), str),
    "small_disks": ("disks of every size that is too small", lambda long: disks.small_disks(range(4, 400, 4 if long else 40)), disks.missing),
    "power": ("the power goes at any operation", lambda long: power.cuts(4000 if long else 150), str),
    "power_files": ("the power goes while a file is written anew", lambda long: power.file_cuts(2000 if long else 200), str),
    "lying_disk": ("the power goes, and the disk had only said that it flushes", lambda long: power.cuts(1000 if long else 50, honest=False), str),
    "mutations": ("bytes that rot, files and nodes that are swapped", lambda long: mutations.mutate(10_000 if long else 600), str),
    "clean_opens": ("nodes that nobody touched are opened", lambda long: mutations.clean_opens(10_000 if long else 300), str),
    "crowd": (
        "workers in a crowd, 5 % killed, 1 % paused, clocks days apart, locks that do nothing",
        lambda long: crowd.crowd(64, 20_000) if long else crowd.crowd(6, 90),
        str,
    ),
    "lora_calls": ("real adapters, a kill at every call that writes", _lora("calls", (1,), (55,)), tracing.missing),
    "lora_chains": ("real adapters, chains of up to 20 kills at random times", _lora("chains", (10,), (1, 3)), str),
    "lora_relay": ("real adapters, SIGTERM after each single step", _lora("signals", (1, (1, 1)), (1, (5, 8))), str),
    "lora_signals": ("real adapters, SIGTERM after random steps", _lora("signals", (20, (1, 6)), (0, (1, 6))), str),
}
"""Name to what it does, how (given whether the tier is long), and why it cannot be done here, if it cannot."""


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("short", "long"), default="short")
    parser.add_argument("--only", choices=FAMILIES, action="append", help="These families alone.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # What is set aside is told to users; here it happens thousands of times, on purpose.
    logging.getLogger("persona_lab").setLevel(logging.ERROR)
    failed = False
    for name in options.only or FAMILIES:
        about, run, missing = FAMILIES[name]
        if why := missing():
            print(json.dumps({"family": name, "skipped": why}) if options.json else f"{name:12} skipped: {why}", flush=True)
            continue
        start = time.monotonic()
        tally = run(options.tier == "long")
        failed |= tally.verdicts.keys() != {PASS}
        counts = {"family": name, **tally.to_json(), "seconds": round(time.monotonic() - start, 1)}
        print(json.dumps(counts) if options.json else _line(name, about, tally, counts), flush=True)
    return int(failed)


def _line(name: str, about: str, tally: Tally, counts: dict) -> str:
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in tally.verdicts.most_common())
    more = "".join(f", {value:,} {note}" for note, value in tally.notes.items())
    broken = f", {tally.kills:,} processes broken" if tally.kills else ""
    lines = [f"{name:12} {verdicts}{broken}{more} in {counts['seconds']:g} s   ({about})", *(f"    {failure}" for failure in tally.failures)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
