"""The design of an experiment: its cells, and the identity of everything made.

An identity is the hash of what a thing is made from, so that the same thing is never made twice:

    id = sha256(kind, recipe version of the kind, content fields, ids of its inputs)
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Kind = Literal["pool", "mixture", "base", "tokens", "stage", "scores", "predictions", "round", "analysis"]

RECIPE_VERSIONS: dict[Kind, int] = {"pool": 1, "mixture": 1, "base": 2, "tokens": 1, "stage": 4, "scores": 2, "predictions": 1, "round": 1, "analysis": 1}
"""Raised by one when the code of a kind changes its results; golden digests in the tests enforce it."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities are refused (ValueError): they have no JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity(recipe: Mapping[str, Any]) -> str:
    """64 hexadecimal digits over a recipe, the order of its keys included: documents follow the order of categories and traits."""
    return hashlib.sha256(json.dumps(recipe, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True)
class Node:
    """Something that can be made: identified by its recipe, whether or not it exists yet."""

    kind: Kind
    fields: Mapping[str, Any]
    """Content fields: JSON values that change the result. Machine settings never stand here."""
    inputs: Mapping[str, "Node"] = field(default_factory=dict)
    """Role to the node that plays it, e.g. `{"base": ..., "mixture": ..., "before": ...}`."""

    @cached_property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return identity(self.recipe)

    @property
    def recipe(self) -> dict[str, Any]:
        """All that the identity is made of."""
        return {
            "kind": self.kind,
            "recipe_version": RECIPE_VERSIONS[self.kind],
            "fields": dict(self.fields),
            "inputs": {role: node.id for role, node in self.inputs.items()},
        }

    def __hash__(self) -> int:
        """Nodes are equal when their identities are."""
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        """Nodes are equal when their identities are."""
        return isinstance(other, Node) and other.id == self.id

    def ancestors(self) -> Iterator["Node"]:
        """Every node that this one needs, inputs before what is made of them, without itself."""
        seen: set[str] = set()
        for node in self.inputs.values():
            for earlier in (*node.ancestors(), node):
                if earlier.id not in seen:
                    seen.add(earlier.id)
                    yield earlier
