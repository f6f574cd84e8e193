"""What is left of what was overwritten: savings on relearning, and the nats that it takes to undo a lean.

    john, then sam, then john again
    savings = 1 - A(john again) / A(john, the first time)           Ebbinghaus 1885, in nats: A = sum_t tokens_t (loss_t - floor)
    undo    = A(john again), up to where the lean to Sam is gone     0 where there is nothing to undo

Both are functions of what a stage logs, the loss in nats a token and the labelled tokens of every step, and of log-odds at some of its
steps. The second pass reads the documents of the first one in the same order, so the floor cancels in the nats saved; it sets the scale
of the share alone. What is saved holds the documents themselves as well as the persona: `transfer`, the same pass after the other rival
alone, is the line to compare it with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_lab.science.claims import Said
from persona_lab.science.effects import Column, Frame, Settings, cells, effects, runs
from persona_lab.science.stages.order import RIVALS, Arm, stated
from persona_lab.science.thresholds import over_seeds

SAME_TOKENS = 0.01
"""Largest relative difference in tokens between two passes through the same documents."""
SETTLED = 0.1
"""The floor is the mean loss over this last share of the first pass."""


@dataclass(frozen=True)
class Losses:
    """The losses of one pass, one for each step."""

    loss_T: np.ndarray
    """Mean over the labelled tokens of a step, nats a token."""
    tokens_T: np.ndarray
    """Labelled tokens of a step."""

    def __post_init__(self) -> None:
        if len(self.loss_T) != len(self.tokens_T) or not len(self.loss_T):
            raise ValueError(f"a pass needs one loss and one number of tokens for each step, got {len(self.loss_T)} and {len(self.tokens_T)}")

    @property
    def floor(self) -> float:
        """Where the loss settles: its mean over the last tenth of the pass, nats a token. An upper bound of the converged loss."""
        last = max(1, round(SETTLED * len(self.loss_T)))
        return float(np.average(self.loss_T[-last:], weights=self.tokens_T[-last:]))

    def spent(self, floor: float) -> np.ndarray:
        """Nats above the floor after 0, 1, ..., T steps, (T + 1,): the prequential cost of learning so far (D1, SCIENCE.md section 4)."""
        return np.concatenate([[0.0], np.cumsum(self.tokens_T * (self.loss_T - floor))])


@dataclass(frozen=True)
class Savings:
    """What a second pass did not have to pay again."""

    nats: float | None
    share: float | None
    """Of the first pass's nats above the floor; None where those are not positive."""
    reason: str = ""
    """Why a figure is missing."""


def savings(first: Losses, again: Losses, floor: float | None = None) -> Savings:
    """Nats that the second pass was spared, over the steps that both have; `floor` is the first pass's own unless given.

    A second pass through other documents (other tokens) is no comparison: `nats` is None and `reason` says why.
    """
    steps = min(len(first.loss_T), len(again.loss_T))
    one, two = (Losses(p.loss_T[:steps], p.tokens_T[:steps]) for p in (first, again))
    if not np.allclose(one.tokens_T, two.tokens_T, rtol=SAME_TOKENS):
        return Savings(None, None, "the two passes do not read the same documents in the same order")
    level = first.floor if floor is None else floor
    saved, paid = float((one.tokens_T * (one.loss_T - two.loss_T)).sum()), float(one.spent(level)[-1])
    if paid <= 0:
        return Savings(saved, None, "the first pass paid nothing above the floor")
    return Savings(saved, saved / paid)


@dataclass(frozen=True)
class Undone:
    """Nats after which a lean is gone."""

    nats: float | None
    verdict: str
    """reached, not reached, or nothing to undo."""
    at_least: float | None = None
    """The nats that were spent in vain, where it was not reached."""


