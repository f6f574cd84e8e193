"""The verb `verify`: every claim computed once more from the store, and compared with what the run's folder states. No torch.

    claim slope.delta   value   stored 0.47   recomputed 0.41

Four things must hold: every byte of every node that the claims rest on is the byte that was committed; planned scores =
scored + unscored + failed, for every stage of every cell; the recipe of every claim gives the same value, interval,
verdict and text; and the table and the report say what the store says.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from persona_lab.design import Node, canonical_json
from persona_lab.errors import LabError, Problem
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.scores import failed_rows
from persona_lab.experiment.reading.beside import beside_of
from persona_lab.experiment.reading.runs import REPORT, RESULTS, Run
from persona_lab.experiment.reading.show import page, settings_of
from persona_lab.experiment.reading.status import reasons
from persona_lab.experiment.reading.table import accounting, tidy_table
from persona_lab.science.claims import Claim
from persona_lab.science.effects import Frame, Settings
from persona_lab.science.sections import Beside
from persona_lab.science.summary import FUNCTION, Summary, summarise
from persona_lab.store.files import finite, read_json
from persona_lab.store.nodes import Store

RECIPES: Mapping[str, Callable[[Frame, Settings, Beside], Summary]] = {FUNCTION: summarise}
"""What a recipe may call: a name in a file is looked up here and never imported."""
SAME = 1e-9
"""Relative difference below which two values are one: the sums of another build of numpy end in other bits."""
STATED = ("text", "value", "interval", "unit", "verdict")
STATUSES = ("scored", "unscored", "failed")
LONGEST = 200
"""Characters of one value that are shown."""
PROVENANCE = re.compile(r"<h2>Provenance</h2>.*", re.DOTALL)
"""Where the report names versions and the commit, which may differ where the figures may not."""


@dataclass(frozen=True)
class Drift:
    """One thing that the run's folder states otherwise than its store."""

    what: str
    """`claim slope.delta`, `node scores 3fa9`, `accounting`, or a file."""
    field: str
    stored: Any
    recomputed: Any

    def problem(self, where: str) -> Problem:
        """The drift as an error; `where` is the run's folder."""
        fix = "Restore the file, or use `persona-lab report` to state what the store says."
        return Problem("PL1105", f"{where}: {self.what}", f"{self.field} is stored as {self.stored}, recomputed it is {self.recomputed}. {fix}")


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what does not hold."""

    claims: int
    nodes: int
    rows: int
    drifts: tuple[Drift, ...]
    counted: str = "scores"
    """What the rows are."""

    def to_json(self) -> dict[str, Any]:
        """Counts, and every drift."""
        return {**asdict(self), "drifts": [asdict(drift) for drift in self.drifts]}


def verify(plan: Plan) -> Verified:
    """Compare a run's folder with its store.

    Raises:
        ConfigError: the run has no results yet.
    """
    run = Run(plan.folder)
    claims, table = run.claims(), run.table()
    present = [node for node in plan.nodes if plan.store.has(node)]
    # What is missing may have failed, and is accounted for; what is there must be whole.
    damaged = tuple(damaged_nodes(plan))
    if damaged:
        return Verified(len(claims), len(present), len(table), damaged)
    rebuilt = tidy_table(plan.store, plan.cells, plan.loaded.experiment.name, reasons(plan))
    summary, counts = RECIPES[FUNCTION](rebuilt, settings_of(plan), beside_of(plan, rebuilt)), accounting(plan.cells, plan.store, rebuilt)
    drifts = [
        *accounting_drifts(plan, rebuilt),
        *table_drifts(table, rebuilt),
        *claim_drifts(claims, summary.claims),
        *report_drifts(plan, summary, counts),
    ]
    return Verified(len(claims), len(present), len(table), tuple(drifts))


def damaged_nodes(plan: Plan) -> Iterator[Drift]:
    """Nodes of the plan whose files are not those that were committed."""
    yield from node_drifts(plan.store, [node for node in plan.nodes if plan.store.folder(node).exists()])


def node_drifts(store: Store, nodes: Iterable[Node]) -> Iterator[Drift]:
    """Nodes that are missing, or whose files are not those that were committed."""
    # A store remembers what it has verified; here every byte is read now.
    fresh = Store(store.root)
    for node in nodes:
        try:
            fresh.open(node)
        except LabError as error:
            for problem in error.problems:
                yield Drift(f"node {node.kind} {node.id[:12]}", problem.where, "committed", problem.message)


def accounting_drifts(plan: Plan, table: Frame) -> Iterator[Drift]:
    """Stages of cells where a question that was planned has no row, or two, or one that is none of scored, unscored, failed."""
    # Sampled answers that name no value have a row of their own, without an option: they answer what was planned, and add nothing to it.
    counted = table[table["status"].isin(STATUSES) & ~((table["option"] == "") & (table["format"] == "sampled"))]
    found = counted.groupby(["cell", "stage"])[["probe", "item", "option"]].agg(list)
    planned: dict[str, list[tuple[str, str, str]]] = {}
    for cell in plan.cells:
        for stage, node in cell.scores:
            if node.id not in planned:
                planned[node.id] = sorted((row.probe, row.item, row.option) for row in failed_rows(node, "planned"))
            key = (cell.cell.name, stage)
            rows = sorted(zip(*found.loc[key], strict=True)) if key in found.index else []
            if rows != planned[node.id]:
                lost = [row for row in planned[node.id] if row not in set(rows)]
                said = f"{len(rows)} rows" + (f", without {' '.join(lost[0])}" if lost else "")
                yield Drift("accounting", f"scored + unscored + failed of {cell.cell.name} {stage}", said, f"{len(planned[node.id])} planned")


def table_drifts(stored: Frame, rebuilt: Frame) -> Iterator[Drift]:
    """Columns of the stored table that are not those of the rebuilt one."""
    # Through parquet and back, because that is what became of the stored one.
    again = pd.read_parquet(io.BytesIO(rebuilt.to_parquet(index=False)))
    if list(stored.columns) != list(again.columns) or len(stored) != len(again):
        yield Drift(RESULTS, "shape", f"{len(stored)} rows, columns {', '.join(stored)}", f"{len(again)} rows, columns {', '.join(again)}")
        return
    for column in again:
        if not stored[column].equals(again[column]):
            differ = [i for i, pair in enumerate(zip(stored[column], again[column], strict=True)) if not same(*pair)]
            if differ:
                yield Drift(RESULTS, f"{column}, row {differ[0] + 1} and {len(differ) - 1} more", stored[column][differ[0]], again[column][differ[0]])


def claim_drifts(claims: Sequence[Any], again: Sequence[Claim]) -> Iterator[Drift]:
    """Claims that their recipe does not give; claims that are found again and are not stored, and stored ones that are not found again."""
    found = {claim.id: claim.to_json() for claim in again}
    stored: list[str] = []
    for number, claim in enumerate(claims, start=1):
        try:
            stored.append(str(claim["id"]))
            yield from list(differences(claim, found))
        except (KeyError, TypeError, AttributeError, ValueError):
            yield Drift(f"claim number {number}", "its fields", "malformed", "id, text, value, interval, unit, verdict, recipe")
    for missing in sorted(found.keys() - set(stored)):
        yield Drift(f"claim {missing}", "text", "absent", found[missing]["text"])
    for twice in sorted({name for name in stored if stored.count(name) > 1}):
        yield Drift(f"claim {twice}", "text", "stated twice", "stated once")


def differences(claim: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> Iterator[Drift]:
    """What of one claim its recipe does not give; KeyError, TypeError, AttributeError or ValueError when it is no claim."""
    what, recipe = f"claim {claim['id']}", claim["recipe"]
    again, functions = found.get(recipe["args"]["claim"]), {one["recipe"]["function"] for one in found.values()}
    if recipe["function"] not in functions:
        yield Drift(what, "recipe.function", recipe["function"], f"one of {', '.join(sorted(functions))}")
    elif again is None or again["id"] != claim["id"]:
        yield Drift(what, "recipe.args.claim", recipe["args"]["claim"], "no such claim" if again is None else claim["id"])
    else:
        yield from (Drift(what, field, claim[field], again[field]) for field in STATED if not same(claim[field], again[field]))
        for field, value in again["recipe"].items():
            if canonical_json(recipe[field]) != canonical_json(value):
                yield Drift(what, f"recipe.{field}", brief(recipe[field]), brief(value))


def report_drifts(plan: Plan, summary: Summary, counts: Mapping[str, int]) -> Iterator[Drift]:
    """The first line of the report that is not what the store gives."""
    yield from page_drifts(plan.folder / REPORT, page(plan, summary, counts))


def page_drifts(file: Path, again: str) -> Iterator[Drift]:
    """The first line of a stored page that is not that of the page made again."""
    try:
        stored = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield Drift(file.name, "its text", f"unreadable ({error})", "a report")
        return
    texts = [PROVENANCE.sub("", text).splitlines() for text in (stored, again)]
    for number, (one, other) in enumerate(zip_longest(*texts, fillvalue="nothing"), start=1):
        if one != other:
            yield Drift(file.name, f"line {number}", brief(one), brief(other))
            return


def said_drifts(file: Path, said: Mapping[str, Any]) -> Iterator[Drift]:
    """Fields of a JSON file that are not what was computed again."""
    yield from value_drifts(file.name, read_json(file), finite(said))


def value_drifts(what: str, stored: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Drift]:
    """Fields of an object of JSON that are not those of the one made again."""
    for field in dict.fromkeys([*again, *stored]):
        if not alike(stored.get(field), again.get(field)):
            yield Drift(what, field, brief(canonical_json(stored.get(field))), brief(canonical_json(again.get(field))))


def alike(one: object, other: object) -> bool:
    """Whether two JSON values are one, numbers but for their last bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return same(one, other)


def brief(value: Any) -> str:
    """A value in a line; of a long list its length and its digest."""
    if isinstance(value, list):
        return f"{len(value)} of digest {hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]}"
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\N{HORIZONTAL ELLIPSIS}"


def same(one: Any, other: Any) -> bool:
    """Whether two values are one: text and None exactly, numbers but for their last bits, lists part by part."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=1e-12) or (one != one and other != other)
    # A column holds None, NaN or NaT where a value is missing.
    absent = [part is None or part is pd.NaT or part != part for part in (one, other)]
    return all(absent) or bool(one == other)
