"""The stages of a plan as a tree: what is trained once for all cells that share it. No torch.

    injection              100, 300, 1,100 steps x 130     2,288,000 documents, 378 cells
      trait                60 steps x 351                  336,960 documents, 358 cells

Equal branches stand in one line: trajectories that differ in nothing but their documents, their seed or their dose.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell


@dataclass(frozen=True)
class Branch:
    """All trajectories of a stage that follow the same stages."""

    stage: str
    depth: int
    """Stages from the base, 1 for the first."""
    trajectories: int
    """Each trained once, to the longest of the steps that it needs."""
    steps: tuple[int, ...]
    """Where cells go on from it, or end."""
    adapters: int
    """Nodes: what is kept at one of these steps of one trajectory."""
    documents: int
    """Trained, all trajectories added."""
    documents_alone: int
    """If every cell trained its own."""
    cells: int


def tree(plan: Plan) -> tuple[Branch, ...]:
    """Depth first; a branch stands behind the one that it continues."""
    line_of = {stage.id: line for line, stages in plan.siblings.items() for stage in stages}
    chains = [chain for planned in plan.cells for chain in _chains(planned)]
    return tuple(_branches(plan, chains, line_of, 0))


def _chains(planned: PlannedCell) -> Iterator[PlannedCell]:
    """A cell, and the same with each of its branches in place of the last stage."""
    yield planned
    for branch in planned.branches:
        yield replace(planned, stages=(*planned.stages[:-1], branch))


def _branches(plan: Plan, cells: Sequence[PlannedCell], line_of: dict[str, str], depth: int) -> Iterator[Branch]:
    groups: dict[str, list[PlannedCell]] = {}
    for planned in cells:
        if len(planned.stages) > depth:
            groups.setdefault(planned.stages[depth][0], []).append(planned)
    for name, chains in groups.items():
        # A cell that has branches comes once for each.
        group = list({planned.cell.name: planned for planned in chains}.values())
        nodes = {planned.stages[depth][1].id: planned.stages[depth][1] for planned in group}
        longest: dict[str, int] = {}
        for node in nodes.values():
            documents = node.fields["step"] * node.fields["recipe"]["batch"]
            longest[line_of[node.id]] = max(longest.get(line_of[node.id], 0), documents)
        alone = sum(p.stages[depth][1].fields["step"] * p.stages[depth][1].fields["recipe"]["batch"] for p in group)
        steps = tuple(sorted({node.fields["step"] for node in nodes.values()}))
        yield Branch(name, depth + 1, len(longest), steps, len(nodes), sum(longest.values()), alone, len(group))
        yield from _branches(plan, chains, line_of, depth + 1)
