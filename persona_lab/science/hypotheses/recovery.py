"""Does the tournament find what is true? Data simulated from every hypothesis on a frame, planned or run.

confusion(frame, sets=20)        truths down; attributed to whom, or undecided
coverage(family, frame, 1000)    how often the 95 % intervals hold the parameter that was drawn, and its ranks
shuffled(frame, rng)             the runs with their conditions' results dealt out again: nothing is true of them
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.comparison import verdicts
from persona_lab.science.hypotheses.families import FAMILIES, NESTED, Family, Theta
from persona_lab.science.hypotheses.gaussian import held_out, model_of
from persona_lab.science.hypotheses.posterior import parameter_samples
from persona_lab.science.hypotheses.power import planned

UNDECIDED = "undecided"
CHUNK = 64
"""Data sets that are worked on at once: more no longer fit the processor's cache."""


@dataclass(frozen=True)
class Confusion:
    """To whom simulated data are attributed."""

    sets: int
    """Simulated for each truth."""
    attributed: dict[str, Counter[str]]
    """By truth: supported hypothesis, or undecided; how often."""
    refuted: dict[str, int]
    """How often the truth itself was refuted."""

    def false(self, truth: str) -> int:
        """Sets of a truth in which another hypothesis is supported that is not a simpler case of it."""
        return sum(n for id, n in self.attributed[truth].items() if id not in (truth, UNDECIDED) and (id, truth) not in NESTED)

    @property
    def false_share(self) -> float:
        """Falsely supported over all sets."""
        return sum(map(self.false, self.attributed)) / (self.sets * len(self.attributed))

    @property
    def recovered_share(self) -> float:
        """Attributed to the truth over all sets."""
        return sum(counts[truth] for truth, counts in self.attributed.items()) / (self.sets * len(self.attributed))

    def table(self) -> str:
        """Counts as text: truths down, attributions across."""
        across = [*self.attributed, UNDECIDED]
        lines = ["truth " + "".join(f"{id if id != UNDECIDED else '?':>5}" for id in across) + "  truth refuted"]
        for truth, counts in self.attributed.items():
            cells = "".join(f"{counts[id] or '.':>5}" for id in across)
            lines.append(f"{truth:<6}{cells}  {self.refuted[truth] or '.'}")
        return "\n".join(lines)


def left_out_densities(families: Sequence[Family], frame: Frame, y_BN: np.ndarray) -> np.ndarray:
    """Lpd (B, K, C) of many results of the same runs."""
    condition_N = frame["condition"].astype(str).to_numpy()
    models = [model_of(family, frame) for family in families]
    chunks = [y_BN[start : start + CHUNK] for start in range(0, len(y_BN), CHUNK)]
    return np.concatenate([np.stack([held_out(model, chunk, condition_N)[1] for model in models], axis=1) for chunk in chunks])


def confusion(
    frame: Frame,
    sets: int,
    seed: int = 0,
    families: tuple[Family, ...] = FAMILIES,
    truths: Literal["planted", "prior"] = "planted",
    noise: tuple[float, float] = (0.5, 0.5),
    judged_as: int | None = None,
) -> Confusion:
    """Simulate `sets` results from each testable hypothesis and judge them.

    Parameters are typical (`planted`) or drawn from the priors; noise is (sigma, tau), nats. `judged_as`: a number of seeds for the rule that
    few seeds support nothing, where the frame's own is not meant.
    """
    runs = planned(frame)
    tested = [family for family in families if not family.untestable(runs)]
    rng, ids = np.random.default_rng(seed), [family.id for family in tested]
    seeds = int(runs["seed"].nunique()) if judged_as is None else judged_as
    y_BN = np.stack([family.simulate(runs, theta_of(family, runs, rng, truths, noise), rng) for family in tested for _ in range(sets)])
    lpd_BKC = left_out_densities(tested, runs, y_BN)
    attributed, refuted = {id: Counter[str]() for id in ids}, dict.fromkeys(ids, 0)
    for b, lpd_KC in enumerate(lpd_BKC):
        truth, found = ids[b // sets], verdicts(ids, lpd_KC, seeds)
        supported = [v.id for v in found if v.verdict == "supported"]
        attributed[truth][supported[0] if supported else UNDECIDED] += 1
        refuted[truth] += any(v.verdict == "refuted" for v in found if v.id == truth)
    return Confusion(sets, attributed, refuted)


def theta_of(family: Family, frame: Frame, rng: np.random.Generator, truths: str, noise: tuple[float, float]) -> Theta:
    """Parameters of one simulated data set."""
    drawn = family.draw(frame, rng) if truths == "prior" else family.planted(frame)
    return {**drawn, "sigma": noise[0], "tau": noise[1]}


def shuffled(frame: Frame, rng: np.random.Generator) -> Frame:
    """The frame with each condition's results given to another condition, the same one in all seeds and swaps.

    A control: no hypothesis may be supported. Raises KeyError when the conditions do not have the same seeds and swaps.
    """
    names = np.unique(frame["condition"])
    taken = dict(zip(names, rng.permutation(names), strict=True))
    keys = ["condition", "base_seed", "seed", "swap"]
    eta = frame.set_index(keys)["eta"].to_dict()
    dealt = [eta[taken[condition], base, seed, swap] for condition, base, seed, swap in frame[keys].itertuples(index=False)]
    return frame.assign(eta=dealt)


@dataclass(frozen=True)
class Coverage:
    """How one parameter is recovered."""

    name: str
    sets: int
    covered: int
    """Sets whose central 95 % interval holds the truth."""
    rank_N: np.ndarray
    """Share of the posterior below the truth, one for each set; even over 0 to 1 when the posterior is calibrated."""
    truth_N: np.ndarray
    mean_N: np.ndarray
    """Posterior means."""


def coverage(family: Family, frame: Frame, sets: int, seed: int = 0, fixed: Theta | None = None, draws: int = 1000) -> tuple[Coverage, ...]:
    """Simulation-based calibration (Talts et al. 2018): parameters from the priors (or `fixed`), data from them, the posterior of the data."""
    runs, rng = planned(frame), np.random.default_rng(seed)
    truths: dict[str, list[float]] = {}
    ranks: dict[str, list[float]] = {}
    means: dict[str, list[float]] = {}
    for _ in range(sets):
        theta = dict(fixed) if fixed else family.draw(runs, rng)
        found = parameter_samples(family, runs.assign(eta=family.simulate(runs, theta, rng)), rng, draws)
        for name, values_M in found.items():
            truths.setdefault(name, []).append(theta[name])
            ranks.setdefault(name, []).append(float((values_M < theta[name]).mean()))
            means.setdefault(name, []).append(float(values_M.mean()))
    every = []
    for name, rank in ranks.items():
        rank_N = np.array(rank)
        covered = int(((rank_N > 0.025) & (rank_N < 0.975)).sum())
        every.append(Coverage(name, sets, covered, rank_N, np.array(truths[name]), np.array(means[name])))
    return tuple(every)
