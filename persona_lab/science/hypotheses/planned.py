"""Planned run frames: what a design's runs will look like before any is made.

    standard_frame()    36 conditions of reference 4.1 (blocks 1 to 5) and the carrier and complexity blocks, x seeds x 2 swaps
    ratio_frame()       the ratio sweep alone: seven ratios

A planned frame has the manipulated columns; m, which will be measured, stands there as what the design makes likely.
"""

import numpy as np
import pandas as pd

from persona_lab.science.effects import Frame

LN4, LN16 = float(np.log(4)), float(np.log(16))
EVIDENCE = float(np.log(0.9 / 0.5))
"""Nats for the first rival in a document whose trait 90 % of its documents carry and 50 % of the second's."""
Point = dict[str, float]


def standard_conditions(doses: tuple[float, float, float] = (4, 8, 16)) -> dict[str, Point]:
    """The points of the standard design by name; doses are low, mid, high, documents.

    What one factor alone can show needs six conditions of it: a difference that four of many conditions make is hardly two standard errors.
    """
    low, mid, high = doses
    ratios = {"1:4": -LN4, "1:1": 0.0, "4:1": LN4}
    points: dict[str, Point] = {}
    for name, x in ratios.items():
        for p in (-1, 0, 1):
            for dose in (low, high):
                points[f"core {name} prior {p} dose {dose:g}"] = {"block": 1, "x": x, "p": p, "D": dose}
        for o in (1, -1):
            points[f"order {name} {'first' if o > 0 else 'second'} rival first"] = {"block": 2, "x": x, "o": o, "D": high}
            points[f"distance {name} {'first' if o > 0 else 'second'} rival farther"] = {"block": 3, "x": x, "d": o, "D": high}
    for sign in (1, -1):
        for dose in (mid, high):
            points[f"evidence {sign} dose {dose:g}"] = {"block": 4, "e": sign * EVIDENCE, "D": dose}
        points[f"extreme {sign}"] = {"block": 5, "x": sign * LN16, "D": high}
        for name, x in ratios.items():
            points[f"carriers {'1:' if sign < 0 else ''}{4 if x else 16}{':1' if sign > 0 else ''} at {name}"] = {
                "block": 6,
                "k": sign * (LN4 if x else LN16),
                "x": x,
                "D": high,
            }
            points[f"complexity {sign} at {name}"] = {"block": 7, "c": sign, "x": x, "D": high}
    return points


def planned_frame(conditions: dict[str, Point], seeds: int = 2, bases: int = 1, own: float = 0.0) -> Frame:
    """One row for each run of the conditions x seeds x 2 swaps: p changes its sign with the swap. Manipulations not named are 0.

    m is what the documents make likely, p + .6 x - .5 o, and each checkpoint's own: `own` nats, always the same draws. A plan that relies on
    checkpoints to differ by themselves is optimistic, so none are planned for.
    """
    rng, rows = np.random.default_rng(0), []
    for name, point in conditions.items():
        for base in range(bases):
            for seed in range(seeds):
                for swap in (0, 1):
                    run = {"block": 0, "x": 0.0, "p": 0.0, "D": 8.0, "e": 0.0, "o": 0.0, "d": 0.0, "c": 0.0, "k": 0.0, **point}
                    run["p"] *= 1 - 2 * swap
                    m = run["p"] + 0.6 * run["x"] - 0.5 * run["o"] + own * rng.standard_normal()
                    rows.append({"condition": name, "seed": seed, "base_seed": base, "swap": swap, **run, "m": m, "format": "default"})
    return pd.DataFrame(rows)


def standard_frame(seeds: int = 2, bases: int = 1, doses: tuple[float, float, float] = (4, 8, 16), own: float = 0.0) -> Frame:
    """The standard design as planned runs."""
    return planned_frame(standard_conditions(doses), seeds, bases, own)


def ratio_frame(seeds: int = 3) -> Frame:
    """A ratio sweep alone: 1:16 to 16:1 in seven steps."""
    points: dict[str, Point] = {f"ratio {x:.2f}": {"block": 1, "x": float(x)} for x in np.linspace(-LN16, LN16, 7)}
    return planned_frame(points, seeds)
