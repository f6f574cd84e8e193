"""A whole sweep, ours beside what users do.

    python -m benchmarks.sweep --workload tiny          python -m benchmarks.sweep --workload cpu --peer-cells 2 --cold-cells 2
    python -m benchmarks.sweep --workload cpu --widths 64,128,256,512
    python -m benchmarks.sweep --workload ratio --documents 1,2,4,8,16,32,64

    ours     stacks of cells in one bank, probed from the bank: one process, and two processes of one thread
    P0       `accelerate launch` of a plain Trainer script, then lm-eval in a process of its own, for every cell; wall, threads as they come
    P1       Trainer and lm-eval warm in one process
    P2       a tuned loop with peft, the base loaded once; with one thread and with two
    P3       P2 as two processes of one thread
    P4       mLoRA, where --mlora names a Python and a checkout; trains only
    P6       torch.func.vmap over stacked LoRA weights; trains only

Same documents in the same order, same fresh adapters. Beside each figure stands its verdict: the largest difference in
nats of the log-probabilities of all options asked, of its adapters from ours under one judge (equal: 1e-3 after 32
steps; training in float32 amplifies rounding, so P2 with two threads against P2 with one is the floor), and of its own
scores from the judge's (equal: 1e-4). Seconds are of the wall; --clock cpu takes CPU seconds for what uses one core,
where the machine is shared. lm-eval is an extra: pip install -c constraints.txt -e '.[bench]'.
"""

import argparse
import platform
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from benchmarks.sweep.curves import MEMBERS, STEPS, Bound, cells_curve, documents_curve, probes_curve, widths_curve
from benchmarks.sweep.ours import most
from benchmarks.sweep.peers import ONE, Plan, measure, table
from benchmarks.sweep.work import Work
from benchmarks.sweep.workloads import RECIPES, Size, build
from persona_lab.config.schema import Machine
from persona_lab.experiment.planning.frontier import stack_size

WAYS = ("ours", "P0", "P1", "P2", "P3", "P4", "P6")
HARNESS = ("P0", "P1")


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(number) for number in text.split(",") if number]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser("benchmarks.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--workload", choices=list(RECIPES), default="tiny")
    found.add_argument("--ways", default=",".join(WAYS), help="which to measure")
    found.add_argument("--repeats", type=int, default=5)
    found.add_argument("--cells", type=int, default=64)
    found.add_argument("--peer-cells", type=int, default=4, help="of one repeat, for the ways that take one at a time")
    found.add_argument("--cold-cells", type=int, default=4, help="for P0, once; 0 leaves it out")
    found.add_argument("--questions", type=int, default=200)
    found.add_argument("--stack", type=int, default=0, help="cells trained together; 0: the engine's choice")
    found.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    found.add_argument("--fit", type=numbers, default=[1, 4, 16, 64], help="cells of whole sweeps from nothing; '' leaves them out")
    found.add_argument("--cold-fit", type=numbers, default=[1, 2, 4], help="the same for P0")
    found.add_argument("--mlora", nargs=2, metavar=("PYTHON", "CHECKOUT"))
    found.add_argument("--widths", type=numbers, default=[], help="only this curve")
    found.add_argument("--documents", type=numbers, default=[], help="only this curve: documents of a step")
    return found


def report(plan: Plan, options: argparse.Namespace) -> Iterator[str]:
    """Every line of the report."""
    recipe = plan.work.recipe
    if options.widths or options.documents:
        yield f"{plan.work.name}: batches of {recipe.batch}, {STEPS} steps, {plan.repeats} repeats, one thread, {plan.clock} seconds, median [quartiles]"
        if options.widths:
            size = Size(MEMBERS, STEPS * recipe.batch, 1)
            yield from widths_curve(plan, options.widths, lambda width, folder: build(plan.work.name, folder, Size(size.cells, size.documents, 1, width)))
        if options.documents:
            yield from documents_curve(plan, options.documents)
        return
    names = options.ways.split(",")
    if not find_spec("lm_eval"):
        yield "P0 and P1 are left out: lm-eval is not installed. Use pip install -c constraints.txt -e '.[bench]'"
        names = [name for name in names if name not in HARNESS]
    stack = chosen_stack(plan)
    yield f"{plan.work.name}: {plan.cells} cells of {recipe.steps} steps of {recipe.batch} documents, {plan.questions} questions; stacks of {stack}, {plan.repeats} repeats (P0 once), median [quartiles]"
    bound = Bound(plan, stack)
    found = measure(plan, names, bound.measure)
    yield from table(plan, found)
    for one in found:
        if one.crew.name == ONE:
            yield from bound.lines(one.train)
    yield from probes_curve(plan)
    if counts := [n for n in options.fit if n <= plan.cells]:
        yield from cells_curve(plan, counts, [n for n in options.cold_fit if n <= plan.cells] if "P0" in names and options.cold_cells else [])


def chosen_stack(plan: Plan) -> int:
    """What one process would take."""
    return stack_size(Machine(stack=plan.stack or "auto"), most(plan.work, plan.work.recipe.batch), plan.cells, 1)


def built(options: argparse.Namespace, folder: Path) -> Work:
    """The workload, no larger than it is needed."""
    recipe = RECIPES[options.workload]
    documents = STEPS * max(options.documents) if options.documents else recipe.steps * recipe.batch
    cells = MEMBERS if options.documents or options.widths else options.cells
    return build(options.workload, folder, Size(cells, documents, options.questions))


def versions() -> str:
    """Of what is measured."""
    packages = [p for p in ("torch", "transformers", "peft", "accelerate", "lm_eval") if find_spec(p)]
    return ", ".join([f"python {platform.python_version()}", *(f"{p} {metadata.version(p)}" for p in packages)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser().parse_args(arguments)
    print(versions(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = built(options, Path(folder) / "work")
        plan = Plan(
            work,
            cells=min(options.cells, work.cells),
            peer_cells=options.peer_cells,
            cold_cells=options.cold_cells,
            repeats=options.repeats,
            questions=options.questions,
            stack=options.stack,
            clock=options.clock,
            mlora=tuple(options.mlora) if options.mlora else None,
        )
        for said in report(plan, options):
            print(said, flush=True)


if __name__ == "__main__":
    main()
