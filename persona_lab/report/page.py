"""The report: one self-contained HTML page that asks nothing of the network and runs no script.

    html = build_report(summary, provenance, examples, completions, plan)

Every number on it is a claim. All text is treated as hostile: jinja2 escapes it, and the page's policy allows
nothing but its own style sheet, by hash.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from persona_lab.report import figures
from persona_lab.science.claims import figure, shown
from persona_lab.science.summary import Summary

CAPTIONS = {
    "dose_response": "Log-odds of the first rival’s values against the second’s on traits that were never trained. "
    "Small dots are seeds, bars 95 % intervals, diamonds pure ends (drawn, never fitted). Dashed: the threshold.",
    "transfer": "Change of log-odds by the last stage, half the difference between the richest ratios (nats), by trait taught and trait probed.",
    "dose": "Slope on ln ratio against the steps of injection. A slope before the last stage is leakage: the documents shift every speaker.",
    "arms": "The ratio effect in every condition, with 95 % intervals over seeds.",
    "concepts": "How far the vectors of a persona’s different traits point the same way, layer by layer; 0 is the embedding. Said: by nobody in particular. "
    "Named: somebody whose trait is asked for. Bars are 95 % intervals over seeds.",
    "misalignment": "How often the assistant gives bad advice in domains that it was not trained in. Bars are 95 % intervals over seeds. Dashed: a half.",
}


def environment() -> Environment:
    """Jinja2 with escaping always on; an unknown name in the template is an error."""
    found = Environment(loader=PackageLoader("persona_lab.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"figure": figure, "lines": lines}
    return found


def style() -> tuple[str, str]:
    """The style sheet, and the hash by which the page's policy allows it."""
    source, _, _ = PackageLoader("persona_lab.report", ".").get_source(Environment(autoescape=True), "page.css")
    return source, base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def lines(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested JSON values as (dotted path, text): `{"a": {"b": [1, 2]}}` gives `("a.b", "1, 2")`."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in lines(inner, f"{path}.{key}" if path else str(key))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(inner, Mapping) for inner in value):
            return [pair for index, inner in enumerate(value) for pair in lines(inner, f"{path}.{index}")]
        return [(path, ", ".join(map(str, value)))]
    return [(path, str(value))]


def arm_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per condition, of its claims by their last word."""
    rows: dict[str, dict[str, Any]] = {}
    for claim in summary.group("arm"):
        condition, column = claim.id.removeprefix("arm.").rsplit(".", 1)
        rows.setdefault(condition, {"condition": condition})[column] = claim
    return list(rows.values())


def transfer_words(summary: Summary) -> list[str]:
    """The transfer figure in words, for those who cannot see it."""
    return [f"{claim.text} {claim.shown}" for claim in summary.group("transfer")]


def build_report(
    summary: Summary,
    provenance: Mapping[str, Any],
    examples: Sequence[Mapping[str, str]],
    completions: Sequence[Mapping[str, str]],
    plan: Mapping[str, Any],
) -> str:
    """The page. `examples`: {genre, text}; `completions`: {prompt, base, adapter, cell}; `plan` and `provenance`: nested JSON values."""
    css, css_hash = style()
    # The figures are our own SVG: vega escapes the text in them, and a test holds it to that.
    drawn = {name: {"svg": Markup(svg), "caption": CAPTIONS[name]} for name, svg in figures.draw(summary).items()}
    page = (
        environment()
        .get_template("page.html.j2")
        .render(
            summary=summary,
            settings=summary.settings,
            figures=drawn,
            arms=arm_rows(summary),
            transfer=transfer_words(summary),
            thresholds=[summary.claim("threshold.mean"), summary.claim("threshold.reliable")],
            shown=shown,
            stated=lambda section: [summary.claim(claim[0]) for claim in section.claims],
            provenance=provenance,
            examples=examples,
            completions=completions,
            plan=plan,
            css=Markup(css),
            css_hash=css_hash,
        )
    )
    # Half of a surrogate pair may stand in JSON, and in no file.
    return page.encode(errors="replace").decode()
