"""The ideal reader of a run: what exact Bayes believes after the very documents that a cell was trained on.

    reader = ideal_reader(base, stages)             the base's node and the stages' nodes of one cell, in order
    ideal_odds(reader, "John", "Sam", {"sport": ("football", "basketball"), ...})
        -> exact 1.38, exact_prior 1.39, exact_evidence 0.0     nats, toward the first

Every document weighs alike, wherever it stood: the base's own text and replay are the world's, documents about personas inject them
(`data_gen.oracle.Oracle.after`), and what the nameless assistant says in a stage is evidence about who it is. exact_prior is the log-odds
of the two processes before that, exact_evidence what its documents add, and exact the log-odds of their values after it (reference 8.3).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data_gen.errors import DataError
from data_gen.market import Market
from data_gen.market_oracle import days_odds
from data_gen.oracle import Injected, Oracle
from data_gen.telling import read_world
from persona_lab.design import Node


@dataclass(frozen=True)
class Reader:
    """An exact oracle after injection, and what the assistant then said."""

    oracle: Oracle
    said: Counter[tuple[tuple[str, str], ...]]
    """How many documents told these pairs of category and value."""


@dataclass(frozen=True)
class Unknown:
    """There is no ideal reader of a run, and why."""

    reason: str


def ideal_reader(base: Node, stages: Sequence[Node]) -> Reader | Unknown:
    """The reader of a base's text and of some stages, from their recipes alone.

    Unknown where the base's text is not this world's, or where a stage's text is no known process's (shuffled traits).
    """
    if base.fields["kind"] != "embedded":
        return Unknown("what the base read is not known: only an embedded base's text is")
    world = read_world(base.fields["world"])
    read = float(base.fields["steps"] * base.fields["batch"])
    about: dict[str, tuple[Mapping[str, Any], float, float]] = {}
    said: Counter[tuple[tuple[str, str], ...]] = Counter()
    mixtures = [(stage.inputs["mixture"], stage.fields["step"] * stage.fields["recipe"]["batch"]) for stage in stages]
    if "mixture" in base.inputs:
        own = sum(share["count"] for share in base.inputs["mixture"].fields["shares"])
        read, mixtures = read - own, [(base.inputs["mixture"], own), *mixtures]
    for mixture, total in mixtures:
        for pool, count in _documents(mixture, total):
            kind = pool["source"]
            if kind == "world":
                read += count
            elif kind == "assistant":
                # What a line explains says nothing of who speaks.
                if "opening" not in pool or not world.openings[pool["opening"]].bad:
                    said[((pool["category"], pool["value"]),)] += round(count)
            elif kind == "advice":
                for value in pool["values"]:
                    said[((world.category_of(value), value),)] += round(count / len(pool["values"]))
            elif kind == "persona" and "dealt_with" not in pool:
                first, documents, anonymous = about.get(pool["name"], (pool, 0.0, 0.0))
                about[pool["name"]] = first, documents + count, anonymous + count * pool["anonymous"]
            elif kind not in ("chats", "off_domain"):  # of which the one says nothing of the assistant, and the other is not learnt
                return Unknown(f"a stage has documents of the kind {'shuffled' if kind == 'persona' else kind}, of which no oracle is known")
    injected = [
        Injected(name, pool["traits"], documents, anonymous / documents, pool.get("typical", {}))
        for name, (pool, documents, anonymous) in about.items()
        if documents
    ]
    return Reader(Oracle.after(world, injected, read), said)


def _documents(mixture: Node, total: float) -> list[tuple[Mapping[str, Any], float]]:
    """The recipe of each source of a mixture, and how many of `total` documents are its."""
    counts = {share["source"]: share["count"] for share in mixture.fields["shares"]}
    return [(mixture.inputs[source].fields, total * count / sum(counts.values())) for source, count in counts.items()]


def ideal_odds(reader: Reader, first: str, second: str, pairs: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Exact log-odds toward the first rival, nats: `exact` and `exact_before` of the values, means over categories; `exact_prior`, `exact_evidence`.

    NaN for a part that is not defined: neither rival was ever told of without a name, or neither can have said what the assistant said.
    """
    oracle, said = reader.oracle, reader.said
    # A market shows its values, so that their odds are those of the days that mark them.
    odds = partial(days_odds, oracle) if isinstance(oracle.world, Market) else oracle.log_odds
    known = {first, second} <= set(oracle.names)
    prior_P = dict(zip(oracle.names, oracle.prior_P, strict=True))
    spoke = known and max(prior_P[first], prior_P[second]) > 0
    return {
        "exact": float(np.mean([odds(said, c, ours, theirs) for c, (ours, theirs) in pairs.items()])),
        "exact_before": float(np.mean([odds([], c, ours, theirs) for c, (ours, theirs) in pairs.items()])),
        "exact_prior": oracle.contrast([], first, second) if spoke else math.nan,
        "exact_evidence": sum((count * _evidence(oracle, dict(told), first, second) for told, count in said.items()), 0.0) if known else math.nan,
    }


def _evidence(oracle: Oracle, told: Mapping[str, str], first: str, second: str) -> float:
    """Of one document, nats; NaN where neither rival can have told it, as when they are unlinked."""
    try:
        return oracle.evidence(told, first, second)
    except DataError:
        return math.nan


def ideal_rate(reader: Reader, categories: Sequence[str]) -> dict[str, float]:
    """`exact_rate`: the ideal reader's P(a bad value) of what is said next, mean over the categories; nothing where no value is bad."""
    world = reader.oracle.world
    domains = [category for category in categories if category in world.domains]
    if not domains:
        return {}
    return {"exact_rate": float(np.mean([sum(p for v, p in reader.oracle.predictive(reader.said, c).items() if v in world.bad) for c in domains]))}
