"""The plan of a run: its cells, every node that they need, and the folder where their views stand."""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_gen.personas import Persona
from data_gen.telling import read_world
from persona_lab.config import LoadedExperiment, expand, load_experiment
from persona_lab.config.points import search_of
from persona_lab.config.schema import Adaptive, Experiment, Level
from persona_lab.config.yaml_tree import Tree
from persona_lab.design import Node, canonical_json
from persona_lab.errors import ConfigError, CorpusError
from persona_lab.experiment.planning.imports import read_imports
from persona_lab.experiment.planning.open_weights import FOUND, found_in, pinned_experiment
from persona_lab.experiment.planning.recipes import PlannedCell, Recipes, base_node, trajectory
from persona_lab.experiment.planning.sources import Files, Found, Imports
from persona_lab.store.files import make_folder, read_json, write_text
from persona_lab.store.nodes import Store

RUNS = Path("runs")
DECISION = "decision.json"
"""Payload of a round: the ratios that come next, and why."""


@dataclass(frozen=True)
class Plan:
    """An experiment file, expanded."""

    loaded: LoadedExperiment
    cells: tuple[PlannedCell, ...]
    base: Node
    runs: Path
    opening: tuple[PlannedCell, ...]
    """The cells that are planned before anything is scored: all of them, unless a search has gone on."""
    rounds: tuple[Node, ...] = ()
    """Of an adaptive search: the rounds that were decided, then the next one."""
    imports: Imports = field(default_factory=dict)
    """What was found in the files that mixtures take documents from."""

    @cached_property
    def id(self) -> str:
        """Eight hexadecimal digits over everything but `machine`, and over every score that it needs from the first."""
        content = json.dumps({k: v for k, v in self.resolved.items() if k != "machine"}, sort_keys=True)
        nodes = [node.id for planned in self.opening for _, node in planned.scores]
        return hashlib.sha256("\n".join([content, *nodes]).encode()).hexdigest()[:8]

    @property
    def resolved(self) -> dict[str, Any]:
        """The experiment with every default filled in."""
        return self.loaded.experiment.model_dump()

    @property
    def search(self) -> Adaptive | None:
        """The adaptive search of the treatment, if it has one."""
        return search_of(self.loaded.experiment, self.loaded.experiment.analysis.treatment)

    @property
    def searched(self) -> list[PlannedCell]:
        """The cells of the adaptive search, in the order in which they were chosen."""
        treatment = self.loaded.experiment.analysis.treatment
        return [planned for planned in self.cells if planned.cell.condition == treatment] if self.search else []

    @property
    def folder(self) -> Path:
        """`runs/<name>-<id8>`."""
        return self.runs / f"{self.loaded.experiment.name}-{self.id}"

    @cached_property
    def files(self) -> Files:
        """Where the documents of these files are read."""
        return Files({found.digest: found.source for found in self.imports.values()}, self.loaded.file)

    @cached_property
    def store(self) -> Store:
        """The store that all runs share; what one part of a run has verified no other part reads again."""
        return Store(self.runs / "store")

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node once, inputs before what is made of them."""
        found: dict[str, Node] = {}
        for planned in self.cells:
            for _, node in (*planned.stages, *planned.branches, *planned.scores):
                for earlier in (*node.ancestors(), node):
                    found.setdefault(earlier.id, earlier)
        return (*found.values(), *self.rounds)

    @cached_property
    def siblings(self) -> dict[str, list[Node]]:
        """Trajectory id to its planned stages, shortest first."""
        lines: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.kind == "stage":
                lines.setdefault(trajectory(node).id, []).append(node)
        return {line: sorted(stages, key=lambda n: n.fields["step"]) for line, stages in lines.items()}

    @cached_property
    def names(self) -> dict[str, str]:
        """Node id to a readable name: the first cell that needs it."""
        found: dict[str, str] = {}
        for planned in self.cells:
            for stage, node in (*planned.stages, *planned.branches, *planned.scores):
                found.setdefault(node.id, f"{planned.cell.name} {stage}")
        return found

    def tokens(self) -> dict[str, int]:
        """Documents to train on, with shared prefixes counted once, and as if every cell were trained alone."""
        shared = sum(line[-1].fields["step"] * line[-1].fields["recipe"]["batch"] for line in self.siblings.values())
        alone = sum(n.fields["step"] * n.fields["recipe"]["batch"] for p in self.cells for _, n in (*p.stages, *p.branches))
        return {"documents_trained": shared, "documents_without_sharing": alone}

    def describe(self) -> dict[str, Any]:
        """What would be made: counts by kind, what exists, what sharing saves."""
        have = Counter(node.kind for node in self.nodes if self.store.has(node))
        need = Counter(node.kind for node in self.nodes)
        return {
            "experiment": self.loaded.experiment.name,
            "run": str(self.folder),
            "cells": len(self.cells),
            "conditions": dict(Counter(p.cell.condition for p in self.cells)),
            "nodes": {kind: {"planned": n, "done": have[kind]} for kind, n in need.items()},
            **self.tokens(),
            **({"imports": {f"{found.name}, {found.source}": str(found) for found in self.imports.values()}} if self.imports else {}),
            **({"search": {"cells": len(self.searched), "budget": self.search.budget, "rounds_decided": have["round"]}} if self.search else {}),
        }

    def write(self) -> None:
        """The run's folder with its resolved config and plan; refused when it holds another config."""
        make_folder(self.folder)
        content = json.loads(json.dumps({k: v for k, v in self.resolved.items() if k != "machine"}))
        file = self.folder / "config.json"
        if file.exists() and read_json_loose(file) != content:
            changed = ", ".join(differences(read_json_loose(file), content))
            raise ConfigError("PL1290", str(file), f"the run's config was changed since: {changed}. Restore it, or give the experiment another name.")
        write_text(self.folder / "config.yaml", yaml.safe_dump(self._as_file(), sort_keys=False, allow_unicode=True))
        write_text(file, json.dumps(content, indent=1))
        written = {
            "cells": [_cell_json(p) for p in self.cells],
            "source": str(self.loaded.file),
            "world": self.loaded.world.model_dump(),
            "personas": [persona.model_dump() for persona in self.loaded.personas],
            "files": self.base.fields.get("files"),
            **({"template": self.base.fields["template"]} if "template" in self.base.fields else {}),
            **({"imports": [found.to_json() for found in self.imports.values()]} if self.imports else {}),
        }
        # Keys stay as they stand: the order of categories and traits is part of what nodes are made from.
        write_text(self.folder / "plan.json", json.dumps(written, indent=1, allow_nan=False) + "\n")
        latest = self.runs / self.loaded.experiment.name
        if latest.is_symlink() or not latest.exists():
            # Several workers do this at once: a rename takes the place of a link that is there.
            made = latest.with_name(f".{latest.name}.{secrets.token_hex(8)}.tmp")
            made.symlink_to(self.folder.name)
            os.replace(made, latest)

    def _as_file(self) -> dict[str, Any]:
        """The resolved experiment as a file that loads again."""
        written = self.resolved
        if "ratio" not in self.loaded.experiment.analysis.model_fields_set:
            # A ratio that a file names must be one of its factors; the default need not be.
            del written["analysis"]["ratio"]
        return written


