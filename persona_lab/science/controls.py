"""Controls: what must hold before the headline may be believed, each with a pass line.

    unlinked   E of the unlinked condition   0.03 [-0.08, 0.14] nats   equivalent to 0 within ±0.2 nats   pass

Verdicts: pass, fail, undecided (the interval is too wide to say), not run (the experiment has no such condition).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from persona_lab.science.effects import CONTEXT, Frame, Settings, cells, effects, fitted, loss_change, named_recall, phases, ratio_effect, runs
from persona_lab.science.matching import RATIOS, SAME_FIT, SAME_TOKENS, Match
from persona_lab.science.thresholds import Estimate, Interval, Mean, equivalent, fit_line, over_seeds, share_over_seeds

LEVEL_MARGIN = 0.2
"""Nats within which an effect counts as none."""
SLOPE_MARGIN = 0.1
"""Nats per nat within which a ratio slope counts as flat."""
FORGETTING = 0.05
"""Nats a token that general text may lose."""
TAUGHT = 0.9
SAME_SIGN = 0.8
SWAP_FACTOR = 3.0


@dataclass(frozen=True)
class Control:
    """One control: what it asks, what was measured, and the line that it must pass."""

    name: str
    question: str
    value: float | None
    interval: Interval | None
    unit: str
    line: str
    verdict: str
    condition: str


def null_verdict(values: np.ndarray, margin: float) -> str:
    """Pass when shown to lie within the margin, fail when its 95 % interval lies outside, else undecided."""
    if equivalent(values, margin):
        return "pass"
    interval = over_seeds(values).interval
    outside = interval is not None and (interval[0] > margin or interval[1] < -margin)
    return "fail" if outside else "undecided"


def null_control(name: str, question: str, condition: str, values: np.ndarray, margin: float, unit: str) -> Control:
    """A control that must show no effect; the interval shown is the 90 % one that the test at 5 % rests on."""
    line = f"equivalent to 0: 90 % interval within ±{margin} {unit}"
    if not len(values):
        return Control(name, question, None, None, unit, line, "not run", condition)
    estimate = over_seeds(values, 0.90)
    return Control(name, question, estimate.value, estimate.interval, unit, line, null_verdict(values, margin), condition)


def slopes(frame: Frame, column: str = "delta") -> np.ndarray:
    """Slope of a column on ln ratio of each seed; empty when there are fewer than two ratios."""
    frame = frame.dropna(subset=[column])
    line = fit_line(frame["x"].to_numpy(), frame[column].to_numpy(), frame["seed"].to_numpy()) if len(frame) else None
    return np.array([]) if line is None else line.lines_S2[:, 1]


def level(frame: Frame, column: str) -> np.ndarray:
    """Mean of a column in each seed."""
    return frame.dropna(subset=[column]).groupby("seed")[column].mean().to_numpy()


def against(
    values: np.ndarray, low: float | None = None, high: float | None = None, one_enough: bool = False, mean: Mean = over_seeds
) -> tuple[Estimate, str]:
    """The estimate, and whether its 95 % interval (or with `one_enough` its value) is above `low` or below `high`."""
    estimate = mean(values)
    if one_enough:
        bottom = top = estimate.value
    elif estimate.interval is None:
        return estimate, "undecided"
    else:
        bottom, top = estimate.interval
    if low is not None:
        return estimate, "pass" if bottom >= low else "fail" if top < low else "undecided"
    return estimate, "pass" if high is not None and top < high else "fail" if high is not None and bottom >= high else "undecided"


def recall_controls(table: Frame, settings: Settings) -> Iterator[Control]:
    """Positive control: both rivals are known by name before the last stage, at the ratio that is worst for them."""
    recall = named_recall(table, settings)
    rows = fitted(recall[(recall["condition"] == settings.treatment) & (recall["phase"] == "before")], settings)
    for persona in (settings.first, settings.second):
        line = f"mean over seeds ≥ {settings.bound_recall} at every fitted ratio"
        question = f"Does the model know what {persona.title()} likes, at the ratio with the lowest recall?"
        own = rows[rows["subject"] == persona]
        if own.empty:
            yield Control(f"recall.{persona}", question, None, None, "share", line, "not run", settings.treatment)
            continue
        worst = own.groupby("x")["recall"].mean().idxmin()
        by_seed = own[own["x"] == worst].groupby("seed")["recall"].mean().to_numpy()
        estimate, verdict = against(by_seed, low=settings.bound_recall, one_enough=True, mean=share_over_seeds)
        yield Control(f"recall.{persona}", question, estimate.value, estimate.interval, "share", line, verdict, settings.treatment)


def null_controls(headline: Frame, settings: Settings) -> Iterator[Control]:
    """The conditions in which nothing may be transferred."""
    role = {name: settings.controls.get(name, name) for name in ("unlinked", "shuffled", "neutral", "no_injection")}
    part = {name: headline[headline["condition"] == condition] for name, condition in role.items()}
    fit = {name: fitted(frame, settings) for name, frame in part.items()}
    ask = "Rivals who do not have the taught trait: does the ratio still move the assistant (E)?"
    yield null_control("unlinked", ask, role["unlinked"], ratio_effect(fit["unlinked"]), LEVEL_MARGIN, "nats")
    # The change also holds what the last stage takes away of a leak that was there before it; the level does not.
    ask = "Rivals who do not have the taught trait: does the ratio show in what the assistant says afterwards (E of the level)?"
    yield null_control("unlinked_after", ask, role["unlinked"], ratio_effect(fit["unlinked"], "after"), LEVEL_MARGIN, "nats")
    ask = "Rivals who do not have the taught trait: does the assistant pick up either one's values (change of alpha)?"
    yield null_control("unlinked_level", ask, role["unlinked"], level(part["unlinked"], "alpha_delta"), LEVEL_MARGIN, "nats")
    ask = "Held-out traits dealt by a coin: is the slope flat?"
    yield null_control("shuffled", ask, role["shuffled"], slopes(fit["shuffled"]), SLOPE_MARGIN, "nats per nat")
    yield neutral_control(fit["neutral"], slopes(fitted(headline[headline["condition"] == settings.treatment], settings)), role["neutral"])
    ask = "No documents about the rivals: does the last stage alone favour either (T after it)?"
    yield null_control("no_injection", ask, role["no_injection"], level(part["no_injection"], "after"), LEVEL_MARGIN, "nats")


def neutral_control(frame: Frame, treated: np.ndarray, condition: str) -> Control:
    """An unrelated trait taught: its slope must be told from the treatment's, else a wide interval would pass by its width."""
    question = "An unrelated trait taught: does the ratio move the assistant (slope of the change)?"
    line = f"equivalent to 0 within ±{SLOPE_MARGIN}, or a 95 % interval that holds 0 and not the treatment's slope"
    values = slopes(frame)
    if not len(values):
        return Control("neutral", question, None, None, "nats per nat", line, "not run", condition)
    estimate = over_seeds(values)
    verdict = null_verdict(values, SLOPE_MARGIN)
    if verdict == "undecided" and estimate.interval is not None:
        low, high = estimate.interval
        if not low <= 0 <= high:
            verdict = "fail"
        elif len(treated) and not low <= float(treated.mean()) <= high:
            verdict = "pass"
    return Control("neutral", question, estimate.value, estimate.interval, "nats per nat", line, verdict, condition)


