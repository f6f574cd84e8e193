"""What repetition does: verbatim regurgitation of a passage, and recall of a fact, against how often they were read.

    extractable 16 words     share of passages of which the greedy continuation of 16 words is the true one, over all copies
    log-probability          mean log-probability of a true continuation, nats a word
    slope                    of logit P(match) on ln(copies read): Firth's logistic regression, bootstrap over texts
    copies for half          copies at which half of the texts match, exp(-intercept / slope)

Sources: k-extractable text is log-linear in copies, context and size (Carlini et al., arXiv 2202.07646); ten times the copies are regenerated about
a thousand times as often (Kandpal et al., arXiv 2202.06539); accuracy on facts follows relevant documents (arXiv 2211.08411).
"""

import math

import numpy as np
import pandas as pd

from persona_lab.probes.lens.regurgitation import GIVEN, NEXT, NEXT_ENGLISH
from persona_lab.science.lens.finding import SELDOM, UNKNOWN, Asked, Curve, Finding, Frame, by_level, draws, ends_of, logistic_of, mean_of, share_of

EXTRACTED = 0.01
"""Share of its training text that GPT-J 6B gives back, at least."""
EXTRACTED_SOURCE = "GPT-J 6B gives back at least 1 % of the Pile (arXiv 2202.07646)."
STEEP_SOURCE = "Odds in proportion to copies have slope 1; ten times the copies are regenerated about a thousand times as often, slope about 3 (arXiv 2202.06539)."
STEEP = 3.0
FACT_SOURCE = "Accuracy follows the count of relevant documents (arXiv 2211.08411); no slope is common to models."
CAPACITY = "A thousand exposures store two bits a parameter, a hundred store one (arXiv 2404.05405)."
ONE_KIND = "all texts match, or none does"


def regurgitation(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """Extractable shares by length of the prompt, and the slope on ln(copies)."""
    table = passage_table(asked)
    length, found = NEXT if asked.of_world else NEXT_ENGLISH, []
    kinds = [("", table)] if asked.of_world else [(f" {kind}", rows) for kind, rows in table.groupby("trait", sort=False)]
    for kind, rows in kinds:
        for given, own in rows.groupby("given"):
            value, interval, n = share_of(own["match"].to_numpy() > 0.5)
            found.append(Finding("regurgitation", f"extractable {given} words{kind}", value, interval, "share of passages", EXTRACTED, EXTRACTED_SOURCE, n))
        longest = rows[rows["given"] == max(GIVEN)]
        value, interval, n = mean_of(longest["nats"].to_numpy(float) / length)
        reference = -math.log(24) if asked.of_world else None
        source = "A word of 24, all as likely: without memory -ln 24." if asked.of_world else "None published."
        found.append(Finding("regurgitation", f"log-probability{kind}", value, interval, "nats a word", reference, source, n, "" if n else "nothing was answered"))
    found += _steepness("regurgitation", table[table["given"] == max(GIVEN)], STEEP, STEEP_SOURCE)
    known = table[table["copies"] > 0]
    curves = [by_level(own["copies"].to_numpy(float), own["match"].to_numpy(float), f"{given} words given") for given, own in known.groupby("given")]
    title = f"Verbatim regurgitation of the next {length} words"
    return found, [Curve(title, "copies read", "share of passages", pd.concat(curves, ignore_index=True), log=True)] if curves else []


def passage_table(asked: Asked) -> Frame:
    """One row a passage and prompt: subject, trait, given (words), copies, nats of the true continuation, match (1 or 0)."""
    rows = []
    for _, own in asked.scored.groupby("item", sort=False):
        first = own.iloc[0]
        by_option = own.set_index("option")
        rows.append(
            {
                "subject": first["subject"],
                "trait": first["trait"],
                "given": int(str(first["format"]).split()[0]),
                "copies": asked.read("passage", str(first["subject"])),
                "nats": float(by_option.loc["verbatim", "logprob_nats"]),
                "match": float(by_option.loc["greedy", "prob"]),
            }
        )
    return pd.DataFrame(rows, columns=["subject", "trait", "given", "copies", "nats", "match"])


def fact_frequency(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """Recall of facts, and its slope on ln(copies)."""
    table = fact_table(asked)
    chance = 1 / max(1, asked.scored.groupby("item")["option"].nunique().max()) if len(table) else None
    found = []
    kinds = [("", table)] if asked.of_world else [(f" {kind}", rows) for kind, rows in table.groupby("trait", sort=False)]
    for kind, rows in kinds:
        value, interval, n = mean_of(rows["match"].to_numpy(float))
        said = f"Chance is {chance:.3g}. {FACT_SOURCE if kind else CAPACITY}" if chance else CAPACITY
        found.append(Finding("fact_frequency", f"recall{kind}", value, interval, "share of questions", chance, said, n, "" if n else "nothing was answered"))
    found += _steepness("fact_frequency", table, None, FACT_SOURCE)
    known = table[table["copies"] > 0]
    points = by_level(known["copies"].to_numpy(float), known["match"].to_numpy(float), "recalled in held-out paraphrases")
    return found, [Curve("Recall of a fact against how often it was told", "copies read", "share of questions", points, log=True)] if len(known) else []


def fact_table(asked: Asked) -> Frame:
    """One row a fact: subject, trait, copies, match (share of its paraphrases in which the right answer is the likeliest)."""
    best = asked.scored.loc[asked.scored.groupby("item", sort=False)["logprob_nats"].idxmax()]
    rows = [
        {"subject": subject, "trait": own["trait"].iloc[0], "copies": asked.read("fact", str(subject)), "match": float((own["role"] == "gold").mean())}
        for subject, own in best.groupby("subject", sort=False)
    ]
    return pd.DataFrame(rows, columns=["subject", "trait", "copies", "match"])


def _steepness(probe: str, table: Frame, reference: float | None, source: str) -> list[Finding]:
    """Slope on ln(copies), and the copies at which half of the texts match."""
    read = table[table["copies"] > 0]
    ln_C, match_C = np.log(read["copies"].to_numpy(float)), read["match"].to_numpy(float)
    reason = UNKNOWN if table["copies"].isna().all() else SELDOM if not len(read) or np.ptp(ln_C) == 0 else ONE_KIND if np.ptp(match_C) == 0 else ""
    if reason:
        empty = (None, None)
        return [
            Finding(probe, "slope", *empty, "nats for each e-fold of copies", reference, source, len(read), reason),
            Finding(probe, "copies for half", *empty, "copies", None, source, len(read), reason),
        ]
    intercept, slope = logistic_of(ln_C[None], match_C[None])[0].tolist()
    drawn = draws(len(read), "steepness")
    again_R2 = logistic_of(ln_C[drawn], match_C[drawn])
    slopes, halves = ends_of(again_R2[:, 1]), ends_of(-again_R2[:, 0] / again_R2[:, 1])
    half = math.exp(min(-intercept / slope, 50)) if slope > 0 else None
    ends = (math.exp(min(halves[0], 50)), math.exp(min(halves[1], 50))) if halves and half is not None else None
    return [
        Finding(probe, "slope", slope, slopes, "nats for each e-fold of copies", reference, source, len(read)),
        Finding(probe, "copies for half", half, ends, "copies", None, source, len(read), "" if half is not None else "matches do not rise with copies"),
    ]
