"""Lossy compression: bits of a text under the model, a plain compressor, and the process that wrote it.

    bits per byte              all bits over all bytes; the reference is the best plain compressor on the same texts
    bits per token             the same over the model's tokens
    bits per byte, exact floor   of texts whose probability is known; the reference is the floor
    over the floor             bits of a text that the model wastes; 0 cannot be beaten on average, by Gibbs' inequality
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from persona_lab.science.lens.finding import Asked, Curve, Finding, Frame, mean_of, resampled

BITS = float(np.log(2))
"""Nats in a bit."""
MODEL, FLOOR = "model", "floor"
NONE = "None published for these texts."
EXACT = "The process that writes the corpus: exact."


def compression(asked: Asked) -> tuple[list[Finding], list[Curve]]:
    """The findings; no figure."""
    texts = text_table(asked)
    best = min((coder for coder in texts if coder not in (MODEL, FLOOR, "bytes", "tokens")), key=lambda coder: texts[coder].sum(), default="")
    plain = _ratio(texts, best, "bytes")(np.arange(len(texts))) if best and len(texts) else None
    said = f"{best} on the same texts, one at a time." if plain is not None else NONE
    found = [_over("bits per byte", texts, MODEL, "bytes", "bits per byte", plain, said)]
    found.append(_over("bits per token", texts, MODEL, "tokens", "bits per token", None, NONE))
    known = texts.dropna(subset=FLOOR) if FLOOR in texts else texts[:0]
    if len(known):
        floor = _ratio(known, FLOOR, "bytes")(np.arange(len(known)))
        found.append(_over("bits per byte, exact floor", known, MODEL, "bytes", "bits per byte", floor, EXACT))
        value, interval, n = mean_of((known[MODEL] - known[FLOOR]).to_numpy(float))
        found.append(Finding("compression", "over the floor", value, interval, "bits per text", 0.0, EXACT, n))
    return found, []


def text_table(asked: Asked) -> Frame:
    """One row a text: bits of each coder, `bytes` and `tokens`."""
    rows = asked.scored
    bits = -rows.pivot_table(index="item", columns="option", values="logprob_nats", sort=False) / BITS
    counts = rows.assign(what=np.where(rows["option"] == MODEL, "tokens", "bytes")).pivot_table(index="item", columns="what", values="n_samples", sort=False)
    table = pd.concat([bits, counts], axis=1)
    return table.reindex(columns=[*table.columns, *(name for name in (MODEL, "bytes", "tokens") if name not in table)])


def _ratio(texts: Frame, top: str, bottom: str) -> Callable[[np.ndarray], float]:
    top_C, bottom_C = texts[top].to_numpy(float), texts[bottom].to_numpy(float)
    return lambda drawn: float(top_C[drawn].sum() / bottom_C[drawn].sum())


def _over(metric: str, texts: Frame, top: str, bottom: str, unit: str, reference: float | None, source: str) -> Finding:
    if texts.empty:
        return Finding("compression", metric, None, None, unit, reference, source, 0, "no text was scored")
    ratio = _ratio(texts, top, bottom)
    return Finding("compression", metric, ratio(np.arange(len(texts))), resampled(len(texts), ratio, "compression"), unit, reference, source, len(texts))
