"""The store: one immutable folder for each finished node.

    runs/store/stage/3fa9.../        a node: payload, manifest.json, COMMIT
    runs/store/attempts/3fa9...-5f0c1d2e9a7b4433/    work in progress, or what a killed worker left
    runs/store/leases/3fa9...        who tries now
    runs/store/conflicts/            a second, different result of the same node: determinism was broken
    runs/store/damaged/              folders that stood in the way of a node and were not whole

How a node comes to be. An attempt writes into a folder of its own that nobody reads. At its end every file is flushed
to the disk, the manifest is written, then COMMIT, and all of that is flushed too. One rename then moves the folder to
the node's place. That rename is the only step that readers can see, and it is atomic: before it there is nothing,
after it there is the whole node. It is also what makes the first attempt win: a folder cannot be renamed onto one
that is not empty, so a node is never overwritten and files of two attempts never mix.

A folder in a node's place that is not whole (an interrupted copy, a lost file) is set aside under a name that carries
its inode. Of two workers that saw the same damage, the slower one finds that name taken and moves nothing: the node
that the quicker one has put there meanwhile is safe, by the same property of rename.
"""

import difflib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from persona_lab.design import Kind, Node, canonical_json
from persona_lab.errors import ConfigError, EnvironmentFault
from persona_lab.store.files import content_of, faults, make_folder, read_json, sync_folder
from persona_lab.store.lease import Lease, Leases
from persona_lab.store.seal import COMMIT, MANIFEST, damage, seal

KINDS: tuple[Kind, ...] = get_args(Kind)


class NodeMissing(EnvironmentFault):
    """The node is not in the store."""


class NodeDamaged(EnvironmentFault):
    """The node's files are not those that were committed."""


@dataclass(frozen=True)
class Conflict:
    """Two attempts at one node gave different bytes: the first stays, the second is kept for comparison."""

    folder: Path
    """The second result, whole, under `conflicts/`."""
    files: tuple[str, ...]
    """Which files differ or stand in one of the two only."""


@dataclass
class Attempt:
    """One try at making a node: write the payload into `folder`."""

    folder: Path
    token: str
    keep_on_error: bool = False
    """Leave the folder where it is when the block fails; nothing is committed either way."""
    conflict: Conflict | None = None
    """Set after the block when the node existed already with other bytes."""
    notes: dict[str, Any] = field(default_factory=dict)

    def note(self, **notes: Any) -> None:
        """Adds JSON values to the manifest under `notes`, e.g. threads=4; ValueError or TypeError when they are none."""
        canonical_json(notes)
        self.notes.update(notes)


