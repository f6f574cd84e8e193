"""Tracking: the metrics of one node in a local file, mirrored to wandb when it is there.

    {"train/loss": 2.31, "train/step": 40}        a line of <folder>/metrics.jsonl

The local file is the source of truth and the same with or without wandb. Nothing of wandb ever raises into the
caller: the first fault ends the mirror, prints one warning and is kept in `tracking.json`. Nothing but what is
logged leaves the process: no command line, environment, code, git state or console output.
"""

import json
import logging
import math
import netrc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from persona_lab.errors import EnvironmentFault, printable

if TYPE_CHECKING:
    from wandb import Run

Mode = Literal["auto", "offline", "online", "disabled"]
JobType = Literal["generate", "pretrain", "train", "probe", "analyse"]

METRICS = "metrics.jsonl"
PROJECT = "persona_lab"
"""At wandb."""
RECORD = "tracking.json"
ENDED = "ended"
"""Beside wandb's own file of a run: it was closed, and will not grow."""
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""What the scheduler of a cluster sets in its jobs: Slurm, PBS, LSF."""
TABLE_ROWS = 1000
"""Largest number of rows of a mirrored table; the whole one is in the store."""
SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "finish_timeout": 120.0,
    "finish_timeout_raises": True,
    "host": "",
    "init_timeout": 30.0,
    "label_disable": True,
    "quiet": True,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Of wandb: nothing is collected that was not logged, nothing is printed, and a dead network holds nobody up (seconds)."""

log = logging.getLogger(__name__)


