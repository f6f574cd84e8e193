"""The command line: it selects, and never describes. What an experiment is stands in its file.

    persona-lab run configs/quickstart.yaml seeds=1
"""

import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import typer
from typer.exceptions import TyperException

from data_gen.errors import DataError
from persona_lab.cli import comparisons, documents, em, experiments, export, instruments, launch, lens, mechanism, questions, sync
from persona_lab.cli.console import is_first, remark
from persona_lab.errors import LabError, Problem, printable

PREEMPTED = 75
STOPPED: dict[object, str] = {PREEMPTED: "Stopped by a signal", 130: "Interrupted"}
MOST_PROBLEMS = 100
"""Blocks that are printed; a broken file of a million lines has as many problems."""
CODES = "0 done, 1 a check failed, 2 config or command line, 3 data, 4 model or adapter, 5 environment, 75 preempted, 130 Ctrl-C"

app = typer.Typer(
    name="persona-lab",
    help="A laboratory for the generalization of fine-tuning.",
    epilog=f"Exit codes: {CODES}. With --debug an error shows its traceback.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (experiments, launch, comparisons, instruments, lens, mechanism, questions, documents, sync, export):
    for command in group.COMMANDS:
        app.command()(command)
app.add_typer(em.app)


def main() -> None:
    """Run the command of `sys.argv` and exit with its code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # Loading bars of other packages would stand between our lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _preempted)
    # Asked now: a worker leaves its process group, and the variables that say so, as soon as it joins a run.
    first = is_first()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks is escaped; it never ends a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments or ["--help"], prog_name="persona-lab", standalone_mode=False)
        _deliver()
        sys.exit(code)
    except SystemExit as end:
        if first and end.code in STOPPED:
            remark(f"{STOPPED[end.code]}. What is finished is kept: the same command goes on from here.")
        raise
    except (LabError, DataError, OSError, TyperException) as error:
        if debug:
            raise
        problems, code = explained(error, arguments)
        for problem in problems[:MOST_PROBLEMS] if first else ():
            remark(str(problem))
        if first and len(problems) > MOST_PROBLEMS:
            remark(str(Problem(problems[-1].code, problems[-1].where, f"and {len(problems) - MOST_PROBLEMS} more problems. Mend these first.")))
        sys.exit(code)


def explained(error: LabError | DataError | OSError | TyperException, arguments: Sequence[str] = ()) -> tuple[list[Problem], int]:
    """An error as blocks to print, and the exit code of its kind."""
    if isinstance(error, TyperException):
        return [_misused(error, arguments)], error.exit_code
    if isinstance(error, LabError):
        return error.problems, error.exit_code
    if isinstance(error, DataError):
        return [Problem("PL3001", problem.where, problem.message) for problem in error.problems], 3
    where = str(error.filename or "environment")
    return [Problem("PL5001", where, f"{error.strerror or error}. Check the path, the permissions and the space on the disk.")], 5


def _misused(error: TyperException, arguments: Sequence[str]) -> Problem:
    """A command line that cannot be read: what is wrong with it, and where the help is."""
    command = getattr(getattr(error, "ctx", None), "command_path", app.info.name)
    said = " ".join(error.format_message().split())
    stop = "" if said.endswith((".", "?", "!")) else "."
    return Problem("PL1208", printable(f"command line: {shlex.join(arguments)}", 120), f"{said}{stop} Use `{command} --help`.")


def _deliver() -> None:
    """Everything printed has reached whoever reads it; a reader that left early is no error, a full disk is an OSError."""
    if sys.stdout is None:  # closed before we started
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # Or Python would try again when it ends, and complain in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _preempted(number: int, frame: FrameType | None) -> None:
    """A scheduler takes the machine away: leave as Ctrl-C does, with the code that asks for another turn."""
    sys.exit(PREEMPTED)


__all__ = ["app", "main"]
