"""Kills: at every file operation of every writer, before it and in the midst of it, and in chains at random."""

import itertools
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from persona_lab.design import Node
from persona_lab.store import Attempt, Store, write_json, write_jsonl, write_text

from . import toy
from .tap import Fault, Operation, counting, kill_at, tapped
from .trials import DOUBLE_COMMIT, HARD_FAIL, PASS, Tally, chain, child, fast_folder

CELL = toy.cell(7)
SEVERAL = [CELL, toy.cell(8), toy.cell(9)]

Prepare = Callable[[Path], None]


def fresh(root: Path) -> None:
    """Nothing is there."""


def torn(root: Path) -> None:
    """A stage that has lost a file stands in the way, and its scores are rotten."""
    toy.make(toy.patient(root), CELL)
    store = Store(root)
    (store.folder(CELL.inputs["stage"]) / "state.json").unlink()
    rows = store.folder(CELL) / "rows.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"document", b"documenT", 1))


def left_over(root: Path) -> None:
    """A worker was killed before: its attempt, its lease and its progress are still there."""
    child(lambda: work(root, kill_at(150)))


def empty_folder(root: Path) -> None:
    """An interrupted copy has left an empty folder, and a file where a folder should be."""
    store = Store(root)
    store.folder(CELL.inputs["stage"]).mkdir(parents=True)
    store.folder(CELL).parent.mkdir()
    store.folder(CELL).touch()


PREPARED = (fresh, torn, left_over, empty_folder)


def work(root: Path, fault: Fault, tell: toy.Tell = toy.silent, cells: Sequence[Node] = (CELL,)) -> None:
    """Make cells while a fault lies in wait."""
    with tapped(fault):
        for cell in cells:
            toy.make(toy.patient(root), cell, tell)


def operations(folder: Path, prepare: Prepare) -> int:
    """How many file operations the making of a cell has below `folder`, after `prepare`."""
    seen: list[Operation] = []
    prepare(folder)
    work(folder, counting(seen))
    return len(seen)


def expected(folder: Path, cells: Sequence[Node] = (CELL,)) -> str:
    """The digest of cells that nobody disturbed."""
    for cell in cells:
        toy.make(toy.patient(folder / "clean"), cell)
    return toy.digest(Store(folder / "clean"), [node for cell in cells for node in toy.line(cell)])


def sweep(every: int = 1) -> Tally:
    """A kill before, and one in the midst of, every `every`-th file operation of a cell's making; then another worker finishes."""
    tally = Tally()
    with fast_folder() as folder:
        digest = expected(folder)
        for prepare in PREPARED:
            total = operations(folder / prepare.__name__, prepare)
            for number, half in itertools.product(range(1, total + 1, every), (False, True)):
                root = folder / f"{prepare.__name__}-{number}-{half}"
                prepare(root)
                verdict, kills = chain(root, [CELL], [lambda tell, n=number, h=half, root=root: work(root, kill_at(n, torn=h), tell)], digest)
                tally.add(verdict if kills else "NOT_KILLED", f"{prepare.__name__}, operation {number} of {total}{' (half)' * half}", kills)
    return tally


def chains(count: int, length: int = 20, seed: int = 0) -> Tally:
    """Chains of workers killed at random operations, those that mend what earlier kills left among them."""
    tally, chance = Tally(), random.Random(seed)
    with fast_folder() as folder:
        digest, total = expected(folder, SEVERAL), operations(folder / "count", fresh)
        for number in range(count):
            root, prepare = folder / f"chain{number}", chance.choice(PREPARED)
            points = [(chance.randint(1, total // chance.choice((1, 2, 8))), chance.random() < 0.5) for _ in range(length)]
            prepare(root)
            workers = [lambda tell, n=n, h=h, root=root: work(root, kill_at(n, torn=h), tell, SEVERAL) for n, h in points]
            verdict, kills = chain(root, SEVERAL, workers, digest)
            tally.add(verdict, f"seed {seed}, chain {number} after {prepare.__name__}: {points}", kills)
    return tally


def rivals(every: int = 1) -> Tally:
    """A kill at every `every`-th operation of a second commit with other bytes: the first one stays, whole, and the second is kept aside."""
    tally, node = Tally(), toy.line(CELL)[0]

    def commit(root: Path, content: bytes, fault: Fault) -> Attempt:
        with tapped(fault), Store(root).attempt(node) as attempt:
            (attempt.folder / "corpus.jsonl").write_bytes(content)
        return attempt

    with fast_folder() as folder:
        seen: list[Operation] = []
        commit(folder / "count", b"first", counting([]))
        commit(folder / "count", b"second", counting(seen))
        for number in range(1, len(seen) + 1, every):
            root = folder / str(number)
            commit(root, b"first", counting([]))
            ended = child(lambda root=root, number=number: commit(root, b"second", kill_at(number)) and None)
            last = commit(root, b"third", counting([]))
            first = (Store(root).open(node) / "corpus.jsonl").read_bytes()
            good = ended == -signal.SIGKILL and first == b"first" and last.conflict is not None and last.conflict.folder in Store(root).conflicts()
            tally.add(PASS if good else DOUBLE_COMMIT, f"operation {number} of {len(seen)}", 1)
    return tally


WRITERS: dict[str, tuple[Callable[[Path, int], None], Callable[[int], bytes]]] = {
    "text": (lambda path, n: write_text(path, f"{n}\n" * 4000), lambda n: f"{n}\n".encode() * 4000),
    "json": (lambda path, n: write_json(path, {"n": n}), lambda n: b'{\n  "n": %d\n}\n' % n),
    "jsonl": (lambda path, n: write_jsonl(path, [{"n": n}] * 3000), lambda n: b'{"n":%d}\n' % n * 3000),
}


def files() -> Tally:
    """A kill at every operation of every writer of one file: the old text or the new one, never a third."""
    tally = Tally()
    with fast_folder() as folder:
        for name, (write, text) in WRITERS.items():
            for old in (None, 1):
                for number, half in _points(lambda path=folder / "count", write=write: write(path, 2)):
                    path = folder / f"{name}-{old}-{number}-{half}"
                    if old:
                        write(path, old)
                    ended = child(lambda path=path, write=write, number=number, half=half: _killed(number, half, lambda: write(path, 2)))
                    found = path.read_bytes() if path.exists() else None
                    good = ended == -signal.SIGKILL and found in (text(2), text(old) if old else None)
                    tally.add(PASS if good else HARD_FAIL, f"{name} over {old}, operation {number}", 1)
    return tally


def _points(write: Callable[[], None]) -> Iterator[tuple[int, bool]]:
    seen: list[Operation] = []
    with tapped(counting(seen)):
        write()
    yield from ((number, half) for number in range(1, len(seen) + 1) for half in (False, True))


def _killed(number: int, torn: bool, action: Callable[[], None]) -> None:
    with tapped(kill_at(number, torn=torn)):
        action()
