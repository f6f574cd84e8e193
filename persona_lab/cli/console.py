"""How commands speak: results to stdout, everything else to stderr, and progress while they work.

    pretraining the base 240 of 700 (34 %)        a line every few seconds when nobody sits at a terminal
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from persona_lab.errors import printable
from persona_lab.store.files import finite

LINE_SECONDS = 5.0
LONGEST = 10_000
"""Characters of one line."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def emit(value: Mapping[str, Any] | Sequence[Any], text: str, *, as_json: bool) -> None:
    """The result of a command: as JSON, or as text for people."""
    # JSON escapes what a terminal would obey, and is exact for whoever parses it.
    print(json.dumps(finite(value), indent=1, allow_nan=False) if as_json else readable(text))


def readable(text: str) -> str:
    """Lines of text without control characters or secrets: they may quote a model, or somebody else's config."""
    return "\n".join(printable(line, LONGEST) for line in text.split("\n"))


def is_first() -> bool:
    """Whether this process speaks for all workers of its run."""
    return os.environ.get("RANK", "0") == "0"


def remark(text: str) -> None:
    """A line to stderr, or several."""
    print(readable(text), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes in words: `12 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Ticker:
    """Told how far the work is: a bar for each kind of work on a terminal, otherwise a plain line now and then."""

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet, self.clock = quiet, clock
        self.seen: set[str] = set()
        self.said = -math.inf
        self.bars: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> "Ticker":
        """Bars are drawn from here on."""
        if self._terminal:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Bars are gone."""
        if self._terminal:
            self.progress.stop()

    @property
    def _terminal(self) -> bool:
        return not self.quiet and self.progress.console.is_terminal

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` pieces of this work are finished."""
        if self._terminal:
            if what not in self.bars:
                self.bars[what] = self.progress.add_task(what, total=total)
            self.progress.update(self.bars[what], completed=done, total=total)
        elif not self.quiet and (what not in self.seen or self.clock() - self.said >= LINE_SECONDS):
            self.seen.add(what)
            self.said = self.clock()
            remark(f"{what} {done} of {total} ({100 * done // max(total, 1)} %)")
