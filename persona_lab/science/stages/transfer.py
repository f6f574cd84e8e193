"""The transfer matrix: teach the assistant one trait, probe it for another.

    taught (owner)   probed   direct  within  across    T
    food (john)      sport       -     0.30   -0.20   0.50     John's food is taught; John's sport rises, Sam's falls

Every number is a change by the last stage, nats. direct: of the log-odds of the taught value itself. within: of the log-odds of a held-out
value of the taught value's owner against all values that are neither rival's. across: of the other rival's. T = within - across, the change
of the log-odds toward the owner (reference 4.7). Each is a mean over both swaps: a taught value whose owner is the same in both swaps is
probed for a pair that has traded places, so that whatever the two words have to do with each other cancels.

Which rival has which value of a probed category is the seed's draw. So under the null that no persona ties traits together, T of a seed may
have either sign, for all taught traits at once: flipping these signs, seed by seed and probed category by category, gives the exact null
distribution of the largest |t| (Westfall and Young 1993, step-down max-T), and with it p values that hold for the whole matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_expit, logit
from scipy.stats import false_discovery_control

from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings, cells, item_odds, scored_items
from persona_lab.science.matching import SAME_FIT, SAME_TOKENS, trained
from persona_lab.science.stages.order import stated
from persona_lab.science.thresholds import over_seeds

EXACT = 2**14
"""Most sign patterns that are all tried; beyond them `DRAWS` are drawn."""
DRAWS = 9_999
LEVEL = 0.05
KEY = ["taught", "owner", "probed"]
VALUES = ["within", "across", "T"]


def taught_of(table: Frame, settings: Settings) -> Frame:
    """One row per cell that was taught a value: its category (`taught`), whose it is (`owner`: a rival, or `shared`), condition, seed, swap."""
    about = cells(table, settings)
    options = table[table["channel"] == settings.channel].drop_duplicates(["cell", "trait", "option"])
    options = options[options["option"] == options["cell"].map(about["taught"])].set_index("cell")
    roles = options["role"].where(options["role"].isin([settings.first, settings.second, "shared"]))
    return pd.DataFrame({"taught": options["trait"], "owner": roles}).join(about[["condition", "seed", "swap"]]).dropna()


def changes(table: Frame, settings: Settings) -> Frame:
    """One row per cell and probed category: the change of the log-odds of each rival's value against all others (`first`, `second`), nats."""
    odds = item_odds(table, settings, [settings.channel])
    odds = odds[odds["format"] == settings.format]
    # alpha is the log-odds of either value against all others, eta splits it between the two.
    odds = odds.assign(first=odds["alpha"] + log_expit(odds["eta"].to_numpy(float)), second=odds["alpha"] + log_expit(-odds["eta"].to_numpy(float)))
    means = odds.groupby(["cell", "trait", "phase"])[["first", "second"]].mean().unstack("phase")
    found = {side: means[side, "after"] - means[side, "before"] for side in ("first", "second") if {"before", "after"} <= set(means[side].columns)}
    return pd.DataFrame(found, columns=["first", "second"]).dropna().reset_index(names=["cell", "probed"])


def matrix(table: Frame, settings: Settings) -> Frame:
    """One row per seed, taught category, owner and probed category: within, across and T, nats; swaps averaged, seeds that lack one left out."""
    about = taught_of(table, settings)
    rows = changes(table, settings).merge(about, left_on="cell", right_index=True)
    rows = rows[rows["probed"] != rows["taught"]]
    second = rows["owner"] == settings.second
    within, across = rows["first"].where(~second, rows["second"]), rows["second"].where(~second, rows["first"])
    rows = rows.assign(within=within, across=across, T=within - across)
    grouped = rows.groupby(["seed", *KEY])
    whole = grouped["swap"].nunique() == 2
    return grouped[VALUES].mean()[whole].reset_index()