def read_json_loose(file: Path) -> dict[str, Any]:
    """A config as written by `Plan.write`: pure ends may stand in it as Infinity. CorpusError."""
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorpusError("PL3502", str(file), f"is not JSON: {error}. Mend the file, or run the experiment again.") from None


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Dotted paths of the fields in which two JSON values differ."""
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return [] if found == expected else [path]
    keys = dict.fromkeys([*expected, *found])
    return [p for k in keys for p in differences(found.get(k), expected.get(k), f"{path}.{k}" if path else k)]


def _cell_json(planned: PlannedCell) -> dict[str, Any]:
    return {
        "cell": planned.cell.name,
        "stages": [{"stage": name, "node": node.id} for name, node in planned.stages],
        "scores": [{"stage": name, "node": node.id} for name, node in planned.scores],
        "branches": [{"stage": name, "node": node.id} for name, node in planned.branches],
    }


def make_plan(config: str | Path, overrides: Sequence[str] = (), runs: Path = RUNS) -> Plan:
    """Load, check and expand an experiment file; nothing is made or written.

    Raises:
        ConfigError: the file, the command line, or something that they name is wrong.
        ModelError: the model folder of the base is missing or broken, or the hub and its cache do not have it.
    """
    loaded = pinned_experiment(load_experiment(Path(config), list(overrides)))
    return plan_of(loaded, runs, found_in(loaded.experiment.base), read_imports(loaded, expand(loaded)))


def open_plan(folder: Path) -> Plan:
    """The plan of a run from its folder alone, whatever has become of the files it was made from.

    Raises:
        ConfigError: the folder was written by a version of the lab that made other nodes.
    """
    loaded, of_base, imports = _written(folder)
    plan = plan_of(loaded, folder.parent, of_base, imports)
    if plan.folder.name != folder.name:
        fix = f"Run {loaded.file} again, or use the version that made it."
        raise ConfigError("PL1292", str(folder), f"this version of the lab would call this run {plan.folder.name}: its recipes were changed since. {fix}")
    return plan


def _written(folder: Path) -> tuple[LoadedExperiment, Mapping[str, str], Imports]:
    """What a run's folder says of its experiment, of the files of its base, and what was found in files of documents.

    Raises:
        CorpusError: a file is no JSON.
        ConfigError: PL1292, a file says something else than a run writes.
    """
    file = folder / "plan.json"
    try:
        written = read_json(file)
        personas = tuple(Persona.model_validate(persona) for persona in written["personas"])
        world, source = read_world(written["world"]), Path(written["source"])
        of_base = {name: str(written[name]) for name in FOUND if written.get(name)}
        imports = {(found.name, found.source): found for found in map(Found.of_json, written.get("imports", ()))}
        file = folder / "config.json"
        raw = read_json_loose(file)
        return LoadedExperiment(Experiment.model_validate(raw), raw, world, personas, source, Tree({}, str(file))), of_base, imports
    except (ValidationError, KeyError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError("PL1292", str(file), f"is not what a run writes ({said}). Run the experiment again: what is in the store is kept.") from None


def plan_of(loaded: LoadedExperiment, runs: Path, of_base: Mapping[str, str], imports: Imports | None = None) -> Plan:
    """The plan of an experiment that was loaded, or built; `of_base` is what the files of its base give (`found_in`)."""
    cells = _planned(loaded, of_base, imports or {})
    plan = Plan(loaded, cells, cells[0].scores[0][1].inputs["base"], runs, cells, imports=imports or {})
    return follow(replace(plan, rounds=(_next_round(plan),))) if plan.search else plan


def _planned(loaded: LoadedExperiment, of_base: Mapping[str, str], imports: Imports, tried: Sequence[Level] | None = None) -> tuple[PlannedCell, ...]:
    """The cells of an experiment with their nodes; `tried` as in `expand`."""
    experiment, cells = loaded.experiment, expand(loaded, tried)
    bases = {canonical_json(c.base.model_dump()): c.base for c in cells}
    people = {persona.name.lower() for persona in loaded.personas}
    asked = tuple(experiment.probes), experiment.samples, imports, any(found.name in people for found in imports.values())
    recipes = {
        key: Recipes(loaded.world, loaded.personas, base_node(base, loaded.world, of_base), *asked)
        for key, base in bases.items()
    }
    return tuple(recipes[canonical_json(c.base.model_dump())].plan(c) for c in cells)


def _of_base(base: Node) -> dict[str, str]:
    """What the files of a base have given its node."""
    return {name: base.fields[name] for name in FOUND if name in base.fields}


def _next_round(plan: Plan) -> Node:
    """The decision that follows once every cell of the search so far is scored, or has failed."""
    assert plan.search
    analysis = plan.loaded.experiment.analysis
    fields = {"search": plan.search.model_dump(), "threshold": analysis.threshold, "channel": analysis.channel}
    return Node("round", fields, {planned.cell.name: planned.scores[-1][1] for planned in plan.searched})


def follow(plan: Plan) -> Plan:
    """The plan with the cells of every round of its search that was decided since; the same plan when none was."""
    while plan.rounds and plan.store.has(plan.rounds[-1]):
        chosen = read_json(plan.store.open(plan.rounds[-1]) / DECISION)["ratios"]
        if not chosen:
            break
        tried = [next(iter(planned.cell.point.values())) for planned in plan.searched if planned.cell.swap == 0]
        grown = replace(plan, cells=_planned(plan.loaded, _of_base(plan.base), plan.imports, [*tried, *chosen]))
        plan = replace(grown, rounds=(*plan.rounds, _next_round(grown)))
    return plan
