"""How a case of `tests/malformed/` spoils a text, or a folder of files."""

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Case = dict[str, Any]


def swapped(text: str, *pieces: str) -> str:
    for old, new in zip(pieces[::2], pieces[1::2], strict=True):
        assert old in text, f"{old!r} does not stand in the file"
        text = text.replace(old, new, 1)
    return text


def repeated(pieces: list[Any]) -> str:
    """`["a", 2, "b"]` is aab."""
    return "".join(piece * (pieces[i + 1] if i + 1 < len(pieces) else 1) for i, piece in enumerate(pieces) if isinstance(piece, str))


def put(path: Path, what: str) -> None:
    """Something that is not what it should be; a name of nothing special is what a link points to."""
    if what == "fifo":
        os.mkfifo(path)
    elif what in ("folder", "locked"):
        path.mkdir(mode=0o555 if what == "locked" else 0o755)
    elif what in ("file", "forbidden"):
        path.write_text("")
        path.chmod(0 if what == "forbidden" else 0o644)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)  # the whole path may be too long for a socket
    else:
        path.symlink_to(what)


def with_header(header: str) -> bytes:
    """A safetensors file of twelve bytes of data with this header."""
    return struct.pack("<Q", len(header)) + header.encode() + bytes(12)


def edit(folder: Path, case: Case) -> None:
    """Does to a folder what a case says."""
    for name in case.get("remove", ()):
        target = folder / name
        if target.is_dir():
            for file in target.iterdir():
                file.unlink()
            target.rmdir()
        else:
            target.unlink(missing_ok=True)
    for name, changes in case.get("json", {}).items():
        file = folder / name
        file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **changes}))
    for name, keys in case.get("drop", {}).items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if key not in keys}))
    for name, text in case.get("write", {}).items():
        (folder / name).write_bytes(text.encode("latin-1"))
    for name, pieces in case.get("write_repeat", {}).items():
        (folder / name).write_text(repeated(pieces))
    for name, length in case.get("cut", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes()[:length])
    for name, text in case.get("append", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes() + text.encode("latin-1"))
    for name, other in case.get("rename", {}).items():
        (folder / name).rename(folder / other)
    for name, what in case.get("put", {}).items():
        put(folder / name, what)
    edit_tensors(folder, case)


def edit_tensors(folder: Path, case: Case) -> None:
    """The edits of a safetensors file."""
    if "header" in case:
        (folder / "model.safetensors").write_bytes(with_header(case["header"]))
    if "length" in case:
        file = folder / "model.safetensors"
        file.write_bytes(struct.pack("<Q", case["length"]) + file.read_bytes()[8:])
    if "tensors" in case or "without" in case:
        file = folder / "adapter_model.safetensors"
        tensors = {k: t for k, t in load_file(file).items() if not k.endswith(case.get("without", "\0"))}
        for ending, value in case.get("tensors", {}).items():
            tensors |= {k: np.full_like(t, value) for k, t in tensors.items() if k.endswith(ending)}
        save_file(tensors, file)
