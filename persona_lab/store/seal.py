"""The seal of a node: its manifest and its COMMIT, and what may be wrong with a folder that bears them.

    stage/3fa9.../adapter/adapter_model.safetensors     payload, any files and folders
    stage/3fa9.../manifest.json                         {"id": ..., "recipe": ..., "payload": {"adapter/...": {"bytes": 51704, "sha256": ...}}, ...}
    stage/3fa9.../COMMIT                                {"id": ..., "manifest_sha256": ...}

COMMIT vouches for the manifest, the manifest for every file. The manifest names no machine and no path.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persona_lab.design import Node, canonical_json, identity
from persona_lab.errors import CorpusError, EnvironmentFault, Problem
from persona_lab.store.files import faults, parse_json, sha256_of, sync_folder
from persona_lab.store.versions import git_commit, git_diff_sha256, platform_name, versions

MANIFEST, COMMIT = "manifest.json", "COMMIT"
REMAKE = "Run again: the node is made anew, and this folder is kept under damaged/."
LOST = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO}
"""What the system says of a file that is gone or cannot be read back. Anything else is the reader's trouble, not the file's: too many
open files, no permission, no memory. It must not condemn a node."""


class NodeDamaged(EnvironmentFault):
    """The node's files are not those that were committed."""


def seal(folder: Path, node: Node, *, attempt: str, notes: Mapping[str, Any]) -> None:
    """Writes manifest and COMMIT beside the payload; afterwards all of the folder is on the disk.

    ValueError when the payload uses one of the two names, EnvironmentFault when it holds links, OSError of the disk.
    """
    for name in (MANIFEST, COMMIT):
        if (folder / name).exists():
            raise ValueError(f"a payload may not have a file {name}: the store writes it")
    manifest = {
        "id": node.id,
        "recipe": node.recipe,
        "payload": {name: _record(folder / name) for name in payload_files(folder)},
        "versions": versions(),
        "platform": platform_name(),
        "git_commit": git_commit(),
        "git_diff_sha256": git_diff_sha256(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempt": attempt,
        "notes": dict(notes),
    }
    # Keys stay as they stand: documents follow the order of categories and traits, and a node is to be made again from its manifest alone.
    text = (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode()
    _write(folder / MANIFEST, text)
    _write(folder / COMMIT, _commit_text(node.id, hashlib.sha256(text).hexdigest()))
    for parent, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(parent))


def payload_files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative and with slashes, sorted; links are named and never followed."""
    found = [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*files, *folders)]
    names = [path.relative_to(folder).as_posix() for path in found if path.is_symlink() or not path.is_dir()]
    yield from sorted(name for name in names if name not in (MANIFEST, COMMIT))


def inspect(folder: Path, node_id: str, *, digests: bool) -> dict[str, Any]:
    """The manifest of a committed node, once the folder has been compared with it.

    Without `digests`: COMMIT, manifest, and the sizes of the files. With: every byte, files that do not belong, and
    that the recipe is the node's. NodeDamaged tells all that is wrong, EnvironmentFault what could not be looked at.
    """
    manifest = _sealed_manifest(folder, node_id)
    try:
        payload: dict[str, dict[str, Any]] = manifest["payload"]
        paths = {name: folder / name for name in payload}
        wrong = {path: _difference(path, payload[name]["bytes"], payload[name]["sha256"], digests=digests) for name, path in paths.items()}
        if digests:
            wrong |= {folder / name: "is not in the manifest" for name in payload_files(folder) if name not in payload}
            recipe_id = identity(manifest["recipe"])
            wrong[folder / MANIFEST] = "" if recipe_id == node_id else f"has the recipe of node {recipe_id}, expected {node_id}"
    except (KeyError, TypeError, AttributeError) as fault:
        raise NodeDamaged.of([_problem(folder / MANIFEST, f"is no manifest ({type(fault).__name__}: {fault})")]) from fault
    if problems := [_problem(path, message) for path, message in wrong.items() if message]:
        raise NodeDamaged.of(problems)
    return manifest


def _sealed_manifest(folder: Path, node_id: str) -> dict[str, Any]:
    """The manifest that COMMIT vouches for; NodeDamaged."""
    texts: dict[str, bytes] = {}
    for name in (COMMIT, MANIFEST):
        with faults(folder / name, doing="read"):
            try:
                texts[name] = (folder / name).read_bytes()
            except OSError as fault:
                if fault.errno not in LOST:
                    raise
                raise NodeDamaged.of([_problem(folder / name, f"cannot be read ({fault.strerror}): the folder is not a committed node")]) from fault
    actual = hashlib.sha256(texts[MANIFEST]).hexdigest()
    if texts[COMMIT] != _commit_text(node_id, actual):
        raise NodeDamaged.of([_broken_seal(folder, node_id, texts[COMMIT], actual)])
    return json.loads(texts[MANIFEST])


def _broken_seal(folder: Path, node_id: str, commit: bytes, manifest_sha256: str) -> Problem:
    """Which of COMMIT and manifest is not as it was written."""
    try:
        said = parse_json(folder / COMMIT, commit)
        whole = commit == _commit_text(said["id"], said["manifest_sha256"])
    except (CorpusError, KeyError, TypeError, ValueError):
        said, whole = {}, False
    if not whole:
        expected = hashlib.sha256(_commit_text(node_id, manifest_sha256)).hexdigest()
        return _problem(folder / COMMIT, f"has sha256 {hashlib.sha256(commit).hexdigest()}, expected {expected}")
    if said["id"] != node_id:
        return _problem(folder / COMMIT, f"is of node {said['id']}, expected {node_id}")
    return _problem(folder / MANIFEST, f"has sha256 {manifest_sha256}, COMMIT expects {said['manifest_sha256']}")


def _commit_text(node_id: str, manifest_sha256: str) -> bytes:
    return (canonical_json({"id": node_id, "manifest_sha256": manifest_sha256}) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    """Makes a file that was not there, which is on the disk afterwards. In place, because nobody reads an attempt."""
    with faults(path), path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _record(path: Path) -> dict[str, Any]:
    """Digest and size of a payload file, which is on the disk afterwards."""
    if path.is_symlink() or not path.is_file():
        raise EnvironmentFault("PL5105", str(path), "is a link or no plain file. Write a copy of the file: a node must be whole without others.")
    return {"sha256": sha256_of(path, flush=True), "bytes": path.stat().st_size}


def _difference(path: Path, size: int, sha256: str, *, digests: bool) -> str:
    """How a payload file differs from its record, in words; empty when it does not. EnvironmentFault when it cannot be told."""
    with faults(path, doing="read"):
        try:
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode):
                return f"is a link or no plain file, the manifest expects sha256 {sha256}"
            if found.st_size == size and not digests:
                return ""
            actual = sha256_of(path)
        except OSError as fault:
            if fault.errno not in LOST:
                raise
            state = "is missing" if fault.errno == errno.ENOENT else f"cannot be read ({fault.strerror})"
            return f"{state}, the manifest expects sha256 {sha256}"
    if found.st_size != size:
        return f"has {found.st_size} bytes and sha256 {actual}, the manifest expects {size} bytes and sha256 {sha256}"
    return "" if actual == sha256 else f"has sha256 {actual}, the manifest expects {sha256}"


def _problem(path: Path, message: str) -> Problem:
    return Problem("PL5103", str(path), f"{message}. {REMAKE}")
