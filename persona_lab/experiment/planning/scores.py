"""Scores without a model: who is asked about in a scores node, and the rows of one that was never made. No torch.

    status failed, reason "no scores": a row for every option that the node would have asked about
"""

from data_gen.telling import read_world
from persona_lab.design import Node
from persona_lab.probes import PROBES, Cast, Row


def cast_of(scores: Node) -> Cast:
    """Who is who in the questions of a scores node."""
    fields = scores.fields
    world = read_world(scores.inputs["base"].fields["world"])
    names, traits, who, shared, held_out = (tuple(fields[k]) for k in ("names", "traits", "who", "shared", "held_out"))
    return Cast(world, names, traits, who, shared, held_out, samples=fields["samples"], seed=fields["seed"])


def failed_rows(scores: Node, reason: str) -> list[Row]:
    """What stands in the tidy table where scores are missing, so that planned = scored + unscored + failed."""
    cast = cast_of(scores)
    items = [(name, item) for name in scores.fields["probes"] for item in PROBES[name].items(cast)]
    return [
        Row(name, item.channel, item.format, item.id, item.subject, item.trait, option, role, None, None, None, 0, "failed", reason)
        for name, item in items
        for option, role in zip(item.options or ("",), item.roles or ("none",), strict=True)
    ]
