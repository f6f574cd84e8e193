"""The tournament of the hypotheses on measured runs.

    found = tournament(frame)                    one row for each run; columns as in persona_lab.science.hypotheses.families
    found.verdict                                "supported: H4", or "undecided"
    for id, text, value, interval, unit, verdict in found.claims(): ...

Headline: stacking weights of the left-out conditions. Beside them: elpd, verdicts, parameters, Bayes factors against H0 under priors half and
twice as wide, and how untouched blocks are predicted. The same frame and seed give the same numbers.

What is predicted is eta, which of the rivals. Whether any of them (alpha) is no part of it: the families say nothing of it, so a likelihood of alpha
would compare what was added to them, not them. The report gives alpha for each condition.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from persona_lab.errors import ConfigError
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.comparison import FEWEST_SEEDS, Difference, Verdict, differences, stacking, verdicts
from persona_lab.science.hypotheses.families import BY_ID, FAMILIES, NESTED, Family, read_runs
from persona_lab.science.hypotheses.gaussian import held_out, log_evidence, model_of
from persona_lab.science.hypotheses.posterior import Forward, Posterior, forward, posteriors
from persona_lab.science.thresholds import Interval

NULL = "H0"
WIDENED = (0.5, 1.0, 2.0)
"""Factors of the priors' scales under which Bayes factors are given."""


@dataclass(frozen=True)
class Entry:
    """One hypothesis in the tournament."""

    id: str
    name: str
    sentence: str
    verdict: Verdict
    weight: float
    """Stacking weight."""
    weight_interval: Interval
    elpd: float
    """log density of each condition given all others, summed, nats."""
    behind: Difference
    """Minus the best hypothesis."""
    log_evidence: float
    bayes_factor: dict[float, float | None]
    """ln Bayes factor against H0 by the factor that widens the priors, nats; None without H0."""
    parameters: tuple[Posterior, ...]
    forward: Forward | str
    """How untouched blocks are predicted, or why they are not."""


@dataclass(frozen=True)
class Tournament:
    """What the runs say of every hypothesis."""

    runs: int
    dropped: int
    """Runs without a finite eta or with all documents about one rival."""
    conditions: tuple[str, ...]
    seeds: int
    entries: tuple[Entry, ...]
    untestable: tuple[Verdict, ...]
    lpd_KC: np.ndarray = field(repr=False)

    @property
    def verdict(self) -> str:
        """The hypothesis that is supported, or undecided."""
        supported = [entry.id for entry in self.entries if entry.verdict.verdict == "supported"]
        return f"supported: {supported[0]}" if supported else "undecided"

    @property
    def best(self) -> Entry:
        """The hypothesis with the highest elpd."""
        return max(self.entries, key=lambda entry: entry.elpd)

    def entry(self, id: str) -> Entry:
        """One hypothesis; KeyError when it was not testable."""
        return {entry.id: entry for entry in self.entries}[id]

    def claims(self) -> Iterator[Said]:
        """Everything as (id, text, value, interval, unit, verdict)."""
        yield "tournament.verdict", self.headline, None, None, "", self.verdict
        for entry in self.entries:
            yield from entry_claims(entry)
        yield from self.nested_claims()
        for verdict in self.untestable:
            yield f"tournament.{verdict.id}.weight", f"{verdict.id} {BY_ID[verdict.id].name}: {verdict.reason}.", None, None, "share", "not testable"

    def nested_claims(self) -> Iterator[Said]:
        """Ln Bayes factor of each hypothesis against its special case: exact evidences, so no density ratio has to be estimated."""
        of = {entry.id: entry for entry in self.entries}
        for simple, rich in NESTED:
            if simple in of and rich in of:
                text = f"{rich} {of[rich].name} against its special case {simple} {of[simple].name}: ln Bayes factor, declared priors; below 0: the simpler."
                yield f"tournament.nested.{rich}.{simple}", text, of[rich].log_evidence - of[simple].log_evidence, None, "nats", ""

    @property
    def headline(self) -> str:
        """One sentence for the head of the section."""
        heaviest = max(self.entries, key=lambda entry: entry.weight)
        few = "" if self.seeds >= FEWEST_SEEDS else f" With {self.seeds} seeds no hypothesis can be supported."
        tested = f"{len(self.entries)} of {len(self.entries) + len(self.untestable)} hypotheses could be tested on {self.runs} runs of {len(self.conditions)} conditions"
        dropped = f" ({self.dropped} runs not used: no finite log-odds or ratio)" if self.dropped else ""
        return f"{tested}{dropped}; most stacking weight: {heaviest.id} {heaviest.name} ({heaviest.weight:.2f}). Verdict: {self.verdict}.{few}"


