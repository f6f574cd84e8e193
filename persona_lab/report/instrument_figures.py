"""The figures of an instrument's page: a map of processes, a matrix of their distances, estimates against what is true.

    concept_map(found.chart)      heat(names, nats_KK, "to", "from")      against(frame, "true log prior", "M1")
"""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from persona_lab.report.figures import PALETTE, WIDTH, rule
from persona_lab.science.effects import Frame

ROOM = 0.15
"""Share of a map's width that is left free at each side, for the names."""
INK = "#1c1c1c"
"""Of text on squares, which are light in both modes."""


def concept_map(chart: Frame, unit: str = "nats") -> alt.TopLevelMixin:
    """Processes (columns process, x, y) as points with their names; both axes have one scale, because only distances mean something."""
    span = max(float(np.ptp(chart["x"])), float(np.ptp(chart["y"])), 1e-9) * (0.5 + ROOM)

    def axis(column: str) -> alt.Scale:
        middle = float(chart[column].max() + chart[column].min()) / 2
        return alt.Scale(domain=[middle - span, middle + span], nice=False)

    title = alt.Axis(title=unit, grid=True)
    base = alt.Chart(chart).encode(alt.X("x:Q", scale=axis("x"), axis=title), alt.Y("y:Q", scale=axis("y"), axis=title))
    names = base.mark_text(dy=-11, fontSize=13, color="currentColor").encode(text="process:N")
    return alt.layer(base.mark_circle(size=70, opacity=1, color=PALETTE[1]), names).properties(width=WIDTH, height=WIDTH)


def heat(names: Sequence[str], value_KK: np.ndarray, column: str, row: str) -> alt.TopLevelMixin:
    """A matrix as squares with its numbers; what is missing stays empty."""
    cells = [
        {"row": names[i], "column": names[j], "value": float(value_KK[i, j]), "text": f"{value_KK[i, j]:.3g}"}
        for i in range(len(names))
        for j in range(len(names))
        if np.isfinite(value_KK[i, j])
    ]
    frame = pd.DataFrame(cells, columns=["row", "column", "value", "text"])
    order = list(names)
    base = alt.Chart(frame).encode(
        alt.X("column:N", sort=order, title=column, axis=alt.Axis(orient="top", labelAngle=-40)), alt.Y("row:N", sort=order, title=row)
    )
    fill = alt.Color("value:Q", scale=alt.Scale(range=["#f4f4f2", "#7fa9ec"], interpolate="rgb"), legend=None)
    squares, texts = base.mark_rect(stroke="#8884").encode(color=fill), base.mark_text(fontSize=11, color=INK).encode(text="text:N")
    return alt.layer(squares, texts).properties(width=alt.Step(44), height=alt.Step(28))


def against(frame: Frame, true: str, found: str) -> alt.TopLevelMixin:
    """Estimates against truth, columns process and both names; the line is where they are equal."""
    points = frame[["process", true, found]].dropna().rename(columns={true: "true", found: "found"})
    ends = [float(points[["true", "found"]].to_numpy().min()), float(points[["true", "found"]].to_numpy().max())] if len(points) else [0.0, 1.0]
    diagonal = alt.Chart(pd.DataFrame({"true": ends, "found": ends})).mark_line(color="#888", strokeDash=[4, 4], strokeWidth=1).encode(x="true:Q", y="found:Q")
    base = alt.Chart(points).encode(alt.X("true:Q", title=true, scale=alt.Scale(zero=False)), alt.Y("found:Q", title=found, scale=alt.Scale(zero=False)))
    names = base.mark_text(dy=-10, fontSize=11, color="currentColor").encode(text="process:N")
    return alt.layer(diagonal, base.mark_circle(size=45, opacity=1, color=PALETTE[1]), names).properties(width=WIDTH, height=WIDTH * 0.75)


def intervals(frame: Frame, title: str, line: float | None = None) -> alt.TopLevelMixin:
    """Values with their intervals, one a line: columns label, value, low, high; `line` marks a reference."""
    base = alt.Chart(frame).encode(alt.Y("label:N", title=None, sort=None))
    bars = base.mark_rule(color=PALETTE[2]).encode(alt.X("low:Q"), alt.X2("high:Q")).transform_filter("isValid(datum.low)")
    points = base.mark_point(filled=True, size=60, opacity=1, color=PALETTE[2]).encode(alt.X("value:Q", title=title))
    marks = [rule(line, "x")] if line is not None else []
    return alt.layer(*marks, bars, points).properties(width=WIDTH - 70, height=alt.Step(26))
