"""Does what the treatment shows hold on bases of other architectures? Its stages on each of them, compared in pairs of seeds.

    condition   architecture   slope of the change by the last stage   less the treatment's
    linked      llama          .24 [.14, .35]
    qwen3       qwen3          .21 [.10, .32]                          -.03 [-.12, .06]

A seed reads the same documents on every architecture, so differences are paired within a seed, with t intervals over seeds. All slopes are over the same
ratios: those at which both rivals are known by name on every architecture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from persona_lab.science.claims import Said, ratio_words
from persona_lab.science.effects import Column, Frame, Settings, at_longest_dose, bound_ratios, effects, fitted, named_recall, runs
from persona_lab.science.stages.order import PHASES, stated
from persona_lab.science.thresholds import fit_line, over_seeds, share_over_seeds

GATES = {
    "recall": ("named recall on held-out paraphrases", "share"),
    "withheld": ("recall in chat of names that never appear in chat", "share"),
    "odds": ("distance of anonymous in-context log-odds from the oracle's", "nats"),
}
PLAIN = {"positive": "", "undecided": ""}
"""Figures of which only the size is of interest."""


def compared(table: Frame, settings: Settings) -> dict[str, str]:
    """Condition to architecture: the treatment first, then what trains the same stages on another architecture."""
    own = table.drop_duplicates("condition").set_index("condition").reindex(columns=["architecture", "order"])
    if settings.treatment not in own.index:
        return {}
    treatment = own.loc[settings.treatment]
    others = own[(own["order"] == treatment["order"]) & own["architecture"].notna() & (own["architecture"] != treatment["architecture"])]
    return {settings.treatment: str(treatment["architecture"]), **others["architecture"].to_dict()}


def architecture_claims(table: Frame, settings: Settings, gates: Frame | None = None) -> Iterator[Said]:
    """What each base knows, named recall and slopes of each, and how the slopes differ from the treatment's; nothing where there is one architecture."""
    arms = compared(table, settings)
    if len(arms) < 2:
        return
    if gates is not None:
        yield from _gate_claims(gates, list(dict.fromkeys(arms.values())))
    main = at_longest_dose(table, settings)
    recall = named_recall(main, settings)
    frame = effects(runs(main, settings))
    frame = fitted(frame[(frame["channel"] == settings.channel) & (frame["format"] == settings.format)], settings)
    used = _bound(recall, settings, list(arms), sorted(frame["x"].unique()))
    where = f"{ratio_words(used[0])} to {ratio_words(used[-1])}" if len(used) > 1 else "no two ratios at which both rivals are known by name on every architecture"
    slopes = {condition: _slopes(frame[(frame["condition"] == condition) & frame["x"].isin(used)]) for condition in arms}
    for condition, architecture in arms.items():
        lead = f"architecture.{condition}"
        text = f"{architecture}: named recall before the last stage, of the rival and at the ratio with the lowest"
        yield stated(f"{lead}.recall", text, _lowest_recall(recall, settings, condition), "share", words=PLAIN, mean=share_over_seeds)
        for column, when in PHASES.items():
            yield stated(f"{lead}.slope.{column}", f"{architecture}: slope on ln ratio of the log-odds {when}, {where}", slopes[condition].get(column), "nats per nat")
        for column, when in PHASES.items() if condition != settings.treatment else ():
            text = f"{architecture} less {arms[settings.treatment]}: slope on ln ratio of the log-odds {when}, same seeds and documents"
            yield stated(f"{lead}.difference.{column}", text, _less(slopes[condition].get(column), slopes[settings.treatment].get(column)), "nats per nat")


def _gate_claims(gates: Frame, architectures: Sequence[str]) -> Iterator[Said]:
    """What the base of each architecture knows of its world."""
    for architecture in architectures:
        for name, (text, unit) in GATES.items():
            values = gates[gates["architecture"] == architecture].groupby("base_seed")[name].mean()
            yield stated(f"architecture.gates.{architecture}.{name}", f"{architecture}, the base: {text}", values, unit, words=PLAIN, mean=share_over_seeds if unit == "share" else over_seeds)


def _bound(recall: Frame, settings: Settings, conditions: Sequence[str], ratios: Sequence[float]) -> list[float]:
    """The ratios at which both rivals are bound under every condition; all where recall was not measured."""
    found = [bound_ratios(recall, replace(settings, treatment=condition)) for condition in conditions]
    return [x for x in ratios if all(bound is None or x in bound for bound in found)]


def _slopes(rows: Frame) -> dict[str, Column]:
    """Column of the effects to its slope on ln ratio in each seed."""
    found: dict[str, Column] = {}
    for column in PHASES:
        lines = {seed: fit_line(own["x"], own[column], own["seed"]) for seed, own in rows.dropna(subset=[column]).groupby("seed")}
        found[column] = pd.Series({seed: line.slope.value for seed, line in lines.items() if line is not None}, dtype=float)
    return found


def _less(one: Column | None, other: Column | None) -> Column | None:
    """The difference in each seed that has both."""
    return None if one is None or other is None else (one - other).dropna()


def _lowest_recall(recall: Frame, settings: Settings, condition: str) -> Column | None:
    """Recall by seed, of the rival and at the fitted ratio where its mean is the lowest."""
    rows = recall[(recall["condition"] == condition) & (recall["phase"] == "before") & recall["subject"].isin([settings.first, settings.second])]
    rows = fitted(rows, settings)
    if rows.empty:
        return None
    x, subject = rows.groupby(["x", "subject"])["recall"].mean().idxmin()
    return rows[(rows["x"] == x) & (rows["subject"] == subject)].groupby("seed")["recall"].mean()