def entry_claims(entry: Entry) -> Iterator[Said]:
    """The claims of one hypothesis."""
    about, head = f"tournament.{entry.id}", f"{entry.id} {entry.name}"
    said = f"{head}: stacking weight over left-out conditions. {entry.sentence} {entry.verdict.verdict.title()}: {entry.verdict.reason}."
    yield f"{about}.weight", said, entry.weight, entry.weight_interval, "share", entry.verdict.verdict
    text = f"{head}: elpd minus the best hypothesis', {entry.behind.other}; 95 % over resampled conditions"
    yield f"{about}.elpd_diff", f"{text}.", entry.behind.value, entry.behind.interval, "nats", "decided" if entry.behind.decided else "undecided"
    yield f"{about}.elpd", f"{head}: log density of each condition given all others, summed.", entry.elpd, None, "nats", ""
    for factor, value in entry.bayes_factor.items():
        width = {0.5: "priors half as wide", 1.0: "declared priors", 2.0: "priors twice as wide"}[factor]
        if value is not None:
            yield f"{about}.bayes_factor.{factor:g}", f"{head}: ln Bayes factor against {NULL}, {width}.", value, None, "nats", ""
    for p in entry.parameters:
        yield f"{about}.parameter.{p.name.replace(' ', '_')}", f"{head}: {p.name}, {p.means}; posterior mean, 95 % interval.", p.value, p.interval, p.unit, ""
    if isinstance(entry.forward, Forward):
        f = entry.forward
        text = f"{head}: blocks {f.trained} fitted, {f.runs} runs of blocks {f.untouched} predicted"
        yield f"{about}.forward", f"{text}; log density.", f.log_score, None, "nats", ""
        yield f"{about}.forward.inside", f"{text}; share within their 95 % predictive interval.", f.inside, None, "share", ""
        yield f"{about}.forward.even", f"{text}; p-value that their predictive probabilities are even (Kolmogorov-Smirnov).", f.pit_p, None, "probability", ""
    else:
        yield f"{about}.forward", f"{head}: {entry.forward}.", None, None, "nats", "not run"


def tournament(frame: Frame, seed: int = 0, families: tuple[Family, ...] = FAMILIES, resamples: int = 200) -> Tournament:
    """Every hypothesis that the runs can test against every other.

    Raises ConfigError (PL1220) when the frame lacks a column, has fewer than three conditions, or none of the hypotheses can be tested on it.
    """
    runs = read_runs(frame)
    tested, untestable = testable(runs, families)
    y_BN, condition_N = runs["eta"].to_numpy(dtype=float)[None], runs["condition"].astype(str).to_numpy()
    found = [held_out(model_of(family, runs), y_BN, condition_N) for family in tested]
    lpd_KC, ids = np.stack([lpd_BC[0] for _, lpd_BC in found]), [family.id for family in tested]
    weight_K, interval_K2 = stacking(lpd_KC, np.random.default_rng(seed), resamples)
    against, best = differences(ids, lpd_KC), ids[int(lpd_KC.sum(1).argmax())]
    seeds = int(runs["seed"].nunique())
    judged = verdicts(ids, lpd_KC, seeds)
    factors = bayes_factors(tested, runs)
    entries = []
    for k, family in enumerate(tested):
        rng = np.random.default_rng([seed, FAMILIES.index(family) if family in FAMILIES else len(FAMILIES) + k])
        low, high = map(float, interval_K2[k])
        behind = against.get((family.id, best), Difference(family.id, best, 0.0, (0.0, 0.0)))
        numbers = (float(weight_K[k]), (low, high), float(lpd_KC[k].sum()), behind, float(found[k][0][0]), factors[family.id])
        entries.append(Entry(family.id, family.name, family.sentence, judged[k], *numbers, posteriors(family, runs, rng), forward(family, runs, rng)))
    names = tuple(map(str, np.unique(condition_N)))
    return Tournament(len(runs), len(frame) - len(runs), names, seeds, tuple(entries), tuple(untestable), lpd_KC)


