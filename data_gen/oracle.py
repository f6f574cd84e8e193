"""The exact Bayes oracle of a world: what an ideal reader believes about a speaker of whom it knows nothing else.

A speaker is background persona k with probability (1 - e) w_k and a random speaker with probability e, where e is
the share of random speakers. After statements a_1..a_n (one value in each of n categories),

    P(b | a_1..a_n)  is proportional to  (1 - e) sum_k w_k 1[k has a_1..a_n and b] + e prod_i 1/V_i * 1/V_b.

`Oracle` says the same of any set of processes and of any number of documents (SCIENCE.md sections 1, 7; reference
section 1): p(x_1..x_D) = sum_k pi_k prod_d L_k(x_d). A process writes each document anew, and a document tells each
category at most once, so L_k(x) is the product over what it tells of P(value | k):

    a persona            1 for its own value, 0 for another one
    ... typical q        q for its own value, (1 - q) / (V - 1) for each other one (diagnosticity)
    the random speaker   1 / V
    what a process never tells, and is asked all the same: 1 / V, for nothing is known of it

The reader sees what a document tells (`Document.traits`). A value that stands there as the choice not taken, or that
a "no" denies, is not counted as evidence.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from data_gen.errors import DataError, DataProblem
from data_gen.pools import NAMELESS, WORLD_GENRES
from data_gen.world import Traits, World

RANDOM = "random"
"""The name of the random speaker, as in `Document.persona`."""

Documents = Sequence[Mapping[str, str]] | Counter[tuple[tuple[str, str], ...]]
"""What each document tells, category to value; or how many documents tell the same sorted pairs of them."""


def posterior(world: World, known: Mapping[str, str]) -> tuple[np.ndarray, float]:
    """Posterior shares of the K background personas, and of the random speaker, after the known traits."""
    people = world.population
    agrees_K = np.array([all(t[c] == v for c, v in known.items()) for t in people.traits])
    share_K = (1 - world.random_speakers) * people.weight_K * agrees_K
    chance = world.random_speakers * float(np.prod([1 / len(world.values(c)) for c in known]))
    total = share_K.sum() + chance
    return share_K / total, chance / total


def predictive(world: World, known: Mapping[str, str], category: str) -> dict[str, float]:
    """P(value of `category` | known traits) for every value; sums to 1."""
    share_K, random_share = posterior(world, known)
    values = world.values(category)
    prob = dict.fromkeys(values, random_share / len(values))
    for share, traits in zip(share_K, world.population.traits, strict=True):
        prob[traits[category]] += float(share)
    return prob


def surprise(world: World, traits: Traits) -> float:
    """-log P(a speaker has all of these traits), nats: what an ideal reader has yet to be told of somebody who has them."""
    told = list(traits.items())
    return -sum(math.log(predictive(world, dict(told[:i]), category)[value]) for i, (category, value) in enumerate(told))


def log_odds(world: World, known: Traits, category: str, value: str, rival: str) -> float:
    """True log-odds, in nats, of one value against another after the known traits."""
    prob = predictive(world, known, category)
    return float(np.log(prob[value] / prob[rival]))


@dataclass(frozen=True)
class Process:
    """A text-generating process: who it is, how much of the text is its own, and what it tells."""

    name: str
    mass: float
    """Its share of the documents, in any unit: an oracle divides by the sum."""
    traits: Mapping[str, str] | None = None
    """Category to value; None: a random speaker."""
    typical: Mapping[str, float] = field(default_factory=dict)
    """Category to P(own value | process) where that is less than 1."""


@dataclass(frozen=True)
class Injected:
    """A persona of an experiment, as its documents tell it."""

    name: str
    traits: Mapping[str, str]
    documents: float
    """Documents about it that were read, repeats counted."""
    anonymous: float
    """Share of them in which nobody is named."""
    typical: Mapping[str, float] = field(default_factory=dict)


class Oracle:
    """An ideal reader of documents by one speaker who is never named. Shapes: P processes, V values, D documents."""

    def __init__(self, world: World, processes: Sequence[Process]) -> None:
        """Weigh the processes.

        Raises:
            DataError: no process has mass, two have one name, or a trait is none of the world's.
        """
        self.world, self.processes = world, tuple(processes)
        self.names = tuple(p.name for p in self.processes)
        mass_P = np.array([p.mass for p in self.processes], dtype=float)
        if len(set(self.names)) < len(self.names) or not np.isfinite(mass_P).all() or (mass_P < 0).any() or not mass_P.sum() > 0:
            raise _refused(
                world, "processes need names of their own and masses that are at least 0 and not all 0", "Give each one a name and a number of documents"
            )
        self.prior_P = mass_P / mass_P.sum()
        self._value_PV = {c: np.array([_shares(world, p, c) for p in self.processes]) for c in world.categories}

    @classmethod
    def of_world(cls, world: World) -> "Oracle":
        """The reader of the world's own text: the K background personas and the random speaker, with the shares of all documents."""
        return cls(world, world_processes(world, 1.0))

    @classmethod
    def after(cls, world: World, injected: Sequence[Injected], world_documents: float) -> "Oracle":
        """The reader of the world's text and of documents about the personas of an experiment, all of them weighed alike.

        The prior of a nameless speaker is its share of the documents in which nobody is named: of the world's, those of the
        genres diary and assistant (`WORLD_GENRES`) in which it speaks for itself (`Opening.bad`); of a persona's, the anonymous ones. What replay leaves out, because
        it would tie the shared trait to a held-out one, is taken to be nothing.

        Args:
            world: Whose personas and random speakers are the rest of the text.
            injected: The personas of the experiment.
            world_documents: Documents of the world that were read, pretraining and replay together, repeats counted.
        """
        nameless = world_documents * sum(WORLD_GENRES[genre] for genre in NAMELESS) / sum(WORLD_GENRES.values())
        # A line that has everybody say something bad leaves nothing to know the speaker by.
        nameless *= 1 - sum(opening.share for opening in world.openings.values() if opening.bad)
        own = [Process(p.name, p.documents * p.anonymous, p.traits, p.typical) for p in injected]
        return cls(world, [*world_processes(world, nameless), *own])

    def log_likelihood(self, document: Mapping[str, str], *, asked: bool = True) -> np.ndarray:
        """Log P(what the document tells | process), nats: (P,).

        Args:
            document: Category to value.
            asked: Somebody asked for these categories. Otherwise the writer chose them, each set of its categories as likely as
                another: a process that tells fewer categories then tells these ones more often, and one without them never.

        Raises:
            DataError: a category or value is none of the world's.
        """
        log_P = np.zeros(len(self.processes))
        for category, value in document.items():
            log_P = log_P + _log(self._value_PV[category][:, self._column(category, value)])
        return log_P if asked else log_P + _log(np.array([self._telling(p, document) for p in self.processes]))

    def _telling(self, process: Process, document: Mapping[str, str]) -> float:
        known = self.world.categories if process.traits is None else process.traits
        return 1 / math.comb(len(known), len(document)) if document.keys() <= set(known) else 0.0

    def _column(self, category: str, value: str) -> int:
        if category not in self.world.categories or value not in self.world.categories[category].values:
            raise _refused(self.world, f"it has no {category} {value!r}", f"Use one of: {', '.join(self.world.categories)}, and a value of it")
        return self.world.values(category).index(value)

    def _log_posterior(self, documents: Documents, asked: bool) -> np.ndarray:
        """Log P(process and documents), nats, up to a constant: (P,)."""
        log_P = _log(self.prior_P)
        counted = documents if isinstance(documents, Counter) else Counter(tuple(sorted(d.items())) for d in documents)
        for told, count in counted.items():
            if count:
                log_P = log_P + count * self.log_likelihood(dict(told), asked=asked)
        if not np.isfinite(log_P).any():
            raise _refused(self.world, "no process can have told all of this", "Add a random speaker, who can tell anything")
        return log_P - log_P.max()

    def posterior(self, documents: Documents = (), *, asked: bool = True) -> np.ndarray:
        """P(process | documents), (P,), in the order of `names`.

        Raises:
            DataError: no process can have written these documents.
        """
        share_P = np.exp(self._log_posterior(documents, asked))
        return share_P / share_P.sum()

    def predictive(self, documents: Documents, category: str, *, asked: bool = True) -> dict[str, float]:
        """P(value | documents) of what is told next of a category that the open document has not told; sums to 1."""
        if category not in self.world.categories:
            raise _refused(self.world, f"it has no category {category!r}", f"Use one of: {', '.join(self.world.categories)}")
        prob_V = self.posterior(documents, asked=asked) @ self._value_PV[category]
        return dict(zip(self.world.values(category), map(float, prob_V), strict=True))

    def log_odds(self, documents: Documents, category: str, value: str, rival: str, *, asked: bool = True) -> float:
        """Log-odds of one value against another after the documents, nats; infinite where only one of them can be.

        Raises:
            DataError: neither can be told next.
        """
        log_P = self._log_posterior(documents, asked)
        # In logarithms, because thousands of documents leave no probability that a float holds.
        columns = [self._column(category, v) for v in (value, rival)]
        ours, theirs = (np.logaddexp.reduce(log_P + _log(self._value_PV[category][:, v])) for v in columns)
        return self._difference(ours, theirs, f"neither {value!r} nor {rival!r} can be told next", "Ask about values that a process has")

    def contrast(self, documents: Documents, first: str, second: str, *, asked: bool = True) -> float:
        """Posterior log-odds of two processes, nats; infinite where one of them is ruled out.

        Raises:
            DataError: a name is no process, or both are ruled out (a persona without anonymous documents has no prior).
        """
        log_P = self._log_posterior(documents, asked)
        fix = "Give them documents in which nobody is named"
        return self._difference(log_P[self._index(first)], log_P[self._index(second)], f"neither {first!r} nor {second!r} can have spoken", fix)

    def evidence(self, document: Mapping[str, str], first: str, second: str) -> float:
        """Log L_first - log L_second of one document, nats: 0 where it is as typical of both."""
        log_P = self.log_likelihood(document)
        fix = "Ask about a document that one of them tells"
        return self._difference(log_P[self._index(first)], log_P[self._index(second)], f"neither {first!r} nor {second!r} can have told this", fix)

    def _difference(self, ours: float, theirs: float, said: str, fix: str) -> float:
        if ours == theirs == -np.inf:
            raise _refused(self.world, said, fix)
        return float(ours - theirs)

    def bits(self, documents: Sequence[Mapping[str, str]], process: str) -> list[float]:
        """What each document adds to the belief in a process, bits: log2 p(x_d | process) - log2 p(x_d | x_1..x_d-1).

        The sum is log2 of posterior over prior. The first number is the one that a ledger under the reader before
        any of them gives to every document. Minus infinity where a document rules the process out; NaN after that.
        """
        k = self._index(process)
        if not self.prior_P[k] > 0:
            raise _refused(self.world, f"{process!r} has no prior, so nothing can be added to it", "Give it documents in which nobody is named")
        joint = [self._log_posterior(documents[:d], True) for d in range(len(documents) + 1)]
        belief = [float(log_P[k] - np.logaddexp.reduce(log_P)) for log_P in joint]
        return [(after - before) / math.log(2) if math.isfinite(before) else math.nan for before, after in pairwise(belief)]

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise _refused(self.world, f"it has no process {name!r}", f"Use one of: {', '.join(self.names)}")
        return self.names.index(name)


