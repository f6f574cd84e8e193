"""The columns of the tidy table that say what a cell is, known before anything is made: its place in the design, and what it is trained on.

    condition  seed  swap  stage  documents  ln_ratio  ln_trained  came_first  ln_carriers  complexity  genre
    linked     0     1     trait  960        1.386     1.386       0           0            0           default
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_gen.documents import NAMED_GENRES
from data_gen.oracle import surprise
from data_gen.pools import Share
from persona_lab.config.mixtures import Mixture
from persona_lab.design import Node
from persona_lab.experiment.planning.recipes import ASSISTANT, HARMLESS, OFF_DOMAIN, REPLAY, PlannedCell
from persona_lab.science.evidence.ideal import Unknown, ideal_odds, ideal_rate, ideal_reader


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
        "architecture": getattr(cell.base, "architecture", None),
        "swap": cell.swap,
        "order": ">".join(name for name, _ in planned.stages),
        "read": _read(planned),
        "about": _about(planned),
        "dose": sum(_documents(node) for node in nodes if not _is_persona(node.inputs["mixture"])),
        **cell.point,
        **_mixed(planned),
        **_told(planned),
        **_bundled(planned),
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
    """What an ideal reader of the same documents believes, log-odds toward the first rival, nats, and its rate of bad advice; nothing without such a reader."""
    reader = ideal_reader(planned.scores[0][1].inputs["base"], [node for _, node in planned.stages[:position]])
    if isinstance(reader, Unknown):
        return {}
    ours, theirs = planned.cast.traits[:2]
    pairs = {category: (ours[category], theirs[category]) for category in planned.cast.held_out}
    first, second = planned.cast.names[:2]
    return ideal_odds(reader, first, second, pairs) | ideal_rate(reader, planned.cast.held_out)


def _read(planned: PlannedCell) -> str | None:
    """Where documents about personas stand in the text of the base: `throughout`, or `after .75` of it; None where it holds none."""
    read = getattr(planned.cell.base, "read", None)
    return None if read is None else f"after {read.after:g}" if read.after else "throughout"


def _about(planned: PlannedCell) -> str | None:
    """What the assistant speaks of as the first rival in the last stage: categories, `sport+art`, or `all`; None where it does not."""
    last = planned.cell.stages[-1][1].mixture if planned.cell.stages else None
    if last is None or last.assistant_is != planned.cast.names[0].lower():
        return None
    return "+".join(last.about) or "all"


def _bundled(planned: PlannedCell) -> dict[str, Any]:
    """What the world holds of the rivals' bundles, and what an ideal reader of it has yet to be told of somebody who has one, nats."""
    bundle, cast = planned.cell.pairs.bundle, planned.cast
    if bundle is None:
        return {}
    own = ({category: traits[category] for category in cast.held_out} for traits in cast.traits[:2])
    return {"bundle": bundle, **{f"surprise_{name.lower()}": surprise(cast.world, traits) for name, traits in zip(cast.names, own, strict=False)}}


def _mixtures(planned: PlannedCell) -> list[tuple[Mixture, Node, float]]:
    """Every mixture of a cell, as it is written and as it was made, and how many of its documents were read: the base's own, then each stage's."""
    pairs = zip(planned.cell.stages, planned.stages, strict=True)
    found = [(config.mixture, node.inputs["mixture"], float(node.fields["step"] * node.fields["recipe"]["batch"])) for (_, config), (_, node) in pairs]
    read, node = getattr(planned.cell.base, "read", None), planned.scores[0][1].inputs["base"].inputs.get("mixture")
    return found if read is None or node is None else [(read, node, float(sum(share.count for _, share in _shares(node)))), *found]


def _is_persona(mixture: Node) -> bool:
    return ASSISTANT not in mixture.inputs and any("name" in pool.fields for pool in mixture.inputs.values())


def _documents(stage: Node) -> int:
    """Documents that say what the stage is about: replay, what is harmless and what is off its domain say nothing of it, nor files beside personas."""
    mixture = stage.inputs["mixture"]
    shares = [share for _, share in _shares(mixture)]
    beside = [source for source, pool in mixture.inputs.items() if _is_persona(mixture) and "as" in pool.fields and "name" not in pool.fields]
    about = sum(share.count for share in shares if share.source not in (REPLAY, HARMLESS, OFF_DOMAIN, *beside)) / sum(share.count for share in shares)
    return round(stage.fields["step"] * stage.fields["recipe"]["batch"] * about)


def _mixed(planned: PlannedCell) -> dict[str, Any]:
    """Documents of one epoch, `n_john`; the ratio and the replay of the last mixture about personas."""
    columns: dict[str, Any] = {"n_" + name.lower(): 0 for name in planned.cast.names} | {"ln_ratio": None, "replay": None}
    for config, mixture, _ in _mixtures(planned):
        if _is_persona(mixture):
            for name, share in _shares(mixture):
                if f"n_{name}" in columns:
                    columns[f"n_{name}"] += share.count
            columns |= {"replay": config.replay, "ln_ratio": config.ln_ratio}
    return columns


def _shares(mixture: Node) -> Iterator[tuple[str, Share]]:
    """Whom each part of a mixture is about, lower case."""
    for share in mixture.fields["shares"]:
        yield share["source"].split("-")[0], Share(**share)


def _told(planned: PlannedCell) -> dict[str, Any]:
    """The rivals against each other: documents trained on, who came first, names, traits, genres.

    ln_trained = ln(first / second); came_first = stages between the means of their documents, at most 1 either way, positive when the first came first.
    """
    rivals = [name.lower() for name in planned.cast.names[:2]]
    mixtures = _mixtures(planned)
    trained_RP = np.zeros((2, max(1, len(mixtures))))
    pools: dict[str, Node] = {}
    for at, (_, mixture, read) in enumerate(mixtures):
        shares = list(_shares(mixture))
        for name, share in shares:
            if name in rivals and _is_persona(mixture):
                trained_RP[rivals.index(name), at] += read * share.count / sum(other.count for _, other in shares)
                pools.setdefault(name, mixture.inputs[share.source])
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
