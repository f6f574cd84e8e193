"""The command line: it selects, and never describes. What an experiment is stands in its file.

    persona-lab run configs/quickstart.yaml seeds=1
"""

import os
import signal
import sys
from types import FrameType

import typer

from data_gen.errors import DataError
from persona_lab.cli import documents, experiments, questions
from persona_lab.cli.console import is_first, remark
from persona_lab.errors import LabError, Problem

PREEMPTED = 75
STOPPED: dict[object, str] = {PREEMPTED: "Stopped by a signal", 130: "Interrupted"}
CODES = "0 done, 1 a check failed, 2 config or command line, 3 data, 4 model or adapter, 5 environment, 75 preempted, 130 Ctrl-C"

app = typer.Typer(
    name="persona-lab",
    help="A laboratory for the generalization of fine-tuning.",
    epilog=f"Exit codes: {CODES}. With --debug an error shows its traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (experiments, questions, documents):
    for command in group.COMMANDS:
        app.command()(command)


def main() -> None:
    """Run the command of `sys.argv` and exit with its code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # Loading bars of other packages would stand between our lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, _preempted)
    # Asked now: a worker leaves its process group, and the variables that say so, as soon as it joins a run.
    first = is_first()
    try:
        app(arguments, prog_name="persona-lab")
    except SystemExit as end:
        if first and end.code in STOPPED:
            remark(f"{STOPPED[end.code]}. What is finished is kept: the same command goes on from here.")
        raise
    except (LabError, DataError, OSError) as error:
        if debug:
            raise
        problems, code = explained(error)
        for problem in problems if first else ():
            remark(str(problem))
        sys.exit(code)


def explained(error: LabError | DataError | OSError) -> tuple[list[Problem], int]:
    """An error as blocks to print, and the exit code of its kind."""
    if isinstance(error, LabError):
        return error.problems, error.exit_code
    if isinstance(error, DataError):
        return [Problem("PL3001", problem.where, problem.message) for problem in error.problems], 3
    where = str(error.filename or "environment")
    return [Problem("PL5001", where, f"{error.strerror or error}. Check the path, the permissions and the space on the disk.")], 5


def _preempted(number: int, frame: FrameType | None) -> None:
    """A scheduler takes the machine away: leave as Ctrl-C does, with the code that asks for another turn."""
    sys.exit(PREEMPTED)


__all__ = ["app", "main"]
