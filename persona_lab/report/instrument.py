"""The page of one instrument on one model: figures, tables and claims, part by part. Like the report it asks nothing of the network and runs no script.

    html = instrument_page("metric", "Nats to adopt are close to a metric.", [Part("Map", drawings=[Drawing(chart, "...")])], provenance)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from markupsafe import Markup

from persona_lab.report.figures import to_svg
from persona_lab.report.page import environment, style
from persona_lab.science.claims import Claim


@dataclass(frozen=True)
class Drawing:
    """A chart and what it shows, in words for those who cannot see it."""

    chart: alt.TopLevelMixin
    caption: str

    @property
    def svg(self) -> Markup:
        """The chart as SVG; vega escapes the text in it."""
        return Markup(to_svg(self.chart))


@dataclass(frozen=True)
class Sheet:
    """A table of texts; the first cell of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A stretch of the page under one title."""

    title: str
    about: str = ""
    drawings: Sequence[Drawing] = ()
    sheets: Sequence[Sheet] = ()
    claims: Sequence[Claim] = ()


def instrument_page(title: str, lead: str, parts: Sequence[Part], provenance: Mapping[str, Any]) -> str:
    """The page as HTML; all text is escaped."""
    css, css_hash = style()
    page = environment().get_template("instrument.html.j2").render(
        title=title, lead=lead, parts=parts, provenance=provenance, css=Markup(css), css_hash=css_hash
    )
    # Half of a surrogate pair may stand in JSON, and in no file.
    return page.encode(errors="replace").decode()
