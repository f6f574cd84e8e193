"""The verb `verify` for what an instrument wrote: its claims, its JSON and its page, computed once more from the store."""

from collections.abc import Iterator

from persona_lab.design import canonical_json
from persona_lab.experiment.checking.verify import Drift, Verified, brief, claim_drifts, damaged_nodes, page_drifts, same
from persona_lab.experiment.instruments.findings import Findings, findings_of, rests_on
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.store.files import finite, read_json


def verify_instrument(plan: Plan) -> Verified | None:
    """Compare an instrument's files with the store; None for a run that is no instrument's.

    Raises:
        ConfigError: the run has no claims yet, or its files are not what the instrument writes.
    """
    runs = rests_on(plan)
    if not runs:
        return None
    claims = Run(plan.folder).claims()
    nodes = {node.id for run in runs for node in run.nodes if run.store.has(node)}
    asked = sum(len(planned.scores) for run in runs for planned in run.cells)
    drifts = tuple(drift for run in runs for drift in damaged_nodes(run))
    if not drifts:
        found = findings_of(plan)
        drifts = (*claim_drifts(claims, found.claims), *said_drifts(found), *page_drifts(found.file.with_suffix(".html"), found.page))
    return Verified(len(claims), len(nodes), asked, drifts)


def said_drifts(found: Findings) -> Iterator[Drift]:
    """Fields of the JSON file that are not what the store gives."""
    stored, again = read_json(found.file), finite(found.said)
    for field in dict.fromkeys([*again, *stored]):
        if not alike(stored.get(field), again.get(field)):
            yield Drift(found.file.name, field, brief(canonical_json(stored.get(field))), brief(canonical_json(again.get(field))))


def alike(one: object, other: object) -> bool:
    """Whether two JSON values are one, numbers but for their last bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return same(one, other)
