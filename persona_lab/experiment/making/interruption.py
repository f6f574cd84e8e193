"""Being asked to stop: a signal is only noted, and the work leaves at its next safe point. No torch.

    SIGINT                exit code 130
    SIGTERM, SIGUSR1      exit code 75: a scheduler takes the machine away, please start the same command again

A second signal does no more than the first, because schedulers and terminals send several.
"""

import os
import signal
import subprocess
from types import FrameType, TracebackType
from typing import Any

PREEMPTED = 75
"""Exit code: a scheduler took the machine away."""
CODES = {signal.SIGINT: 130, signal.SIGTERM: PREEMPTED, signal.SIGUSR1: PREEMPTED}
PARENT = "PERSONA_LAB_PARENT"
"""Process id of the worker that hired this one: without it this one stops, because nobody else would stop it."""


class Interrupted(SystemExit):
    """Everything that was finished is kept, and what was under way is in a checkpoint where there is one."""


class Interruption:
    """Notes signals inside its `with` block, and passes them on to the workers that were hired."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.hired: list[subprocess.Popen[bytes]] = []
        self._told = False
        self._before: dict[signal.Signals, Any] = {}
        self._parent = int(os.environ.get(PARENT, "0"))

    def __enter__(self) -> "Interruption":
        """From here on signals are noted."""
        self._before = {number: signal.signal(number, self._note) for number in CODES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number

    def ask(self) -> None:
        """Note that another process of the same launch was asked to stop."""
        self.number = self.number or signal.SIGTERM

    def asked(self) -> bool:
        """Whether to leave; the hired workers are told as soon as it is known, so that all use the same time of grace."""
        if self._parent and os.getppid() != self._parent:
            self.number = self.number or signal.SIGTERM
        if self.number is not None and not self._told:
            self._told = True
            for worker in self.hired:
                worker.terminate()
        return self.number is not None

    def leave(self) -> None:
        """A safe point: raises Interrupted, with the exit code of the signal, when there was one."""
        if self.asked():
            raise Interrupted(CODES[signal.Signals(self.number or signal.SIGTERM)])