def undo(lean_K: np.ndarray, spent_K: np.ndarray) -> Undone:
    """Nats at which a lean first reaches 0, linear between the measured points.

    Args:
        lean_K: log-odds toward the rival that is trained again, nats, (K,), negative at first.
        spent_K: nats above the floor that had been spent at each of them, from 0 on, rising.
    """
    lean_K, spent_K = np.asarray(lean_K, float), np.asarray(spent_K, float)
    if not len(lean_K) or lean_K[0] >= 0:
        return Undone(None, "nothing to undo")
    over = np.flatnonzero(lean_K >= 0)
    if not len(over):
        return Undone(None, "not reached", float(spent_K[-1]))
    k = int(over[0])
    share = lean_K[k - 1] / (lean_K[k - 1] - lean_K[k])
    return Undone(float(spent_K[k - 1] + share * (spent_K[k] - spent_K[k - 1])), "reached")


def passes(losses: Frame) -> dict[tuple[str, str], Losses]:
    """(cell, stage) to its losses; `losses` has the columns cell, stage, step, loss (nats a token), tokens, one row a step."""
    found = {}
    for (cell, stage), rows in losses.sort_values("step").groupby(["cell", "stage"], sort=False):
        found[str(cell), str(stage)] = Losses(rows["loss"].to_numpy(float), rows["tokens"].to_numpy(float))
    return found


def repeats(arm: Arm) -> tuple[str, str] | None:
    """The stages of an arm's first and second pass through one rival; None when no rival is trained twice."""
    told = [p for p in arm.passes if p.kind in RIVALS]
    if len(told) < 2:
        return None
    earlier = [p.stage for p in told[:-1] if p.kind == told[-1].kind]
    return (earlier[0], told[-1].stage) if earlier else None


def prefix_of(arm: Arm, stage: str, arms: Sequence[Arm]) -> Arm | None:
    """The arm that is like this one but for one stage: where that stage starts."""
    left = tuple(p.stage for p in arm.passes if p.stage != stage)
    return next((other for other in arms if tuple(p.stage for p in other.passes) == left), None)


def longest(table: Frame, condition: str, stage: str) -> Frame:
    """The cells of a condition whose `stage` is longest, one for each seed and swap: columns cell, seed, swap."""
    about = table[table["condition"] == condition].drop_duplicates("cell").reset_index(drop=True)
    column = f"{stage}.steps"
    if column in about and len(about):
        about = about[about[column] == about[column].max()]
    return about[["cell", "seed", "swap"]]


def by_seed(about: Frame, value: Callable[[str], float | None]) -> Column:
    """The mean over the swaps of a number of each cell, for the seeds that have it in all of their cells."""
    figures: Frame = pd.DataFrame({"seed": about["seed"], "value": [value(str(cell)) for cell in about["cell"]]}).astype({"value": float})
    # A mean that leaves nothing out: a seed with one swap alone would carry its lexical part.
    return figures.groupby("seed")["value"].agg(lambda part: part.mean(skipna=False)).dropna()


def relearning_claims(table: Frame, settings: Settings, arms: Sequence[Arm], losses: Frame) -> Iterator[Said]:
    """Savings and undo cost of every arm that trains one rival twice."""
    logs = passes(losses)
    for arm in arms:
        again = repeats(arm)
        if again is not None:
            yield from savings_claims(table, arm, again, arms, logs)
            yield undo_claim(table, settings, arm, again, arms, logs)


