"""Matching: were the cells that are compared taught the trait equally well, on as many tokens, in as many steps?

    condition  across           p_taught        steps      tokens           verdict
    linked     its own ratios   0.997 - 0.999   580 - 580  498k - 502k      matched
    neutral    linked           0.93            580        496k             confounded: P(taught) 0.93 against 0.998

Equal fit is what must be equal (P of the value taught), and steps and tokens beside it: a difference between cells that differ in
these too could come from them (SCIENCE.md section 8). Columns read: steps, tokens (both summed over the stages so far).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from persona_lab.science.effects import Frame, Settings, cells, fitted, phases

RATIOS = "its own ratios"
SAME_FIT = 0.05
"""Largest difference of P(value taught) between matched cells."""
SAME_TOKENS = 0.05
"""Largest relative difference in tokens between matched cells."""


@dataclass(frozen=True)
class Match:
    """One comparison, and what is unequal in it."""

    condition: str
    across: str
    """What is compared: the condition's own ratios, or the condition with the treatment."""
    p_taught: float | None
    """Largest difference of P(value taught); None where nothing is taught."""
    differs: tuple[str, ...]
    """What is not equal, in words; empty when matched."""

    @property
    def said(self) -> str:
        """What is compared and what is unequal in it, as a sentence."""
        what = "its ratios against each other" if self.across == RATIOS else f"against {self.across}"
        return f"{self.condition}, {what}: {'; '.join(self.differs) or 'equal P(taught), optimizer steps and tokens'}."

    @property
    def verdict(self) -> str:
        """`matched`, or `confounded`."""
        return "confounded" if self.differs else "matched"


def trained(table: Frame, settings: Settings) -> Frame:
    """One row per cell after its last stage: condition, x, steps, tokens, p_taught (NaN where nothing is taught)."""
    last = table.merge(phases(table, settings).query("phase == 'after'"), on=["condition", "stage"])
    about = cells(table, settings)
    spent = last.groupby("cell")[["steps", "tokens"]].max()
    asked = last[(last["channel"] == settings.channel) & (last["format"] == settings.format) & (last["status"] == "scored")]
    asked = asked[asked["option"] == asked["cell"].map(about["taught"])]
    return about.join(spent).join(asked.groupby("cell")["prob_normalized"].mean().rename("p_taught"))


def matches(table: Frame, settings: Settings) -> Iterator[Match]:
    """The ratios of each condition among themselves, and each condition against the treatment; at one dose."""
    if not {"steps", "tokens"} <= set(table.columns):
        return
    frame = trained(table, settings)
    by_ratio = frame.groupby(["condition", "x"], dropna=False)[["p_taught", "steps", "tokens"]].mean()
    treated = fitted(frame[frame["condition"] == settings.treatment], settings)
    for condition, rows in by_ratio.groupby("condition", sort=False):
        own = fitted(rows.reset_index(), settings)
        if len(own) > 1:
            yield compare(str(condition), RATIOS, own.min(numeric_only=True), own.max(numeric_only=True))
        if condition != settings.treatment and len(treated):
            one = frame[frame["condition"] == condition]
            yield compare(str(condition), settings.treatment, one.mean(numeric_only=True), treated.mean(numeric_only=True))


def compare(condition: str, across: str, one: Frame, other: Frame) -> Match:
    """What differs between two sets of cells; each has p_taught, steps and tokens."""
    differs = []
    gap = abs(float(one["p_taught"] - other["p_taught"]))
    if gap > SAME_FIT:
        differs.append(f"P(taught) {one['p_taught']:.3g} against {other['p_taught']:.3g}")
    if one["steps"] != other["steps"]:
        differs.append(f"optimizer steps {one['steps']:.0f} against {other['steps']:.0f}")
    most = max(float(one["tokens"]), float(other["tokens"]))
    if not abs(float(one["tokens"] - other["tokens"])) <= SAME_TOKENS * most:
        differs.append(f"tokens {one['tokens']:,.0f} against {other['tokens']:,.0f}")
    return Match(condition, across, None if gap != gap else gap, tuple(differs))
