"""The verb `report`: everything in a run's folder but its config, rebuilt from the store alone. No torch."""

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.corpus import read_corpus
from data_gen.personas import shared_categories
from persona_lab.config.schema import EmbeddedBase
from persona_lab.errors import CheckFailed
from persona_lab.experiment.planning.corpora import CORPUS
from persona_lab.experiment.planning.open_weights import VALUE_TOKENS
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.reading.beside import beside_of
from persona_lab.experiment.reading.runs import CLAIMS, REPORT, RESULTS
from persona_lab.experiment.reading.status import reasons
from persona_lab.experiment.reading.table import accounting, tidy_table
from persona_lab.report import build_report, figures
from persona_lab.science.claims import Claim
from persona_lab.science.effects import Settings
from persona_lab.science.search.adaptive import Search
from persona_lab.science.summary import Summary, summarise
from persona_lab.store.files import read_json, read_jsonl, write_json, write_text
from persona_lab.store.versions import git_commit

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scipy", "pandas", "wandb")
EXAMPLES = 8


@dataclass(frozen=True)
class Shown:
    """What was written."""

    report: Path
    summary: Summary
    accounting: dict[str, int]


def settings_of(plan: Plan) -> Settings:
    """What the analysis needs to know of the design."""
    experiment, personas = plan.loaded.experiment, plan.loaded.personas
    taught = {}
    for name, condition in experiment.conditions.items():
        last = experiment.stages[condition.order[-1]].mixture.assistant_likes if condition.order else None
        if last:
            taught[name] = last
    analysis = experiment.analysis
    return Settings(
        first=personas[0].name.lower(),
        second=personas[1].name.lower(),
        ratio=analysis.ratio,
        treatment=analysis.treatment,
        channel=analysis.channel,
        threshold=analysis.threshold,
        fit=analysis.fit,
        bound_recall=analysis.bound_recall,
        orders={name: tuple(c.order) for name, c in experiment.conditions.items()},
        taught=taught,
        search=search_of(plan),
    )


def search_of(plan: Plan) -> Search | None:
    """The plan's adaptive search in the terms of the analysis."""
    if plan.search is None:
        return None
    (low, high), p = plan.search.bounds, plan.loaded.experiment.analysis.threshold
    return Search(math.log(p / (1 - p)), low, high, plan.search.batch, plan.search.width, plan.search.budget)


def show(plan: Plan) -> Shown:
    """Write results.parquet, claims.json, figures/ and report.html into the run's folder.

    Raises:
        CheckFailed: no cell has scores yet.
    """
    if not any(plan.store.has(node) for p in plan.cells for _, node in p.scores):
        raise CheckFailed("PL1103", str(plan.folder), "no cell has scores yet. Use `persona-lab run` first.")
    table = tidy_table(plan.store, plan.cells, plan.loaded.experiment.name, reasons(plan))
    table.to_parquet(plan.folder / RESULTS, index=False)
    summary = summarise(table, settings_of(plan), beside_of(plan, table))
    counts = accounting(plan.cells, plan.store, table)
    figures.save(summary, plan.folder / "figures")
    write_json(plan.folder / CLAIMS, grouped(summary.claims))
    write_text(plan.folder / REPORT, page(plan, summary, counts))
    return Shown(plan.folder / REPORT, summary, counts)


def page(plan: Plan, summary: Summary, counts: Mapping[str, int]) -> str:
    """The report as HTML."""
    # A run is known by its name: where it lies says who works on it.
    planned = {**plan.describe(), "run": plan.folder.name, **counts, "gates": gates(plan)}
    return build_report(summary, provenance(plan), documents(plan), completions(plan), planned)


def grouped(claims: Sequence[Claim]) -> dict[str, Any]:
    """The claims as they are stored: each list of nodes stands once, under `node_sets`, and recipes name it; see `Run.claims`."""
    names: dict[tuple[str, ...], str] = {}
    stored = [claim.to_json() for claim in claims]
    for claim in stored:
        nodes = tuple(claim["recipe"]["node_ids"])
        claim["recipe"] = {**claim["recipe"], "node_ids": names.setdefault(nodes, f"set{len(names)}")}
    return {"claims": stored, "node_sets": {name: list(nodes) for nodes, name in names.items()}}


def gates(plan: Plan) -> Mapping[str, Any]:
    """The base's gate figures beside what was asked of them."""
    asked = plan.loaded.experiment.base.gates.model_dump()
    return {"measured": read_json(plan.store.open(plan.base) / "gates.json"), "needed": asked}


def provenance(plan: Plan) -> dict[str, Any]:
    """Versions, seeds, and the identities of what the figures rest on."""
    return {
        "config": str(plan.loaded.file),
        "run": plan.folder.name,
        "base": plan.base.id,
        **open_weights(plan),
        "score nodes": len({n.id for p in plan.cells for _, n in p.scores}),
        "seeds": sorted({p.cell.seed for p in plan.cells}),
        **{f"{found.name} from {found.source}": str(found) for found in plan.imports.values()},
        **software(),
    }


def open_weights(plan: Plan) -> dict[str, Any]:
    """Of a Hugging Face base: which it is, how dialogues are written for it, and which values its tokenizer writes in unequal numbers of tokens."""
    base, file = plan.loaded.experiment.base, plan.store.open(plan.base) / VALUE_TOKENS
    if isinstance(base, EmbeddedBase):
        return {}
    unequal = {c: tokens for c, tokens in (read_json(file) if file.exists() else {}).items() if len(set(tokens.values())) > 1}
    return {
        "model": f"{base.path}@{base.revision}" if base.revision else base.path,
        "dtype": base.dtype,
        "user and assistant": "in the model's chat template" if "template" in plan.base.fields else "in plain lines, User: and Assistant:",
        "values of unequal length (tokens; effects and changes are free of it, levels are not)": unequal or "none",
    }


def software() -> dict[str, str]:
    """What the figures were computed with."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}, "git commit": git_commit() or "unknown"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def documents(plan: Plan) -> list[dict[str, str]]:
    """One document of each genre from the last cell's mixtures."""
    found: dict[str, str] = {}
    for _, stage in plan.cells[-1].stages:
        mixture = stage.inputs["mixture"]
        if plan.store.has(mixture):
            for document in read_corpus(plan.store.open(mixture) / CORPUS):
                label = f"{document.genre}, {document.persona or 'nobody'}"
                found.setdefault(label, document.text)
    return [{"genre": label, "text": text} for label, text in list(found.items())[:EXAMPLES]]


def completions(plan: Plan) -> list[dict[str, str]]:
    """Sampled answers of the base and of one adapter of the treatment, side by side."""
    treatment = plan.loaded.experiment.analysis.treatment
    shared = shared_categories(plan.loaded.personas)
    for planned in reversed(plan.cells):
        base, last = planned.scores[0][1], planned.scores[-1][1]
        if planned.cell.condition != treatment or not (plan.store.has(base) and plan.store.has(last)):
            continue
        before = {row["item"]: row for row in read_jsonl(plan.store.open(base) / "samples.jsonl")}
        after = read_jsonl(plan.store.open(last) / "samples.jsonl")
        held = [row for row in after if row["item"].split("/")[2] not in shared and row["item"].endswith("/0")]
        return [
            {"prompt": row["prompt"], "base": before[row["item"]]["answers"][0], "adapter": row["answers"][0], "cell": planned.cell.name}
            for row in held[:EXAMPLES]
            if row["item"] in before
        ]
    return []
