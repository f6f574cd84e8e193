"""What safety costs: one commit and one verified opening beside a cell's time, and `status` over a full store.

    python -m benchmarks.commit --runs runs --nodes 20000

A payload as large as that of a stage of the quickstart is written as plain files and as a committed node, in turn, on the
disk of the runs; what a commit adds is the difference. A cell's time is what its stages and scores took by the manifests of the
store, or `--cell-seconds`. The full store lies in memory where there is some: its disk is not what is measured.
"""

import argparse
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from persona_lab.design import Node
from persona_lab.errors import EnvironmentFault
from persona_lab.store import Store, write_json

NODES_OF_A_CELL = 4
"""Two stages, and scores after each."""
PAYLOAD = {"adapter/adapter_model.safetensors": 52_000, "adapter/adapter_config.json": 1_000, "state.safetensors": 104_000, "log.jsonl": 4_000}
"""Bytes by file of a stage of the quickstart."""


def write_plain(folder: Path) -> None:
    """The payload as anybody would write it."""
    for name, size in PAYLOAD.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(secrets.token_bytes(size))


def cpu_and_wall(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of this process on a processor, and on the clock."""
    start = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - start[0], time.perf_counter() - start[1]


def seconds(action: Callable[[], object]) -> float:
    """How long it takes, wall clock."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def commits(root: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way to write, and of opening what was committed."""
    found: dict[str, list[float]] = {"plain files": [], "a committed node": [], "opening it, every byte verified": [], "looking whether it is there": []}
    store = Store(root / "store")

    def commit(node: Node) -> None:
        with store.attempt(node) as attempt:
            write_plain(attempt.folder)

    commit(Node("stage", {"warm": 1}))
    for repeat in range(repeats):
        node = Node("stage", {"repeat": repeat})
        found["plain files"].append(seconds(lambda repeat=repeat: write_plain(root / "plain" / str(repeat))))
        found["a committed node"].append(seconds(lambda node=node: commit(node)))
        found["opening it, every byte verified"].append(seconds(lambda node=node: Store(root / "store").open(node)))
        found["looking whether it is there"].append(seconds(lambda node=node: Store(root / "store").has(node)))
    return found


def full_store(root: Path, nodes: int) -> dict[str, tuple[float, float]]:
    """CPU and wall-clock seconds of what `status` does, over a store of so many nodes."""
    store = Store(root / "full")
    made = [Node("scores", {"n": n, "probes": ["knows", "says", "chooses"]}) for n in range(nodes)]
    for node in made:
        with store.attempt(node) as attempt:
            write_json(attempt.folder / "rows.json", {"n": node.fields["n"]})
    looked, read = Store(root / "full"), Store(root / "full")
    return {
        "reading every manifest": cpu_and_wall(lambda: sum(1 for _ in read.nodes())),
        "looking for every node after that": cpu_and_wall(lambda: [read.has(node) for node in made]),
        "looking for every node alone": cpu_and_wall(lambda: [looked.has(node) for node in made]),
    }


def cell_seconds(runs: Path) -> float:
    """Mean seconds of two stages and of scores after each, by the manifests of a store; EnvironmentFault when it holds none."""
    manifests = list(Store(runs / "store").nodes())
    spent = {kind: [m["notes"]["seconds"] for found, _, m in manifests if found == kind and "seconds" in m["notes"]] for kind in ("stage", "scores")}
    if not all(spent.values()):
        raise EnvironmentFault("PL5102", str(runs / "store"), "holds no cell to compare with. Run configs/quickstart.yaml first, or give --cell-seconds.")
    return 2 * statistics.fmean(spent["stage"]) + 2 * statistics.fmean(spent["scores"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="Where the disk is measured, and cells are looked for.")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--cell-seconds", type=float)
    options = parser.parse_args()
    cell = options.cell_seconds or cell_seconds(options.runs)
    options.runs.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=".commit-", dir=options.runs))
    try:
        measured = commits(root, options.repeats)
    finally:
        shutil.rmtree(root)
    for what, values in measured.items():
        ordered = sorted(values)
        print(f"{what}: median {1e3 * statistics.median(values):.2f} ms, 95th percentile {1e3 * ordered[int(0.95 * len(ordered))]:.2f} ms")
    added = statistics.median(measured["a committed node"]) - statistics.median(measured["plain files"])
    print(f"a cell takes {cell:.2f} s and commits {NODES_OF_A_CELL} nodes: its commits add {100 * NODES_OF_A_CELL * added / cell:.3f} % of its time")
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="commit-", dir=memory if memory.is_dir() else None))
    try:
        for what, (cpu, wall) in full_store(root, options.nodes).items():
            print(f"{what}, {options.nodes:,} nodes: {cpu:.2f} s on a processor, {wall:.2f} s on the clock")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