def testable(runs: Frame, families: tuple[Family, ...]) -> tuple[list[Family], list[Verdict]]:
    """The families that the runs can test, and why the others cannot be; ConfigError (PL1220) when none can."""
    why = {family.id: family.untestable(runs) for family in families}
    untestable = [Verdict(id, "not testable", reason) for id, reason in why.items() if reason]
    if len(untestable) == len(families):
        raise ConfigError("PL1220", "the run frame", f"no hypothesis can be tested on it: {untestable[0].id} {untestable[0].reason}. Vary a column.")
    return [family for family in families if not why[family.id]], untestable


def bayes_factors(families: list[Family], runs: Frame) -> dict[str, dict[float, float | None]]:
    """Ln Bayes factor of each family against H0 at each width of the priors, by id; H0's own priors are widened with them."""
    y_BN, every_1N = runs["eta"].to_numpy(dtype=float)[None], np.ones((1, len(runs)), bool)
    found = {(f.id, w): float(log_evidence(model_of(f, runs, widen=w), y_BN, every_1N)[0, 0]) for f in families for w in WIDENED}
    return {f.id: {w: found[f.id, w] - found[NULL, w] if (NULL, w) in found else None for w in WIDENED} for f in families}


def base_agreement(frame: Frame, families: tuple[Family, ...] = FAMILIES) -> list[Said]:
    """Whether the base seeds say the same: what is best on one base may not be refuted on another. Nothing where there is one base.

    Raises ConfigError (PL1220) as `tournament`, for the runs of each base alone.
    """
    judged: dict[str, dict[str, Verdict]] = {}
    best: dict[str, str] = {}
    for base, rows in frame.groupby("base_seed", sort=True):
        runs = read_runs(rows)
        tested, _ = testable(runs, families)
        y_BN, condition_N = runs["eta"].to_numpy(dtype=float)[None], runs["condition"].astype(str).to_numpy()
        lpd_KC = np.stack([held_out(model_of(family, runs), y_BN, condition_N)[1][0] for family in tested])
        ids, name = [family.id for family in tested], f"{base}"
        judged[name] = {v.id: v for v in verdicts(ids, lpd_KC, int(runs["seed"].nunique()))}
        best[name] = ids[int(lpd_KC.sum(1).argmax())]
    if len(best) < 2:
        return []
    refuted = [(one, base) for one in best for base in best if best[one] in judged[base] and judged[base][best[one]].verdict == "refuted"]
    which = "; ".join(f"base seed {base}: {id} {BY_ID[id].name}" for base, id in best.items())
    found = "; ".join(f"{best[one]}, best on base seed {one}, is refuted on base seed {base}" for one, base in refuted)
    verdict = "disagree" if refuted else "agree"
    text = f"The base seeds {verdict} on the hypothesis that predicts best ({which}){f': {found}' if found else ''}."
    return [("tournament.bases", text, float(len(refuted)), None, "contradictions", verdict)]
