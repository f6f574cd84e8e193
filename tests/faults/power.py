"""The power goes: what was flushed is there, of the rest any part may be.

One making of a cell is recorded. Then the power is cut after any operation, and a disk is laid out that a file system may show:

- what a file held when it was flushed is there; later writes are there, are missing, are torn, or are zeros;
- a name (made, moved, taken away) is as it was when its folder was last flushed; each later change is there or is not,
  whatever became of the others. A move happens or does not: that much every journal gives.

On every such disk what was acknowledged must be whole, nothing partial may be accepted, and the cell must come out as ever.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona_lab.errors import LabError
from persona_lab.store import NodeDamaged, NodeMissing, Store, write_text

from . import toy
from .kills import CELL, expected
from .tap import Operation, tapped
from .trials import HARD_FAIL, LOST_CELL, PASS, SILENT_DIVERGENCE, Tally, fast_folder

ROOT = 0


@dataclass(frozen=True)
class Step:
    """One operation, by the numbers of files and folders, which outlive their names."""

    kind: str
    """`write` and `names` change, `flush` makes what came before last, `acknowledged` is a promise."""
    item: int = -1
    """The file written, the file or folder flushed, or the folder whose names are changed."""
    data: bytes = b""
    names: tuple[tuple[int, str, int | None], ...] = ()
    """(folder, name, what it now names or None)."""
    node: str = ""


@dataclass
class Recorder:
    """Watches the operations below a folder."""

    root: Path
    steps: list[Step] = field(default_factory=list)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    count: int = ROOT

    def tell(self, event: str, node_id: str, value: Any) -> None:
        """A promise of the store."""
        if event == "committed":
            self.steps.append(Step("acknowledged", node=node_id))

    def __call__(self, operation: Operation, proceed: Callable[[], Any]) -> Any:
        """A fault that harms nothing."""
        result = proceed()
        if operation.path.is_relative_to(self.root) and operation.path != self.root:
            self._record(operation)
        elif operation.path == self.root and operation.name == "fsync":
            self.steps.append(Step("flush", ROOT))
        return result

    def _record(self, operation: Operation) -> None:
        folder, name = self._find(operation.path.parent), operation.path.name
        here = self.folders[folder].get(name)
        if operation.name == "fsync" and here is not None:
            self.steps.append(Step("flush", here))
        elif operation.name == "write" and here is not None:
            self.steps.append(Step("write", here, operation.data))
        elif operation.name in ("create", "overwrite", "mkdir"):
            self.count += 1
            if operation.name == "mkdir":
                self.folders[self.count] = {}
            self._name(folder, (folder, name, self.count))
        elif operation.name in ("unlink", "remove", "rmdir"):
            self._name(folder, (folder, name, None))
        elif operation.name in ("rename", "replace"):
            assert operation.target is not None
            there = self._find(operation.target.parent)
            self._name(there, (there, operation.target.name, here), (folder, name, None))

    def _name(self, folder: int, *names: tuple[int, str, int | None]) -> None:
        self.steps.append(Step("names", folder, names=names))
        apply(self.folders, names)

    def _find(self, path: Path) -> int:
        found = ROOT
        for part in path.relative_to(self.root).parts:
            found = self.folders[found][part]
        return found


def apply(folders: dict[int, dict[str, int]], names: tuple[tuple[int, str, int | None], ...]) -> None:
    """Carry out one change of names."""
    for folder, name, item in names:
        entries = folders.setdefault(folder, {})
        if item is None:
            entries.pop(name, None)
        else:
            entries[name] = item


def after_the_cut(steps: list[Step], chance: random.Random, keep: float) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
    """Folders and contents that a disk may show when the power goes after these steps; of what is not flushed `keep` survives."""
    flushed: set[int] = set()
    lasting = []
    for step in reversed(steps):
        if step.kind == "flush":
            flushed.add(step.item)
        lasting.append(step.item in flushed)
    folders: dict[int, dict[str, int]] = {ROOT: {}}
    contents: dict[int, bytes] = {}
    for step, lasts in zip(steps, reversed(lasting), strict=True):
        if step.kind == "names" and (lasts or chance.random() < keep):
            apply(folders, step.names)
        elif step.kind == "write":
            data = step.data if lasts else chance.choice((step.data, b"", step.data[: len(step.data) // 2], bytes(len(step.data))))
            contents[step.item] = contents.get(step.item, b"") + data
    return folders, contents


def lay_out(root: Path, folder: int, folders: dict[int, dict[str, int]], contents: dict[int, bytes], is_folder: set[int]) -> None:
    """Write such a disk below `root`."""
    root.mkdir()
    for name, item in folders.get(folder, {}).items():
        if item in is_folder:
            lay_out(root / name, item, folders, contents, is_folder)
        else:
            (root / name).write_bytes(contents.get(item, b""))


def cuts(count: int, seed: int = 0, *, honest: bool = True) -> Tally:
    """`count` cuts at random; on a disk that is not `honest`, which only says that it flushes, promises may be lost but not broken."""
    tally, chance = Tally(), random.Random(seed)
    with fast_folder() as folder:
        digest, recorder = expected(folder), Recorder(folder / "recorded")
        recorder.root.mkdir()
        with tapped(recorder):
            toy.make(toy.patient(recorder.root / "store"), CELL, recorder.tell)
        is_folder = set(recorder.folders)
        steps = recorder.steps if honest else [step for step in recorder.steps if step.kind != "flush"]
        for number in range(count):
            at, keep = chance.randint(1, len(steps)), chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
            root = folder / str(number)
            lay_out(root, ROOT, *after_the_cut(steps[:at], chance, keep), is_folder)
            promised = {step.node for step in steps[:at] if step.kind == "acknowledged"} if honest else set()
            verdict = _verdict(root / "store", promised, digest)
            shutil.rmtree(root)
            tally.add(verdict, f"seed {seed}, cut {number} after {at} of {len(steps)} steps, keeping {keep}")
    return tally


def file_cuts(count: int, seed: int = 0) -> Tally:
    """The same for one file that is written twice: the text that was acknowledged last, or the one under way, and never a third."""
    tally, chance, texts = Tally(), random.Random(seed), [f"{number}\n" * 3000 for number in (1, 2)]
    with fast_folder() as folder:
        recorder = Recorder(folder / "recorded")
        recorder.root.mkdir()
        with tapped(recorder):
            for text in texts:
                write_text(recorder.root / "run" / "claims.json", text)
                recorder.tell("committed", text, None)
        for number in range(count):
            at, root = chance.randint(1, len(recorder.steps)), folder / str(number)
            lay_out(root, ROOT, *after_the_cut(recorder.steps[:at], chance, chance.choice((0.0, 0.5, 1.0))), set(recorder.folders))
            path = root / "run" / "claims.json"
            found = path.read_text() if path.exists() else None
            promised = sum(step.kind == "acknowledged" for step in recorder.steps[:at])
            tally.add(PASS if found in [None, *texts][promised:] else LOST_CELL, f"seed {seed}, cut {number} after {at} of {len(recorder.steps)} steps")
            shutil.rmtree(root)
    return tally


def _verdict(root: Path, promised: set[str], digest: str) -> str:
    store = Store(root)
    for node in toy.line(CELL):
        try:
            store.open(node)
        except (NodeMissing, NodeDamaged):
            if node.id in promised:
                return LOST_CELL
    try:
        toy.make(toy.patient(root), CELL)
        return PASS if toy.digest(Store(root), toy.line(CELL)) == digest else SILENT_DIVERGENCE
    except LabError:
        return HARD_FAIL