def direct(table: Frame, settings: Settings) -> Frame:
    """One row per seed, taught category and owner: the change of the log-odds of the taught value against all others, nats, mean of the swaps."""
    about = taught_of(table, settings)
    rows = scored_items(table, settings, [settings.channel])
    rows = rows[rows["format"] == settings.format].merge(about, left_on=["cell", "trait"], right_on=["cell", "taught"], suffixes=("", "_of"))
    rows = rows[rows["option"] == rows["cell"].map(cells(table, settings)["taught"])]
    rows = rows.assign(odds=logit(rows["prob_normalized"].clip(1e-12, 1 - 1e-12).to_numpy(float)))
    means = rows.groupby(["seed", "swap", "taught", "owner", "phase"])["odds"].mean().unstack("phase").reindex(columns=["before", "after"])
    return (means["after"] - means["before"]).dropna().groupby(["seed", "taught", "owner"]).mean().rename("direct").reset_index()


@dataclass(frozen=True)
class Family:
    """p values of one family of tests over the same seeds."""

    t_C: np.ndarray
    """Mean over its standard error."""
    p_C: np.ndarray
    """Unadjusted, by sign flips, two-sided."""
    adjusted_C: np.ndarray
    """Family-wise: step-down max-T."""
    q_C: np.ndarray
    """Benjamini and Hochberg's, for exploration."""
    smallest: float
    """The smallest p that so many seeds can give."""


def t_of(mean_PC: np.ndarray, square_C: np.ndarray, seeds: int) -> np.ndarray:
    """The t of means over seeds, given the mean squares: no sign flip changes those."""
    variance = np.maximum(square_C - mean_PC**2, 0) * seeds / (seeds - 1)
    return mean_PC / np.sqrt(np.maximum(variance / seeds, np.finfo(float).tiny))


def signs(seeds: int, groups: int) -> np.ndarray:
    """Sign patterns (P, S, G), the observed one first: all where there are few, else drawn from a fixed stream."""
    bits = seeds * groups
    if 2**bits <= EXACT:
        patterns = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
        return (1 - 2 * patterns).reshape(-1, seeds, groups)
    drawn = np.random.default_rng(0).choice([-1, 1], size=(DRAWS, seeds, groups))
    return np.concatenate([np.ones((1, seeds, groups), int), drawn])


def max_t(values_SC: np.ndarray, group_C: np.ndarray) -> Family:
    """Step-down max-T by flipping the signs of each seed's values, those of one group together.

    Args:
        values_SC: one value for each seed and test; symmetric about 0 under the null.
        group_C: which tests flip together (the probed category), numbered from 0.

    Raises:
        ValueError: fewer than two seeds, or a value is missing.
    """
    seeds, tests = values_SC.shape
    if seeds < 2 or not np.isfinite(values_SC).all():
        raise ValueError(f"max-T needs two seeds and every value, got {seeds} seeds and {int((~np.isfinite(values_SC)).sum())} missing values")
    flip_PSG = signs(seeds, int(group_C.max()) + 1)
    mean_PC = np.stack([flip_PSG[:, :, group_C[c]] @ values_SC[:, c] / seeds for c in range(tests)], axis=1)
    size_PC = np.abs(t_of(mean_PC, (values_SC**2).mean(0), seeds))
    order = np.argsort(-size_PC[0], kind="stable")
    # Ties with the observed pattern count as at least as large, whatever the rounding.
    reached = size_PC[0] * (1 - 1e-9)
    largest_PC = np.maximum.accumulate(size_PC[:, order[::-1]], axis=1)[:, ::-1]
    adjusted = np.maximum.accumulate((largest_PC >= reached[order]).mean(0))
    adjusted_C = np.empty(tests)
    adjusted_C[order] = adjusted
    p_C = (size_PC >= reached).mean(0)
    return Family(
        t_of(mean_PC[:1], (values_SC**2).mean(0), seeds)[0], p_C, adjusted_C, false_discovery_control(p_C), max(2.0 ** (1 - seeds), 1 / len(flip_PSG))
    )


