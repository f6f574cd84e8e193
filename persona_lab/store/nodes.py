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

A folder in a node's place that is not whole (an interrupted copy, a lost file, a flipped bit) is set aside and the node
is made anew; `moves` shows why two workers that saw the same damage cannot harm what one of them has made meanwhile.
"""

import difflib
import errno
import logging
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
from persona_lab.errors import ConfigError, EnvironmentFault, printable
from persona_lab.store.files import faults, make_folder, sync_folder
from persona_lab.store.lease import Lease, Leases
from persona_lab.store.moves import identity, move, set_aside
from persona_lab.store.seal import COMMIT, REMAKE, NodeDamaged, inspect, seal

log = logging.getLogger(__name__)

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EXDEV, errno.EMFILE, errno.ENFILE}
KINDS: tuple[Kind, ...] = get_args(Kind)


class NodeMissing(EnvironmentFault):
    """The node is not in the store."""


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
        self._named: set[Path] = set()
        """Folders whose own names are known to be on the disk."""

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
        """True when the node is committed and its files have their sizes; digests are the part of `open` and `sound`."""
        if node.id not in self._present:
            with faults(self.folder(node), doing="read"):
                there = self.folder(node).exists()
            # Most of a fresh plan is not there: for that nobody needs to be told what is wrong with it.
            if there and self._damage(node, digests=False) is None:
                self._present.add(node.id)
        return node.id in self._present

    def sound(self, node: Node) -> bool:
        """True when the node is committed and every byte is verified; one that is damaged is set aside, to be made anew."""
        if node.id in self._verified:
            return True
        with faults(self.folder(node), doing="read"):
            seen = identity(self.folder(node))
        if seen is None:
            self._present.discard(node.id)
            return False
        damage = self._damage(node, digests=True)
        if damage is None:
            self._present.add(node.id)
            self._verified.add(node.id)
            return True
        self._set_aside(node, seen, damage)
        return False

    def open(self, node: Node) -> Path:
        """The folder of a node, every byte verified once in this process; NodeMissing, NodeDamaged."""
        if node.id not in self._verified:
            self._check(node, digests=True)
            self._verified.add(node.id)
        return self.folder(node)

    def manifest(self, node: Node) -> dict[str, Any]:
        """The manifest of a committed node; NodeMissing, NodeDamaged."""
        return self._check(node, digests=False)

    def ids(self, kind: Kind) -> list[str]:
        """Ids of the committed nodes of a kind, sorted, from the names of their folders alone: for counting, not for use."""
        return [name for name in _names(self.root / kind) if os.path.exists(f"{self.root}/{kind}/{name}/{COMMIT}")]

    def nodes(self, kind: Kind | None = None) -> Iterator[tuple[Kind, str, dict[str, Any]]]:
        """(kind, id, manifest) of every committed node, of all kinds or of one, in a fixed order."""
        for each in KINDS if kind is None else (kind,):
            for node_id in self.ids(each):
                try:
                    manifest = inspect(self.root / each / node_id, node_id, digests=False)
                except NodeDamaged:
                    continue
                self._present.add(node_id)
                yield each, node_id, manifest

    @staticmethod
    def payload_bytes(manifest: Mapping[str, Any]) -> int:
        """Size of a node's payload on disk, bytes, from its manifest."""
        return sum(record["bytes"] for record in manifest["payload"].values())

    def find(self, prefix: str) -> tuple[Kind, str]:
        """The committed node whose id starts with `prefix`; ConfigError with the nearest ids when it is not exactly one."""
        ids: dict[str, Kind] = {node_id: kind for kind in KINDS for node_id in self.ids(kind)}
        matches = [node_id for node_id in ids if prefix and node_id.startswith(prefix)]
        if len(matches) == 1:
            return ids[matches[0]], matches[0]
        near = matches or difflib.get_close_matches(prefix, [node_id[: max(len(prefix), 4)] for node_id in ids], cutoff=0.3) or sorted(ids)
        listed = ", ".join(node_id[: max(12, len(prefix) + 4)] for node_id in near[:5])
        said = f"{len(matches)} nodes start with it" if matches else "no node starts with it"
        raise ConfigError("PL5106", repr(prefix), f"{said}. " + (f"Did you mean {listed}?" if near else "The store is empty. Run an experiment first."))

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
        self._make_folder(attempt.folder.parent)
        with faults(attempt.folder):
            # Its name need not outlive the power: what counts is the name that the rename gives it.
            attempt.folder.mkdir()
        try:
            with _full(attempt.folder):
                yield attempt
            with faults(attempt.folder):
                seal(attempt.folder, node, attempt=token, notes=attempt.notes)
                self._publish(node, attempt)
        finally:
            if not attempt.keep_on_error:
                shutil.rmtree(attempt.folder, ignore_errors=True)

    def _check(self, node: Node, *, digests: bool) -> dict[str, Any]:
        folder = self.folder(node)
        if not os.path.lexists(folder):
            raise NodeMissing("PL5102", str(folder), f"this {node.kind} has not been made yet. Run the experiment that makes it.")
        return inspect(folder, node.id, digests=digests)

    def _damage(self, node: Node, *, digests: bool) -> NodeDamaged | None:
        try:
            inspect(self.folder(node), node.id, digests=digests)
        except NodeDamaged as damage:
            return damage
        return None

    def _publish(self, node: Node, attempt: Attempt) -> None:
        """Renames a sealed attempt into the node's place, or compares it with the node that is there."""
        target = self.folder(node)
        self._make_folder(target.parent)
        for _ in range(3):
            if move(attempt.folder, target):
                self._present.add(node.id)
                self._verified.add(node.id)
                return
            if (seen := identity(target)) is None:
                continue
            damage = self._damage(node, digests=True)
            if damage is None:
                attempt.conflict = self._compare(node, attempt.folder)
                shutil.rmtree(attempt.folder, ignore_errors=True)
                return
            self._set_aside(node, seen, damage)
        raise EnvironmentFault("PL5104", str(target), "is not a whole node and cannot be moved away. Move or delete it and run again.")

    def _compare(self, node: Node, second: Path) -> Conflict | None:
        """None when both have the same payload; otherwise the second is moved to `conflicts/`."""
        ours, theirs = (inspect(folder, node.id, digests=False)["payload"] for folder in (second, self.folder(node)))
        files = tuple(sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)))
        if not files:
            return None
        kept = self.root / "conflicts" / second.name
        self._make_folder(kept.parent)
        move(second, kept)
        return Conflict(kept, files)

    def _set_aside(self, node: Node, seen: os.stat_result, damage: NodeDamaged) -> None:
        """Moves a damaged node out of the way, and tells, unless another worker has done so."""
        damaged, folder = self.root / "damaged", self.folder(node)
        self._present.discard(node.id)
        self._verified.discard(node.id)
        with faults(folder):
            self._make_folder(damaged)
            aside = set_aside(folder, seen, damaged, str(damage))
        if aside is not None:
            why = "; ".join(f"{problem.where}: {problem.message.removesuffix(REMAKE).rstrip()}" for problem in damage.problems)
            log.warning("a damaged %s is made anew, and kept as %s: %s", node.kind, printable(str(aside)), printable(why, 1000))

    def _make_folder(self, folder: Path) -> None:
        """Makes a folder of the store whose name is on the disk, even when it was made by a worker that was killed since."""
        make_folder(folder)
        if folder not in self._named:
            with faults(folder):
                for parent in (folder.parent, self.root.parent):
                    sync_folder(parent)
            self._named.add(folder)


@contextmanager
def _full(folder: Path) -> Iterator[None]:
    """Whoever writes a payload need not know the error contract: a disk that fails is told as one. Other faults pass."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in DISK_FAULTS:
            raise
        with faults(Path(fault.filename or folder)):
            raise


def _names(folder: Path) -> list[str]:
    """What stands in a folder, sorted; nothing when there is no folder. EnvironmentFault."""
    with faults(folder, doing="read"):
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder)]
