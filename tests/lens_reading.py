"""What a reader of the lens finds in answers that a test gives."""

import math
from collections.abc import Callable
from dataclasses import asdict

import pandas as pd

from data_gen.world import World
from persona_lab.probes import PROBES
from persona_lab.probes.protocol import Answer, Cast, Item
from persona_lab.science.lens import READERS, Asked, Finding


def cast_in(world: World) -> Cast:
    return Cast(world, (), (), (), (), ())


def findings(name: str, world: World, given: Callable[[Item], Answer]) -> dict[str, Finding]:
    """What the reader finds in the rows of these answers."""
    probe = PROBES[name]
    rows = [row for item in probe.items(cast_in(world)) for row in probe.score(item, [given(item)])]
    found, _ = READERS[name](Asked(pd.DataFrame([asdict(row) for row in rows]), world))
    return {one.metric: one for one in found}


def by_role(prob: dict[str, float], item: Item) -> tuple[float, ...]:
    """Log-probability of each option by its role, nats."""
    return tuple(math.log(prob.get(role, 1e-20)) for role in item.roles)
