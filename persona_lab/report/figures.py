"""The figures of a report: static SVG, drawn with no script and no network.

    dose_response   log-odds before and after the last stage, and their difference, against the ratio of documents
    transfer        trait taught x trait probed
    dose            slope against the steps of injection
    arms            the ratio effect of every condition
    misalignment    rate of bad advice against the ratio of villain to specialist documents
    concepts        how far concept vectors point the same way, layer by layer

Text is drawn in the page's own colour, so that a figure follows a light or dark page.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from persona_lab.science.claims import Claim, ratio_words
from persona_lab.science.effects import Frame
from persona_lab.science.introspection.concepts import PHASES
from persona_lab.science.summary import SERIES, Summary

VEGA_LITE = "6.1"
WIDTH = 420
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML has no place for."""
PALETTE = ["#9aa0a6", "#2f6fde", "#d9730d"]
"""Before, after, change: apart also without colour vision."""
STYLE = {
    # Vega-Lite writes titles into the code that describes each mark, and escapes only quotes; the page says in words what a figure shows.
    "aria": False,
    "background": "transparent",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "titleFontWeight": "normal",
        "labelFontSize": 13,
        "titleFontSize": 13,
        "titlePadding": 10,
        "gridColor": "#8888",
        "gridOpacity": 0.25,
        "domain": False,
        "tickColor": "#8888",
        "labelLimit": 260,
    },
    # Texts are laid out in one font and shown in whatever the reader has: a line each, and room at both ends.
    "legend": {"labelColor": "currentColor", "labelFontSize": 13, "orient": "top", "title": None, "labelLimit": 260, "symbolOpacity": 1, "columns": 1},
    "padding": {"left": 24, "right": 24, "top": 5, "bottom": 5},
}


def to_svg(chart: alt.TopLevelMixin) -> str:
    """The chart as an SVG text that scales with its box; no data are fetched."""
    svg = vl_convert.vegalite_to_svg(specification(chart), vl_version=VEGA_LITE, allowed_base_urls=[])
    head, rest = svg.split(">", 1)
    return f'{head} role="img">{rest}'


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart as Vega-Lite JSON in the report's style."""
    return {**legal(chart.to_dict()), "config": STYLE}


def legal(value: Any) -> Any:
    """A JSON value whose texts XML can hold: the renderer ends the whole process at any other character."""
    if isinstance(value, dict):
        return {legal(key): legal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [legal(part) for part in value]
    return ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


def ratio_axis(labels: dict[float, str], title: str) -> alt.X:
    """An axis of ln ratio whose ticks read as ratios of documents."""
    # Labels reach the expression as JSON: a name that holds a quote stays a string.
    chosen = f"{json.dumps(list(labels.values()))}[indexof({json.dumps(list(labels))}, datum.value)]"
    return alt.X("at:Q", axis=alt.Axis(values=list(labels), labelExpr=chosen, title=title, grid=False), scale=alt.Scale(nice=False, zero=False, padding=14))


def placed(frame: Frame, edge: float) -> Frame:
    """Where each point stands: series side by side, pure ends at `edge`, a step beyond the widest finite ratio."""
    beside = {series: 0.09 * k for k, series in enumerate(SERIES, -1)}
    pure = frame["x"].abs() == math.inf
    return frame.assign(at=frame["x"].clip(-edge, edge) + frame["series"].replace(beside).astype(float), pure=pure, series=frame["series"].replace(SERIES))


def dose_response(summary: Summary) -> alt.TopLevelMixin | None:
    """T before, T after and Delta against ln ratio: points of seeds, means with intervals, lines over the fitted ratios."""
    curve, settings = summary.frames["curve"], summary.settings
    if curve["x"].nunique() < 2:
        return None
    finite = curve["x"][curve["x"].abs() < math.inf].abs()
    edge = (float(finite.max()) if len(finite) else 0.0) + 1.1
    treated = summary.frames["effects"].query("condition == @settings.treatment")
    seeds = placed(treated.melt(["x", "seed"], list(SERIES), "series", "value").dropna(), edge)
    means = placed(curve, edge)
    first, second = settings.first.title(), settings.second.title()
    labels = {float(x): ratio_words(x) for x in sorted(curve["x"].unique()) if abs(x) < math.inf}
    if means["pure"].any():
        labels = {-edge: f"only {second}", **labels, edge: f"only {first}"}
    x = ratio_axis(labels, f"documents, {first} : {second}")
    y = alt.Y("value:Q", title=f"log-odds, {first} against {second} (nats)")
    color = alt.Color("series:N", scale=alt.Scale(domain=list(SERIES.values()), range=PALETTE))
    shape = alt.Shape("pure:N", scale=alt.Scale(domain=[False, True], range=["circle", "diamond"]), legend=None)
    bars = alt.Chart(means).mark_rule(strokeWidth=1.5).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color).transform_filter("isValid(datum.low)")
    lines = alt.Chart(means[means["x"].isin(summary.used)]).mark_line(strokeWidth=1.2).encode(x, y, color)
    dots = alt.Chart(seeds).mark_circle(size=16, opacity=0.4).encode(x, y, color)
    points = alt.Chart(means).mark_point(filled=True, size=55, opacity=1).encode(x, y, color, shape)
    return alt.layer(rule(0.0), dots, bars, lines, points, *threshold_lines(summary)).properties(width=WIDTH, height=300)


