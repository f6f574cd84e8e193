"""What has become of submissions: the state of every job, and where its log is.

    jobs_of(Path("runs/quickstart-16bab757"))   ->   [{"submission": 1, "engine": "slurm", "job": "4711_0", "state": "running", "log": ".../4711_0.log"}]
"""

from pathlib import Path
from typing import Any

from persona_lab.errors import EnvironmentFault
from persona_lab.launch.engine import LOGS, State, engine_named
from persona_lab.launch.frozen import Submission, submissions


def states(submission: Submission) -> dict[str, State]:
    """Each job of a submission. EnvironmentFault: its engine does not answer."""
    if submission.forgotten:
        return dict.fromkeys(submission.ids or [], "lost")
    return engine_named(submission.engine).states(submission.folder, submission.ids or [])


def jobs_of(run: Path) -> list[dict[str, Any]]:
    """Every job of every submission of a run; with `said` in the place of a state where nobody can tell, or beside one where more is known."""
    found = []
    for submission in submissions(run):
        about = {"submission": int(submission.folder.name), "engine": submission.engine}
        if submission.ids is None and submission.forgotten:
            found.append({**about, "job": submission.name, "state": "lost", "log": None})
            continue
        if submission.ids is None:
            found.append({**about, "job": submission.name, "state": None, "log": None, "said": "the submission was cut off, or is under way"})
            continue
        try:
            known = states(submission)
            said = engine_named(submission.engine).remarks(submission.folder, known) if not submission.forgotten else {}
            found += [{**about, "job": one, "state": state, "log": _log(submission, one), **({"said": said[one]} if one in said else {})} for one, state in known.items()]
        except EnvironmentFault as error:
            found += [{**about, "job": one, "state": None, "log": _log(submission, one), "said": error.problems[0].message} for one in submission.ids]
    return found


def _log(submission: Submission, one: str) -> str | None:
    """The log of a job; None for one that has written none."""
    file = submission.folder / LOGS / f"{one}.log"
    return str(file) if file.exists() else None
