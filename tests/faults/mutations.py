"""Bytes that rot and files that are swapped: each change must be found before use, and named with both digests."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from persona_lab.design import Node
from persona_lab.errors import LabError
from persona_lab.store import NodeDamaged, NodeMissing, Store

from . import toy
from .trials import PASS, Tally, fast_folder

NODES = [node for number in range(12) for node in toy.line(toy.cell(number))]
SEAL = ("COMMIT", "manifest.json")
UNDETECTED, UNNAMED, FALSE_ALARM = "UNDETECTED", "UNNAMED", "FALSE_ALARM"

Change = Callable[[bytes, bytes, random.Random], bytes]
"""From the bytes of a file and those of another one, and chance, to other bytes."""


def flip(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One bit."""
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def truncate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A shorter file."""
    return data[: chance.randrange(len(data))]


def extend(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A longer file; white space among what is added."""
    return data + chance.choice((b"\n", b" ", b"\0" * 512, chance.randbytes(chance.randint(1, 99)), data))


def zero(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """A block of zeros."""
    at, length = chance.randrange(len(data)), chance.choice((1, 8, 512))
    return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]


def stale(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """The same file of another node."""
    return other


CONTENT: tuple[Change, ...] = (flip, truncate, extend, zero, stale)


def mutate(count: int, seed: int = 0) -> Tally:
    """`count` changes of one node each, in a store of 36."""
    tally, chance = Tally(), random.Random(seed)
    with fast_folder() as folder:
        root = _store(folder)
        for number in range(count):
            kind = chance.choice((*CONTENT, *CONTENT, "delete", "swap files", "swap nodes", "delete node"))
            node = chance.choice(NODES)
            other = chance.choice([n for n in NODES if n.kind == node.kind and n != node])
            if callable(kind):
                verdict = _content(root, node, other, kind, chance)
            else:
                verdict = {"delete": _delete, "swap files": _swap_files, "swap nodes": _swap_nodes, "delete node": _delete_node}[kind](root, node, other, chance)
            tally.add(verdict, f"seed {seed}, change {number}: {kind} of a {node.kind}")
    return tally


def clean_opens(count: int) -> Tally:
    """`count` openings of nodes that nobody has touched, each by a process that has verified nothing yet."""
    tally = Tally()
    with fast_folder() as folder:
        root = _store(folder)
        for number in range(count):
            try:
                Store(root).open(NODES[number % len(NODES)])
                tally.add(PASS, "")
            except LabError as error:
                tally.add(FALSE_ALARM, str(error))
    return tally


def _store(folder: Path) -> Path:
    for node in NODES:
        toy.make(toy.patient(folder / "store"), node)
    return folder / "store"


def _content(root: Path, node: Node, other: Node, change: Change, chance: random.Random) -> str:
    here, there = Store(root).folder(node), Store(root).folder(other)
    file = chance.choice(_files(here))
    with _restored(here):
        data = file.read_bytes()
        changed = change(data, (there / file.relative_to(here)).read_bytes(), chance)
        if changed == data:
            changed = data + b"\0"
        file.write_bytes(changed)
        return _found(root, node, file.name, sha256(data).hexdigest(), sha256(changed).hexdigest())


def _delete(root: Path, node: Node, other: Node, chance: random.Random) -> str:
    folder = Store(root).folder(node)
    file = chance.choice(_files(folder))
    with _restored(folder):
        expected = sha256(file.read_bytes()).hexdigest()
        file.unlink()
        return _found(root, node, file.name, expected, "")


def _swap_files(root: Path, node: Node, other: Node, chance: random.Random) -> str:
    folder = Store(root).folder(node)
    one, two = chance.sample(_files(folder), 2)
    with _restored(folder):
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        sealed = [path.name for path in (one, two) if path.name in SEAL]
        return _found(root, node, sealed[0] if sealed else one.name, sha256(first).hexdigest(), sha256(second).hexdigest())


def _swap_nodes(root: Path, node: Node, other: Node, chance: random.Random) -> str:
    here, there, aside = Store(root).folder(node), Store(root).folder(other), root / "aside"
    for source, target in ((here, aside), (there, here), (aside, there)):
        source.rename(target)
    try:
        verdicts = {_found(root, each, "COMMIT", node.id, other.id) for each in (node, other)}
        return PASS if verdicts == {PASS} else UNDETECTED
    finally:
        for source, target in ((here, aside), (there, here), (aside, there)):
            source.rename(target)


def _delete_node(root: Path, node: Node, other: Node, chance: random.Random) -> str:
    folder = Store(root).folder(node)
    with _restored(folder):
        shutil.rmtree(folder)
        return _found(root, node, node.id, "", "")


def _found(root: Path, node: Node, name: str, expected: str, actual: str) -> str:
    """Whether the node is refused, by an error that holds all of these."""
    try:
        Store(root).open(node)
    except (NodeDamaged, NodeMissing) as error:
        told = str(error)
        if name in SEAL:
            # COMMIT and manifest vouch for each other: when they disagree, either may be the one that changed.
            return PASS if any(file in told for file in SEAL) else f"{UNNAMED} {told}"
        return PASS if name in told and expected in told and actual in told else f"{UNNAMED} {told}"
    return UNDETECTED


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _restored(folder: Path) -> Iterator[None]:
    """Afterwards the folder is as it was."""
    kept = {path: path.read_bytes() for path in _files(folder)}
    try:
        yield
    finally:
        for path, data in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
