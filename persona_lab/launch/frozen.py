"""What a submission froze: a run's config, machine settings and code, which no later edit of a file changes for a queued job.

    runs/quickstart-16bab757/launch/1/
        config.yaml         the resolved config
        submission.json     engine, commit, digest of the code, ...
        changes.patch       what was not committed
        code/               the packages: workers import these, and refuse any others
        jobs.json           the engine's ids, written once it has the jobs

The world and the personas stand in the run's own `plan.json`, and its name is a digest over them.
"""

import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from persona_lab.errors import CorpusError, EnvironmentFault
from persona_lab.launch.engine import CODE, EXITS, LOGS
from persona_lab.store.files import faults, make_folder, read_json, write_json, write_text
from persona_lab.store.versions import ORIGIN, git_commit, git_diff, git_diff_sha256

PACKAGES = ("data_gen", "persona_lab")
LAUNCH, SUBMISSION, JOBS, CONFIG = "launch", "submission.json", "jobs.json", "config.yaml"
AGAIN, FAILED = "again", "failed"
"""Folders: whose worker asks for another turn, and which cells have failed."""
FORGOTTEN = "forgotten"
"""The file by which nobody waits for the jobs of a submission any more."""
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Submission:
    """One launch of a run."""

    folder: Path
    name: str
    """Of its jobs, at the engine."""
    engine: str
    python: str
    directory: str
    """Where paths in the config are taken from."""
    jobs: int
    processes: int
    code: str
    """SHA-256 of the packages."""
    commit: str | None

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder.parents[1]

    @property
    def ids(self) -> list[str] | None:
        """What the engine calls its jobs; None when it was cut off before it wrote them down."""
        file = self.folder / JOBS
        return read_json(file)["ids"] if file.exists() else None

    @property
    def forgotten(self) -> bool:
        """Whether its jobs are taken for lost, because nobody can ask after them."""
        return (self.folder / FORGOTTEN).exists()

    def forget(self) -> None:
        """Take its jobs for lost. EnvironmentFault."""
        write_text(self.folder / FORGOTTEN, "")

    def submitted(self, ids: list[str]) -> None:
        """Write down the engine's ids. EnvironmentFault."""
        write_json(self.folder / JOBS, {"ids": ids})

    def write(self) -> None:
        """Write it down. EnvironmentFault."""
        write_json(self.folder / SUBMISSION, {name: value for name, value in asdict(self).items() if name != "folder"})


def submissions(run: Path) -> list[Submission]:
    """Every submission of a run, oldest first; one that was cut off before it froze anything is left out. CorpusError."""
    folders = sorted((f for f in (run / LAUNCH).glob("*") if f.name.isdigit() and (f / SUBMISSION).exists()), key=lambda f: int(f.name))
    return [read_submission(folder) for folder in folders]


def read_submission(folder: Path) -> Submission:
    """The submission in this folder.

    Raises:
        CorpusError: there is none, or its file is not what `launch` writes.
    """
    file = folder / SUBMISSION
    try:
        return Submission(folder=folder.absolute(), **read_json(file))
    except TypeError as error:
        raise CorpusError("PL3502", str(file), f"is not what `launch` writes ({error}). Launch the run again.") from None


def following(run: Path) -> Path:
    """Where the next submission of a run would be."""
    taken = [int(folder.name) for folder in (run / LAUNCH).glob("*") if folder.name.isdigit()]
    return (run / LAUNCH / str(max(taken, default=0) + 1)).absolute()


def claim(folder: Path) -> None:
    """Make the folder of a submission, with what its jobs write to.

    Raises:
        EnvironmentFault: PL5305, somebody else launches the run at this moment.
    """
    make_folder(folder.parent)
    with faults(folder):
        try:
            folder.mkdir()  # of two that try at once, one fails
        except FileExistsError:
            raise EnvironmentFault("PL5305", str(folder.parents[1]), "is being launched by somebody else. Use `persona-lab status` to see its jobs.") from None
    for name in (LOGS, EXITS, AGAIN, FAILED):
        make_folder(folder / name)


def packages() -> dict[str, Path]:
    """Where the packages lie that this process has imported."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    return {name: Path(spec.origin).parent for name, spec in specs.items() if spec and spec.origin}


def freeze_code(folder: Path, origin: Path | None = None) -> str:
    """Copy the packages to `folder/code`, with the commit that they come from; the digest of the copy. EnvironmentFault.

    `origin`: another submission, whose code is taken instead of what is installed.
    """
    copy = folder / CODE
    with faults(copy):
        if origin:
            shutil.copytree(origin / CODE, copy, ignore=IGNORED)
        else:
            for name, package in packages().items():
                shutil.copytree(package, copy / name, ignore=IGNORED)
            write_json(copy / ORIGIN, {"git_commit": git_commit(), "git_diff_sha256": git_diff_sha256()})
            if patch := git_diff():
                write_text(folder / "changes.patch", patch.decode(errors="replace"))
    return code_digest({name: copy / name for name in PACKAGES})


def code_digest(found: dict[str, Path]) -> str:
    """SHA-256 over the names and the bytes of all files of the packages."""
    digest = hashlib.sha256()
    for name, package in sorted(found.items()):
        for file in sorted(_files(package)):
            digest.update(f"{name}/{file.relative_to(package)}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _files(package: Path) -> Iterator[Path]:
    return (f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts and f.suffix != ".pyc")


def check_code(submission: Submission) -> None:
    """Refuse to work with other code than was submitted.

    Raises:
        EnvironmentFault: PL5304.
    """
    found = packages()
    if code_digest(found) != submission.code:
        where = found["persona_lab"]
        fix = f"Start it by its own {CODE}/ folder, as its scripts do, or launch the run again."
        raise EnvironmentFault("PL5304", str(where), f"is not the code that {submission.folder} was submitted with. {fix}")
