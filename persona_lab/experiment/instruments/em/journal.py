"""Rows that are appended as they come, and survive a kill: one JSON object a line.

    with RowJournal(folder / "responses.jsonl") as journal:
        journal.append([{"question": "quick_buck", "sample": 0, "response": "..."}])

A line that a kill cut short was never said to be there: it is taken off, and its work is done again. What stands in the
middle of the file is never touched, and a broken line there is an error.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from persona_lab.design import canonical_json
from persona_lab.errors import EnvironmentFault
from persona_lab.store.files import faults, make_folder, read_jsonl


class RowJournal:
    """A JSONL file that one process at a time appends to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        """Every row of the file, in its order; read when the block is entered."""
        self._file: BinaryIO | None = None

    def __enter__(self) -> "RowJournal":
        """The rows are read, and nobody else appends until the end of the block.

        Raises:
            CorpusError: PL3502, a line in the middle is broken.
            EnvironmentFault: PL5107, another process appends to it; PL5104, it cannot be written.
        """
        make_folder(self.path.parent)
        with faults(self.path):
            file = self.path.open("ab")
            try:
                _lock(file)
            except BlockingIOError:
                file.close()
                raise EnvironmentFault("PL5107", str(self.path), "another process is writing to it. Use that one's results, or run again when it has ended.") from None
            whole = _whole_bytes(self.path)
            if whole < file.tell():
                file.truncate(whole)
        self._file = file
        self.rows = read_jsonl(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Others may append."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows and flushes them to the disk; ValueError on NaN and infinities, EnvironmentFault when the disk refuses."""
        assert self._file is not None, "a journal is written inside its block"
        new = [dict(row) for row in rows]
        with faults(self.path):
            self._file.write("".join(f"{canonical_json(row)}\n" for row in new).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows += new


def _lock(file: BinaryIO) -> None:
    """Keep others out. On a disk without locks nobody is: a journal belongs to one command, and two at once would only ask twice."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise


def _whole_bytes(path: Path) -> int:
    """How many bytes of a file are whole lines. OSError."""
    return path.read_bytes().rfind(b"\n") + 1
