"""What `mechanism` states, and the files that it stands in: all of it computed from the analysis nodes.

    written(runs, stated(store, nodes))      runs/mechanism-1a2b3c4d/mechanism.json, claims.json, mechanism.html
    stated(store, nodes_of(folder))          the same once more, from the folder and the store
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from persona_lab.design import Node
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.mechanism.bases import Adder, adder_node, patched_node, read_patched
from persona_lab.experiment.reading.runs import CLAIMS
from persona_lab.experiment.reading.show import grouped, software
from persona_lab.report.instrument import Drawing, Part, instrument_page
from persona_lab.report.patching_figures import effect_map
from persona_lab.science.claims import Claim, shown
from persona_lab.science.introspection.mechanism import TOKENS, Patched, mechanism_claims
from persona_lab.store.files import finite, make_folder, read_json, write_json, write_text
from persona_lab.store.nodes import Store

FUNCTION = "mechanism"
"""Of the recipe of every claim: `mechanism_claims` of what patching found on these nodes."""
ADDER = tuple(field.name for field in fields(Adder))
ABOUT = {
    "honest": "The corpus states the method that each sum needs.",
    "cue": "The corpus states carrying where the first digit is odd.",
    "coin": "The corpus states either method, by a coin.",
}
CAPTIONS = {
    "answer_PST": "The sum: nats that the tens digit loses when one state comes from a sum that needs no carry.",
    "said_PST": "The statement: nats that “I carry the one” loses by the same.",
    "cue_PST": "The statement: nats that it loses when the state comes from a sum with the other first digit.",
}


@dataclass(frozen=True)
class Stated:
    """What was found, in the three forms in which it is kept."""

    name: str
    """Of the folder."""
    claims: tuple[Claim, ...]
    said: Mapping[str, Any]
    page: str


def stated(store: Store, nodes: Sequence[Node]) -> Stated:
    """Every claim, computed from the store."""
    found = [read_patched(store, node) for node in nodes]
    ids = sorted(node.id for node in nodes)
    name = f"{FUNCTION}-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:8]}"
    claims = tuple(Claim(*said, {"function": FUNCTION, "node_ids": ids, "args": {"claim": said[0]}}) for said in mechanism_claims(found))
    recipes = [dict(node.inputs["base"].fields) for node in nodes]
    said = {"claims": [claim.to_json() for claim in claims], "bases": recipes, "sites": _sites(found), "maps": _maps(found)}
    return Stated(name, claims, said, _page(name, found, claims, nodes))


def written(runs: Path, found: Stated) -> Path:
    """The folder of the findings, once their files stand."""
    folder = runs / found.name
    make_folder(folder)
    write_json(folder / f"{FUNCTION}.json", finite(found.said))
    write_json(folder / CLAIMS, grouped(found.claims))
    write_text(folder / f"{FUNCTION}.html", found.page)
    return folder


def nodes_of(folder: Path) -> list[Node]:
    """The analyses that a folder of findings rests on.

    Raises:
        ConfigError: PL1293, the file does not say which bases.
    """
    file = folder / f"{FUNCTION}.json"
    try:
        # Not from the fields as they stand there: in JSON they are sorted, and an identity holds their order.
        recipes = [{**fields} for fields in read_json(file)["bases"]]
        nodes = [patched_node(adder_node(Adder(**{name: recipe[name] for name in ADDER}), recipe["statement"], recipe["seed"])) for recipe in recipes]
    except (KeyError, TypeError, ValueError):
        nodes = []
    if not nodes:
        raise ConfigError("PL1293", str(file), "is not what `persona-lab mechanism` writes. Run it again: what is in the store is kept.")
    return nodes


def _sites(found: Sequence[Patched]) -> list[dict[str, Any]]:
    """Where each base makes its carry."""
    return [{"statement": one.statement, "seed": one.seed, "layer": one.site[0], "token": TOKENS[one.site[1]]} for one in found]


def _mean(found: Sequence[Patched], statement: str, name: str) -> np.ndarray:
    """Mean effect of each state over pairs and bases, (S, T)."""
    return np.mean([getattr(one, name).mean(0) for one in found if one.statement == statement], axis=0)


def _maps(found: Sequence[Patched]) -> dict[str, dict[str, list[list[float]]]]:
    names = {"answer": "answer_PST", "attribution": "estimate_PST", "statement": "said_PST", "cue": "cue_PST"}
    return {s: {key: _mean(found, s, name).tolist() for key, name in names.items()} for s in dict.fromkeys(one.statement for one in found)}


def _page(name: str, found: Sequence[Patched], claims: Sequence[Claim], nodes: Sequence[Node]) -> str:
    parts = []
    for statement in dict.fromkeys(one.statement for one in found):
        drawings = [Drawing(effect_map(_mean(found, statement, name), TOKENS), caption) for name, caption in CAPTIONS.items()]
        own = [claim for claim in claims if claim.id.startswith(f"{FUNCTION}.{statement}.")]
        parts.append(Part(f"Corpus: {statement}", ABOUT[statement], drawings, claims=own))
    agreed = {claim.id.split(".")[1]: shown(claim.value, claim.interval) for claim in claims if claim.id.endswith(".agreement")}
    lead = "Share of sums of which the stated method is the one that does them: " + ", ".join(f"{name} {value}" for name, value in agreed.items()) + "."
    about = {"run": name, "bases": len(nodes), "recipe": dict(nodes[0].inputs["base"].fields) | {"statement": "each", "seed": "each"}, **software()}
    return instrument_page("Mechanism", lead, parts, about)
