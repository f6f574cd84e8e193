"""Hallucination across resamples: does a name that nobody has spread the answers, and does that give it away?

    auroc                     P(an unknown name has the larger semantic entropy than a known one), ties count half
    entropy known, unknown    semantic entropy of a question's answers, nats: -sum p ln p over clusters that are named, mean over names
    modal known, unknown      share of the commonest answer
    correct known             share of answers that are right
    agreement unknown         the commonest answer to two phrasings is the same one, so that what is made up is at least consistent

Semantic entropy: Farquhar et al., Nature 2024; here clusters are exact, not judged by a model. An ideal reader of the embedded world answers a known name
without error and draws the value of an unknown one uniformly; the entropy of so few draws lies below ln V, which its reference accounts for.
"""

import numpy as np
import pandas as pd
from scipy.stats import binom

from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, mean_of, resampled, share_of

PUBLISHED = 0.79
SOURCE = "Semantic entropy tells right from wrong answers with an AUROC of about .79 on average (Nature 2024); length rules come near it."
IDEAL = "An ideal reader of the world's text: exact."
NONE = "None published."


def hallucination(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings; no figure."""
    items = item_table(asked)
    names = items.groupby(["known", "subject"], as_index=False)[["entropy", "modal", "right", "ideal"]].mean()
    found = [_auroc(names, of_world=asked.of_world)]
    for known, word in ((True, "known"), (False, "unknown")):
        own = names[names["known"] == known]
        ideal = None if not asked.of_world or own.empty else 0.0 if known else float(own["ideal"].mean())
        found.append(_mean(f"entropy {word}", own["entropy"], "nats", ideal, IDEAL if asked.of_world else NONE))
        found.append(_mean(f"modal {word}", own["modal"], "share", 1.0 if asked.of_world and known else None, IDEAL if asked.of_world and known else NONE))
    right = names[names["known"]]["right"]
    found.append(_mean("correct known", right, "share", 1.0 if asked.of_world else None, IDEAL if asked.of_world else NONE))
    return [*found, *_agreement(items[~items["known"]], asked)], []


def item_table(asked: Asked) -> Frame:
    """One row an item: known, subject, trait, entropy (nats), modal, right, mode, and `ideal`, the expected entropy of as many uniform draws."""
    rows = []
    for _, own in asked.scored.groupby("item", sort=False):
        share_O, options = own["prob"].to_numpy(float), own["option"].to_numpy()
        positive = share_O[share_O > 0]
        rows.append(
            {
                "known": own["format"].iloc[0] == "known",
                "subject": own["subject"].iloc[0],
                "trait": own["trait"].iloc[0],
                "entropy": float(-(positive * np.log(positive)).sum()),
                "modal": float(share_O.max()),
                "right": float(share_O[(own["role"] == "own").to_numpy()].sum()),
                "mode": options[int(share_O.argmax())],
                "ideal": drawn_entropy(len(options), int(own["n_samples"].iloc[0])),
            }
        )
    return pd.DataFrame(rows, columns=["known", "subject", "trait", "entropy", "modal", "right", "mode", "ideal"]).astype({"known": bool})


def drawn_entropy(values: int, draws: int) -> float:
    """Expected plug-in entropy of uniform draws, nats: -V sum_k P(k of n draws are this value) (k/n) ln (k/n); below ln V, and near it for many draws."""
    count_K = np.arange(1, draws + 1)
    share_K = count_K / draws
    return float(-values * (binom.pmf(count_K, draws, 1 / values) * share_K * np.log(share_K)).sum())


def auroc(known_C: np.ndarray, unknown_C: np.ndarray) -> float:
    """P(unknown > known) + P(equal) / 2: Mann and Whitney's U over the number of pairs; NaN without a pair."""
    gap_CC = unknown_C[:, None] - known_C
    return float((gap_CC > 0).mean() + (gap_CC == 0).mean() / 2) if gap_CC.size else float("nan")


def _auroc(names: Frame, *, of_world: bool) -> Finding:
    entropy_C, known_C = names["entropy"].to_numpy(float), names["known"].to_numpy(bool)
    value = auroc(entropy_C[known_C], entropy_C[~known_C])
    reference, source = (1.0, IDEAL) if of_world else (PUBLISHED, SOURCE)
    if not np.isfinite(value):
        return Finding("hallucination", "auroc", None, None, "probability", reference, source, len(names), "no known or no unknown name was answered")
    interval = resampled(
        len(names), lambda drawn: auroc(entropy_C[drawn][known_C[drawn]], entropy_C[drawn][~known_C[drawn]]), "hallucination"
    )
    return Finding("hallucination", "auroc", value, interval, "probability", reference, source, len(names))


def _mean(metric: str, value_C: Frame, unit: str, reference: float | None, source: str) -> Finding:
    value, interval, n = mean_of(value_C.to_numpy(float))
    return Finding("hallucination", metric, value, interval, unit, reference, source, n, "" if n else "no answer could be read")


def _agreement(items: Frame, asked: Asked) -> list[Finding]:
    """Only where a name is asked about in two phrasings."""
    same = [own["mode"].nunique() == 1 for _, own in items.groupby(["subject", "trait"]) if len(own) > 1]
    if not same:
        return []
    value, interval, n = share_of(same)
    chance = float(np.mean([1 / len(asked.world.values(category)) for category in items["trait"]])) if asked.of_world else None
    return [Finding("hallucination", "agreement unknown", value, interval, "share of names", chance, "Chance, for an ideal reader draws anew: exact.", n)]