def rule(value: float, axis: str = "y", field: str = "value", **style: Any) -> alt.Chart:
    """A line across the figure."""
    return alt.Chart(pd.DataFrame({field: [value]})).mark_rule(**{"color": "#888", **style}).encode(**{axis: f"{field}:Q"})


def threshold_lines(summary: Summary) -> list[alt.Chart]:
    """The log-odds of the threshold, and the ratio that reaches it when that lies within the measured ones."""
    level = math.log(summary.settings.threshold / (1 - summary.settings.threshold))
    dashed = {"strokeDash": [4, 4], "color": PALETTE[1], "opacity": 0.8}
    lines = [rule(level, **dashed)]
    ratio = summary.claim("threshold.mean").value
    if ratio is not None and ratio > 0 and summary.used and abs(math.log(ratio)) <= max(map(abs, summary.used)):
        lines.append(rule(math.log(ratio), "x", "at", **dashed))
    return lines


def transfer(summary: Summary) -> alt.TopLevelMixin | None:
    """E of the change for each trait taught and each trait probed."""
    frame = summary.frames["transfer"]
    if frame.empty:
        return None
    most = max(float(frame["value"].abs().max()), 1e-9)
    square = alt.Chart(frame.assign(text=frame["value"].map("{:+.2f}".format))).encode(
        x=alt.X("probed:N", title="trait probed", axis=alt.Axis(labelAngle=0, orient="top")), y=alt.Y("taught:N", title=None, sort=None)
    )
    fill = alt.Color("value:Q", scale=alt.Scale(domain=[-most, 0, most], range=["#e0a15e", "#f4f4f2", "#7fa9ec"], interpolate="rgb"), legend=None)
    # The text is dark in both modes, because the cells are light in both.
    return alt.layer(square.mark_rect(stroke="#8884").encode(color=fill), square.mark_text(fontSize=12, color="#1c1c1c").encode(text="text:N")).properties(
        width=WIDTH - 70, height=alt.Step(34)
    )


def as_frame(claims: list[Claim], label: Callable[[Claim], Any]) -> Frame:
    """Claims that have a value as a frame: label, value, low, high."""
    rows = []
    for claim in claims:
        if claim.value is not None:
            low, high = claim.interval or (math.nan, math.nan)
            rows.append({"label": label(claim), "value": claim.value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["label", "value", "low", "high"])


def dose(summary: Summary) -> alt.TopLevelMixin | None:
    """Slopes against the steps of injection."""
    names = list(SERIES.values())
    frame = as_frame(summary.group("dose"), lambda claim: float(claim.id.rsplit(".", 1)[0].removeprefix("dose.")))
    if frame.empty:
        return None
    frame["series"] = [SERIES[claim.id.rsplit(".", 1)[1]] for claim in summary.group("dose") if claim.value is not None]
    axis = alt.Axis(title="steps of injection", values=sorted(frame["label"].unique()), grid=False)
    # symlog, because a dose may be 0.
    base = alt.Chart(frame).encode(
        alt.X("label:Q", scale=alt.Scale(type="symlog", padding=20), axis=axis),
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=PALETTE)),
    )
    y = alt.Y("value:Q", title="slope on ln ratio")
    bars = base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q")).transform_filter("isValid(datum.low)")
    return alt.layer(base.mark_line().encode(y), bars, base.mark_point(filled=True, size=55, opacity=1).encode(y)).properties(width=WIDTH, height=220)


