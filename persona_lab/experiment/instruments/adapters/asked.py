"""Makes what an experiment file asks to be measured of its adapters (`adapters:`), from stages that exist."""

from persona_lab.experiment.instruments.adapters.directions import write_screening, write_shift
from persona_lab.experiment.instruments.adapters.flatness import write_chains
from persona_lab.experiment.instruments.adapters.solutions import write_solution
from persona_lab.experiment.instruments.measure.weights import Bench
from persona_lab.experiment.planning.adapters import flatness_nodes, screening_node, shift_nodes, solution_nodes
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.run import Progress


def measure_adapters(plan: Plan, device: str, progress: Progress) -> None:
    """Make every such node that is missing; those of a stage that has failed are left out."""
    bench, store = Bench(plan, device), plan.store
    directions = screening_node(plan)
    work = [(node, write_solution) for _, node in solution_nodes(plan).values()]
    work += [(directions, write_screening)] if directions else []
    work += [(node, write_shift) for _, node in shift_nodes(plan).values()]
    work += [(node, write_chains) for _, nodes in flatness_nodes(plan).values() for node in nodes.values()]
    for number, (node, write) in enumerate(work):
        progress("adapters measured", number, len(work))
        if all(store.has(earlier) for earlier in node.inputs.values()):
            bench.make(node, write)
