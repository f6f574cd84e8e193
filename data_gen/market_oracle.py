"""The exact Bayes oracle of a market: which process a series comes from, and what its next days are.

A process has a prior share pi_p. After stretches s_1..s_n, which are independent given the process,

    P(p | s) is proportional to  pi_p prod_i L_p(s_i),    L_p(s) = L(sizes of s | volatility of p) L(directions of s | drift of p),

the first factor by the forward algorithm over the hidden state, the second a Markov chain; a column that a view does not show is left out.
P(next days | s) is the posterior mean of the processes' own predictions. Everything is in nats; nothing is sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from data_gen.errors import DataError, DataProblem
from data_gen.market import DOWN, DRIFT, UP, VOLATILITY, Market, Stretch, drift_marks
from data_gen.oracle import Documents, Oracle
from data_gen.world import Traits

Process = tuple[str, str]
"""Volatility and drift."""


@dataclass(frozen=True)
class Prior:
    """Shares of the processes among speakers of whom nothing is known; they sum to 1."""

    share: Mapping[Process, float]

    def blend(self, other: "Prior", weight: float) -> "Prior":
        """A share `weight` of the other's speakers among these."""
        every = {**self.share, **other.share}
        return Prior({p: (1 - weight) * self.share.get(p, 0.0) + weight * other.share.get(p, 0.0) for p in every})

    def mix(self, nats: Mapping[Process, float]) -> float:
        """Log of the mean likelihood, nats, from the log-likelihood under each process."""
        return float(np.logaddexp.reduce([np.log(share) + nats[p] for p, share in self.share.items() if share > 0]))

    def given(self, known: Traits) -> "Prior":
        """The shares among the processes that have these traits; ValueError when none has."""
        wanted = (known.get(VOLATILITY), known.get(DRIFT))
        left = {p: s for p, s in self.share.items() if all(w in (None, v) for w, v in zip(wanted, p, strict=True))}
        total = sum(left.values())
        if not total > 0:
            raise ValueError(f"no process of this prior has {dict(known)}. Give one a share above 0")
        return Prior({p: s / total for p, s in left.items()})


def world_prior(market: Market) -> Prior:
    """Shares in the market's own text: background processes, and random speakers of every combination alike."""
    people = market.population
    every = list(product(market.series.volatility, market.series.drift))
    share = dict.fromkeys(every, market.random_speakers / len(every))
    for weight, traits in zip(people.weight_K, people.traits, strict=True):
        share[traits[VOLATILITY], traits[DRIFT]] += (1 - market.random_speakers) * float(weight)
    return Prior(share)


def counted_prior(documents: Mapping[Process, float]) -> Prior:
    """Shares in proportion to numbers of documents; ValueError when there is none."""
    total = sum(documents.values())
    if not total > 0:
        raise ValueError(f"a prior needs at least one document, got {dict(documents)}. Use counts above 0")
    return Prior({p: n / total for p, n in documents.items()})


def sizes_nats(market: Market, volatility: str, sizes: Sequence[int]) -> float:
    """Log-likelihood of the sizes of a stretch under one volatility, nats; 0 for none."""
    chain, total = market.series.volatility[volatility], 0.0
    state_Z = chain.start_Z
    for size in sizes:
        joint_Z = state_Z * market.series.size_ZS[:, size]
        total += float(np.log(joint_Z.sum()))
        state_Z = joint_Z / joint_Z.sum() @ chain.step_ZZ
    return total


def moves_nats(market: Market, drift: str, up: Sequence[bool]) -> float:
    """Log-likelihood of the directions of a stretch under one drift, nats; 0 for none."""
    same = market.series.drift[drift]
    turns = sum(a != b for a, b in pairwise(up))
    return float(bool(up) * np.log(0.5) + turns * np.log(1 - same) + (max(len(up), 1) - 1 - turns) * np.log(same))


def log_likelihood(market: Market, process: Process, stretches: Sequence[Stretch]) -> float:
    """Log-likelihood of the stretches under one process, nats."""
    return sum(sizes_nats(market, process[0], s.sizes) + moves_nats(market, process[1], s.up) for s in stretches)


def evidence(market: Market, prior: Prior, stretches: Sequence[Stretch]) -> float:
    """Log-likelihood of the stretches under the whole prior, nats."""
    return prior.mix({p: log_likelihood(market, p, stretches) for p in prior.share})


def posterior(market: Market, prior: Prior, stretches: Sequence[Stretch]) -> Prior:
    """Shares of the processes after the stretches."""
    total = evidence(market, prior, stretches)
    return Prior({p: share and float(np.exp(np.log(share) + log_likelihood(market, p, stretches) - total)) for p, share in prior.share.items()})