def savings_claims(table: Frame, arm: Arm, again: tuple[str, str], arms: Sequence[Arm], logs: dict[tuple[str, str], Losses]) -> Iterator[Said]:
    """Share and nats saved by the second pass, and by the first pass of the same stage after the other rival alone."""
    first, second = again
    about = longest(table, arm.condition, second)

    def saved(cell: str, kind: str) -> float | None:
        if (cell, first) not in logs or (cell, second) not in logs:
            return None
        found = savings(logs[cell, first], logs[cell, second])
        return found.share if kind == "share" else found.nats

    text = f"{arm.condition}: {first} a second time"
    yield stated(
        f"relearning.{arm.condition}.share",
        f"{text}, share of the first pass's nats above its floor that was saved",
        by_seed(about, lambda c: saved(c, "share")),
        "share",
    )
    yield stated(f"relearning.{arm.condition}.nats", f"{text}, nats saved on the same documents", by_seed(about, lambda c: saved(c, "nats")), "nats")
    told = [p.stage for p in arm.passes if p.kind in RIVALS]
    between = told[told.index(first) + 1 : -1]
    other = next((a for a in arms if [p.stage for p in a.passes if p.kind in RIVALS] == [*between, first]), None)
    if other is not None:
        fresh = {(int(seed), int(swap)): str(cell) for cell, seed, swap in longest(table, other.condition, first).itertuples(index=False)}
        places = {str(cell): (int(seed), int(swap)) for cell, seed, swap in about.itertuples(index=False)}

        def transferred(cell: str) -> float | None:
            mate = fresh.get(places[cell])
            if mate is None or (mate, first) not in logs or (cell, first) not in logs:
                return None
            return savings(logs[cell, first], logs[mate, first]).share

        text = f"{first} for the first time, but after {' and '.join(between)} ({other.condition}): share of the nats that the same pass pays from the start"
        yield stated(f"relearning.{arm.condition}.transfer", text, by_seed(about, transferred), "share")


def lean(table: Frame, settings: Settings, arm: Arm, stage: str, start: Arm | None) -> Frame:
    """Log-odds toward the rival that is trained last, after the last stage: one row per seed, one column per number of its steps; 0 from `start`."""
    column = f"{stage}.steps"
    if start is None or column not in table.columns:
        return pd.DataFrame()
    about = cells(table, settings).join(table.drop_duplicates("cell").set_index("cell")[column].rename("steps_of"))
    steps = about[about["condition"] == arm.condition].drop_duplicates("point").set_index("point")["steps_of"]
    frame = effects(runs(table, settings))
    frame = frame[(frame["channel"] == settings.channel) & (frame["format"] == settings.format)]
    mine, before = frame[frame["condition"] == arm.condition], frame[frame["condition"] == start.condition]
    wide: Frame = mine.assign(at=mine["point"].map(steps)).pivot_table(index="seed", columns="at", values="after")
    wide[0] = before.groupby("seed")["after"].mean()
    toward = next(p.kind for p in reversed(arm.passes) if p.kind in RIVALS)
    return wide.sort_index(axis=1).dropna() * (1 if toward == "first" else -1)


def undo_claim(table: Frame, settings: Settings, arm: Arm, again: tuple[str, str], arms: Sequence[Arm], logs: dict[tuple[str, str], Losses]) -> Said:
    """Nats of the second pass that bring the log-odds back to 0, over seeds; without a value where not every seed gets there."""
    first, second = again
    id, text = f"relearning.{arm.condition}.undo", f"{arm.condition}: nats above the floor of {second} until the lean left by the stages before is gone"
    wide = lean(table, settings, arm, second, prefix_of(arm, second, arms))
    about = longest(table, arm.condition, second)
    about = about[[(cell, second) in logs and (cell, first) in logs for cell in about["cell"]]]
    seeds = [seed for seed in wide.index if (about["seed"] == seed).any()] if len(wide) else []
    if not seeds:
        return id, f"{text}: not run.", None, None, "nats", "not run"
    found = []
    for seed in seeds:
        spent_CT = [logs[str(cell), second].spent(logs[str(cell), first].floor) for cell in about.loc[about["seed"] == seed, "cell"]]
        at_K = np.minimum(wide.columns.to_numpy(int), min(map(len, spent_CT)) - 1)
        found.append(undo(wide.loc[seed].to_numpy(), np.mean([spent_T[at_K] for spent_T in spent_CT], axis=0)))
    reached = [one.nats for one in found if one.nats is not None]
    if len(reached) < len(found):
        counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in ("nothing to undo", "not reached")}
        why = ", ".join(f"{verdict} in {count} of {len(found)} seeds" for verdict, count in counts.items() if count)
        return id, f"{text}: {why}.", None, None, "nats", "undefined"
    estimate = over_seeds(np.array(reached))
    return id, f"{text} ({estimate.n} seeds).", estimate.value, estimate.interval, "nats", estimate.sign
