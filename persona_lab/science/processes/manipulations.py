"""Manipulations that are meant to move one quantity only: what each did to measure, to metric, and to the end.

    plumber    measure +.04 [-.05, .13]   metric +61 [38, 84] nats   end -.21 [-.35, -.07]      moved the metric alone

Every condition is held against one reference (the treatment at equal documents), swap-balanced and paired over replicates. Measure is of a context, log
pi_k(context): M1 is that of the nameless assistant, and beside it stands that of whoever writes a diary, the voice of a mixture's anonymous text. From the same runs:
start-point dependence, the two starts of equal measure whose metric differs most (SCIENCE.md section 2). They are chosen by measure and metric alone, never by their ends.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from persona_lab.science.claims import Said
from persona_lab.science.effects import Column, Frame, Settings
from persona_lab.science.hypotheses.mediation import SAME_MEASURE, by_replicate, start_points
from persona_lab.science.thresholds import correlation_over_seeds, over_seeds

QUANTITIES = {"m": ("measure", "M1", "nats"), "d": ("metric", "D1", "nats to adopt"), "eta": ("end", "log-odds after the last stage", "nats")}

FEWEST = 4
"""Conditions of a rank correlation."""


def state_claims(frame: Frame) -> Iterator[Said]:
    """Measure and metric of the starts: how each follows the documents, and whether they are one thing."""
    runs = frame.dropna(subset=["m", "d"]) if len(frame) else frame
    if runs.empty:
        return
    ratios = runs[runs["x"].astype(float).abs() < float("inf")]
    for column in ("m", "d"):
        name, what, unit = QUANTITIES[column]
        slopes = [_slope(rows["x"].astype(float), rows[column]) for _, rows in ratios.groupby("seed") if rows["x"].nunique() > 1]
        if slopes:
            found = over_seeds(np.array(slopes))
            yield f"state.{name}.slope", f"{what} where the last stage starts: slope on ln ratio of documents ({found.n} seeds).", found.value, found.interval, f"{unit} per nat", found.sign
    alike = [float(rows["m"].corr(rows["d"], method="spearman")) for _, rows in runs.groupby("seed") if rows["condition"].nunique() >= FEWEST]
    if alike:
        found = correlation_over_seeds(np.array(alike))
        text = f"Rank correlation of measure and metric over the starts; -1: the rival that is likelier is nearer, and they are one quantity ({found.n} seeds)."
        yield "state.correlation", text, found.value, found.interval, "", found.sign


def _slope(x: Column, y: Column) -> float:
    return float(np.polyfit(x.to_numpy(float), y.to_numpy(float), 1)[0])


def reference_of(frame: Frame, settings: Settings) -> str | None:
    """The treatment at equal documents and its longest last stage; None where that is not one condition."""
    rows = frame[frame["condition"].str.split("/").str[0].eq(settings.treatment) & (frame["x"].astype(float).abs() < 1e-9)]
    names = rows.loc[rows["D"] == rows["D"].max(), "condition"].unique() if len(rows) else []
    return str(names[0]) if len(names) == 1 else None


def manipulation_claims(frame: Frame, settings: Settings) -> Iterator[Said]:
    """What each other condition with documents of its own kind moved, against the reference; nothing without one, or without the metric."""
    reference = reference_of(frame, settings)
    if reference is None or not frame["d"].notna().any():
        return
    plain = by_replicate(frame, reference)
    for condition in frame["condition"].unique():
        # The treatment's own ratios and doses are no manipulations of how a persona is told.
        if condition.split("/")[0] == settings.treatment:
            continue
        pair = by_replicate(frame, condition).join(plain, rsuffix="_plain", how="inner").dropna()
        if not pair.empty:
            yield from _moved(condition, pair)
            yield from _moved_in_diaries(frame, reference, condition)


def _moved(condition: str, pair: Frame) -> Iterator[Said]:
    """One condition: the three quantities, and which of the first two moved."""
    found = {column: over_seeds((pair[column] - pair[f"{column}_plain"]).to_numpy()) for column in QUANTITIES}
    moved = [QUANTITIES[column][0] for column in ("m", "d") if found[column].sign != "undecided"]
    verdict = {0: "neither shown", 1: f"{moved[0]} alone" if moved else "", 2: "both"}[len(moved)]
    for column, (name, what, unit) in QUANTITIES.items():
        text = f"{condition}: {what} against the plain telling ({found[column].n} replicates)."
        yield f"moved.{condition}.{name}", text, found[column].value, found[column].interval, unit, verdict if column != "eta" else found[column].sign


def _moved_in_diaries(frame: Frame, reference: str, condition: str) -> Iterator[Said]:
    """The measure of one condition in the other voice without a name."""
    one, plain = (_in_diaries(frame, name) for name in (condition, reference))
    gap = (one - plain).dropna()
    if len(gap):
        found = over_seeds(gap.to_numpy())
        text = f"{condition}: M1 of whoever writes a diary against the plain telling ({found.n} replicates)."
        yield f"moved.{condition}.measure.diary", text, found.value, found.interval, "nats", found.sign


def _in_diaries(frame: Frame, condition: str) -> Column:
    """Swap means of M1 in a diary for each replicate that has both swaps."""
    rows = frame[frame["condition"] == condition].dropna(subset=["m_diary"]) if "m_diary" in frame else frame[:0].assign(m_diary=0.0)
    both = rows.groupby(["base_seed", "seed"])["swap"].transform("nunique") == 2
    return rows[both].groupby(["base_seed", "seed"])["m_diary"].mean()


def start_point_claims(frame: Frame) -> Iterator[Said]:
    """Start-point dependence at the pair of starts with equal measure (within .1 nat, same dose) whose metric differs most."""
    ends = {condition: by_replicate(frame, condition).dropna() for condition in frame["condition"].unique()}
    dose = frame.groupby("condition")["D"].first()
    pairs = []
    for one, other in combinations(sorted(ends), 2):
        both = ends[one].join(ends[other], rsuffix="_other", how="inner")
        if len(both) and dose[one] == dose[other] and abs((both["m"] - both["m_other"]).mean()) <= SAME_MEASURE:
            pairs.append((abs((both["d"] - both["d_other"]).mean()), one, other))
    if not pairs:
        if frame["d"].notna().any():
            yield "start_point", f"No two starts of one dose have equal measure (within {SAME_MEASURE} nat).", None, None, "nats", "not a test"
        return
    _, one, other = max(pairs)
    (id, text, value, interval, unit, verdict), *gaps = start_points(frame, one, other).claims()
    yield id, f"{text} Of {len(pairs)} pairs of starts with equal measure this is the one whose metric differs most.", value, interval, unit, verdict
    yield from gaps