def differs(table: Frame, settings: Settings) -> list[str]:
    """What is unequal between the conditions that are taught something, in words."""
    if not {"steps", "tokens"} <= set(table.columns):
        return ["steps and tokens were not recorded"]
    frame = trained(table, settings)
    means = frame[frame.index.isin(taught_of(table, settings).index)].groupby("condition")[["p_taught", "steps", "tokens"]].mean()
    low, high = means.min(), means.max()
    said = []
    if high["p_taught"] - low["p_taught"] > SAME_FIT:
        said.append(f"P(taught) {low['p_taught']:.3g} to {high['p_taught']:.3g}")
    if high["steps"] != low["steps"]:
        said.append(f"optimizer steps {low['steps']:.0f} to {high['steps']:.0f}")
    if high["tokens"] - low["tokens"] > SAME_TOKENS * high["tokens"]:
        said.append(f"tokens {low['tokens']:,.0f} to {high['tokens']:,.0f}")
    return said


def transfer_claims(table: Frame, settings: Settings) -> Iterator[Said]:
    """The blocks of the matrix, its family-wise tests, and each of its cells."""
    rows, unequal = matrix(table, settings), differs(table, settings)
    own, both = rows[rows["owner"] != "shared"], rows[rows["owner"] == "shared"]
    yield stated("matrix.direct", "Taught value itself: change of its log-odds", mean_by_seed(direct(table, settings), "direct"), "nats", differs=unequal)
    for column, words in {
        "within": "Held-out values of the taught value's owner: change of their log-odds against values of neither rival",
        "across": "Held-out values of the other rival: change of their log-odds against values of neither rival",
        "T": "T, change of the log-odds toward the owner of the taught value, mean over the matrix",
    }.items():
        yield stated(f"matrix.{column}", words, mean_by_seed(own, column), "nats", differs=unequal)
    if len(both):
        text = f"A value of both rivals is taught: change toward {settings.first.title()}"
        yield stated("matrix.shared", text, mean_by_seed(both, "T"), "nats", differs=unequal)
    yield from cell_claims(own, unequal)


def mean_by_seed(rows: Frame, column: str) -> Frame | None:
    """The mean of a column in each seed; None without rows."""
    return rows.groupby("seed")[column].mean() if len(rows) else None


def cell_claims(own: Frame, unequal: Sequence[str]) -> Iterator[Said]:
    """T of every taught and probed category, with the p value that holds for all of them."""
    wide: Frame = own.pivot_table(index="seed", columns=KEY, values="T")
    wide = wide.dropna()
    if len(wide) < 2:
        yield "matrix.family", "The transfer matrix: too few seeds have every cell of it for a test.", None, None, "p", "not run"
        return
    group_C, probed = pd.factorize(wide.columns.get_level_values("probed"))
    family = max_t(wide.to_numpy(float), group_C)
    floor = f" {len(wide)} seeds cannot give less than {family.smallest:.2g}." if family.smallest > LEVEL else ""
    stamp = f" Confounded: {'; '.join(unequal)}." if unequal else ""
    verdict = "confounded" if unequal else "linked" if family.adjusted_C.min() < LEVEL else "undecided"
    text = f"No persona ties traits together: smallest family-wise p of {wide.shape[1]} cells, {len(probed)} probed categories, {len(wide)} seeds (max-T).{floor}{stamp}"
    yield "matrix.family", text, float(family.adjusted_C.min()), None, "p", verdict
    for c, (taught, owner, category) in enumerate(wide.columns):
        estimate = over_seeds(wide.iloc[:, c].to_numpy(float))
        p, q = family.adjusted_C[c], family.q_C[c]
        verdict = "confounded" if unequal else "undecided" if p >= LEVEL else "linked" if estimate.value > 0 else "reversed"
        text = f"{owner.title()}'s {taught} taught, {category} probed: T, family-wise p {p:.2g}, q {q:.2g} ({estimate.n} seeds).{stamp}"
        yield f"matrix.{owner}.{taught}.{category}", text, estimate.value, estimate.interval, "nats", verdict
