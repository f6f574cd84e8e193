"""The figures of the quality page of written documents: words spent on each fact, and lengths.

    airtime_bars(frame)      columns source, fact, words
    length_points(frame)     columns asked, words, status
"""

import altair as alt

from persona_lab.report.figures import PALETTE, WIDTH
from persona_lab.science.effects import Frame


def airtime_bars(frame: Frame) -> alt.TopLevelMixin:
    """Words of the sentences that name each fact, a row of bars for each source."""
    base = alt.Chart(frame).encode(alt.X("words:Q", title="words"), alt.Y("fact:N", title=None))
    rows = alt.Row("source:N", title=None, header=alt.Header(labelColor="currentColor", labelFontSize=13, labelAngle=0, labelAlign="left"))
    return base.mark_bar(color=PALETTE[1]).encode(row=rows).properties(width=WIDTH - 120, height=alt.Step(18))


def length_points(frame: Frame) -> alt.TopLevelMixin:
    """Length of each document against the length that was asked for; the line is where they are equal."""
    ends = [float(frame["asked"].min()), float(frame["asked"].max())] if len(frame) else [0.0, 1.0]
    line = alt.Chart(alt.InlineData([{"asked": end, "words": end} for end in ends])).mark_line(color="#888", strokeDash=[4, 4], strokeWidth=1)
    x, y = alt.X("asked:Q", title="words asked for", scale=alt.Scale(zero=False)), alt.Y("words:Q", title="words written", scale=alt.Scale(zero=False))
    points = alt.Chart(frame).mark_circle(size=30, opacity=0.6, color=PALETTE[2])
    return alt.layer(line.encode(x=x, y=y), points.encode(x=x, y=y)).properties(width=WIDTH, height=WIDTH * 0.6)
