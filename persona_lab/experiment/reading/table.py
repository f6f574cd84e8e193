"""The tidy table of an experiment: a view on its scores, rebuilt from the store whenever it is wanted.

A row is one option of one item, asked of one cell after one of its stages. Planned = scored + unscored + failed.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType

import pandas as pd

from persona_lab.design import Node
from persona_lab.experiment.planning.columns import design_columns
from persona_lab.experiment.planning.recipes import PlannedCell
from persona_lab.experiment.planning.scores import failed_rows
from persona_lab.store.files import read_json, read_jsonl
from persona_lab.store.nodes import Store


def tidy_table(store: Store, cells: Sequence[PlannedCell], experiment: str, reasons: Mapping[str, str] = MappingProxyType({})) -> pd.DataFrame:
    """Every score of every cell, `failed` where it does not exist, with the reason by node id; base_prob is what the base model gives the same option."""
    frames: list[pd.DataFrame] = []
    read: dict[str, pd.DataFrame] = {}

    def rows(node: Node) -> pd.DataFrame:
        if node.id not in read:
            read[node.id] = (
                pd.read_parquet(store.open(node) / "rows.parquet") if store.has(node) else _failed(node, reasons.get(node.id, "this cell has no scores"))
            )
        return read[node.id]

    spent = cache(lambda stage: tokens_of(store, stage))
    for planned in cells:
        base = rows(planned.scores[0][1]).set_index(["item", "option"])["prob"].to_frame("base_prob")
        columns, adopted = design_columns(planned, experiment), nats_to_adopt(store, planned)
        for position, (stage, node) in enumerate(planned.scores):
            frame = rows(node).join(base, on=["item", "option"])
            tokens = sum(spent(trained) for _, trained in planned.stages[:position])
            frames.append(frame.assign(node=node.id, tokens=tokens, **columns[stage], **adopted))
    table = pd.concat(frames, ignore_index=True)
    lead = ["experiment", "cell", "condition", "seed", "base_seed", "swap", "stage", "step", "steps", "tokens", "node"]
    return table.reindex(columns=[*lead, *(c for c in table.columns if c not in lead)])


def tokens_of(store: Store, stage: Node) -> float:
    """Tokens that carried loss in a stage; NaN where it was not trained."""
    return float(read_json(store.open(stage) / "state.json")["tokens"]) if store.has(stage) else math.nan


def nats_to_adopt(store: Store, planned: PlannedCell) -> dict[str, float]:
    """`adopt_john`: what the branch of each rival costs from where the last stage starts, sum of tokens times loss, nats; NaN where it was not trained.

    The two branches ask the same questions in the same words, so their difference is D1's (SCIENCE.md section 4): the entropy of the text cancels.
    """
    nats: dict[str, float] = {}
    for name, (_, node) in zip(planned.cast.names, planned.branches, strict=False):
        rows = read_jsonl(store.open(node) / "log.jsonl") if store.has(node) else []
        nats[f"adopt_{name.lower()}"] = float(sum(row["tokens"] * row["loss"] for row in rows)) if rows else math.nan
    return nats


def _failed(node: Node, reason: str) -> pd.DataFrame:
    # A column of None alone has no type, and would take it from the columns of the other cells.
    return pd.DataFrame(map(vars, failed_rows(node, reason))).astype(dict.fromkeys(("logprob_nats", "prob", "prob_normalized"), float))


def accounting(cells: Sequence[PlannedCell], store: Store, table: pd.DataFrame) -> dict[str, int]:
    """How many scores were planned, and what became of each; cells without scores count as failed."""
    status = table["status"].value_counts().to_dict()
    absent = sum(not store.has(node) for planned in cells for _, node in planned.scores)
    return {
        "cells": len(cells),
        "score_nodes": sum(len(p.scores) for p in cells),
        "score_nodes_missing": absent,
        "scored": int(status.get("scored", 0)),
        "unscored": int(status.get("unscored", 0)),
        "failed": int(status.get("failed", 0)),
    }
