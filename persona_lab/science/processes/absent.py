"""A process that is absent from the corpus: how far fine-tuning moves into it, and at what price.

    bundle       an ideal reader   nats to adopt   P of its values after 80 steps   of the others, after one is taught
    present       2.8              1,900            .98                              +.35
    recombined   16.8              2,300            .97                              -.01

present: some background persona has all values of the bundle. recombined: personas have each value, no persona two of them. unclaimed: only random speakers
have them (`data_gen.bundles`). Three questions of each: nats to adopt all of it from the base (D1: the branches' prequential code length; questions
and words are the same for every bundle of a seed, so what they leave to be said cancels in a difference); how likely its values are after a dose; and whether a
part brings the rest: P and log-odds of the values that were not taught. What an ideal reader has yet to be told is -log P(bundle) (`oracle.surprise`).

Everything is a mean of both rivals and both swaps of a seed, with t intervals over seeds.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from persona_lab.science.claims import Said, judged
from persona_lab.science.effects import MEASURES, Column, Frame, Settings, item_odds, number
from persona_lab.science.stages.order import stated

PRESENT = "present"
ABSENT = {"recombined": "Values that are known, and never together", "unclaimed": "Values that only random speakers have"}
WHOLE = "all"
"""What is spoken of where no part was chosen."""
QUANTITIES = ("p", "least", "alpha", "eta")
NO_SIGN: Mapping[str, str] = {"positive": "", "negative": "", "undecided": ""}
"""Verdicts of quantities whose sign is no question."""
BY = ["bundle", "about", "steps", "seed"]


def bundle_frame(table: Frame, settings: Settings) -> Frame:
    """One row for each bundle, part, dose and seed in which the assistant spoke as the first rival; seeds that lack a swap are left out.

    Columns p (P of the first rival's value among the options, mean of the categories not spoken of, or of all), least (of the category in which it is
    least likely), alpha, eta (nats), each also `_before` the stage; adopt, surprise (nats).
    """
    last = table[table["bundle"].notna() & table["about"].notna()]
    # A part of the table without a channel's items has no cells either.
    cells = last.drop_duplicates(["cell", "stage"]).sort_values("steps").groupby("cell").tail(1).set_index("cell")
    odds = item_odds(table[table["cell"].isin(cells.index)], settings, [settings.channel])
    odds = odds[odds["format"] == settings.format]
    about = odds["cell"].map(cells["about"])
    odds = odds[[spoken == WHOLE or trait not in spoken.split("+") for spoken, trait in zip(about, odds["trait"], strict=True)]]
    traits = odds.groupby(["cell", "phase", "trait"], as_index=False)[MEASURES].mean().rename(columns={"p_first": "p"})
    means = traits.groupby(["cell", "phase"]).agg(p=("p", "mean"), least=("p", "min"), alpha=("alpha", "mean"), eta=("eta", "mean")).unstack("phase")
    frame = cells[["bundle", "about", "steps", "seed", "swap"]].copy()
    for quantity in QUANTITIES:
        for phase, suffix in (("before", "_before"), ("after", "")):
            frame[f"{quantity}{suffix}"] = means.get((quantity, phase), np.nan)
    for column in ("adopt", "surprise"):
        both = [f"{column}_{name}" for name in (settings.first, settings.second)]
        frame[column] = cells[both].apply(number).mean(axis=1, skipna=False) if set(both) <= set(cells) else np.nan
    grouped = frame.drop(columns="swap").groupby(BY, sort=False)
    whole = frame.groupby(BY, sort=False)["swap"].nunique() == 2
    return grouped.mean()[whole].reset_index()


def by_seed(rows: Frame, column: str) -> Column:
    """Mean of a column in each seed; seeds without it are left out."""
    return rows.groupby("seed")[column].mean().dropna()


def beyond(rows: Frame, bundle: str, column: str, sign: int = 1) -> Column:
    """What a bundle has more than the present one, seed by seed; less, where the sign is -1."""
    return (sign * (by_seed(rows[rows["bundle"] == bundle], column) - by_seed(rows[rows["bundle"] == PRESENT], column))).dropna()


def absent_claims(table: Frame, settings: Settings) -> Iterator[Said]:
    """Price, reach and generalisation of each bundle, and of the absent ones beside the present one."""
    frame = bundle_frame(table, settings)
    whole, part = frame[frame["about"] == WHOLE], frame[frame["about"] != WHOLE]
    for bundle in (PRESENT, *ABSENT):
        if (frame["bundle"] == bundle).any():
            yield from level_claims(bundle, *(rows[rows["bundle"] == bundle] for rows in (frame, whole, part)))
    for bundle, words in ABSENT.items():
        if {bundle, PRESENT} <= set(frame["bundle"]):
            yield from contrast_claims(bundle, words, frame, whole, part)


def level_claims(bundle: str, frame: Frame, whole: Frame, part: Frame) -> Iterator[Said]:
    """What one kind of bundle costs, and how far each dose and each part comes."""
    yield stated(f"absent.{bundle}.needed", f"{bundle}: what an ideal reader has yet to be told of the bundle", by_seed(frame, "surprise"), "nats", words=NO_SIGN)
    yield stated(f"absent.{bundle}.adopt", f"{bundle}: nats to adopt the bundle from the base", by_seed(frame, "adopt"), "nats to adopt", words=NO_SIGN)
    for steps, rows in _doses(whole):
        for quantity, text in {"p": "P of its values, mean over categories", "least": "P of its least likely value"}.items():
            said = f"{bundle}, all of it taught in {steps} steps: {text}"
            yield stated(f"absent.{bundle}.{steps}.{quantity}", said, by_seed(rows, quantity), "probability", words=NO_SIGN)
    for about, rows in part.groupby("about", sort=False):
        rows = rows[rows["steps"] == rows["steps"].max()]
        moved = rows.assign(**{quantity: rows[quantity] - rows[f"{quantity}_before"] for quantity in QUANTITIES})
        lead = f"{bundle}, {about} alone taught"
        yield stated(f"absent.{bundle}.{about}.p", f"{lead}: change of P of the values not taught", by_seed(moved, "p"), "probability")
        text = f"{lead}: change of the log-odds of the values not taught, against those of the other bundle"
        yield stated(f"absent.{bundle}.{about}.eta", text, by_seed(moved, "eta"), "nats")


def contrast_claims(bundle: str, words: str, frame: Frame, whole: Frame, part: Frame) -> Iterator[Said]:
    """An absent bundle beside the present one of the same seed."""
    yield judged(f"absent.{bundle}.costs_more", f"{words} cost more nats to adopt than a persona's", beyond(frame, bundle, "adopt"), "nats to adopt")
    text = f"{words}: how much more an ideal reader has yet to be told than of a persona's"
    yield stated(f"absent.{bundle}.needs_more", text, beyond(frame, bundle, "surprise"), "nats", words=NO_SIGN)
    for steps, rows in _doses(whole):
        text = f"{words} are reached less after {steps} steps than a persona's: P of all values, the present bundle's less the absent one's"
        yield judged(f"absent.{bundle}.{steps}.falls_short", text, beyond(rows, bundle, "p", -1), "probability")
    for about, rows in part.groupby("about", sort=False):
        rows = rows[rows["steps"] == rows["steps"].max()]
        moved = rows.assign(eta=rows["eta"] - rows["eta_before"], p=rows["p"] - rows["p_before"])
        text = f"{words}: {about} brings the rest less than where a persona has them all, change of P of the values not taught"
        yield judged(f"absent.{bundle}.{about}.generalises_less", text, beyond(moved, bundle, "p", -1), "probability")
        text = f"{words}: {about} brings the rest less than where a persona has them all, change of the log-odds"
        yield judged(f"absent.{bundle}.{about}.leans_less", text, beyond(moved, bundle, "eta", -1), "nats")


def _doses(whole: Frame) -> Iterator[tuple[int, Frame]]:
    for steps in sorted(whole["steps"].unique()):
        yield int(steps), whole[whole["steps"] == steps]
