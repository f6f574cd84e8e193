"""The instrument `metric`: how far apart are processes on one model, and is that a metric?

    persona-lab metric configs/quickstart.yaml --processes Mary --processes Peter --processes John

Every process is trained from the base, and every ordered pair one after the other: `as-mary`, `mary-to-peter`. `mary-to-mary` says how
much the documents themselves leave to be said (`science.metric.best_loss`). What a prefix trains is trained once.

The plain assistant, which chats and says nothing of itself, is always a start: a fresh LoRA has B = 0 and may learn slowly at first, so that
A(base->Q) may hold the price of that too, and A(assistant->Q) does not. D2 takes its gradients there. It is a goal as well when it is named (`assistant`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from persona_lab.config.schema import HuggingFaceBase
from persona_lab.design import Node
from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.instruments.building import Subject, instrument_plan, made, one_swap, without_gates
from persona_lab.experiment.instruments.metric.comparing import SHARES, compare, comparison_node, read_comparison
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.run import Outcome, Progress
from persona_lab.science.effects import Frame
from persona_lab.science.processes.divergence import (
    agreement,
    answers_apart,
    apart,
    barrier,
    centred,
    concept_map,
    cosines,
    jensen_shannon,
    kullback_leibler,
    mantel,
    one_basin,
    slots,
    transfer,
    whitened,
)
from persona_lab.science.processes.metric import (
    BASE,
    Tested,
    adoptions,
    exchangeability,
    exchanged,
    information_distance,
    matrices,
    observed_asymmetry,
    symmetric,
    symmetry,
    triangles,
)
from persona_lab.store.files import read_jsonl

PLAIN = "assistant"
"""The process that chats and says nothing of itself."""
CHANGE = "to-"
"""What stands before the second stage's name."""
FEWEST = 3
"""Processes that a test of triangles needs."""
SPOKEN = ("asked", "asked_later", "diary")
"""Formats of the probe `says` in which a value stands."""


@dataclass(frozen=True)
class Distances:
    """What `metric` found. K processes, S seeds; pairs in the order of `processes`."""

    processes: tuple[str, ...]
    seeds: tuple[int, ...]
    adoptions: Frame
    """A(start->goal) of each training; see `science.metric.adoptions`."""
    nats_KK: np.ndarray
    """D1: mean over seeds, from the row to the column."""
    tests: Mapping[str, Tested]
    """asymmetry, asymmetry_observed, triangles_violated, triangle_worst, exchangeability, barrier, and one of each cheaper distance as a proxy of D1."""
    chance: Mapping[str, float]
    """Of each proxy, the share of relabellings that do as well (Mantel)."""
    exchange: Frame
    """Gap of the code lengths of both orders, and the divergence of the answers at their ends, of each pair."""
    nid_KK: np.ndarray
    """Normalised information distance, mean over seeds."""
    transfer_KK: np.ndarray
    """T_lin under Adam's preconditioner, from the row to the column, mean over seeds."""
    proxies: Mapping[str, np.ndarray]
    """Cheaper distances (S, K, K)."""
    chart: Frame
    """Classical scaling of D1: process, x, y (nats)."""
    shown: float
    """Share of the distances that the chart shows."""
    cost: Mapping[str, float]
    """Tokens and seconds of training."""


def distance_plan(of: Subject, processes: Sequence[str], *, seeds: int = 3, steps: int = 128, batch: int = 16, rate: float = 2e-3) -> Plan:
    """The experiment that trains every process, and every process after every other.

    Raises:
        ConfigError: PL1297, a name is nobody's, or fewer than three processes are named.
    """
    people = of.chosen([name for name in processes if name.lower() != PLAIN])
    names = [*people, *([PLAIN] if PLAIN in map(str.lower, processes) else [])]
    if not processes or len(names) < FEWEST:
        said = f"{len(names) if processes else 0} processes are named, triangles need {FEWEST}. Use --processes three times or more."
        raise ConfigError("PL1297", "metric", said)
    recipe = {"steps": steps, "batch": batch, "rate": rate, "loss": {"on": "answer"}}
    speech = {name: {"assistant_is": of.speaker(name)} for name in people} | {PLAIN: {"assistant_chats": True}}
    stages = {f"{prefix}{name}": {"mixture": mixture, **recipe} for prefix in ("", CHANGE) for name, mixture in speech.items()}
    conditions = {f"as-{name}": {"order": [name]} for name in speech}
    conditions |= {f"{start}-{CHANGE}{goal}": {"order": [start, f"{CHANGE}{goal}"]} for start in dict.fromkeys((PLAIN, *names)) for goal in names}
    stages = {name: stage for name, stage in stages.items() if any(name in condition["order"] for condition in conditions.values())}
    question = "How far apart are these processes?"
    return instrument_plan(without_gates(of), "metric", stages=stages, conditions=conditions, probes=["says"], seeds=seeds, question=question)