def calibration_control(treated: Frame, condition: str) -> Control:
    """Positive control: told what the rivals share, does a nameless speaker's eta follow the documents? Slope 1 is their own odds."""
    question = "A diary that names the shared trait: do the odds of the rivals' other values follow the documents (slope of eta on ln ratio)?"
    line = "95 % interval above 0 (1: the documents' own odds)"
    values = slopes(treated[treated["format"] == "diary"], "before")
    if not len(values):
        return Control("calibration", question, None, None, "nats per nat", line, "not run", condition)
    estimate, verdict = against(values, low=0)
    return Control("calibration", question, estimate.value, estimate.interval, "nats per nat", line, verdict, condition)


def matching_control(found: Sequence[Match], settings: Settings) -> Control:
    """Equal fit, steps and tokens at every ratio of the treatment."""
    question = "Do the ratios that are compared differ in how well the trait was taught, in optimizer steps or in tokens (largest difference of P)?"
    line = f"P(taught) within {SAME_FIT}, tokens within {SAME_TOKENS:.0%}, steps equal"
    own = [match for match in found if match.condition == settings.treatment and match.across == RATIOS]
    if not own:
        return Control("matched", question, None, None, "share", line, "not run", settings.treatment)
    return Control("matched", question, own[0].p_taught, None, "share", line, "fail" if own[0].differs else "pass", settings.treatment)


