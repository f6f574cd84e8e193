"""How the cost grows: with cells, with probes, with the model, and with the documents of a step."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.flops import product_rate, spread, train_flops
from benchmarks.sweep.crews import Clock, Cold, Residents, residents
from benchmarks.sweep.peers import Plan
from benchmarks.sweep.work import Work
from benchmarks.sweep.worker import Order
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import load_model
from persona_lab.models.lora import LoraShape

GAIN = 1.1
"""A stack that gains less than this is not worth its memory."""
MEMBERS, STEPS = 8, 8
"""Of the curves over widths and documents."""


def line(cells: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """T0 and c of seconds = T0 + c * cells, by least squares."""
    c, start = np.polyfit(cells, seconds, 1)
    return float(start), float(c)


def cells_curve(plan: Plan, counts: Sequence[int], cold_counts: Sequence[int]) -> Iterator[str]:
    """Whole sweeps from nothing: start of the processes, loading, training, adapters on disk, probes."""

    def ours(cells: int) -> float:
        crew = residents("ours", "curve", plan.work, workers=2, threads=1)
        took = crew.do(plan.order("curve", list(range(cells))))
        crew.close()
        return crew.start_up + took.whole

    seconds = {n: [ours(n) for _ in range(plan.repeats)] for n in counts}
    (start, c), most = line(counts, [statistics.median(seconds[n]) for n in counts]), max(counts)
    yield from (f"    {n} cells: {spread(seconds[n])} s" for n in counts)
    yield f"ours, 2 processes, from nothing: T = {start:.2f} s + {c:.3f} s * cells (wall)"
    if not cold_counts:
        return
    cold = [Cold(plan.work).do(plan.order("curve-cold", list(range(n)))).whole for n in cold_counts]
    cold_start, cold_c = line(cold_counts, cold) if len(cold) > 1 else (0.0, cold[0] / cold_counts[0])
    yield f"P0, a launch a cell: T = {cold_start:.2f} s + {cold_c:.2f} s * cells (wall; over {', '.join(map(str, cold_counts))} cells)"
    yield f"{most} cells end to end: ours {statistics.median(seconds[most]):.1f} s, P0 {cold_start + cold_c * most:.0f} s (extrapolated): x{(cold_start + cold_c * most) / statistics.median(seconds[most]):.1f}"
    yield f"one more cell costs {100 * c / cold_c:.1f} % of P0's"


def probes_curve(plan: Plan) -> Iterator[str]:
    """One more question to one more cell."""
    crew = residents("ours", "probes", plan.work, workers=1, threads=1)
    half, cells = plan.questions // 2, list(range(plan.cells))
    crew.do(plan.order("probes", cells[:2], steps=2))
    each: dict[int, list[float]] = {half: [], plan.questions: []}
    for _ in range(plan.repeats):
        for questions, seconds in each.items():
            seconds.append(crew.do(plan.order("probes", cells, steps=1, questions=questions)).seconds(plan.clock, "probe") / plan.cells)
    crew.close()
    low, high = (statistics.median(seconds) for seconds in each.values())
    yield f"probes of a cell: {half} questions {spread([1e3 * s for s in each[half]])} ms, {plan.questions} questions {spread([1e3 * s for s in each[plan.questions]])} ms"
    yield f"one more question to one cell costs {1e6 * (high - low) / (plan.questions - half):.0f} us"


def step_seconds(crew: Residents, order: Order, clock: Clock) -> float:
    """Seconds of a step of one cell."""
    return crew.do(order).seconds(clock, "train") / len(order.cells) / order.steps


def widths_curve(plan: Plan, widths: Sequence[int], build: Callable[[int, Path], Work]) -> Iterator[str]:
    """Seconds of a step of one cell against the width of the model, one thread."""
    yield f"{'width':>7} {'ours, ms a step of a cell':>32} {'P2 loop':>32}"
    for width in widths:
        work = build(width, plan.work.folder / f"width{width}")
        here = replace(plan, work=work)
        named = {name: residents(way, name, work, workers=1, threads=1) for way, name in (("ours", "ours"), ("loop", "P2"))}
        seconds: dict[str, list[float]] = {name: [] for name in named}
        for repeat in range(-1, plan.repeats):
            for name, crew in named.items():
                cells = list(range(work.cells if name == "ours" else 2))
                took = step_seconds(crew, here.order(name, cells, steps=STEPS, questions=0), plan.clock)
                seconds[name] += [1e3 * took] if repeat >= 0 else []
        for crew in named.values():
            crew.close()
        ours, loop = (statistics.median(seconds[name]) for name in named)
        yield f"{width:>7} {spread(seconds['ours']):>32} {spread(seconds['P2']):>32}  x{loop / ours:.2f}"


def documents_curve(plan: Plan, documents: Sequence[int]) -> Iterator[str]:
    """What a stack of 8 gains over one cell at a time, one thread, and from which step size on it gains nothing."""
    crew = residents("ours", "documents", plan.work, workers=1, threads=1)
    lengths = token_lengths(plan.work, 0)
    cells, last = list(range(min(MEMBERS, plan.cells))), None
    crew.do(plan.order("documents", cells, steps=2, questions=0))
    for number in documents:
        seconds: dict[int, list[float]] = {1: [], MEMBERS: []}
        for _ in range(plan.repeats):
            for stack, took in seconds.items():
                took.append(1e3 * step_seconds(crew, plan.order("documents", cells, steps=STEPS, batch=number, stack=stack, questions=0), plan.clock))
        gain = statistics.median(seconds[1]) / statistics.median(seconds[MEMBERS])
        tokens = round(number * statistics.mean(lengths))
        yield f"{number:>4} documents, {tokens:>6} tokens a step of a cell: K = 1 {spread(seconds[1])} ms, K = {MEMBERS} {spread(seconds[MEMBERS])} ms, gain x{gain:.2f}"
        if gain < GAIN and last is None:
            last = tokens
    crew.close()
    yield f"the gain is under x{GAIN} from {last} tokens a step on" if last else f"the gain is over x{GAIN} at every size measured"


def token_lengths(work: Work, cell: int) -> list[int]:
    """Tokens of the documents of a cell, with the end of each."""
    _, tokenizer = load_model(str(work.base))
    return [len(ids) + 1 for ids in tokenizer(work.texts(cell))["input_ids"]]


class Bound:
    """How near training comes to the time that its products alone would take on one core; `measure` is called between the repeats."""

    def __init__(self, plan: Plan, stack: int) -> None:
        torch.set_num_threads(1)
        model, _ = load_model(str(plan.work.base))
        recipe, config = plan.work.recipe, model.config
        lengths = token_lengths(plan.work, 0)[: recipe.steps * recipe.batch]
        self.steps, self.stack, self.tokens = recipe.steps, stack, sum(lengths) // recipe.steps
        self.flops = train_flops(AdapterBank(model, LoraShape(recipe.rank, recipe.alpha)), lengths)
        shapes = {"the step's own shape": (stack * self.tokens, config.hidden_size, config.intermediate_size), "a cube": (1024, 1024, 1024)}
        clock = time.process_time if plan.clock == "cpu" else time.perf_counter
        self.ways = {f"{name}, {m} x {k} x {n}": product_rate(m, k, n, clock) for name, (m, k, n) in shapes.items()}
        self.rates: dict[str, list[float]] = {name: [] for name in self.ways}

    def measure(self) -> None:
        """The rate of every shape once more."""
        for name, way in self.ways.items():
            self.rates[name].append(way())

    def lines(self, train: Sequence[float]) -> Iterator[str]:
        """For seconds of training a cell, one of each repeat."""
        yield f"{self.tokens} tokens and {self.flops / self.steps / 1e9:.3f} GFLOP a step of a cell; {self.stack} cells a stack"
        for name, rates in self.rates.items():
            shares = [100 * self.flops / rate / seconds for rate, seconds in zip(rates, train, strict=True)]
            bound = self.flops / statistics.median(rates)
            yield (
                f"at the product rate of {name} ({statistics.median(rates) / 1e9:.0f} GFLOP/s): the bound is {bound:.4f} s a cell, "
                f"training takes {statistics.median(train) / bound:.2f} times that, a share of {spread(shares)} %"
            )
