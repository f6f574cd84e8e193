"""Moving whole folders: in one step, durably, and never onto another."""

import errno
import os
import stat
from pathlib import Path

from persona_lab.store.files import content_of, sync_folder
from persona_lab.store.seal import COMMIT

TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
MARK = "DAMAGED"
"""Why a folder was set aside; stands in that folder."""


def move(source: Path, target: Path) -> bool:
    """Moves a folder, durably; False when something stands at the target. OSError.

    Only the target's folder is flushed: every file system that keeps a journal carries out a move as one.

    A network disk may answer "no such file" to the repeat of a rename that happened, so COMMIT is looked at before
    that is believed: its manifest digest covers the attempt's token and is nobody else's.
    """
    sealed = content_of(source / COMMIT)
    try:
        os.rename(source, target)
    except OSError as fault:
        if fault.errno in TAKEN and os.path.lexists(target):
            return False
        if fault.errno != errno.ENOENT or sealed is None or content_of(target / COMMIT) != sealed:
            raise
    sync_folder(target.parent)
    return True


def identity(path: Path) -> os.stat_result | None:
    """What stands at a path now, to be told from what is put there later; None when nothing does. OSError."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def set_aside(path: Path, seen: os.stat_result, into: Path, why: str) -> Path | None:
    """Moves what was `seen` at a path to `into`, durably; None when something else stands there by now. OSError.

    Its new name carries its inode, and a folder gets a file that says why before it moves. So of two workers that saw
    the same damage the slower one finds that name taken by a folder that is not empty, and cannot move the whole node
    that the quicker one has put in its place.
    """
    aside = into / f"{path.name}-{seen.st_ino}"
    try:
        if stat.S_ISDIR(seen.st_mode) and not _marked(path, seen, why):
            return None
        os.rename(path, aside)
    except OSError as fault:
        if fault.errno == errno.ENOENT or (fault.errno in TAKEN and os.path.lexists(aside)):
            return None
        raise
    sync_folder(into)
    return aside


def _marked(folder: Path, seen: os.stat_result, why: str) -> bool:
    """Writes the reason into the folder that was seen, wherever it is by now; False when another stands in its place."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_ino != seen.st_ino:
            return False
        mark = os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666, dir_fd=handle)
        try:
            os.write(mark, f"{why}\n".encode())
        finally:
            os.close(mark)
    finally:
        os.close(handle)
    return True
