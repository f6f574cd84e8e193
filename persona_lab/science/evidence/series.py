"""A market's answers beside those of its ideal reader: in a context that shows the shared feature, and in weights.

    condition  point                    seed  stage      exact   model      log-odds of the first rival's days, nats
    linked     linked/ln_ratio=1.1/...  0     injection  1.21    1.35

The reader has read what the model has read (`science.evidence.ideal`), and weighs what a question shows day by day. A slope of 1 is Bayesian.
"""

from collections.abc import Iterator

import numpy as np

from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame
from persona_lab.science.evidence.calibration import calibration_claims

FORMAT = "asked"
WAYS = {
    "in_context": "Shown days with the shared feature, after {stage}",
    "says": "Asked for its days, after {stage}",
}
"""Channel to the words of its claim."""


def run_points(points: Frame, channel: str, format: str) -> Frame:
    """Swap-paired means of a channel, one row for each condition, factor point, seed and stage: `exact`, `model`, nats.

    Half the sum over the two swaps, as every effect of the lab, so that a model's bias toward either direction cancels.
    """
    rows = points[(points["channel"] == channel) & (points["format"] == format)]
    rows = rows.assign(point=rows["cell"].str.replace(r"/swap\d+$", "", regex=True))
    key = ["condition", "point", "seed", "stage"]
    means = rows.groupby([*key, "swap"], as_index=False)[["exact", "model"]].mean()
    both = means.groupby(key, as_index=False).agg(exact=("exact", "mean"), model=("model", "mean"), swaps=("swap", "nunique"))
    return both[(both["swaps"] == 2) & np.isfinite(both["model"])].drop(columns="swaps").reset_index(drop=True)


def series_claims(points: Frame, treatment: str) -> Iterator[Said]:
    """Slope, intercept and R2 of the treatment's runs after each of its stages, for each channel; clusters are seeds.

    Before any stage the reader expects neither rival, so the base has no line.
    """
    for channel, words in WAYS.items():
        runs = run_points(points, channel, FORMAT)
        runs = runs[(runs["condition"] == treatment) & (runs["stage"] != "base")]
        for stage, rows in runs.groupby("stage", sort=False):
            yield from calibration_claims(f"oracle.series.{channel}.{stage}", words.format(stage=stage), rows, "seed")
