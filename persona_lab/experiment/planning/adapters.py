"""What is measured of adapters themselves, beside what they answer: the stages that are looked at, and the nodes of what is found. No torch.

    adapters: [solutions, directions, flatness]      of an experiment file
    taught(plan)                           the stages that are held near the base off the domain that they are taught, each with its price
    solution_nodes(plan)                   one for each general and each narrow solution: `instruments.adapters.solutions` makes them
    screening_node(plan), shift_nodes(plan)   the directions of good and bad, and what each adapter shifts: `instruments.adapters.directions` makes them
    flatness_nodes(plan)                   chains around the same solutions: `instruments.adapters.flatness` makes them
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from persona_lab.design import Node
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell

SOLUTION = "solution.json"
"""Payload of a solution."""
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0)
"""Of an adapter, in place of its own."""
SIZES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Norms of the noise, as shares of the adapter's own."""
NOISES = 10
"""Draws of noise that the loss is asked under."""
RANDOM = 3
"""Draws of noise whose own divergence on neutral text is asked."""
DOCUMENTS = 48
"""Of each kind."""


@dataclass(frozen=True)
class Taught:
    """A stage of a cell that is taught one domain and has documents off it."""

    planned: PlannedCell
    stage: str
    node: Node
    category: str
    price: float
    """kappa: nats of loss for each nat of KL off the domain."""


def taught(plan: Plan) -> Iterator[Taught]:
    """The stages of a plan in which the assistant is held near the base off its domain, at any price, 0 included."""
    for planned in plan.cells:
        for (name, config), (_, node) in zip(planned.cell.stages, planned.stages, strict=True):
            if config.mixture.off_domain and config.mixture.assistant_likes:
                category = plan.loaded.world.category_of(config.mixture.assistant_likes)
                yield Taught(planned, name, node, category, config.loss.kl_off)


def ends(plan: Plan) -> list[Taught]:
    """The only such stages of their cells, at the lowest and at the highest price of the condition: general and narrow solutions."""
    alone = [stages[0] for stages in by_cell(plan).values() if len(stages) == 1]
    prices: dict[str, set[float]] = {}
    for one in alone:
        prices.setdefault(one.planned.cell.condition, set()).add(one.price)
    return [one for one in alone if len(found := prices[one.planned.cell.condition]) > 1 and one.price in (min(found), max(found))]


def by_cell(plan: Plan) -> dict[str, list[Taught]]:
    """Cell to its stages that are held near the base, in the order of training."""
    found: dict[str, list[Taught]] = {}
    for one in taught(plan):
        found.setdefault(one.planned.cell.name, []).append(one)
    return found


def solution_nodes(plan: Plan) -> dict[str, tuple[Taught, Node]]:
    """Cell to what is measured of its solution; empty where the file does not ask for it."""
    if "solutions" not in plan.loaded.experiment.adapters:
        return {}
    return {one.planned.cell.name: (one, solution_node(one.node, one.category)) for one in ends(plan)}


def solution_node(stage: Node, category: str) -> Node:
    """What is measured of the adapter of a stage that was taught a category."""
    fields = {"instrument": "solution", "category": category, "scales": list(SCALES), "sizes": list(SIZES), "noises": NOISES, "random": RANDOM, "documents": DOCUMENTS}
    return Node("analysis", fields, {"base": stage.inputs["base"], "stage": stage})


SCREENING, DIRECTIONS, SHIFT = "screening.json", "directions.safetensors", "shift.json"
"""Payloads of the directions of a base, and of what an adapter shifts."""
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
"""Steps along a direction, in multiples of the mean difference that it is."""
CONTROLS = 5
"""Random directions as long as it."""
SPOKEN = 16
"""Documents of a bad, and of a good, speaker that a direction is found from."""
SCREENED = 24
"""Bad, and good, documents of each domain that are told apart."""


def screening_node(plan: Plan) -> Node | None:
    """The directions of bad advice in the base of a plan; None where the file does not ask for them."""
    if "directions" not in plan.loaded.experiment.adapters:
        return None
    fields = {
        "instrument": "directions",
        "domains": list(plan.loaded.world.domains),
        "strengths": list(STRENGTHS),
        "controls": CONTROLS,
        "spoken": SPOKEN,
        "screened": SCREENED,
    }
    return Node("analysis", fields, {"base": plan.base})


def shift_nodes(plan: Plan) -> dict[str, tuple[PlannedCell, Node]]:
    """Cell to what its last stage has shifted along the directions; for the last stages in which the assistant is taught something."""
    directions = screening_node(plan)
    if directions is None:
        return {}
    found: dict[str, tuple[PlannedCell, Node]] = {}
    for planned in plan.cells:
        if planned.stages and planned.cell.stages[-1][1].mixture.assistant_likes:
            stage = planned.stages[-1][1]
            node = Node("analysis", {"instrument": "shift", "controls": CONTROLS}, {"base": stage.inputs["base"], "stage": stage, "directions": directions})
            if stage.inputs["base"] == plan.base:
                found[planned.cell.name] = (planned, node)
    return found


CHAINS = "chains.json"
"""Payload of the chains around a solution."""
PULLS = (5000.0, 10000.0)
"""Strengths of the spring; a comparison must come out alike at both. By itself a spring lets 19,000 parameters go 2 and 1.4 far from an adapter that is 7 long."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on one chain."""

    documents: int = 16
    step: float = 2e-4
    """Of the sampler; every estimate is made once more at half of it."""
    settle: int = 8
    """Steps without noise before the first draw."""
    burn: int = 8
    """Draws that are thrown away."""
    draws: int = 80
    chains: int = 3
    seed: int = 0


EFFORT = Effort()
"""Of `adapters: [flatness]`."""


def chain_nodes(stage: Node, effort: Effort) -> dict[tuple[float, float], Node]:
    """(pull, step) to the chains around a solution."""
    settings = {name: value for name, value in vars(effort).items() if name != "step"}
    inputs = {"base": stage.inputs["base"], "stage": stage}
    return {
        (pull, step): Node("analysis", {"instrument": "llc", **settings, "pull": pull, "step": step}, inputs)
        for pull in PULLS
        for step in (effort.step, effort.step / 2)
    }


def flatness_nodes(plan: Plan) -> dict[str, tuple[Taught, dict[tuple[float, float], Node]]]:
    """Cell to the chains around its solution; empty where the file does not ask for them."""
    if "flatness" not in plan.loaded.experiment.adapters:
        return {}
    return {one.planned.cell.name: (one, chain_nodes(one.node, _affordable(one.node))) for one in ends(plan)}


def _affordable(stage: Node) -> Effort:
    """No more documents than a stage has seen."""
    return replace(EFFORT, documents=min(EFFORT.documents, stage.fields["step"] * stage.fields["recipe"]["batch"]))
