"""Whether the file system of the store does what several workers rely on; see `persona_lab.store.lease` and `persona_lab.store.files`.

    ok    store disk         ext4: one creator wins, renames replace, the clock agrees
"""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from persona_lab.experiment.checking.finding import Finding

NAME = "store disk"
MOST_SKEW = 10.0
"""Seconds between the clock of the file system and this machine's, from which on `status` misjudges who is at work."""
PASSING = ("tmpfs", "ramfs")
MOUNTS = Path("/proc/mounts")


def examine_disk(folder: Path) -> list[Finding]:
    """Everything that leases, commits and journals ask of the file system of an existing folder that can be written."""
    kind = kind_of(folder)
    with TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
        broken = list(_broken(Path(scratch)))
        skew = _skew(Path(scratch))
        locks = _locks(Path(scratch))
    found = []
    if broken:
        found.append(Finding(NAME, "fail", f"{kind}: {'; '.join(broken)}. Several workers would spoil each other's work: use --runs on another disk."))
    elif kind in PASSING:
        found.append(Finding(NAME, "warn", f"{kind}: is gone with the power, and no other machine sees it. Use --runs on a disk."))
    else:
        found.append(Finding(NAME, "ok", f"{kind}: one creator wins, renames replace, folders move whole"))
    if abs(skew) > MOST_SKEW:
        found.append(Finding("clock", "warn", f"the file system is {skew:+.0f} s from this machine: `status` misjudges who is at work; results are not affected. Use NTP."))
    if locks:
        found.append(Finding("locks", "warn", f"{kind}: flock {locks}: two judges of one `em eval` must not run at once here."))
    return found


def kind_of(folder: Path) -> str:
    """The file system that holds a folder, e.g. `ext4` or `nfs4`; `unknown` where the system does not tell."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return "unknown"
    holding = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def _broken(folder: Path) -> Iterator[str]:
    """What of the needs of a lease or a commit does not hold here."""
    lease = folder / "lease"
    lease.write_text("first")
    try:
        with lease.open("x"):
            yield "a file can be created twice"
    except FileExistsError:
        pass
    later = folder / "later"
    later.write_text("second")
    os.replace(later, lease)
    if lease.read_text() != "second" or later.exists():
        yield "a rename does not replace"
    node = folder / "attempt"
    (node / "adapter").mkdir(parents=True)
    os.rename(node, folder / "node")
    if node.exists() or not (folder / "node" / "adapter").is_dir():
        yield "a folder does not move whole"
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        yield f"names cannot be flushed ({error.strerror})"
    finally:
        os.close(handle)


def _skew(folder: Path) -> float:
    """Seconds that the file system is ahead of this machine."""
    trial = folder / "now"
    trial.touch()
    return trial.stat().st_mtime - time.time()


def _locks(folder: Path) -> str:
    """Why flock does not keep a second process out; empty when it does."""
    trial = folder / "journal"
    with trial.open("w") as first, trial.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"fails ({error.strerror})"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ""
        return "keeps nobody out"