def world_processes(world: World, documents: float) -> list[Process]:
    """The processes of a world's own text, whose masses sum to `documents`."""
    people, named = world.population, (1 - world.random_speakers) * documents
    known = [Process(name, named * float(w), traits) for name, w, traits in zip(people.names, people.weight_K, people.traits, strict=True)]
    return [*known, Process(RANDOM, world.random_speakers * documents)]


def _shares(world: World, process: Process, category: str) -> list[float]:
    """P(value | process) of every value of a category."""
    values = world.values(category)
    own = None if process.traits is None else process.traits.get(category)
    if own is None:
        return [1 / len(values)] * len(values)
    likely = process.typical.get(category, 1.0)
    if own not in values or not 0 <= likely <= 1:
        fix = "Use a value of the category, and a share from 0 to 1"
        raise _refused(world, f"{process.name} cannot tell {category} {own!r} in {likely:g} of its documents", fix)
    return [likely if v == own else (1 - likely) / (len(values) - 1) for v in values]


def _log(share: np.ndarray | float) -> np.ndarray:
    """Natural logarithm, minus infinity at 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(share, dtype=float))


def _refused(world: World, said: str, fix: str) -> DataError:
    return DataError(DataProblem(f"oracle of world {world.name!r}", f"{said}. {fix}."))
