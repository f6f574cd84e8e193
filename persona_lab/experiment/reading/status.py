"""What of a plan is done, what is under way, what failed, and what the rest will take. No torch.

    {"kinds": {"stage": {"planned": 12, "done": 9, "running": 1, "missing": 2}, ...}, "failed": {}, "left": {"seconds": 31.0, ...}}
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_lab.design import Node
from persona_lab.errors import Problem
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import trajectory
from persona_lab.launch.states import jobs_of
from persona_lab.store.files import read_json, write_json

FAILED = "failed.json"
SILENCE_SECONDS = 120.0
"""A lease that was not renewed for so long belongs to a worker that died."""


def status(plan: Plan) -> dict[str, Any]:
    """Counts by kind, why cells failed, the time and space that is left, and the jobs of `launch`."""
    # First, because it reads every manifest, and what was read need not be looked for again.
    left = estimate(plan)
    kinds: dict[str, dict[str, int]] = {}
    for node in plan.nodes:
        counts = kinds.setdefault(node.kind, {"planned": 0, "done": 0, "running": 0, "missing": 0})
        counts["planned"] += 1
        counts["done" if plan.store.has(node) else "running" if _leased(plan, node) else "missing"] += 1
    report = plan.folder / "report.html"
    return {
        "run": str(plan.folder),
        "cells": {"planned": len(plan.cells), "done": sum(all(plan.store.has(n) for _, n in p.scores) for p in plan.cells)},
        "kinds": kinds,
        "failed": failures(plan.folder),
        "left": left,
        "jobs": jobs_of(plan.folder),
        "report": str(report) if report.is_file() else None,
    }


def write_failures(folder: Path, failed: Mapping[str, str]) -> None:
    """Keep why cells have no scores; forget it when none failed."""
    if failed:
        write_json(folder / FAILED, dict(failed))
    else:
        (folder / FAILED).unlink(missing_ok=True)


def unscored(failed: Mapping[str, str]) -> list[Problem]:
    """Cells and why they failed, as errors."""
    return [Problem("PL1104", cell, f"has no scores: {why}.") for cell, why in failed.items()]


def failures(folder: Path) -> dict[str, str]:
    """Name of a cell to why it failed when the run was last tried."""
    file = folder / FAILED
    return read_json(file) if file.is_file() else {}


def reasons(plan: Plan) -> dict[str, str]:
    """Node id of missing scores to why they failed."""
    why = failures(plan.folder)
    return {node_id: why[name] for node_id, name in plan.names.items() if name in why}


def estimate(plan: Plan) -> dict[str, Any]:
    """Seconds of one worker and bytes that the missing nodes will take; None where nothing like them was measured yet.

    The rate of a kind is what its nodes in the store took, a document (a score, for scores), on the same base.
    """
    spent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for kind, node_id, manifest in plan.store.nodes():
        recipe, notes = manifest["recipe"], manifest["notes"]
        units = notes.get("documents", _units(kind, recipe["fields"]))
        if "seconds" in notes and units:
            of = spent[kind, _like(kind, recipe["fields"], recipe["inputs"].get("base", node_id))]
            for i, amount in enumerate((notes["seconds"], units, plan.store.payload_bytes(manifest), 1)):
                of[i] += amount
    missing = [node for node in plan.nodes if not plan.store.has(node)]
    seconds = size = 0.0
    for node in missing:
        if node.kind == "round":
            continue  # no time worth counting; what it will ask for is not known yet
        base = node.inputs.get("base", node)
        seconds_all, units_all, bytes_all, nodes = spent.get((node.kind, _like(node.kind, node.fields, base.id)), (0, 0, 0, 0))
        if not nodes:
            return {"nodes": len(missing), "seconds": None, "bytes": None}
        seconds += seconds_all / units_all * _to_do(plan, node)
        size += bytes_all / nodes
    return {"nodes": len(missing), "seconds": round(seconds, 1), "bytes": round(size)}


def _to_do(plan: Plan, node: Node) -> float:
    """Documents of a node; of a stage, those beyond the next shorter stage of its trajectory."""
    if node.kind != "stage":
        return _units(node.kind, node.fields)
    shorter = [n.fields["step"] for n in plan.siblings[trajectory(node).id] if n.fields["step"] < node.fields["step"]]
    return (node.fields["step"] - max(shorter, default=0)) * node.fields["recipe"]["batch"]


def _units(kind: str, fields: Mapping[str, Any]) -> float:
    """What the work on a node grows with: its documents."""
    if kind == "pool":
        return fields["size"]
    if kind == "mixture":
        return sum(share["count"] for share in fields["shares"])
    if kind == "stage":
        return fields["step"] * fields["recipe"]["batch"]
    return fields.get("steps", 1) * fields.get("batch", 1) if kind == "base" else 1


def _like(kind: str, fields: Mapping[str, Any], base: str) -> str:
    """Nodes of one kind with the same answer take alike: same base model, or for bases the same size."""
    if kind == "base":
        return "/".join(str(fields.get(name)) for name in ("kind", "architecture", "width", "layers", "heads"))
    return base if kind in ("stage", "scores") else ""


def at_work(plan: Plan) -> bool:
    """Whether somebody makes a node of the plan at this moment."""
    return any(_leased(plan, node) for node in plan.nodes if not plan.store.has(node))


def _leased(plan: Plan, node: Node) -> bool:
    lease = plan.store.root / "leases" / (trajectory(node) if node.kind == "stage" else node).id
    try:
        return time.time() - lease.stat().st_mtime < SILENCE_SECONDS
    except FileNotFoundError:
        return False
