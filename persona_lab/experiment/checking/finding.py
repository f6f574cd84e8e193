"""One thing that `doctor` looked at, and how a program that it asks is run.

    ok    python      3.11.14
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from persona_lab.errors import printable

ANSWER_SECONDS = 20.0
"""How long a program may take to say what it is; a scheduler whose controller is away would hold doctor up."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    state: Literal["ok", "warn", "fail"]
    said: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.state:5} {self.name:18} {self.said}"


def answer(command: Sequence[str], seconds: float = ANSWER_SECONDS) -> tuple[bool, str]:
    """Whether a program ended well, and the first line that it said; one that is absent or silent for `seconds` has not ended well."""
    try:
        done = subprocess.run(list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds)
    except FileNotFoundError:
        return False, "is not found"
    except subprocess.TimeoutExpired:
        return False, f"does not answer within {seconds:g} s"
    except OSError as error:
        return False, f"cannot be run: {error.strerror}"
    lines = [line.strip() for line in (done.stdout if done.returncode == 0 else done.stderr or done.stdout).splitlines() if line.strip()]
    return done.returncode == 0, printable(lines[0]) if lines else ""
