"""Disks that fail: an error at every file operation, a space that is too small, system calls that lie about themselves."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

from . import toy
from .kills import CELL, expected, work
from .tap import FOLDER_CALLS, Operation, counting, error_at
from .trials import Journal, Tally, chain, child, fast_folder, finish

CHANGING = {"create", "overwrite", "write", "mkdir"}
FAULTS: dict[str, tuple[int, set[str], bool]] = {
    "disk full": (errno.ENOSPC, CHANGING, True),
    "quota": (errno.EDQUOT, {"write"}, True),
    "read-only": (errno.EROFS, {"create", "overwrite", *FOLDER_CALLS}, True),
    "bad sector on fsync": (errno.EIO, {"fsync"}, False),
    "bad sector on write": (errno.EIO, {"write"}, False),
    "bad sector on read": (errno.EIO, {"read"}, False),
    "too many open files": (errno.EMFILE, {"open", "create", "overwrite"}, False),
    "other file system": (errno.EXDEV, {"rename", "replace"}, False),
}
"""Errno, which operations fail, and whether all later ones do as well."""
ENDS = (0, 3, 5)
"""Well, or with a data error or an environment fault: never with a traceback."""


def errors(every: int = 1) -> Tally:
    """Each fault at every `every`-th operation that can have it: told without a traceback, and made up for when it is gone."""
    tally = Tally()
    with fast_folder() as folder:
        digest = expected(folder)
        seen: list[Operation] = []
        work(folder / "count", counting(seen))
        for name, (code, names, lasts) in FAULTS.items():
            for number in range(1, sum(operation.name in names for operation in seen) + 1, every):
                root, fault = folder / f"{code}-{number}", error_at(number, code, names, lasts=lasts)
                verdict, failed = chain(root, [CELL], [lambda tell, root=root, fault=fault: work(root, fault, tell)], digest, ends=ENDS)
                tally.add(verdict, f"{name} at {number}", failed)
        for name, code in (("rename", errno.ENOENT), ("create", errno.EEXIST)):
            for number in range(1, sum(operation.name == name for operation in seen) + 1):
                root, fault = folder / f"lie-{name}-{number}", error_at(number, code, {name}, happens=True)
                verdict, failed = chain(root, [CELL], [lambda tell, root=root, fault=fault: work(root, fault, tell)], digest, ends=ENDS)
                tally.add(verdict, f"{name} {number} happened and said it had not", failed)
    return tally


def missing() -> str:
    """Why no small file system can be mounted here; empty when one can."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True, check=False)
    return f"no file system may be mounted: {tried.stderr.strip()}" if tried.returncode else ""


def small_disks(sizes: range) -> Tally:
    """Disks of these sizes, KiB: each fills up while a cell is made; then there is space, and the cell is finished."""
    with fast_folder() as folder:
        code = "import sys; from tests.faults.disks import inside; inside(sys.argv[1], range(*map(int, sys.argv[2:])))"
        command = ["unshare", "-rm", sys.executable, "-c", code, str(folder), *map(str, (sizes.start, sizes.stop, sizes.step))]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    found, tally = json.loads(done.stdout), Tally()
    for verdict, size, failed in found:
        tally.add(verdict, f"disk of {size} KiB", failed)
    return tally


def inside(folder: str, sizes: range) -> None:
    """The part of `small_disks` that may mount: prints [[verdict, size, workers that failed], ...]."""
    digest, disk, found = expected(Path(folder)), Path(folder) / "disk", []
    disk.mkdir()
    for size in sizes:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
        journal = Journal(Path(folder) / f"{size}.journal")
        ended = child(lambda journal=journal: toy.make(toy.patient(disk / "store"), CELL, journal.tell))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        found.append((finish(disk / "store", [CELL], journal, digest) if ended in ENDS else f"ENDED_WITH_{ended}", size, ended != 0))
        subprocess.run(["umount", str(disk)], check=True)
    print(json.dumps(found))


