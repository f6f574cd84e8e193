"""What pieces of work cost on this machine, as `persona-lab plan CONFIG --measure` found it. No torch.

    runs/store/measured/5f0c1d2e9a7b.json     {"workers": 2, "costs": {"stage-3fa9...": {"unit": 0.011, ...}, ...}, ...}

Nodes whose work differs in nothing but its amount have one shape, and a shape has one cost. A file belongs to one kind of
machine, its settings, the releases of the packages and the shapes of an experiment; it never enters an identity.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_lab.config.schema import Machine
from persona_lab.design import Node, canonical_json
from persona_lab.errors import CorpusError
from persona_lab.experiment.planning.plan import Plan
from persona_lab.store.files import read_json, write_json
from persona_lab.store.versions import platform_name, versions

SAFE = 0.8
"""Share of the free memory that a plan may fill: what is measured on few steps is not the longest document."""
REPORT = "report"
"""The shape of what the first worker does at the end."""


@dataclass(frozen=True)
class Cost:
    """One shape: `members` K are made together, and units are the steps of a stage or base, the documents of a pool or mixture."""

    once: float = 0.0
    """Seconds."""
    member: float = 0.0
    """Seconds a member, before its first unit."""
    commit: float = 0.0
    """Seconds for each node that is committed."""
    unit: float = 0.0
    """Seconds a unit, whatever the members."""
    unit_member: float = 0.0
    """Seconds a unit and member."""
    peak: float = 0.0
    """Bytes of memory that the worker has filled at most, without members: torch and the base are among them."""
    peak_member: float = 0.0
    """Bytes a member."""
    disk: float = 0.0
    """Bytes of a node."""
    disk_unit: float = 0.0
    """Bytes a unit."""
    tokens: float = 0.0
    """Of a document, with its end."""
    filling: float = 1.0
    """Members of a stack that fill a step."""

    def seconds(self, units: float = 0, members: int = 1, stops: int = 1) -> float:
        """Of one worker, when every member commits `stops` nodes."""
        return self.once + members * (self.member + stops * self.commit) + units * self.step(members)

    def step(self, members: int = 1) -> float:
        """Seconds of one unit."""
        return self.unit + members * self.unit_member

    def memory(self, members: int = 1) -> float:
        """Bytes of the device's memory that the worker fills."""
        return self.peak + members * self.peak_member


@dataclass(frozen=True)
class Measured:
    """What this machine was found to take."""

    workers: int
    """Processes that worked side by side while it was measured."""
    asked: int
    """Adapters whose scores are made together."""
    startup: float
    """Seconds until a worker can begin: imports."""
    seconds: float
    """Of measuring."""
    room: float
    """Bytes of the device's memory that each worker could fill."""
    costs: Mapping[str, Cost]


def sharded_bytes(weights: int, layer: int, rest: int, processes: int) -> int:
    """Bytes of a sharded base (FSDP2) on one of so many devices, at most.

    Its part; what is in no layer, gathered during a pass; and three layers: the one at work, the next one, and the buffer from which that is taken.

    Args:
        weights: bytes of the whole base.
        layer: of its largest layer.
        rest: of what is in no layer.
        processes: devices among which it is divided.
    """
    return -(-weights // processes) + rest + 3 * layer


def fitting(cost: Cost, available_bytes: float) -> int:
    """The most members of one stack that fill no more than a safe share of what a worker may use; at least one."""
    if cost.peak_member <= 0:
        return 65_536
    return max(1, int((SAFE * available_bytes - cost.peak) / cost.peak_member))


def bounds(plan: Plan, measured: Measured) -> dict[str, int]:
    """Stage, by id, to the most members of its stack that fit; stages that were not measured are left out."""
    shape = shapes(plan.nodes)
    return {node.id: fitting(measured.costs[shape[node.id]], measured.room) for node in plan.nodes if node.kind == "stage" and shape[node.id] in measured.costs}


def shapes(nodes: Iterable[Node]) -> dict[str, str]:
    """Node id to shape; inputs must come before what is made of them."""
    found: dict[str, str] = {}
    for node in nodes:
        if node.kind != "round":
            made_of = [node.kind, *_distinct(node, found)]
            found[node.id] = f"{node.kind}-{hashlib.sha256(canonical_json(made_of).encode()).hexdigest()[:12]}"
    return found


def _distinct(node: Node, shape: Mapping[str, str]) -> list[Any]:
    """What makes the work on a node another one than the work on the next."""
    fields = node.fields
    if node.kind == "base":
        return [{name: value for name, value in fields.items() if name not in ("steps", "seed", "rate", "rate_rest")}]
    if node.kind == "pool":
        return [fields["source"], fields.get("genres"), *([fields["content"]] if "content" in fields else [])]
    if node.kind == "mixture":
        return sorted({shape[pool.id] for pool in node.inputs.values()})
    base = shape[node.inputs["base"].id]
    if node.kind == "tokens":
        return [base, shape[node.inputs["pool"].id], fields["on"], *([fields["longest"]] if "longest" in fields else [])]
    if node.kind == "stage":
        recipe = fields["recipe"]
        return [base, shape[node.inputs["mixture"].id], recipe["batch"], recipe["loss"], recipe["lora"]]
    stage = node.inputs.get("stage")
    return [base, fields["probes"], fields["samples"], stage.fields["recipe"]["lora"] if stage else None]


def file_of(plan: Plan) -> Path:
    """Where the costs of an experiment on this machine stand."""
    machine = plan.loaded.experiment.machine
    known = [_machine(machine), versions(), sorted(set(shapes(plan.nodes).values()))]
    return plan.store.root / "measured" / f"{hashlib.sha256(canonical_json(known).encode()).hexdigest()[:16]}.json"


def _machine(machine: Machine) -> dict[str, Any]:
    """What a machine's speed hangs on, as far as it can be told without torch."""
    processors = _lines(Path("/proc/cpuinfo"), "model name")
    cards = [line for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")) for line in _lines(file, "Model")]
    settings = machine.model_dump(include={"device", "threads", "workers"})
    if machine.checkpoint_activations:  # less memory, more time
        settings["checkpoint_activations"] = True
    return {"platform": platform_name(), "processors": processors, "cards": cards, "cores": os.cpu_count(), **settings}


def _lines(file: Path, lead: str) -> list[str]:
    if not file.is_file():
        return []
    return [line.partition(":")[2].strip() for line in file.read_text(errors="replace").splitlines() if line.startswith(lead)]


def write_measured(plan: Plan, measured: Measured) -> Path:
    """Keep what was measured for this experiment and all that are made of the same shapes. EnvironmentFault."""
    file = file_of(plan)
    write_json(file, asdict(measured))
    return file


def read_measured(plan: Plan) -> Measured | None:
    """What was measured; None when nothing was.

    Raises:
        CorpusError: the file holds something else.
    """
    file = file_of(plan)
    if not file.exists():
        return None
    found = read_json(file)
    try:
        costs = {shape: Cost(**{name: float(figure) for name, figure in cost.items()}) for shape, cost in found["costs"].items()}
        return Measured(int(found["workers"]), int(found["asked"]), float(found["startup"]), float(found["seconds"]), float(found["room"]), costs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError("PL3504", str(file), f"is not what a measurement writes ({error}). Delete it, or use `persona-lab plan CONFIG --measure`.") from None