class Store:
    """Nodes on disk below one root; making the object touches nothing."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.root = root
        self._leases = Leases(root / "leases", clock)
        self._present: set[str] = set()
        self._verified: set[str] = set()

    def check_writable(self) -> None:
        """EnvironmentFault PL5101 when the store cannot be made or written."""
        trial = self.root / f".writable-{secrets.token_hex(8)}"
        with faults(self.root, "PL5101"):
            self.root.mkdir(parents=True, exist_ok=True)
            trial.touch(exist_ok=False)
            trial.unlink()

    def folder(self, node: Node) -> Path:
        """Where the node stands or will stand."""
        return self.root / node.kind / node.id

    def has(self, node: Node) -> bool:
        """True when the node is committed and its files have their sizes; digests are `open`'s part."""
        if node.id not in self._present and not damage(self.folder(node), node.id, digests=False):
            self._present.add(node.id)
        return node.id in self._present

    def open(self, node: Node) -> Path:
        """The folder of a node, every byte verified once in this process; NodeMissing, NodeDamaged."""
        if node.id not in self._verified:
            self._check(node, digests=True)
            self._verified.add(node.id)
        return self.folder(node)

    def manifest(self, node: Node) -> dict[str, Any]:
        """The manifest of a committed node; NodeMissing, NodeDamaged."""
        self._check(node, digests=False)
        return read_json(self.folder(node) / MANIFEST)

    def nodes(self, kind: Kind | None = None) -> Iterator[tuple[Kind, str, dict[str, Any]]]:
        """(kind, id, manifest) of every committed node, of all kinds or of one, in a fixed order."""
        for each, node_id in self._ids(kind):
            folder = self.root / each / node_id
            if not damage(folder, node_id, digests=False):
                yield each, node_id, read_json(folder / MANIFEST)

    @staticmethod
    def payload_bytes(manifest: Mapping[str, Any]) -> int:
        """Size of a node's payload on disk, bytes, from its manifest."""
        return sum(record["bytes"] for record in manifest["payload"].values())

    def find(self, prefix: str) -> tuple[Kind, str]:
        """The committed node whose id starts with `prefix`; ConfigError with the nearest ids when it is not exactly one."""
        ids: dict[str, Kind] = {node_id: kind for kind, node_id in self._ids()}
        matches = [node_id for node_id in ids if prefix and node_id.startswith(prefix)]
        if len(matches) == 1:
            return ids[matches[0]], matches[0]
        near = matches or difflib.get_close_matches(prefix, [node_id[: max(len(prefix), 4)] for node_id in ids], cutoff=0.3) or sorted(ids)
        listed = ", ".join(node_id[: max(12, len(prefix) + 4)] for node_id in near[:5])
        said = f"{len(matches)} nodes start with it" if matches else "no node starts with it"
        raise ConfigError("PL5106", repr(prefix), f"{said}. " + (f"Did you mean {listed}?" if near else "The store is empty."))

    def lease(self, node: Node, *, ttl_seconds: float = 60) -> Lease | None:
        """The right to try first, or None while another worker is at it; never waits, never decides correctness."""
        return self._leases.take(node.id, ttl_seconds)

    def conflicts(self) -> list[Path]:
        """Second, different results that were kept aside: empty unless determinism was broken."""
        return _entries(self.root / "conflicts")

    def attempts(self) -> list[Path]:
        """Folders of attempts under way, and of those whose worker was killed."""
        return _entries(self.root / "attempts")

    @contextmanager
    def attempt(self, node: Node) -> Iterator[Attempt]:
        """A folder to write a node's payload into; committed when the block ends well, removed when it does not.

        EnvironmentFault when the disk fails, ValueError when the payload has a `manifest.json` or `COMMIT` of its own.
        """
        token = secrets.token_hex(8)
        attempt = Attempt(self.root / "attempts" / f"{node.id}-{token}", token)
        make_folder(attempt.folder)
        try:
            yield attempt
            with faults(attempt.folder):
                seal(attempt.folder, node, attempt=token, notes=attempt.notes)
                self._publish(node, attempt)
        finally:
            if not attempt.keep_on_error:
                shutil.rmtree(attempt.folder, ignore_errors=True)

    def _check(self, node: Node, *, digests: bool) -> None:
        folder = self.folder(node)
        if not folder.exists():
            raise NodeMissing("PL5102", str(folder), f"this {node.kind} has not been made yet. Run the experiment that makes it.")
        if problems := damage(folder, node.id, digests=digests):
            raise NodeDamaged.of(problems)

    def _publish(self, node: Node, attempt: Attempt) -> None:
        """Renames a sealed attempt into the node's place, or compares it with the node that is there."""
        target = self.folder(node)
        for _ in range(3):
            if _rename(attempt.folder, target):
                self._present.add(node.id)
                self._verified.add(node.id)
                return
            if not damage(target, node.id, digests=False):
                attempt.conflict = self._compare(target, attempt.folder)
                shutil.rmtree(attempt.folder, ignore_errors=True)
                return
            self._set_aside(target)
        raise EnvironmentFault("PL5104", str(target), "is not a whole node and cannot be moved away. Move or delete it and run again.")

    def _compare(self, first: Path, second: Path) -> Conflict | None:
        """None when both have the same payload; otherwise the second is moved to `conflicts/`."""
        ours, theirs = (read_json(folder / MANIFEST)["payload"] for folder in (second, first))
        files = tuple(sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)))
        if not files:
            return None
        kept = self.root / "conflicts" / second.name
        _rename(second, kept)
        return Conflict(kept, files)

    def _set_aside(self, folder: Path) -> None:
        """Moves what is not a whole node out of the way, unless another worker has done so."""
        try:
            aside = self.root / "damaged" / f"{folder.name}-{folder.stat().st_ino}"
            _rename(folder, aside)
        except FileNotFoundError:
            return

    def _ids(self, kind: Kind | None = None) -> Iterator[tuple[Kind, str]]:
        """(kind, id) of every folder with a COMMIT, sorted within each kind."""
        for each in KINDS if kind is None else (kind,):
            for folder in _entries(self.root / each):
                if (folder / COMMIT).exists():
                    yield each, folder.name


def _entries(folder: Path) -> list[Path]:
    """What stands in a folder, sorted; nothing when there is no folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _rename(source: Path, target: Path) -> bool:
    """Moves a folder, durably; False when the target exists already. OSError.

    A network disk may answer "no such file" to the repeat of a rename that happened, so COMMIT is looked at before
    that is believed: its manifest digest covers the attempt's token and is nobody else's.
    """
    make_folder(target.parent)
    sealed = content_of(source / COMMIT)
    try:
        os.rename(source, target)
    except OSError as fault:
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if fault.errno != errno.ENOENT or sealed is None or content_of(target / COMMIT) != sealed:
            raise
    sync_folder(target.parent)
    sync_folder(source.parent)
    return True
