"""The figures of the lens: a value with its intervals against something, for one model or several.

    against_copies = curve(frame, "copies read", "share of passages", log=True)
"""

import altair as alt

from persona_lab.report.figures import WIDTH
from persona_lab.science.effects import Frame

COLORS = ["#2f6fde", "#d9730d", "#1d8a5f", "#9a4fc0", "#9aa0a6"]


def curve(frame: Frame, x: str, y: str, *, log: bool = False) -> alt.TopLevelMixin:
    """Lines with intervals; columns x, y, low, high, series, model. Models differ in color, series in strokes; of one model series differ in color."""
    several = frame["model"].nunique() > 1
    color = alt.Color("model:N" if several else "series:N", sort=None, scale=alt.Scale(range=COLORS))
    dash = alt.StrokeDash("series:N", sort=None) if several and frame["series"].nunique() > 1 else alt.Undefined
    base = alt.Chart(frame).encode(
        alt.X("x:Q", title=x, scale=alt.Scale(type="log" if log else "linear", nice=False, padding=12, zero=False), axis=alt.Axis(grid=False)),
        color=color,
    )
    lines = base.mark_line(strokeWidth=1.4).encode(alt.Y("y:Q", title=y), strokeDash=dash)
    bars = base.mark_rule(strokeWidth=1.2, opacity=0.6).encode(alt.Y("low:Q"), alt.Y2("high:Q")).transform_filter("isValid(datum.low)")
    points = base.mark_point(filled=True, size=40, opacity=1).encode(alt.Y("y:Q", title=y))
    return alt.layer(bars, lines, points).properties(width=WIDTH, height=260)