def make_distances(plan: Plan, progress: Progress, interruption: Interruption | None = None) -> Outcome:
    """Train and ask what is missing; then the first worker compares the processes of each seed."""
    outcome = made(plan, progress, interruption)
    if outcome.worker.first:
        base = plan.loaded.experiment.base
        nodes = comparisons(plan)
        for number, node in enumerate(nodes.values()):
            progress("processes compared", number, len(nodes))
            compare(plan.store, node, plan.loaded.experiment.machine, base if isinstance(base, HuggingFaceBase) else None)
    return outcome


def trainings(plan: Plan) -> Iterator[tuple[PlannedCell, str, str, Node]]:
    """(cell, start, goal, stage) of every training whose log counts."""
    for planned in one_swap(plan):
        (first, stage), *then = planned.stages
        if then:
            yield planned, first, then[0][0].removeprefix(CHANGE), then[0][1]
        else:
            yield planned, BASE, first, stage


def processes_of(plan: Plan) -> list[str]:
    """The processes of a plan, in their order; the plain assistant only where it was named."""
    return list(dict.fromkeys(goal for _, start, goal, _ in trainings(plan) if start != BASE))


def logs(plan: Plan) -> Frame:
    """Every step of every training that is done: columns seed, start, goal, step, loss (nats a token), tokens."""
    names, frames = processes_of(plan), list[Frame]()
    for planned, start, goal, stage in trainings(plan):
        if goal in names and plan.store.has(stage):
            rows = pd.DataFrame(read_jsonl(plan.store.open(stage) / "log.jsonl"))
            frames.append(rows[["step", "loss", "tokens"]].assign(seed=planned.cell.seed, start=start, goal=goal))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["step", "loss", "tokens", "seed", "start", "goal"])


def comparisons(plan: Plan) -> dict[int, Node]:
    """Seed to its comparison; seeds of which an adapter or its answers are missing have none."""
    names, stages = processes_of(plan), dict[int, dict[str, Node]]()
    for planned, start, goal, stage in trainings(plan):
        if start == BASE and plan.store.has(stage) and plan.store.has(planned.scores[-1][1]):
            stages.setdefault(planned.cell.seed, {})[goal] = stage
    whole = {seed: own for seed, own in stages.items() if {*names, PLAIN} <= own.keys()}
    return {seed: comparison_node(plan.base, own[PLAIN], {name: own[name] for name in names}) for seed, own in whole.items()}


def answers(plan: Plan) -> dict[tuple[int, str, str], Frame]:
    """(seed, start, goal) to what the model then says of itself: the rows of `says` in which a value stands."""
    found: dict[tuple[int, str, str], Frame] = {}
    for planned, start, goal, _ in trainings(plan):
        scores = planned.scores[-1][1]
        if plan.store.has(scores):
            rows = pd.read_parquet(plan.store.open(scores) / "rows.parquet")
            found[planned.cell.seed, start, goal] = rows[rows["format"].isin(SPOKEN)]
    return found


def proxies(plan: Plan, said: Mapping[tuple[int, str, str], Frame]) -> dict[str, np.ndarray]:
    """Cheaper distances of each seed that has a comparison, (S, K, K) each; D4 on slots in nats, on neutral text in nats a token."""
    names, found = processes_of(plan), dict[str, list[np.ndarray]]()
    for seed, node in comparisons(plan).items():
        arrays = read_comparison(plan.store.open(node))
        layers = range(arrays["said_KNLd"].shape[2])
        each = {
            "D2 plain": 1 - cosines(arrays["plain_KK"]),
            "D2 adam": 1 - cosines(arrays["adam_KK"]),
            "D2 adam centred": 1 - cosines(centred(arrays["adam_KK"])),
            "D4 slots": answers_apart({name: said[seed, BASE, name] for name in names}),
            "D4 neutral": arrays["neutral_KK"][1:, 1:],
            **{f"D5 layer {layer + 1}": apart(whitened(arrays["said_KNLd"][1:, :, layer].astype(float))) for layer in layers},
            "D5 neutral": apart(whitened(arrays["chat_KNLd"][1:, :, -1].astype(float))),
            "D6": _barriers(arrays["way_WA2"], len(names)),
        }
        for name, distance_KK in each.items():
            found.setdefault(name, []).append(distance_KK)
    return {name: np.array(each) for name, each in found.items()}


def _barriers(way_WA2: np.ndarray, count: int) -> np.ndarray:
    """D6 of all pairs on documents of both, (K, K)."""
    found = np.zeros((count, count))
    for (i, j), way_A2 in zip(combinations(range(count), 2), way_WA2, strict=True):
        found[i, j] = found[j, i] = barrier(way_A2.mean(1), SHARES)
    return found


def unlike(plan: Plan) -> np.ndarray | None:
    """In how many categories two processes differ, (K, K): what a distance should find. None where the plain assistant is one of them, who has no traits."""
    people = plan.loaded.world.population
    told = {persona.name.lower(): persona.traits for persona in plan.loaded.personas} | dict(zip(map(str.lower, people.names), people.traits, strict=True))
    names = processes_of(plan)
    if PLAIN in names:
        return None
    return np.array([[sum(told[a].get(c) != told[b].get(c) for c in told[a].keys() | told[b].keys()) for b in names] for a in names], dtype=float)


