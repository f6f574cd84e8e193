"""Rounds of an adaptive search: each decides, on the scores so far, what the next one trains. No torch.

    round 1: the opening cells   ->   decision.json   ->   round 2: these and the chosen ones   ->   ...

A round is a node over every score of the search so far, so its identity is known before it is decided. Any number of
workers may decide it: the store keeps the first decision, and all of them follow that one.
"""

import time

from persona_lab.experiment.planning.plan import DECISION, Plan, follow
from persona_lab.experiment.reading.show import settings_of
from persona_lab.experiment.reading.table import tidy_table
from persona_lab.science.search.adaptive import Decision, decide
from persona_lab.science.search.searched import measured, searched_pairs
from persona_lab.store.files import write_json


def advance(plan: Plan) -> Plan | None:
    """The plan with the next round's cells, once all cells of this one are scored or have failed; None when the search has ended, or there is none."""
    if not plan.rounds:
        return None
    if not plan.store.has(plan.rounds[-1]):
        start = time.monotonic()
        decision = decided(plan)
        with plan.store.attempt(plan.rounds[-1]) as attempt:
            write_json(attempt.folder / DECISION, decision.to_json())
            attempt.note(seconds=round(time.monotonic() - start, 3), device="cpu")
    grown = follow(plan)
    return grown if grown is not plan else None


def decided(plan: Plan) -> Decision:
    """What the scores of the search so far say of its next round."""
    settings = settings_of(plan)
    assert settings.search
    table = tidy_table(plan.store, plan.searched, plan.loaded.experiment.name)
    return decide(settings.search, measured(searched_pairs(table, settings)))
