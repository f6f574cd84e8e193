"""Do the tournament's intervals hold the truth as often as they say, and is nothing false supported?

    python -m benchmarks.coverage --sets 1000 --confusion 80

Coverage: parameters are drawn from their priors, runs of the standard design from them; the share of sets whose central 95 % interval holds
the drawn value, with its Wilson interval, and a Kolmogorov-Smirnov p-value of the ranks (even when the posterior is calibrated; Talts et al. 2018).
Confusion: `--confusion` sets of each hypothesis in the standard design at three seeds, at typical parameters and at parameters from the priors;
"false" is a supported hypothesis that is neither the truth nor a special case of it. Shuffled: their labels dealt out again.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from scipy.stats import kstest

from benchmarks.threshold import wilson
from persona_lab.science.hypotheses.comparison import verdicts
from persona_lab.science.hypotheses.families import BY_ID, FAMILIES
from persona_lab.science.hypotheses.planned import ratio_frame, standard_frame
from persona_lab.science.hypotheses.power import planned, power
from persona_lab.science.hypotheses.recovery import confusion, coverage, left_out_densities, shuffled

COVERED = ("H2", "H4", "H5", "H7", "H8")
"""Families whose parameters are counted unless others are named: s, b, rho, w, lambda, phi, and the noise."""


def print_power() -> None:
    """The table of noncentralities of the standard design, and the share beside a ratio sweep's."""
    start = time.perf_counter()
    found = power(standard_frame())
    print(f"noncentrality of the rival's best refit, standard design ({time.perf_counter() - start:.1f} s)\n{found.table()}")
    print(f"separable: {100 * found.share:.1f} % of {len(found.pairs())} ordered pairs; a ratio sweep alone: {100 * power(ratio_frame()).share:.1f} %\n")


def print_coverage(ids: Sequence[str], sets: int, seed: int) -> None:
    """One line for each parameter."""
    start = time.perf_counter()
    print(f"coverage of central 95 % intervals, {sets} sets each, parameters from their priors\n      parameter  covered, %           ranks even, p")
    for id in ids:
        for c in coverage(BY_ID[id], standard_frame(own=0.3), sets, seed):
            print(f"{id:<5} {c.name:<10} {wilson(c.covered, c.sets):<20} {kstest(c.rank_N, 'uniform').pvalue:.3f}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s\n")


def print_confusion(sets: int, seed: int) -> None:
    """Attributions at typical and at drawn parameters, and under shuffled labels."""
    frame = standard_frame(3, own=0.3)
    for truths in ("planted", "prior"):
        start = time.perf_counter()
        found = confusion(frame, sets, seed, truths=truths)
        total = sets * len(found.attributed)
        false = sum(map(found.false, found.attributed))
        print(f"parameters {truths}: truths down, supported across, ? undecided\n{found.table()}")
        print(
            f"falsely supported {wilson(false, total)} % of {total}; truth supported {100 * found.recovered_share:.1f} %; {time.perf_counter() - start:.0f} s\n",
            flush=True,
        )
    rng, runs = np.random.default_rng(seed), planned(frame)
    etas = [shuffled(frame.assign(eta=family.simulate(runs, family.planted(runs), rng)), rng)["eta"].to_numpy() for family in FAMILIES for _ in range(sets)]
    ids = [family.id for family in FAMILIES]
    judged = [verdicts(ids, lpd_KC, seeds=3) for lpd_KC in left_out_densities(FAMILIES, runs, np.stack(etas))]
    supported = [v.id for each in judged for v in each if v.verdict == "supported"]
    print(f"shuffled labels: something supported in {wilson(len(supported), len(etas))} % of {len(etas)}: {sorted(set(supported))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="simulated for each family whose coverage is counted")
    parser.add_argument("--confusion", type=int, default=80, help="simulated for each truth; 0: none")
    parser.add_argument("--only", nargs="+", default=list(COVERED), help="families")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print_power()
    print_coverage(options.only, options.sets, options.seed)
    if options.confusion:
        print_confusion(options.confusion, options.seed)


if __name__ == "__main__":
    main()
