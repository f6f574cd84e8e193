"""What foretells the rate of bad advice: the tournament of hypotheses, and the mediation test, on its log-odds.

The frame is that of the tournament (`science.runframe`) with eta, m and p replaced by the log-odds of bad advice in the untrained
domains after the last stage, before it, and in the base, signed toward the first rival's side: positive where bad advice speaks for
it. They turn sign with the swap as eta does. All else that a hypothesis may read (ratio, metric, dose, order) stays as it is.
"""

from collections.abc import Iterator

from persona_lab.errors import ConfigError
from persona_lab.science.claims import Said
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.em.rates import PLAIN, Advice, rates, wide
from persona_lab.science.hypotheses.mediation import mediation
from persona_lab.science.hypotheses.tournament import tournament

LETTERS = {"after": "eta", "before": "m", "base": "p"}


def advice_frame(table: Frame, settings: Settings, advice: Advice, runs: Frame) -> Frame:
    """The run frame about the log-odds of bad advice; `runs` as `run_frame`, one row for each cell with a villain."""
    found = rates(table, settings, advice)
    odds = wide(found[found["context"] == PLAIN], "odds")
    odds = odds[odds["side"] != 0]
    signed = odds[["seed", "swap"]].assign(**{letter: odds[phase] * odds["side"] for phase, letter in LETTERS.items()})
    signed["condition"] = [cell.rsplit("/seed", 1)[0] for cell in odds["cell"]]
    return runs.drop(columns=[*LETTERS.values()]).merge(signed, on=["condition", "seed", "swap"])


def foretelling_claims(table: Frame, settings: Settings, advice: Advice, runs: Frame) -> Iterator[Said]:
    """The claims of the tournament and of the mediation test, each id under `em.`."""
    frame = advice_frame(table, settings, advice, runs)
    try:
        for claim in tournament(frame).claims():
            yield about_advice(claim)
    except ConfigError as error:
        yield "em.tournament.verdict", f"No tournament on the rates: {error.problems[0].message}", None, None, "", "not run"
        return
    for claim in mediation(frame).claims():
        yield about_advice(claim)


def about_advice(claim: Said) -> Said:
    """A claim of the tournament with an id and a text that tell it from the one about values."""
    return f"em.{claim[0]}", f"Bad advice: {claim[1]}", *claim[2:]