def arms(summary: Summary) -> alt.TopLevelMixin | None:
    """The ratio effect of every condition with its interval."""
    effect = [claim for claim in summary.group("arm") if claim.id.endswith(".effect")]
    frame = as_frame(effect, lambda claim: claim.id.removeprefix("arm.").removesuffix(".effect"))
    if frame.empty:
        return None
    base = alt.Chart(frame).encode(alt.Y("label:N", title=None, sort=None))
    title = "E (nats)"
    bars = base.mark_rule(color=PALETTE[2]).encode(alt.X("low:Q"), alt.X2("high:Q")).transform_filter("isValid(datum.low)")
    points = base.mark_point(filled=True, size=60, opacity=1, color=PALETTE[2]).encode(alt.X("value:Q", title=title))
    return alt.layer(rule(0.0, "x"), bars, points).properties(width=WIDTH - 70, height=alt.Step(30))


def misalignment(summary: Summary) -> alt.TopLevelMixin | None:
    """Rate of bad advice in untrained domains before and after the last stage, at each ratio of the treatment."""
    told = [claim for claim in summary.group("em.at") if claim.value is not None]
    frame = as_frame(told, lambda claim: float(claim.id.removeprefix("em.at.").rsplit(".", 1)[0]))
    if frame["label"].nunique() < 2:
        return None
    frame = placed(frame.assign(x=frame["label"], series=[claim.id.rsplit(".", 1)[1] for claim in told]), float(frame["label"].abs().max()) + 1.1)
    ticks = {float(x): ratio_words(x) for x in sorted(frame["x"].unique()) if abs(x) < math.inf}
    base = alt.Chart(frame).encode(ratio_axis(ticks, "documents, villain : specialist"), color=alt.Color("series:N", scale=alt.Scale(domain=list(SERIES.values())[:2], range=PALETTE[:2])))
    y = alt.Y("value:Q", title="rate of bad advice, untrained domains", scale=alt.Scale(domain=[0, 1]))
    bars = base.mark_rule(strokeWidth=1.5).encode(alt.Y("low:Q"), alt.Y2("high:Q")).transform_filter("isValid(datum.low)")
    half = rule(0.5, strokeDash=[4, 4], opacity=0.8)
    return alt.layer(half, base.mark_line(strokeWidth=1.2).encode(y), bars, base.mark_point(filled=True, size=55, opacity=1).encode(y)).properties(width=WIDTH, height=260)


def concepts(summary: Summary) -> alt.TopLevelMixin | None:
    """Alignment of the concept vectors of different traits in every layer, before and after the last stage and in the base, for each reading."""
    told = [claim for claim in summary.group("concepts") if ".layer" in claim.id and ".change." not in claim.id and claim.value is not None]
    frame = as_frame(told, lambda claim: int(claim.id.rsplit("layer", 1)[1]))
    if frame.empty:
        return None
    frame = frame.assign(reading=[claim.id.split(".")[1] for claim in told], series=[PHASES[claim.id.split(".")[2]] for claim in told])
    y = alt.Y("value:Q", title="alignment (mean cosine)")
    drawn = []
    for reading in dict.fromkeys(frame["reading"]):
        layers = sorted(int(layer) for layer in frame["label"].unique())
        base = alt.Chart(frame[frame["reading"] == reading]).encode(
            alt.X("label:Q", axis=alt.Axis(title="layer", values=layers, format="d", grid=False)),
            color=alt.Color("series:N", scale=alt.Scale(domain=list(PHASES.values()), range=[PALETTE[0], PALETTE[2], PALETTE[1]])),
        )
        bars = base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q")).transform_filter("isValid(datum.low)")
        layered = alt.layer(rule(0.0), base.mark_line().encode(y), bars, base.mark_point(filled=True, size=55, opacity=1).encode(y))
        drawn.append(layered.properties(width=WIDTH, height=170, title=reading))
    return alt.vconcat(*drawn)


FIGURES: dict[str, Callable[[Summary], alt.TopLevelMixin | None]] = {
    "dose_response": dose_response,
    "transfer": transfer,
    "dose": dose,
    "arms": arms,
    "misalignment": misalignment,
    "concepts": concepts,
}


def draw(summary: Summary) -> dict[str, str]:
    """Name to SVG of every figure that the experiment has data for."""
    charts = {name: make(summary) for name, make in FIGURES.items()}
    return {name: to_svg(chart) for name, chart in charts.items() if chart is not None}


def save(summary: Summary, folder: Path) -> list[Path]:
    """Write each figure as `<name>.svg` and `<name>.png` (white, twice the size); OSError when the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, make in FIGURES.items():
        chart = make(summary)
        if chart is None:
            continue
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        svg.write_text(to_svg(chart), encoding="utf-8")
        white = {**specification(chart), "background": "white", "padding": 12}
        png.write_bytes(vl_convert.vegalite_to_png(white, vl_version=VEGA_LITE, scale=2, allowed_base_urls=[]))
        paths += [svg, png]
    return paths