def continuation(market: Market, prior: Prior, stretches: Sequence[Stretch], days: Stretch) -> float:
    """Log P(days | stretches), nats: `days` go on where the last stretch stops, in its view.

    Raises:
        ValueError: there is no stretch to go on from, or it is of another view.
    """
    if not stretches or stretches[-1].view != days.view:
        raise ValueError(f"days of the view {days.view} go on from a stretch of that view. Give one as the last stretch")
    last = stretches[-1]
    longer = replace(last, sizes=last.sizes + days.sizes, up=last.up + days.up)
    return evidence(market, prior, [*stretches[:-1], longer]) - evidence(market, prior, stretches)


def next_day(market: Market, prior: Prior, stretches: Sequence[Stretch]) -> dict[str, float]:
    """P(next bin | stretches) for every bin of the last stretch's view, e.g. `{"up tiny": .1, ...}`; sums to 1."""
    view = stretches[-1].view
    sizes = [()] if view == "moves" else [(i,) for i in range(len(market.series.sizes))]
    moves = [()] if view == "sizes" else [(True,), (False,)]
    days = [Stretch(view, size, up) for up in moves for size in sizes]
    return {day.text(market): float(np.exp(continuation(market, prior, stretches, day))) for day in days}


@dataclass(frozen=True)
class Ahead:
    """What may come after a stretch of moves: the days that mark each drift, see `data_gen.market.drift_marks`."""

    nats: Mapping[str, Mapping[Process, float]]
    """Value to the log-likelihood, under each process, of all that was shown and of the days that mark the value."""

    def odds(self, prior: Prior, ours: str, theirs: str) -> float:
        """Log P(the days that mark ours) - log P(those that mark theirs) under a prior, nats.

        For one process and trend against reversion this is twice the log-odds of its drift. For a mixture it is a monotone function of the
        processes' odds, which nears 0 as the two balance and is bounded by the two pure processes.
        """
        return prior.mix(self.nats[ours]) - prior.mix(self.nats[theirs])


def look_ahead(market: Market, stretches: Sequence[Stretch]) -> Ahead:
    """What may come after the last of the stretches, which shows moves."""
    *before, last = stretches
    every = list(product(market.series.volatility, market.series.drift))
    shown = {p: log_likelihood(market, p, before) for p in every}
    marks = {value: tuple(word == UP for word in days.split()) for value, days in drift_marks(market, UP if last.up[-1] else DOWN).items()}
    return Ahead({value: {p: shown[p] + moves_nats(market, p[1], last.up + days) for p in every} for value, days in marks.items()})


def direction_odds(market: Market, prior: Prior, stretches: Sequence[Stretch]) -> float:
    """Log P(the next two days go on as the last one) - log P(each turns round), nats; see `Ahead.odds`."""
    trend, revert, *_ = drift_marks(market, UP)
    return look_ahead(market, stretches).odds(prior, trend, revert)


def processes_of(oracle: Oracle, documents: Documents = ()) -> Prior:
    """The shares of a market's processes as an oracle of its speakers has them, after documents that told these traits.

    A speaker of whom a trait is not known has each of its values alike; so has the random speaker.
    """
    market, share = oracle.world, dict[Process, float]()
    for who, mass in zip(oracle.processes, oracle.posterior(documents), strict=True):
        values = [[(who.traits or {})[c]] if c in (who.traits or {}) else market.values(c) for c in (VOLATILITY, DRIFT)]
        every = list(product(*values))
        for volatility, drift in every:
            share[volatility, drift] = share.get((volatility, drift), 0.0) + float(mass) / len(every)
    return Prior(share)


def days_odds(oracle: Oracle, documents: Documents, category: str, ours: str, theirs: str) -> float:
    """Log-odds of the days that mark two drifts, nats, when a nameless speaker begins a stretch of moves after these documents.

    Raises:
        DataError: the category is not the drift, or a value has no days that mark it: sizes are asked about in another way.
    """
    market = oracle.world
    if not isinstance(market, Market) or category != DRIFT or not {ours, theirs} <= drift_marks(market, UP).keys():
        fix = f"Use two of the drifts {', '.join(drift_marks(market, UP))}" if isinstance(market, Market) else "Use a world with `series:`"
        raise DataError(DataProblem(f"oracle of world {market.name!r}", f"no days tell {category} {ours!r} from {theirs!r}. {fix}."))
    # A stretch goes on alike from either start.
    return look_ahead(market, [Stretch("moves", up=(True,))]).odds(processes_of(oracle, documents), ours, theirs)