class Tracker:
    """Where the metrics of one node go. Close it with `finish`, or use it in a `with` block."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        self.folder = folder
        self.mode: Mode = mode
        self.tried: Mode = mode
        """The mode that it began with."""
        self.fault = ""
        """Why the mirror ended early; empty while it works."""
        self.run: Run | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / METRICS).open("a+b")
            _drop_torn_line(self._file.fileno())
        except OSError as error:
            raise EnvironmentFault("PL5401", str(folder), f"metrics cannot be written here: {error.strerror}. Choose another folder.") from error

    def log(self, values: Mapping[str, Any]) -> None:
        """One line of metrics, with its own axis among them, e.g. `{"train/step": 40, "train/loss": 2.3}`.

        After a resume steps may stand twice; the later line counts. Numbers that are not finite are null in the file.
        """
        self._write(values)
        self._mirror(lambda run: run.log(dict(values)))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures of the node."""
        self._write({"summary": values})
        self._mirror(lambda run: run.summary.update(dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Mirror a table, cut at `TABLE_ROWS`; locally it is a payload of the store already."""

        def send(run: "Run") -> None:
            import wandb

            # Mixed types in a column are refused otherwise, and a missing score is an ordinary thing.
            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows[:TABLE_ROWS]], allow_mixed_types=True)})

        self._mirror(send)

    def artifact(self, name: str, kind: str, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Mirror a file or folder of the store, e.g. kind `dataset` or `model`; it is referred to in place, not copied."""

        def send(run: "Run") -> None:
            import wandb

            artifact = wandb.Artifact(slug(name), type=kind, metadata=dict(metadata or {}))
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    # Nodes are never rewritten, so wandb may read the original whenever it uploads.
                    artifact.add_file(str(file), name=str(file.relative_to(path) if file != path else file.name), policy="immutable", skip_cache=True)
            run.log_artifact(artifact)

        self._mirror(send)

    def finish(self, exit_code: int = 0) -> None:
        """Close the file and the mirror; a second call does nothing."""
        self._mirror(lambda run: _close(run, exit_code))
        self.run = None
        if not self._file.closed:
            self._file.close()
            self._record()

    def __enter__(self) -> "Tracker":
        """The tracker itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Finish, with exit code 1 when the block raised."""
        self.finish(exit_code=0 if kind is None else 1)

    def start(self, begin: "Callable[[], Run]") -> None:
        """Begin the mirror; a fault ends it."""
        self._guard(lambda: setattr(self, "run", begin()))

    def _mirror(self, send: "Callable[[Run], object]") -> None:
        run = self.run
        if run is not None:
            self._guard(lambda: send(run))

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except _faults() as error:
            self.run = None
            self.mode = "disabled"
            self.fault = printable(f"{type(error).__name__}: {error}")
            log.warning("wandb is off from here on, results are not affected: %s", self.fault)
            self._record()

    def _write(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(_finite(values), sort_keys=True, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise EnvironmentFault("PL5402", str(self.folder / METRICS), f"cannot be written: {error.strerror}. Free some space.") from error

    def _record(self) -> None:
        # A courtesy to the reader: when the disk is full, the metrics themselves are what has to complain.
        with suppress(OSError):
            (self.folder / RECORD).write_text(json.dumps({"fault": self.fault, "mode": self.mode}, sort_keys=True) + "\n", encoding="utf-8")


def open_tracker(
    *,
    mode: Mode,
    folder: Path,
    experiment: str,
    node: str,
    job_type: JobType,
    name: str,
    config: Mapping[str, Any] | None = None,
    project: str = PROJECT,
    wandb_folder: Path | None = None,
) -> Tracker:
    """The tracker of one node; opened again, it goes on with the same wandb run.

    Args:
        mode: auto: online when the user is logged in, offline otherwise.
        folder: Takes `metrics.jsonl` and `tracking.json`.
        experiment: Name of the experiment's run; wandb's group.
        node: Identity of the node; with the job type it makes wandb's run id.
        job_type: What is done.
        name: What a reader sees, e.g. `linked ratio=2.2 seed 0 swap 1`.
        config: The resolved fields.
        project: wandb's project.
        wandb_folder: Where wandb puts its `wandb/`, if not in `folder`.

    Raises:
        EnvironmentFault: when the local file cannot be written; never because of wandb.
    """
    tracker = Tracker(folder, chosen_mode(mode))
    root = wandb_folder or folder

    def begin() -> "Run":
        _stay_in(root)
        import wandb

        run = wandb.init(
            project=project,
            dir=str(root),
            id=run_id(node, job_type),
            name=label(name),
            group=label(experiment),
            job_type=job_type,
            config=dict(config or {}),
            mode="online" if tracker.mode == "online" else "offline",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**SETTINGS),
        )
        for channel in ("train", "probe"):
            # wandb's own step starts again at 0 when an offline run resumes.
            run.define_metric(f"{channel}/*", step_metric=f"{channel}/step")
        return run

    if tracker.mode != "disabled":
        tracker.start(begin)
    if tracker.fault and tracker.tried == "online" and mode == "auto":
        # The later trackers of this process, and the workers that it hires, need not find out again how long a dead network takes.
        os.environ["WANDB_MODE"] = "offline"
    return tracker


def _stay_in(root: Path) -> None:
    """Read when wandb is imported or stages a file: everything stays in one folder, and no crash report is sent."""
    root.mkdir(parents=True, exist_ok=True)
    for variable, value in {"WANDB_DATA_DIR": root / "wandb", "WANDB_CACHE_DIR": root / "wandb" / "cache", "WANDB_ERROR_REPORTING": "false"}.items():
        os.environ.setdefault(variable, str(value))


def run_id(node: str, job_type: JobType) -> str:
    """The run id at wandb of a node, e.g. `3f2a90c1d4e5b6a7-train`: the same whenever the node is made."""
    return f"{slug(node)[:16]}-{job_type}"


def slug(text: str) -> str:
    """The text with letters, digits, dots, dashes and underscores only, at most 120 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:120] or "unnamed"


def label(text: str) -> str:
    """The text without what a page or a terminal could take for more than text, at most 120 characters: a run's name at wandb."""
    return re.sub(r"[^A-Za-z0-9 ._/=+:,-]+", "-", text)[:120] or "unnamed"


def chosen_mode(mode: Mode) -> Mode:
    """What `auto` means here: WANDB_MODE when it is set, else offline in a job of a cluster, else online for a user who is logged in, else offline.

    Nothing is asked of the network to find out: where packets are dropped, as on many compute nodes, that alone would take minutes for every node.
    """
    if mode != "auto":
        return mode
    wished = os.environ.get("WANDB_MODE", "")
    if wished in ("offline", "disabled", "online"):
        return cast(Mode, wished)
    if any(os.environ.get(name) for name in JOB_VARIABLES):
        return "offline"
    return "online" if logged_in() else "offline"


def base_url() -> str:
    """Address of wandb's server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def logged_in() -> bool:
    """Whether there is a key for the server, in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(base_url()).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or str(Path.home() / ".netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _close(run: "Run", exit_code: int) -> None:
    """End a mirror, and leave word that it has ended."""
    folder = Path(run.dir).parent
    run.finish(exit_code=exit_code)
    (folder / ENDED).touch()


def _faults() -> tuple[type[Exception], ...]:
    """What wandb is known to raise: its own errors, and those of its service, disk and network."""
    known: tuple[type[Exception], ...] = (OSError, ImportError, ValueError, TypeError, AttributeError, RuntimeError)
    try:
        from wandb.errors import Error
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError, WandbAttachFailedError
        from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
        from wandb.sdk.mailbox.mailbox_handle import ServerResponseError
    except ImportError:
        return known
    service = (WandbApiFailedError, WandbAttachFailedError, WandbServiceConnectionError, HandleAbandonedError, MailboxClosedError, ServerResponseError)
    return (*known, Error, *service)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(descriptor: int) -> None:
    """Cut off a last line without its end: the process that wrote it died."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
