"""An adaptive search as a tidy table shows it: its pairs, its rounds replayed one by one, and its claims.

    replay(pairs_of(runs, settings), settings.search)   ->   the decision after every round, with its reason
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_lab.science.claims import figure, ratio_words
from persona_lab.science.effects import Frame, Settings, cells, runs
from persona_lab.science.search.adaptive import Decision, Pairs, Posterior, Search, decide
from persona_lab.science.thresholds import FARTHEST, Interval

if TYPE_CHECKING:
    from persona_lab.science.summary import Analysis

SWAPS = [0, 1]


@dataclass(frozen=True)
class Round:
    """One round of a search: what was trained in it, and what was decided after it."""

    number: int
    ratios: tuple[float, ...]
    """Ln ratio of each of its seeds, whether or not they were scored."""
    decision: Decision


def searched_pairs(table: Frame, settings: Settings) -> Frame:
    """One row per seed of the treatment, in order: x, and the log-odds after the last stage in swap 0 and 1 (NaN where not scored)."""
    about = cells(table, settings)
    planned = about[about["condition"] == settings.treatment].drop_duplicates("seed").set_index("seed")["x"].sort_index()
    means = runs(table, settings).query("condition == @settings.treatment and phase == 'after' and channel == @settings.channel and format == @settings.format")
    eta = means.pivot_table(index="seed", columns="swap", values="eta").reindex(index=planned.index, columns=SWAPS)
    return eta.assign(x=planned)


def measured(frame: Frame) -> Pairs:
    """The rows of which both swaps were scored."""
    whole = frame.dropna(subset=SWAPS)
    return Pairs(whole["x"].to_numpy(dtype=float), whole[SWAPS].to_numpy(dtype=float))


def replay(frame: Frame, search: Search) -> Iterator[Round]:
    """Every round, decided once more on what was known after it."""
    number, start, end = 1, 0, search.batch // 2
    while start < len(frame):
        decision = decide(search, measured(frame[:end]))
        yield Round(number, tuple(map(float, frame["x"][start:end])), decision)
        # A search that was decided by an earlier rule has seeds where this one would have ended: they are shown in full rounds.
        number, start, end = number + 1, end, end + (len(decision.ratios) or search.batch // 2)


def search_claims(a: "Analysis", search: Search) -> None:
    """R_mean and R_reliable of a search, the run-to-run spread, and every choice with its reason."""
    frame, treatment = searched_pairs(a.main, a.settings), [a.settings.treatment]
    rounds, pairs = list(replay(frame, search)), measured(frame)
    last = rounds[-1].decision
    spent = f"{2 * len(frame)} cells in {len(rounds)} rounds, at most {search.budget}; {last.reason}"
    goals = {
        "mean": f"a mean share of {a.settings.threshold:g}",
        "reliable": f"nine runs in ten to favour {a.settings.first.title()}",
    }
    if last.line is None:
        for id, goal in goals.items():
            a.add(f"threshold.{id}", f"Adaptive threshold for {goal}: {spent}.", None, None, "times", "not run", treatment)
    else:
        posterior = Posterior(search, pairs)
        for id, (log, interval) in {"mean": (posterior.value, posterior.interval()), "reliable": posterior.reliable}.items():
            bounded = all(abs(end) < FARTHEST for end in interval)
            a.add(f"threshold.{id}", f"{words(a.settings, goals[id], log, interval)} Adaptive: {spent}.", *ratio(log, interval), "times", "bounded" if bounded else "unbounded", treatment)
        a.add("sigma", "Standard deviation of single runs (seed and swap) around the likeliest curve after the last stage.", posterior.sigma, None, "nats", "", treatment)
    for one in rounds:
        trained = ", ".join(map(ratio_words, one.ratios))
        known = (one.decision.value, one.decision.ends)
        a.add(f"search.{one.number}", f"Round {one.number}, at {trained}: {one.decision.reason}.", *ratio(*known), "times", one.decision.verdict, treatment)


def ratio(log: float | None, interval: Interval) -> tuple[float | None, Interval]:
    """A log ratio and its interval as ratios; beyond e^20 an end is open and a value is not reached."""
    low, high = (float(np.exp(end)) if abs(end) <= FARTHEST else (0.0 if end < 0 else float("inf")) for end in interval)
    return (float(np.exp(log)) if log is not None and abs(log) <= FARTHEST else None), (low, high)


def words(settings: Settings, goal: str, log: float | None, interval: Interval) -> str:
    """A threshold in a sentence."""
    first, second = settings.first.title(), settings.second.title()
    value, (low, high) = ratio(log, interval)
    if value is None:
        return f"No number of {first} documents is shown to be enough for {goal}: unbounded."
    search = settings.search
    beyond = " This lies outside the ratios that may be trained." if search and log is not None and not search.low <= log <= search.high else ""
    return f"For {goal}, {first} needs {figure(value)} times as many documents as {second} (95 % interval {figure(low)} to {figure(high)}).{beyond}"
