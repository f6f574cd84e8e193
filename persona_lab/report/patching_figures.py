"""Figures of activation patching: which state of which token does what.

effect_map(effect_ST, ["begin", "sum", ...])      rows are sites from the embedding up, columns tokens
"""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from persona_lab.report.instrument_figures import INK


def effect_map(effect_ST: np.ndarray, tokens: Sequence[str]) -> alt.TopLevelMixin:
    """Effects in nats as squares with their numbers; a state that does nothing has none."""
    sites = ["embedding", *(f"layer {i}" for i in range(1, len(effect_ST)))]
    # A token may stand twice: it is known by its number.
    names = [f"{i} {token}" for i, token in enumerate(tokens)]
    rows = [
        {"site": site, "token": name, "value": float(value), "text": f"{value:.1f}" if abs(value) >= 0.05 else ""}
        for site, effect_T in zip(sites, effect_ST, strict=True)
        for name, value in zip(names, effect_T, strict=True)
    ]
    base = alt.Chart(pd.DataFrame(rows)).encode(
        alt.X("token:N", sort=names, title=None, axis=alt.Axis(orient="top", labelAngle=-40)), alt.Y("site:N", sort=sites[::-1], title=None)
    )
    most = max(1e-9, float(np.abs(effect_ST).max()))
    scale = alt.Scale(domain=[-most, 0, most], range=["#e8b48a", "#f4f4f2", "#7fa9ec"], interpolate="rgb")
    squares = base.mark_rect(stroke="#8884").encode(color=alt.Color("value:Q", scale=scale, legend=None))
    return alt.layer(squares, base.mark_text(fontSize=11, color=INK).encode(text="text:N")).properties(width=alt.Step(34), height=alt.Step(28))
