"""Durable files: written whole or not at all, and read with nothing guessed.

A file is written beside its place, flushed to the disk and renamed over it, so that a reader sees the old text or
the new one, never half of one:

    .claims.json.5f0c1d2e9a7b4433.tmp  ->  claims.json

What is written is the same to the byte for the same value: keys sorted, ASCII escapes, one newline at the end.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from persona_lab.design import canonical_json
from persona_lab.errors import CorpusError, EnvironmentFault, Problem

MOST_PROBLEMS = 100
"""Broken lines of one file that are told one by one."""

FIXES = {
    errno.ENOSPC: "Free some space and run again: what is finished is kept.",
    errno.EDQUOT: "Free some of your quota and run again: what is finished is kept.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
    errno.EROFS: "Choose a folder on a disk that is not read-only.",
    errno.ENOTDIR: "A file stands where a folder is needed. Move it away or choose another folder.",
    errno.EXDEV: "Keep the whole store on one file system.",
    errno.EIO: "The disk reports an error; check it before running again.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n) and run again: what is finished is kept.",
    errno.ENFILE: "Too many files are open on this machine; close some and run again: what is finished is kept.",
}


@contextmanager
def faults(path: Path, code: str = "PL5104", *, doing: str = "written") -> Iterator[None]:
    """Turns an OSError of the block into an EnvironmentFault that names the path and the fix."""
    try:
        yield
    except OSError as fault:
        fix = FIXES.get(fault.errno or 0, "Check the path and the disk, then run again.")
        raise EnvironmentFault(code, str(path), f"cannot be {doing}: {fault.strerror or fault}. {fix}") from fault


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk; OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, durably; fine when it is there already. EnvironmentFault."""
    with faults(folder):
        missing = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_folder(made.parent)


def create(path: Path, content: bytes) -> bool:
    """Makes a new file; False when one is there. Not flushed: for what may be lost with the power. EnvironmentFault."""
    with faults(path):
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
    return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once the block ends well; until then `path` is as it was. EnvironmentFault."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with faults(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, durably and whole. EnvironmentFault."""
    with replacing(path) as file:
        file.write(text.encode())


def finite(value: Any) -> Any:
    """JSON values only: numbers that are not finite are null, paths and the like are text."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented for people; ValueError on NaN and infinities. EnvironmentFault."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line; ValueError on NaN and infinities, and then nothing is written. EnvironmentFault."""
    with replacing(path) as file:
        file.writelines(f"{canonical_json(dict(row))}\n".encode() for row in rows)


def read_json(path: Path) -> Any:
    """The value of a JSON file; CorpusError names line and column. NaN, infinities and duplicate keys are refused."""
    return parse_json(path, _bytes_of(path))


def parse_json(path: Path, data: bytes) -> Any:
    """The value of the bytes of a JSON file, as `read_json`; `path` is named in errors and not touched."""
    try:
        return _parse(data)
    except (ValueError, RecursionError) as fault:
        raise CorpusError.of([_problem(path, 1, fault)]) from fault


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; CorpusError names every broken line, a last one without its newline among them."""
    *lines, rest = _bytes_of(path).split(b"\n")
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_object(line))
        except (ValueError, RecursionError) as fault:
            problems.append(_problem(path, number, fault))
    if rest:
        # Even when it parses: `{"n": 1` and `12` may be the head of `123`, and a writer may still be at it.
        problems.append(Problem("PL3502", f"{path}:{len(lines) + 1}", "has no newline at its end: the file was cut off. Make it again, or end the line."))
    if len(problems) > MOST_PROBLEMS:
        more = Problem("PL3502", str(path), f"{len(problems) - MOST_PROBLEMS} more lines are broken.")
        problems = [*problems[:MOST_PROBLEMS], more]
    if problems:
        raise CorpusError.of(problems)
    return rows


def sha256_of(path: Path, *, flush: bool = False) -> str:
    """64 hexadecimal digits; with `flush` the file is on the disk afterwards. OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return digest


def content_of(path: Path) -> bytes | None:
    """All bytes of a file; None when there is no file. OSError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise CorpusError("PL3501", str(path), f"cannot be read: {fault.strerror or fault}. Check the path.") from fault


def _problem(path: Path, line: int, fault: Exception) -> Problem:
    """A fault of the parser as a problem; `line` is where the parsed text starts."""
    where, message = f"{path}:{line}", str(fault)
    if isinstance(fault, json.JSONDecodeError):
        where, message = f"{path}:{line + fault.lineno - 1}:{fault.colno}", f"is not JSON: {fault.msg}"
    elif isinstance(fault, UnicodeDecodeError):
        earlier = fault.object[: fault.start].split(b"\n")
        where, message = f"{path}:{line + len(earlier) - 1}", f"byte {len(earlier[-1]) + 1} of the line is not UTF-8"
    elif isinstance(fault, RecursionError):
        message = "is nested too deeply"
    return Problem("PL3502", where, f"{message}. Mend the file or make it again.")


def _object(line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise ValueError("the line is empty")
    value = _parse(line)
    if not isinstance(value, dict):
        raise ValueError(f"the line must hold one object in braces, got {type(value).__name__}")
    return value


def _parse(data: bytes) -> Any:
    """ValueError (also as JSONDecodeError and UnicodeDecodeError) or RecursionError."""
    return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_number, parse_float=_number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
