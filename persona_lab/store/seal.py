"""The seal of a node: its manifest and its COMMIT, and what may be wrong with a folder that bears them.

    stage/3fa9.../adapter/adapter_model.safetensors     payload, any files and folders
    stage/3fa9.../manifest.json                         {"id": ..., "recipe": ..., "payload": {"adapter/...": {"bytes": 51704, "sha256": ...}}, ...}
    stage/3fa9.../COMMIT                                {"id": ..., "manifest_sha256": ...}

COMMIT vouches for the manifest, the manifest for every file. The manifest names no machine and no path.
"""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from persona_lab.design import Node, canonical_json
from persona_lab.errors import CorpusError, EnvironmentFault, Problem
from persona_lab.store.files import read_json, sha256_of, sync_folder, write_json, write_text

MANIFEST, COMMIT = "manifest.json", "COMMIT"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")
REMAKE = "Move or delete the folder and run again: the node is made anew."


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
        "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempt": attempt,
        "notes": dict(notes),
    }
    for parent, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(parent))
    write_json(folder / MANIFEST, manifest)
    write_text(folder / COMMIT, canonical_json({"id": node.id, "manifest_sha256": sha256_of(folder / MANIFEST)}) + "\n")


def payload_files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative and with slashes, sorted; links are named and never followed."""
    found = [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*files, *folders)]
    names = [path.relative_to(folder).as_posix() for path in found if path.is_symlink() or not path.is_dir()]
    yield from sorted(name for name in names if name not in (MANIFEST, COMMIT))


def damage(folder: Path, node_id: str, *, digests: bool) -> list[Problem]:
    """All that is wrong with the folder of a committed node; empty when it is whole.

    Without `digests`: COMMIT, manifest, and the sizes of the files. With: every byte, and files that do not belong.
    """
    try:
        commit = read_json(folder / COMMIT)
        manifest_sha256 = sha256_of(folder / MANIFEST)
        expected_id, expected_sha256 = commit["id"], commit["manifest_sha256"]
    except (CorpusError, OSError, KeyError, TypeError) as fault:
        return [_problem(folder, f"is not a committed node ({fault})")]
    if expected_id != node_id:
        return [_problem(folder / COMMIT, f"is of node {expected_id}, expected {node_id}")]
    if expected_sha256 != manifest_sha256:
        return [_problem(folder / MANIFEST, f"has sha256 {manifest_sha256}, COMMIT expects {expected_sha256}")]
    payload: dict[str, dict[str, Any]] = read_json(folder / MANIFEST)["payload"]
    checked = {folder / name: _difference(folder / name, record, digests=digests) for name, record in payload.items()}
    if digests:
        checked |= {folder / name: "is not in the manifest" for name in payload_files(folder) if name not in payload}
    return [_problem(path, message) for path, message in checked.items() if message]


def versions() -> dict[str, str | None]:
    """What the result may depend on, without importing it; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache
def git_commit() -> str | None:
    """The commit of this code, with `-dirty` when the files differ from it; None outside its own repository."""
    here = Path(__file__)
    git = ["git", "--no-optional-locks", "-C", str(here.parent)]
    try:
        # An installed copy may lie in a folder of somebody else's repository.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        described = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], capture_output=True, check=True, text=True)
        return described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _record(path: Path) -> dict[str, Any]:
    """Digest and size of a payload file, which is on the disk afterwards."""
    if path.is_symlink() or not path.is_file():
        raise EnvironmentFault("PL5105", str(path), "is a link or no plain file. Write a copy of the file: a node must be whole without others.")
    return {"sha256": sha256_of(path, flush=True), "bytes": path.stat().st_size}


def _difference(path: Path, record: Mapping[str, Any], *, digests: bool) -> str:
    """How a payload file differs from its record, in words; empty when it does not."""
    try:
        if path.is_symlink() or not path.is_file():
            return "is a link or no plain file" if os.path.lexists(path) else "is missing"
        size = path.stat().st_size
        if size != record["bytes"]:
            return f"has {size} bytes, the manifest expects {record['bytes']}"
        actual = sha256_of(path) if digests else record["sha256"]
    except OSError as fault:
        return f"cannot be read ({fault.strerror or fault})"
    return "" if actual == record["sha256"] else f"has sha256 {actual}, the manifest expects {record['sha256']}"


def _problem(path: Path, message: str) -> Problem:
    return Problem("PL5103", str(path), f"{message}. {REMAKE}")
