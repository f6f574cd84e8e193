"""The columns of the tidy table that say what a cell is, known before anything is made: its place in the design, and what it is trained on.

    condition  seed  swap  stage  documents  ln_ratio  ln_trained  came_first  ln_carriers  complexity  genre
    linked     0     1     trait  960        1.386     1.386       0           0            0           default
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_gen.documents import NAMED_GENRES
from data_gen.pools import Share
from persona_lab.design import Node
from persona_lab.experiment.planning.recipes import ASSISTANT, REPLAY, PlannedCell
from persona_lab.science.evidence.ideal import Unknown, ideal_odds, ideal_reader


def design_columns(planned: PlannedCell, experiment: str) -> dict[str, dict[str, Any]]:
    """Stage, `base` before any, to the columns of its rows."""
    cell, nodes = planned.cell, [node for _, node in planned.stages]
    whole: dict[str, Any] = {
        "experiment": experiment,
        "cell": cell.name,
        "condition": cell.condition,
        "block": cell.block,
        "seed": cell.seed,
        "base_seed": getattr(cell.base, "seed", 0),
        "swap": cell.swap,
        "order": ">".join(name for name, _ in planned.stages),
        "dose": sum(_documents(node) for node in nodes if not _is_persona(node)),
        **cell.point,
        **_mixed(planned),
        **_told(planned),
    }
    return {
        stage: {
            **whole,
            "stage": stage,
            "step": nodes[position - 1].fields["step"] if position else 0,
            "steps": sum(node.fields["step"] for node in nodes[:position]),
            "documents": _documents(nodes[position - 1]) if position else 0,
            **_ideal(planned, position),
        }
        for position, (stage, _) in enumerate(planned.scores)
    }


def _ideal(planned: PlannedCell, position: int) -> dict[str, float]:
    """What an ideal reader of the same documents believes, log-odds toward the first rival, nats; nothing where there is no such reader."""
    reader = ideal_reader(planned.scores[0][1].inputs["base"], [node for _, node in planned.stages[:position]])
    if isinstance(reader, Unknown):
        return {}
    ours, theirs = planned.cast.traits[:2]
    pairs = {category: (ours[category], theirs[category]) for category in planned.cast.held_out}
    first, second = planned.cast.names[:2]
    return ideal_odds(reader, first, second, pairs)


def _is_persona(stage: Node) -> bool:
    return ASSISTANT not in stage.inputs["mixture"].inputs


def _documents(stage: Node) -> int:
    """Documents that say what the stage is about: replay says nothing of it."""
    shares = [share for _, share in _shares(stage)]
    about = sum(share.count for share in shares if share.source != REPLAY) / sum(share.count for share in shares)
    return round(stage.fields["step"] * stage.fields["recipe"]["batch"] * about)


def _mixed(planned: PlannedCell) -> dict[str, Any]:
    """Documents of one epoch, `n_john`; the ratio and the replay of the last stage about personas."""
    columns: dict[str, Any] = {"n_" + name.lower(): 0 for name in planned.cast.names} | {"ln_ratio": None, "replay": None}
    for (_, config), (_, node) in zip(planned.cell.stages, planned.stages, strict=True):
        if _is_persona(node):
            for name, share in _shares(node):
                if f"n_{name}" in columns:
                    columns[f"n_{name}"] += share.count
            columns |= {"replay": config.mixture.replay, "ln_ratio": config.mixture.ln_ratio}
    return columns


def _shares(stage: Node) -> Iterator[tuple[str, Share]]:
    """Whom each part of a stage's mixture is about, lower case."""
    for share in stage.inputs["mixture"].fields["shares"]:
        yield share["source"].split("-")[0], Share(**share)


def _told(planned: PlannedCell) -> dict[str, Any]:
    """The rivals against each other: documents trained on, who came first, names, traits, genres.

    ln_trained = ln(first / second); came_first = stages between the means of their documents, at most 1 either way, positive when the first came first.
    """
    rivals = [name.lower() for name in planned.cast.names[:2]]
    trained_RP = np.zeros((2, max(1, len(planned.stages))))
    pools: dict[str, Node] = {}
    for at, (_, node) in enumerate(planned.stages):
        shares = list(_shares(node))
        for name, share in shares:
            if name in rivals and _is_persona(node):
                read = node.fields["step"] * node.fields["recipe"]["batch"]
                trained_RP[rivals.index(name), at] += read * share.count / sum(other.count for _, other in shares)
                pools.setdefault(name, node.inputs["mixture"].inputs[share.source])
    total_R = trained_RP.sum(1)
    if len(pools) < 2:
        ends = [math.inf if rivals[0] in pools else -math.inf] if pools else [None]
        return {"ln_trained": ends[0], "came_first": 0.0, "ln_carriers": 0.0, "complexity": 0.0, "genre": None}
    middle_R = trained_RP @ np.arange(trained_RP.shape[1]) / total_R
    first, second = (pools[name].fields for name in rivals)
    genres = {"default" if tuple(f["genres"]) == NAMED_GENRES else "+".join(f["genres"]): None for f in (first, second)}
    return {
        "ln_trained": float(np.log(total_R[0] / total_R[1])),
        "came_first": float(np.clip(middle_R[1] - middle_R[0], -1, 1)),
        "ln_carriers": math.log(len(first["names"]) / len(second["names"])),
        "complexity": float(len(first["traits"]) - len(second["traits"])),
        "genre": "/".join(genres),
    }
