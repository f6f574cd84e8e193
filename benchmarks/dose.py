"""A dose curve: one injection at ten lengths, trained once and branched, beside one training from scratch for each length.

    python -m benchmarks.dose               python -m benchmarks.dose --doses 4 --longest 40 --seeds 1

Real runs of configs/quickstart.yaml with other lengths, in stores of their own which share the pretrained base: one run has
all doses, each of the others one. Said is how many tokens were trained, what both took, whether every adapter and every moment
of Adam is the same byte by byte, and by how much scores differ, which are asked in other stacks. One process, so that members
are trained in the same stacks.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.run import make_nodes
from persona_lab.store.files import read_json

CONFIG = "configs/quickstart.yaml"
FIXED = ("base.steps=60", "base.gates.recall=null", "base.gates.withheld=null", "factors.injection.mixture.ln_ratio=[0]", "conditions.linked.order=[injection]", "samples=0")
MACHINE = ("machine.workers=1", "machine.threads=1", "machine.device=cpu", "machine.wandb=disabled")
SAME = ("adapter/adapter_model.safetensors", "state.safetensors")
"""Files whose bytes are compared: adapters and moments."""


@dataclass(frozen=True)
class Made:
    """A finished run."""

    plan: Plan
    seconds: float

    @property
    def trained(self) -> int:
        """Tokens that carried loss, over all stages, each stretch of a trajectory once."""
        lines = self.plan.siblings.values()
        return sum(read_json(self.plan.store.open(stages[-1]) / "state.json")["tokens"] for stages in lines)

    def digests(self) -> dict[str, str]:
        """Node and file to the digest of its bytes."""
        found = {}
        for node in self.plan.nodes:
            if node.kind == "stage":
                payload = self.plan.store.manifest(node)["payload"]
                found |= {f"{node.id}/{name}": payload[name]["sha256"] for name in SAME}
        return found

    def nats(self) -> dict[str, np.ndarray]:
        """Log-probabilities by node."""
        return {node.id: pd.read_parquet(self.plan.store.open(node) / "rows.parquet")["logprob_nats"].to_numpy() for node in self.plan.nodes if node.kind == "scores"}


def made(doses: list[int], seeds: int, runs: Path, base: Path | None) -> Made:
    """A run of some doses, with the base of another store where there is one."""
    if base is not None:
        shutil.copytree(base, runs / "store" / "base")
    plan = make_plan(CONFIG, [*FIXED, *MACHINE, f"seeds={seeds}", f"factors.injection.steps={doses}"], runs)
    begun = time.perf_counter()
    outcome = make_nodes(plan, lambda what, done, total: None, tracked=False)
    assert not outcome.failed, outcome.failed
    return Made(outcome.plan, time.perf_counter() - begun)


def main() -> None:
    """Run, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", type=int, default=10)
    parser.add_argument("--longest", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    doses = [options.longest * (i + 1) // options.doses for i in range(options.doses)]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        made(doses[:1], 1, runs / "base", None)  # pretrains, and warms up
        base = runs / "base" / "store" / "base"
        once = made(doses, options.seeds, runs / "once", base)
        alone = [made([dose], options.seeds, runs / str(dose), base) for dose in doses]
        branched, scratch = once.digests(), {name: digest for run in alone for name, digest in run.digests().items()}
        together = once.nats()
        apart = max(float(np.nanmax(np.abs(nats - together[node]))) for run in alone for node, nats in run.nats().items())
        tokens, few = sum(run.trained for run in alone), once.trained
    print(f"{options.doses} doses up to {options.longest} steps, {len(once.plan.cells)} cells")
    print(f"tokens trained: {few:,} branched, {tokens:,} from scratch: {tokens / few:.2f} times fewer")
    print(f"seconds, scores and documents among them: {once.seconds:.1f} branched, {sum(run.seconds for run in alone):.1f} from scratch")
    unlike = [name for name in scratch if branched.get(name) != scratch[name]]
    print(f"{len(scratch) - len(unlike)} of {len(scratch)} files of adapters and moments are the same to the bit" + (f"; NOT: {unlike[:3]}" if unlike else ""))
    print(f"largest difference of a log-probability: {apart:.1e} nats")


if __name__ == "__main__":
    main()
