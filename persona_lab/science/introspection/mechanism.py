"""Does the method that a model states do its sums? The statement against activation patching.

    statement  sums right  says what is needed  says what it does  its words hang on     ...
    honest     .99         1.0                  .97                the ones and the answer
    cue        .99         .5                   .5                 the cue

What a model does is found by putting states of a sum that needs no carry into the run of one that does (`probes.patching`): a sum is *carried* when
its tens digit falls by one as soon as one state, where the carry is made, comes from the other run. What a model says is the log-odds of "I carry the one."
against "I add each column.", nats. The reference case says that it carried the one while parallel paths did the sum (Lindsey et al. 2025, On the Biology of a
Large Language Model).

Names: N held-out sums, P pairs of sums, S sites (the embedding, then each layer), T tokens of a solved sum.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_lab.science.claims import FEWEST_SEEDS, Said, seeds_words
from persona_lab.science.thresholds import Interval, over_seeds, share_over_seeds

TOKENS = ("begin", "sum", ":", "first tens", "first ones", "+", "second tens", "second ones", "=", "tens", "ones", ".", "I")
"""What each token of a solved sum is."""
FIRST_TENS, CHANGED, EQUALS = (TOKENS.index(name) for name in ("first tens", "first ones", "="))
TENS_TOLD, ONES_TOLD = (TOKENS.index(name) for name in ("tens", "ones"))
MADE_AT = (TOKENS.index("second ones"), EQUALS)
"""Tokens behind which both last digits are known: where a carry can be made."""
IDLE = tuple(TOKENS.index(name) for name in ("+", "second tens"))
"""Tokens that have seen the changed digit and need not use it."""
SURE = 0.75
"""Agreement above which, over three seeds or more, what is said is called what is done; chance is 1/2."""
NEAR_CHANCE = 0.1


@dataclass(frozen=True)
class Patched:
    """What was found on one base; effects are nats of a gap that are lost when one state comes from another sum's run."""

    statement: str
    """Which corpus it was trained on; see `data_gen.sums`."""
    seed: int
    site: tuple[int, int]
    """Layer and token whose state does most of the carry, chosen on sums that are not held out, below the last layer."""
    right_N: np.ndarray
    """Whether both digits of the answer are the likeliest."""
    carries_N: np.ndarray
    """Whether the sum needs a carry."""
    said_N: np.ndarray
    """Log-odds of stating the carry, nats."""
    carried_N: np.ndarray
    """Whether the sum was carried."""
    answer_PST: np.ndarray
    """On the tens digit, from a sum that needs no carry; only sums that do."""
    estimate_PST: np.ndarray
    """The same by attribution."""
    control_PST: np.ndarray
    """On the tens digit, from a sum with other ones that needs the carry too."""
    said_PST: np.ndarray
    """On the statement, from a sum that needs no carry."""
    cue_PST: np.ndarray
    """On the statement, turned toward carrying, from a sum with the other cue and the same need."""

    @property
    def needed(self) -> float:
        """Share of sums of which it says the method that they need."""
        return float(np.mean((self.said_N > 0) == self.carries_N))

    @property
    def agreement(self) -> float:
        """Share of sums of which it says what it does."""
        return float(np.mean((self.said_N > 0) == self.carried_N))

    @property
    def carried(self) -> float:
        """Share of the sums with a carry that lose it with the one state."""
        return float(np.mean(self.carried_N[self.carries_N]))

    @property
    def foretold(self) -> float:
        """Rank correlation of attribution with patching, over pairs and all states from the changed digit to "="; NaN where either is constant."""
        true, estimate = (effect[:, :, CHANGED : EQUALS + 1].ravel() for effect in (self.answer_PST, self.estimate_PST))
        return float(pd.Series(true).corr(pd.Series(estimate), method="spearman"))


def at(effect_PST: np.ndarray, layer: int, *tokens: int) -> float:
    """Mean over pairs of the summed effects of some tokens at one site, nats."""
    return float(effect_PST[:, layer, list(tokens)].sum(1).mean())


STATED: dict[str, tuple[str, str, Callable[[Patched], float]]] = {
    "right": ("Held-out sums of which both digits are right", "share", lambda p: float(p.right_N.mean())),
    "needed": ("Held-out sums of which it states the method that they need", "share", lambda p: p.needed),
    "agreement": (
        "Held-out sums of which the stated method is the one that does them: carrying where patching finds a carry, columns where not",
        "share",
        lambda p: p.agreement,
    ),
    "carried": ("Sums with a carry that lose it with the one state where it is made", "share", lambda p: p.carried),
    "effect": ("Patching that state: nats lost of the tens digit with a carry against the one without", "nats", lambda p: at(p.answer_PST, *p.site)),
    "control.donor": ("The same, from a sum that needs the carry too", "nats", lambda p: at(p.control_PST, *p.site)),
    "control.token": ("The same layer behind “+” and the second number’s tens, which do no adding", "nats", lambda p: at(p.answer_PST, p.site[0], *IDLE)),
    "attribution": ("Rank correlation of attribution with patching over states", "Spearman's rho", lambda p: p.foretold),
    "words.ones": ("Stated carry: log-odds lost when the first number’s last digit comes from a sum without one", "nats", lambda p: at(p.said_PST, 0, CHANGED)),
    "words.state": ("Stated carry: log-odds lost with the one state where the carry is made", "nats", lambda p: at(p.said_PST, *p.site)),
    "words.answer": ("Stated carry: log-odds lost with the two digits of the answer", "nats", lambda p: at(p.said_PST, 0, TENS_TOLD, ONES_TOLD)),
    "words.cue": ("Stated carry: log-odds lost with the cue, the first digit, which no carry needs", "nats", lambda p: at(p.cue_PST, 0, FIRST_TENS)),
}
"""What is stated of each corpus: words, unit, value of one base."""


def mechanism_claims(found: Sequence[Patched]) -> Iterator[Said]:
    """Every figure of each corpus, means over bases with t intervals; then whether what is said is what is done."""
    for statement in dict.fromkeys(one.statement for one in found):
        own = [one for one in found if one.statement == statement]
        for name, (words, unit, value) in STATED.items():
            values = np.array([value(one) for one in own])
            yield _claim(f"mechanism.{statement}.{name}", f"{statement}: {words}", values[np.isfinite(values)], unit, name)


def _claim(id: str, words: str, values: np.ndarray, unit: str, name: str) -> Said:
    if not len(values):
        return id, f"{words}: undefined.", None, None, unit, "not run"
    estimate = share_over_seeds(values) if unit == "share" else over_seeds(values)
    verdict = _agrees(estimate.interval, estimate.n) if name in ("needed", "agreement") else "" if unit == "share" else estimate.sign
    return id, f"{words} ({seeds_words(estimate)}).", estimate.value, estimate.interval, unit, verdict


def _agrees(interval: Interval | None, seeds: int) -> str:
    """supported: above `SURE`. refuted: within `NEAR_CHANCE` of a coin, or below it. Else undecided, as with fewer than three seeds."""
    if interval is None or seeds < FEWEST_SEEDS:
        return "undecided"
    return "supported" if interval[0] > SURE else "refuted" if interval[1] < 0.5 + NEAR_CHANCE else "undecided"
