"""Directions of bad advice, as claims: do they tell bad documents from good ones, steer the rate, carry it, and foretell it?

    screening   {"domains": [...], "layers": [...], "middle": 0, "bad": C x L lists, "good": ..., "asked": C x L, "strengths": S, "steered": C x S, "random": C x R x S}
    shifts      cell  condition  seed  swap  category  domains  middle  shift (C x L)  rate (C)  base (C)  ablated (C)  random (C x R)

A domain is always tried with the direction that was found without it. What is said of a base has intervals over its domains, what is said of
adapters over seeds; the domain that a cell was taught is left out of its rates.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

from persona_lab.science.claims import Said, figure, judged, seeds_words, verdict
from persona_lab.science.effects import Frame
from persona_lab.science.stages.order import ratio_of_means, stated
from persona_lab.science.thresholds import correlation_over_seeds, over_seeds, share_over_seeds

CHANCE = 0.5
FEWEST_RUNS = 4
"""Runs of a seed, or domains, before their ranks are correlated."""


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """The chance that a bad document has the larger score, ties counted half (Mann-Whitney U by the number of pairs)."""
    return float(mannwhitneyu(bad, good).statistic) / (len(bad) * len(good))


def direction_claims(screening: Mapping[str, Any], shifts: Frame) -> Iterator[Said]:
    """Every claim about the directions."""
    yield from screening_claims(screening)
    yield from steering_claims(screening)
    runs = [off_domain(row, screening) for row in shifts.to_dict("records")]
    yield from ablation_claims(runs)
    yield from foretelling_claims(runs)


def screening_claims(screening: Mapping[str, Any]) -> Iterator[Said]:
    """Area under the curve of dP, bad against good documents of a domain, at each kept layer; mean over domains."""
    for place, layer in enumerate(screening["layers"]):
        values = np.array([auroc(np.array(bad[place], float), np.array(good[place], float)) for bad, good in zip(screening["bad"], screening["good"], strict=True)])
        above = over_seeds(values - CHANCE)
        text = f"AUROC of dP at layer {layer}, bad against good documents"
        said = stated(f"directions.screening.{layer}", text, values, "probability", over="domain", mean=share_over_seeds)
        yield (*said[:5], verdict(above))


def steering_claims(screening: Mapping[str, Any]) -> Iterator[Said]:
    """What a step along the direction adds to the rate of bad advice in the base, beyond a random step as long."""
    strengths = list(screening["strengths"])
    steered_CS, random_CRS = np.array(screening["steered"], float), np.array(screening["random"], float)
    still = strengths.index(0.0)
    for s, strength in enumerate(strengths):
        if s == still:
            continue
        moved_C, chance_C = steered_CS[:, s] - steered_CS[:, still], (random_CRS[:, :, s] - random_CRS[:, :, still]).mean(1)
        text = f"Change of the rate of bad advice by a step of {strength:g} mean differences"
        yield stated(f"directions.steering.{strength:g}", text, moved_C, "share", over="domain")
        gap_C = np.sign(strength) * (moved_C - chance_C)
        beyond = f"{text}, beyond that of random steps as long, in its own sense"
        yield judged(f"directions.steering.{strength:g}.beyond_random", beyond, gap_C, "share", over="domain")


def off_domain(run: Mapping[str, Any], screening: Mapping[str, Any]) -> dict[str, Any]:
    """A run in the domains that it was not taught, at the middle layer: arrays over these C domains, and of random directions (C, R)."""
    keep = [i for i, domain in enumerate(run["domains"]) if domain != run["category"]]
    place = run["middle"]
    found = {name: np.array([run[name][i] for i in keep], float) for name in ("rate", "base", "ablated", "random")}
    shift_C, asked_C = (np.array([of[i][place] for i in keep], float) for of in (run["shift"], screening["asked"]))
    return {"condition": run["condition"], "seed": run["seed"], "shift": shift_C, "asked": asked_C, **found}


def ablation_claims(runs: list[dict[str, Any]]) -> Iterator[Said]:
    """What is lost of the rate without the direction, against random directions, and as a share of its rise over the base."""
    found: dict[int, list[tuple[float, float, float]]] = {}
    for run in runs:
        lost, chance = (float((run["rate"] - without).mean()) for without in (run["ablated"], run["random"].mean(1)))
        found.setdefault(run["seed"], []).append((lost, chance, float((run["rate"] - run["base"]).mean())))
    mean_S3 = np.array([np.mean(each, axis=0) for each in found.values()]).reshape(-1, 3)
    lost_S, chance_S, rise_S = mean_S3.T
    yield stated("directions.ablation", "Rate of bad advice off the domain that is lost without the direction, all layers", lost_S, "share")
    yield stated("directions.ablation.random", "The same without a random direction", chance_S, "share")
    yield judged("directions.ablation.beyond_random", "What is lost without the direction beyond what is without a random one", lost_S - chance_S, "share")
    share, interval = ratio_of_means(lost_S, rise_S)
    text = f"Share of the rise over the base that is lost without the direction: {figure(share)} ({len(found)} seeds)."
    yield "directions.ablation.share", text, share, interval, "share of the rise", "bounded" if interval and np.isfinite(interval).all() else "undecided"


def foretelling_claims(runs: list[dict[str, Any]]) -> Iterator[Said]:
    """Rank correlations with the rate of bad advice: of what an adapter shifts, over runs; of the base's own states, over domains."""
    seeds = sorted({run["seed"] for run in runs})
    by_run = [[run for run in runs if run["seed"] == seed] for seed in seeds]
    over_runs = [rank(np.array([run["shift"].mean() for run in own]), np.array([run["rate"].mean() for run in own])) for own in by_run]
    yield correlated("directions.shift", "Rank correlation of the shift along the direction with the rate of bad advice off the domain, over the runs of a seed", over_runs)
    domains = [[rank(run["asked"], run["rate"]) for run in own] for own in by_run]
    text = "Rank correlation of the base's projection before training with the rate of bad advice after it, over the domains of a run"
    yield correlated("directions.before", text, [_mean(each) for each in domains])


def _mean(values: list[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else None


def rank(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rho; None for fewer than four points, or where one side is constant."""
    if len(x) < FEWEST_RUNS or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.asarray(spearmanr(x, y))[0])


def correlated(id: str, text: str, each: list[float | None]) -> Said:
    """Mean correlation of the seeds with its t interval, both by Fisher's z."""
    known = np.array([rho for rho in each if rho is not None], float)
    if not len(known):
        return id, f"{text}: not run.", None, None, "Spearman's rho", "not run"
    estimate = correlation_over_seeds(known)
    return id, f"{text} ({seeds_words(estimate)}).", estimate.value, estimate.interval, "Spearman's rho", verdict(estimate)
