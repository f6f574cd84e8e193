"""Would this design attribute results to the hypothesis that made them? Results are simulated from each one and judged; a node, made once.

    truth    H0   H1   H2 ...    ?  truth refuted
    H0       20    .    . ...    .  .
"""

from typing import Any

from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.power import families, planned_runs, predictions_node
from persona_lab.science.hypotheses.recovery import confusion
from persona_lab.store.files import read_json, write_json

CONFUSION = "confusion.json"
SETS = 20
"""Results simulated from each hypothesis."""
JUDGED_AS = 3
"""Seeds: fewer support nothing, whatever the truth, and would tell nothing of the design."""


def simulate(plan: Plan) -> dict[str, Any]:
    """The confusion matrix of a design: from the store, or made now, in minutes.

    Raises:
        ConfigError: PL1295, the file names no hypotheses.
    """
    predicted = predictions_node(plan)
    if predicted is None:
        raise ConfigError("PL1295", str(plan.loaded.file), "names no hypotheses to simulate. Use for instance `hypotheses: [H0, H2, H5]`.")
    node = Node("analysis", {"what": "confusion", "sets": SETS, "judged_as": JUDGED_AS}, {"predictions": predicted})
    if not plan.store.has(node):
        plan.store.check_writable()
        found = confusion(planned_runs(plan), SETS, families=families(plan), judged_as=JUDGED_AS)
        written = {
            "table": found.table(),
            "attributed": {truth: dict(counts) for truth, counts in found.attributed.items()},
            "refuted": found.refuted,
            "recovered_share": found.recovered_share,
            "false_share": found.false_share,
        }
        with plan.store.attempt(node) as attempt:
            write_json(attempt.folder / CONFUSION, written)
    return read_json(plan.store.open(node) / CONFUSION)