def taught_control(table: Frame, settings: Settings) -> Control:
    """Positive control: the last stage taught its trait, P of the value taught on the headline's items."""
    question, line = "Did the assistant learn the trait that it was taught (P of the value)?", f"mean over seeds ≥ {TAUGHT}"
    here = (table["condition"] == settings.treatment) & (table["channel"] == settings.channel) & (table["format"] == settings.format)
    rows = table[here & (table["status"] == "scored")].merge(phases(table, settings).query("phase == 'after'"), on=["condition", "stage"])
    rows = rows[rows["option"] == rows["cell"].map(cells(table, settings)["taught"])]
    if rows.empty:
        return Control("taught", question, None, None, "share", line, "not run", settings.treatment)
    estimate, verdict = against(rows.groupby("seed")["prob_normalized"].mean().to_numpy(), low=TAUGHT, one_enough=True, mean=share_over_seeds)
    return Control("taught", question, estimate.value, estimate.interval, "share", line, verdict, settings.treatment)


def forgetting_control(table: Frame, settings: Settings) -> Control:
    """General-text loss of the treatment against the base model."""
    question, line = "How much worse is general text predicted than by the base model?", f"95 % interval below {FORGETTING} nats/token"
    change = loss_change(table, settings)
    values = level(change[change["condition"] == settings.treatment], "change")
    if not len(values):
        return Control("forgetting", question, None, None, "nats/token", line, "not run", settings.treatment)
    estimate, verdict = against(values, high=FORGETTING)
    return Control("forgetting", question, estimate.value, estimate.interval, "nats/token", line, verdict, settings.treatment)


def format_control(treated: Frame, settings: Settings) -> Control:
    """The effect must not hang on one way of asking."""
    question, line = "In what share of the channels and formats does the ratio effect have the headline's sign?", f"≥ {SAME_SIGN}"
    found = {(str(c), str(f)): ratio_effect(rows.dropna(subset=["delta"])) for (c, f), rows in treated.groupby(["channel", "format"])}
    signs = {key: np.sign(values.mean()) for key, values in found.items() if len(values)}
    headline = signs.get((settings.channel, settings.format))
    if headline is None or len(signs) < 2:
        return Control("formats", question, None, None, "share", line, "not run", settings.treatment)
    other = [f"{channel} ({format})" for (channel, format), sign in signs.items() if sign != headline]
    share = 1 - len(other) / len(signs)
    if other:
        question += f" Not in {', '.join(other)}."
    return Control("formats", question, share, None, "share", line, "pass" if share >= SAME_SIGN else "fail", settings.treatment)


def swap_control(treated: Frame, settings: Settings) -> Control:
    """What follows the persona against what follows the word, both as E of the change; root mean squares over seeds, so that signs cannot cancel."""
    question = "How much larger is the effect that follows the persona than the remainder that follows the words?"
    line = f"≥ {SWAP_FACTOR:g} times"
    effect, remainder = (ratio_effect(treated.dropna(subset=[c]), c) for c in ("delta", "lexical_delta"))
    if not len(effect) or not len(remainder):
        return Control("swap", question, None, None, "times", line, "not run", settings.treatment)
    lexical = float(np.sqrt(np.mean(remainder**2)))
    times = float(np.sqrt(np.mean(effect**2))) / lexical if lexical else float("inf")
    verdict = "undecided" if len(effect) < 2 else "pass" if times >= SWAP_FACTOR else "fail"
    return Control("swap", question, times, None, "times", line, verdict, settings.treatment)


def in_context(table: Frame, settings: Settings) -> Frame:
    """Effects of the treatment where the speaker has just said what the rivals share, at the fitted ratios."""
    frame = effects(runs(table, settings, channels=(CONTEXT,)))
    return fitted(frame[frame["condition"] == settings.treatment], settings)


def controls(table: Frame, effect: Frame, found: Sequence[Match], settings: Settings) -> list[Control]:
    """Every control of the default report; `effect` is `effects(runs(table))`, of all channels and formats."""
    headline = effect[(effect["channel"] == settings.channel) & (effect["format"] == settings.format)]
    treated = fitted(effect[effect["condition"] == settings.treatment], settings)
    said = treated[(treated["channel"] == settings.channel) & (treated["format"] == settings.format)]
    return [
        *recall_controls(table, settings),
        calibration_control(in_context(table, settings), settings.treatment),
        taught_control(table, settings),
        matching_control(found, settings),
        *null_controls(headline, settings),
        swap_control(said, settings),
        format_control(treated, settings),
        forgetting_control(table, settings),
    ]
