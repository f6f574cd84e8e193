"""What wandb should show of a run, as data: a workspace with its panels, and a grid sweep as a courtesy.

    runs/quickstart-16bab757/wandb_workspace.json    {"sections": [{"name": "Which persona", "panels": [{"type": "CustomChart", ...}]}], ...}
    runs/quickstart-16bab757/wandb_sweep.yaml        wandb sweep wandb_sweep.yaml

A panel's type and fields are those of wandb-workspaces, which is needed only to push it. The sweep is for those who have agents at work
already: `persona-lab launch` trains what is missing once, and a sweep does not know what is there.
"""

import json
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from persona_lab.errors import EnvironmentFault, printable
from persona_lab.experiment.planning.plan import Plan
from persona_lab.store.files import read_json, write_json, write_text
from persona_lab.tracking import PROJECT, base_url, label, logged_in

WORKSPACE, SWEEP = "wandb_workspace.json", "wandb_sweep.yaml"
SCATTER = "wandb/scatter/v0"
EFFECTS = "effects"
"""The table that the `analyse` job of a run logs: a row for each condition, ratio and seed; log-odds in nats."""
TYPES = ("BarPlot", "CustomChart", "LinePlot", "ScalarChart")
GUARDS = ("control.forgetting", "control.formats", "control.swap")
"""Claims that say whether the scores may be believed: forgetting of general text, nats a token; agreement of formats and swaps, nats."""


@dataclass(frozen=True)
class Specs:
    """Where they were written."""

    workspace: Path
    sweep: Path


def write_specs(plan: Plan) -> Specs:
    """Write both. EnvironmentFault."""
    specs = Specs(plan.folder / WORKSPACE, plan.folder / SWEEP)
    write_json(specs.workspace, workspace(plan))
    write_text(specs.sweep, yaml.safe_dump(sweep(plan), sort_keys=False, width=1000))
    return specs


def workspace(plan: Plan) -> dict[str, Any]:
    """The workspace of a run."""
    conditions = [f"arm.{name}.delta" for name in plan.loaded.experiment.conditions]
    recalls = [f"control.recall.{persona.name.lower()}" for persona in plan.loaded.personas[:2]]
    return {
        "project": PROJECT,
        "name": plan.folder.name,
        "filters": f"Group == '{label(plan.folder.name)}'",
        "sections": [
            _section("Which persona", _dose("delta", "before to after the last stage"), _dose("after", "after the last stage"), _bars("By condition, nats", conditions)),
            _section("Training", {"type": "LinePlot", "title": "Loss, nats a token", "x": "train/step", "y": ["train/loss"], "log_y": True}),
            _section("Coherence", _bars("Named recall", recalls), _bars("Forgetting, formats, swaps, nats", GUARDS)),
        ],
    }


def sweep(plan: Plan) -> dict[str, Any]:
    """A grid over the levels of the factors and the seeds; each point is a run of its own, of every condition."""
    experiment = plan.loaded.experiment
    levels = {name: {"values": [f"[{json.dumps(level)}]" for level in factor]} for name, factor in experiment.factors.items() if isinstance(factor, list)}
    seeds = experiment.seeds if isinstance(experiment.seeds, list) else list(range(experiment.seeds))
    return {
        "name": plan.folder.name,
        "project": PROJECT,
        "method": "grid",
        "command": ["${env}", "persona-lab", "run", str(plan.loaded.file), "underpowered=true", "${args_no_hyphens}"],
        "parameters": {**{f"factors.{name}": values for name, values in levels.items()}, "seeds": {"values": [f"[{seed}]" for seed in seeds]}},
    }


def push(spec: Path) -> str:
    """Make the workspace at wandb; its address.

    Raises:
        EnvironmentFault: PL5604, wandb-workspaces is not installed; PL5602, no login; PL5603, the server does not take it.
    """
    if find_spec("wandb_workspaces") is None:
        raise EnvironmentFault("PL5604", "wandb-workspaces", "is not installed. Use `pip install 'persona-lab[track]'`.")
    if not logged_in():
        raise EnvironmentFault("PL5602", base_url(), "nobody is logged in. Use `wandb login`, or WANDB_API_KEY.")
    import requests
    import wandb
    from wandb.errors import Error

    try:
        return built(read_json(spec), wandb.Api().default_entity or "").save().url
    except (Error, requests.RequestException, ValueError) as error:
        raise EnvironmentFault("PL5603", base_url(), f"does not take the workspace: {printable(str(error), 200)}. It stands in {spec}.") from None


def built(spec: dict[str, Any], entity: str) -> Any:
    """The workspace as an object of wandb-workspaces, which holds every field to its schema; ValueError (pydantic's) names those that do not fit."""
    # An extra: a type checker may not have it.
    workspaces: Any = import_module("wandb_workspaces.workspaces")
    panels: Any = import_module("wandb_workspaces.reports.v2")
    sections = []
    for section in spec["sections"]:
        made = [getattr(panels, panel["type"])(**{name: value for name, value in panel.items() if name != "type"}) for panel in section["panels"] if panel["type"] in TYPES]
        sections.append(workspaces.Section(name=section["name"], panels=made, is_open=True))
    shown = workspaces.RunsetSettings(filters=spec["filters"])
    return workspaces.Workspace(entity=entity, project=spec["project"], name=spec["name"], sections=sections, runset_settings=shown)


def _section(name: str, *panels: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "panels": list(panels)}


def _dose(column: str, when: str) -> dict[str, Any]:
    """The log-odds of the first rival against the ratio of documents, a point for each condition, ratio and seed."""
    return {
        "type": "CustomChart",
        "query": {"summaryTable": {"tableKey": EFFECTS}},
        "chart_name": SCATTER,
        "chart_fields": {"x": "x", "y": column},
        "chart_strings": {"title": f"Log-odds of the first rival {when}, nats", "xname": "ln ratio of documents"},
    }


def _bars(title: str, claims: Any) -> dict[str, Any]:
    return {"type": "BarPlot", "title": title, "metrics": list(claims), "orientation": "h"}
