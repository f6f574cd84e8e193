"""Every file operation of this process, seen before it happens.

    with tapped(kill_at(17)):
        store.attempt(...)

Python's own doors are wrapped: `open`, the writes of the files that it gives, and the functions of `os` that change a
folder or flush. A fault is a function of the operation and of `proceed`, which carries it out: a fault may run it, run half of it,
not run it, or raise what the system would.
"""

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER_CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "truncate", "link", "symlink")
OPENED = {0: "open", os.O_CREAT: "overwrite", os.O_CREAT | os.O_EXCL: "create"}


@dataclass(frozen=True)
class Operation:
    """One call, about to happen."""

    name: str
    """`open`, `create` (fails when the file is there), `overwrite`, `read`, `write`, `fsync`, or one of FOLDER_CALLS."""
    path: Path
    target: Path | None = None
    """Where a rename goes."""
    data: bytes = b""
    """What a write writes."""
    raw: io.FileIO | None = None

    def half(self) -> None:
        """Carry out half of a write: what a kill in the midst of it leaves."""
        if self.name == "write" and self.raw is not None:
            io.FileIO.write(self.raw, self.data[: len(self.data) // 2])


Fault = Callable[[Operation, Callable[[], Any]], Any]


class TappedFile(io.FileIO):
    """An unbuffered file whose reads and writes are seen one by one."""

    def __init__(self, path: Path, mode: str, fault: Fault) -> None:
        self.path, self.fault = path, fault
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        """One system call."""
        return self.fault(Operation("write", self.path, data=bytes(data), raw=self), lambda: io.FileIO.write(self, data))

    def readinto(self, buffer: Any) -> int:
        """One system call."""
        return self.fault(Operation("read", self.path), lambda: io.FileIO.readinto(self, buffer))

    def readall(self) -> bytes:
        """Several system calls, seen as one."""
        return self.fault(Operation("read", self.path), lambda: io.FileIO.readall(self))


@contextmanager
def tapped(fault: Fault) -> Iterator[None]:
    """While the block runs, every file operation of this process passes through the fault."""
    real = {name: getattr(os, name) for name in (*FOLDER_CALLS, "fsync", "open")}
    real_open = io.open
    for name in FOLDER_CALLS:
        setattr(os, name, _folder_call(name, real[name], fault))
    os.fsync = lambda fd: fault(Operation("fsync", _path_of(fd)), lambda: real["fsync"](fd))
    os.open = lambda path, flags, *rest, **more: fault(
        Operation(OPENED[flags & (os.O_CREAT | os.O_EXCL)], _resolved(path, more.get("dir_fd"))), lambda: real["open"](path, flags, *rest, **more)
    )
    io.open = builtins.open = _opening(real_open, fault)
    try:
        yield
    finally:
        io.open = builtins.open = real_open
        for name, function in real.items():
            setattr(os, name, function)


def _folder_call(name: str, function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    def call(path: Any, *rest: Any, **more: Any) -> Any:
        target = Path(os.fsdecode(rest[0])) if name in ("rename", "replace", "link", "symlink") else None
        return fault(Operation(name, _resolved(path, more.get("dir_fd")), target), lambda: function(path, *rest, **more))

    return call


def _opening(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if isinstance(file, int) or "b" not in mode:
            return function(file, mode, *rest, **more)
        plain, path = mode.replace("b", ""), Path(os.fsdecode(file))
        raw = fault(Operation({"r": "open", "x": "create", "w": "overwrite"}[plain], path), lambda: TappedFile(path, plain, fault))
        return io.BufferedReader(raw) if plain == "r" else io.BufferedWriter(raw)

    return opened


def _path_of(handle: Any) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{handle}"))


def _resolved(path: Any, folder: int | None) -> Path:
    return Path(os.fsdecode(path)) if folder is None else _path_of(folder) / os.fsdecode(path)


# ---------------------------------------------------------------------- faults
def kill_at(number: int, *, torn: bool = False, with_signal: int = signal.SIGKILL) -> Fault:
    """Sends this process a signal before its `number`-th operation; `torn`: in the midst of it, when it is a write."""
    count = 0

    def fault(operation: Operation, proceed: Callable[[], Any]) -> Any:
        nonlocal count
        count += 1
        if count == number:
            if torn:
                operation.half()
            os.kill(os.getpid(), with_signal)
        return proceed()

    return fault


def error_at(number: int, code: int, names: set[str], *, happens: bool = False, lasts: bool = False) -> Fault:
    """The `number`-th operation of these names fails with an errno; `happens`: after it was carried out; `lasts`: so do all later ones."""
    count = 0

    def fault(operation: Operation, proceed: Callable[[], Any]) -> Any:
        nonlocal count
        count += operation.name in names
        if operation.name in names and (count >= number if lasts else count == number):
            if happens:
                proceed()
            raise OSError(code, os.strerror(code), str(operation.path))
        return proceed()

    return fault


def counting(seen: list[Operation]) -> Fault:
    """Nothing fails; every operation is kept in `seen`."""

    def fault(operation: Operation, proceed: Callable[[], Any]) -> Any:
        seen.append(operation)
        return proceed()

    return fault
