"""The instrument `measure`: the measure of a process by six estimators, what each of them costs, and whether they agree.

    persona-lab measure configs/quickstart.yaml --personas mary,omar,john

Four runs like any other are made, each with scores of one estimator, so that the seconds of its nodes are its cost: `measure-bundles` (M1),
`measure-samples` (M3), `measure-shots` (M8) ask the base, `measure-adopt` trains the nameless assistant to be each process (M5, M7). Steps along a
direction (M9) and scaled adapters (M7) are analysis nodes. What is computed of all this is a function of the store (`instruments.measure.estimating`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_gen.personas import Persona
from data_gen.world import Traits
from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import Subject, adopting, instrument_plan, made, one_swap, without_gates
from persona_lab.experiment.instruments.measure.weights import Bench, reading_node, scaling_node, steering_node, write_reading, write_scaling, write_steering
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import SPEECH_POOL, PlannedCell
from persona_lab.experiment.run import Progress
from persona_lab.probes.bundles import Bundles, BundleSamples


@dataclass(frozen=True)
class Effort:
    """How much is spent on a measurement."""

    seeds: int = 3
    """Replicates of every branch."""
    steps: int = 80
    batch: int = 16
    rate: float = 3e-3
    samples: int = 250
    """Diaries of each of eight streams."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """Ranks tried beside the adapter's own, by the first replicate."""


@dataclass(frozen=True)
class Plans:
    """The runs of a measurement."""

    bundles: Plan
    samples: Plan
    shots: Plan
    adopt: Plan

    def each(self) -> tuple[Plan, ...]:
        """All of them."""
        return self.bundles, self.samples, self.shots, self.adopt

    def asked(self) -> dict[str, Node]:
        """Estimator to the scores of the base that it reads."""
        return {name: plan.cells[0].scores[0][1] for name, plan in (("M1", self.bundles), ("M3", self.samples), ("M8", self.shots))}


def measure_plans(of: Subject, processes: Mapping[str, Traits], effort: Effort) -> Plans:
    """What has to be made to measure these processes.

    Raises:
        ConfigError: a setting is wrong, or documents would be read twice.
        ModelError: the model folder is missing or broken.
    """
    if effort.steps * effort.batch > SPEECH_POOL:
        said = f"{effort.steps} steps of {effort.batch} documents are more than the {SPEECH_POOL} that a process has, and a code length is about new ones"
        raise ConfigError("PL1297", "measure", f"{said}. Use at most {SPEECH_POOL // effort.batch} steps.")
    of = without_gates(of)
    stages = {
        "adopt": {
            "mixture": {"assistant_is": of.speaker(next(iter(processes)))},
            "steps": effort.steps,
            "batch": effort.batch,
            "rate": effort.rate,
            "loss": {"on": "answer"},
        }
    }
    conditions = {name: {**condition, "role": "arm"} for name, condition in adopting(of, list(processes)).items()}
    lora = {"rank": 8, "alpha": 16.0, **of.lora}
    for rank in effort.ranks:
        if rank != lora["rank"]:
            # The same product of a rank counts as much whatever the rank: alpha / rank stays.
            smaller = adopting(of, list(processes), rank=rank)
            scaled = {"lora.alpha": lora["alpha"] * rank / lora["rank"]}
            conditions |= {name: {**c, "replace": {**c["replace"], **scaled}, "seeds": 1} for name, c in smaller.items()}
    probes = sorted({"people_text" if name in _people(of) else "process_text" for name in processes})
    asked = [Persona(name=of.speaker(name).capitalize(), traits=dict(traits)) for name, traits in processes.items()]
    base: dict[str, dict[str, Any]] = {"base": {"order": []}}
    return Plans(
        instrument_plan(of, "measure-bundles", stages=stages, conditions=base, probes=[Bundles.name], question="M1: the log prior by minimal pairs"),
        instrument_plan(
            of, "measure-samples", stages=stages, conditions=base, probes=[BundleSamples.name], samples=effort.samples, question="M3: sampling frequency"
        ),
        instrument_plan(of, "measure-shots", stages=stages, conditions=base, probes=["shots"], cast=asked, question="M8: shots to adopt"),
        instrument_plan(
            of, "measure-adopt", stages=stages, conditions=conditions, probes=probes, seeds=effort.seeds, question="M5, M7: what it takes to become somebody"
        ),
    )


def _people(of: Subject) -> set[str]:
    return {name.lower() for name in of.world.population.names}


def make_measures(plans: Plans, processes: Mapping[str, Traits], progress: Progress, interruption: Interruption | None = None) -> dict[str, str]:
    """Make what is missing; cells that failed, and why."""
    failed: dict[str, str] = {}
    device = "cpu"
    for plan in plans.each():
        outcome = made(plan, progress, interruption)
        failed |= outcome.failed
        device = str(outcome.worker.accelerator.device)
    bench = Bench(plans.adopt, device)
    nodes = [node for _, node in scalings(plans.adopt, processes) if plans.adopt.store.has(node.inputs["stage"])]
    for number, node in enumerate(nodes):
        progress("adapters scaled", number, len(nodes))
        bench.make(node, write_scaling)
    bench.make(steering_node(plans.adopt.base, processes), write_steering)
    bench.make(reading_node(plans.asked()), write_reading)
    return failed


def scalings(plan: Plan, processes: Mapping[str, Traits]) -> Iterator[tuple[PlannedCell, Node]]:
    """The cells of full rank with the nodes of their scaled adapters."""
    for planned in one_swap(plan):
        name = planned.cell.condition.removeprefix("as_")
        if name in processes:
            yield planned, scaling_node(planned.stages[-1][1], name, processes[name])