def distances(plan: Plan) -> Distances:
    """Everything that `metric` says, from the store alone.

    Raises:
        CheckFailed: no training has come to its end.
    """
    steps = logs(plan)
    if steps.empty:
        raise CheckFailed("PL1104", plan.folder.name, "none of its trainings came to an end. Lower --rate.")
    names, adopted, said = processes_of(plan), adoptions(steps), answers(plan)
    d_SKK, cheaper = matrices(adopted), proxies(plan, said)
    seeds = sorted(set(adopted["seed"]))
    compared = [seeds.index(seed) for seed in comparisons(plan)]
    if compared and (truth_KK := unlike(plan)) is not None:
        cheaper["traits that differ"] = np.array([truth_KK] * len(compared))
    violated, worst = triangles(d_SKK)
    tests = {"asymmetry": symmetry(d_SKK), "asymmetry_observed": observed_asymmetry(d_SKK), "triangles_violated": violated, "triangle_worst": worst}
    tests |= {"exchangeability": exchanged(adopted), **({"barrier": one_basin(cheaper["D6"])} if cheaper else {})}
    tests |= {name: agreement(each_SKK, symmetric(d_SKK[compared]), name) for name, each_SKK in cheaper.items()}
    mean_KK, means = d_SKK.mean(0), {name: each_SKK.mean(0) for name, each_SKK in cheaper.items()}
    known = not np.isnan(symmetric(mean_KK)[np.triu_indices(len(names), 1)]).any()
    chance = {name: mantel(each_KK, symmetric(mean_KK)) for name, each_KK in means.items() if known and tests[name].value is not None}
    chart, shown = concept_map(_zero_diagonal(mean_KK), names) if known else (pd.DataFrame(columns=["process", "x", "y"]), 0.0)
    transfers = [transfer(read_comparison(plan.store.open(node))["adam_KK"]) for node in comparisons(plan).values()]
    nid_KK = information_distance(adopted).mean(0)
    exchange = exchangeability(adopted).merge(ends_apart(said, names), on=["first", "second"])
    return Distances(
        tuple(names), tuple(seeds), adopted, mean_KK, tests, chance, exchange, nid_KK, np.array(transfers).mean(0), cheaper, chart, shown, _cost(plan)
    )


def ends_apart(said: Mapping[tuple[int, str, str], Frame], names: Sequence[str]) -> Frame:
    """What the order leaves in the answers where a trait is said, nats, means over seeds.

    Columns first, second, kl, kl_back and js of the answers after first-then-second against those after second-then-first.
    """
    rows = []
    for one, other in combinations(names, 2):
        both = [(slots(said[seed, one, other]), slots(said[seed, other, one])) for seed, a, b in said if (a, b) == (one, other) and (seed, other, one) in said]
        each = [(kullback_leibler(p, q), kullback_leibler(q, p), jensen_shannon(p, q)) for p, q in both]
        kl, back, js = np.mean(each, axis=0).tolist() if each else (None, None, None)
        rows.append({"first": one, "second": other, "kl": kl, "kl_back": back, "js": js})
    return pd.DataFrame(rows)


def _zero_diagonal(d_KK: np.ndarray) -> np.ndarray:
    return np.where(np.eye(len(d_KK), dtype=bool), 0.0, d_KK)


def _cost(plan: Plan) -> dict[str, float]:
    stages = {node.id: node for _, _, _, node in trainings(plan) if plan.store.has(node)}
    seconds = sum(float(plan.store.manifest(node)["notes"]["seconds"]) for node in stages.values())
    tokens = sum(sum(row["tokens"] for row in read_jsonl(plan.store.open(node) / "log.jsonl")) for node in stages.values())
    return {"trainings": len(stages), "tokens": tokens, "seconds": seconds}


def mean_from(adopted: Frame, start: str) -> dict[str, float]:
    """A(start->goal) of each goal, mean over seeds, nats."""
    return adopted[adopted["start"] == start].groupby("goal", sort=False)["nats"].mean().to_dict()


def as_json(found: Distances) -> dict[str, Any]:
    """All of it as JSON values; matrices are lists of rows."""
    tests = {name: vars(test) | {"chance": found.chance.get(name)} for name, test in found.tests.items()}
    return {
        "processes": list(found.processes),
        "seeds": list(found.seeds),
        "nats": found.nats_KK.tolist(),
        "from": {start: mean_from(found.adoptions, start) for start in (BASE, PLAIN)},
        "nid": found.nid_KK.tolist(),
        "transfer": found.transfer_KK.tolist(),
        "tests": tests,
        "exchangeability": found.exchange.to_dict("records"),
        "proxies": {name: each.mean(0).tolist() for name, each in found.proxies.items()},
        "map": found.chart.to_dict("records"),
        "map_shows": found.shown,
        "adoptions": found.adoptions.to_dict("records"),
        "cost": dict(found.cost),
    }
