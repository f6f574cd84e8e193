"""JSONL files: one object a line, read with nothing guessed, every broken line told at once.

    problems: list[DataProblem] = []
    for number, row in rows_of(content_of(file), file, problems): ...
"""

import codecs
import json
import stat
from collections import Counter
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from data_gen.errors import DataError, DataProblem

LINE_BYTES = 1_000_000
"""The longest line of a corpus; no model of ours reads a document that long."""
KINDS: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}


def content_of(file: Path) -> bytes:
    """All of a regular file: a pipe never ends, and neither does /dev/zero."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode):
            return file.read_bytes()
        said = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
    except FileNotFoundError:
        said = "cannot be read: there is no file of this name"
    except OSError as error:
        said = f"cannot be read: {error.strerror}"
    except ValueError:  # a NUL in the path
        said = "is no path"
    raise DataError(DataProblem(str(file), f"{said}. Use the path of a JSONL file."))


def in_order(problems: list[DataProblem]) -> list[DataProblem]:
    """By line; what is wrong with the whole file first."""
    return sorted(problems, key=lambda p: int(line) if (line := p.where.rpartition(":")[2]).isdecimal() else 0)


def rows_of(content: bytes, file: Path, problems: list[DataProblem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line that is a JSON object, with its number; what is not is added to the problems."""
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        try:
            row = _row(line)
        except UnicodeDecodeError as error:
            fault = f"is not UTF-8 at byte {error.start} of the line ({error.reason}). Save the file as UTF-8"
        except json.JSONDecodeError as error:
            fault = f"is not JSON: {error.msg} at character {error.pos}. Write one JSON object a line"
        except RecursionError:
            fault = "is not JSON: nested too deeply. Write one flat JSON object a line"
        except ValueError as error:
            fault = f"{error}. Write one JSON object a line"
        else:
            yield number, row
            continue
        problems.append(DataProblem(f"{file}:{number}", f"{fault}."))


def _row(line: bytes) -> dict[str, Any]:
    """The object of a line; ValueError (also as JSONDecodeError and UnicodeDecodeError) or RecursionError."""
    if not line.strip():
        raise ValueError("is empty")
    if len(line) > LINE_BYTES:
        raise ValueError(f"has {len(line)} bytes, at most {LINE_BYTES} are read. Split the document")
    if line.startswith(b"version https://git-lfs"):
        raise ValueError("is a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull`")
    if line.startswith(codecs.BOM_UTF8):
        raise ValueError("starts with a byte order mark. Save the file as plain UTF-8")
    row = json.loads(line.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys)
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, got {kind_of(row)}")
    return row


def kind_of(value: Any) -> str:
    """What a value is, in words; a table has kinds that JSON has not, which keep their own name."""
    return json.dumps(value) if value is None or isinstance(value, bool) else KINDS.get(type(value), type(value).__name__)


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is beyond the range of numbers")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the field {twice[0]!r} stands twice")
    return dict(pairs)
