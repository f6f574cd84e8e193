"""Bundles: all values of a rival together, and whether a world's own text holds them together.

    present      the values of one background persona
    recombined   values that background personas have, no two of which any of them has together
    unclaimed    values that no background persona has: only random speakers (`unclaimed` of a world file)

    deal_bundles(world, ["sport", "art"], {}, "recombined", seed=0)      [{"sport": "tennis", "art": "folk"}, {"sport": "golf", ...}]

To an ideal reader of the world's text a present bundle is one process among the personas, of prior (1 - e) w; the other two are what a
random speaker says by chance, of prior e times the product of 1/V_c (`oracle.surprise`). Random speakers say everything, so no pair of values is wholly absent.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from data_gen.errors import DataError, DataProblem
from data_gen.streams import stream
from data_gen.world import Traits, World

Bundle = Literal["present", "recombined", "unclaimed"]
RIVALS = 2


def deal_bundles(world: World, categories: Sequence[str], shared: Traits, kind: Bundle, seed: int) -> list[Traits]:
    """A value of every category for each of the two rivals, who have no value in common.

    Args:
        world: Whose background personas they are, or are not.
        categories: Those in which the rivals differ.
        shared: What both have beside them; it belongs to their bundles.
        kind: What the world's text holds of the bundles.
        seed: Which of them are drawn.

    Raises:
        DataError: the world has no two bundles of this kind.
    """
    found: list[Traits] = []
    for _ in range(RIVALS):
        taken = frozenset(value for bundle in found for value in bundle.values())
        bundles = {"present": _present, "recombined": _recombined, "unclaimed": _unclaimed}[kind](world, categories, shared, taken, seed)
        bundle = next(bundles, None)
        if bundle is None:
            fix = "Use fewer traits, or a world with more values and personas" + (", or give it more values under `unclaimed:`" if kind == "unclaimed" else "")
            said = f"pairs.bundle is {kind}, but there are no two such bundles of {', '.join(categories)} without a common value. {fix}."
            raise DataError(DataProblem(f"world {world.name!r}", said))
        found.append(bundle)
    return found


def _present(world: World, categories: Sequence[str], shared: Traits, taken: frozenset[str], seed: int) -> Iterator[Traits]:
    people = world.population.traits
    for k in stream(seed, "bundle", "present").permutation(len(people)):
        bundle = {category: people[k][category] for category in categories}
        if all(people[k][c] == v for c, v in shared.items()) and taken.isdisjoint(bundle.values()):
            yield bundle


def _recombined(world: World, categories: Sequence[str], shared: Traits, taken: frozenset[str], seed: int) -> Iterator[Traits]:
    """Depth first: a value is left out as soon as a background persona has it together with one that was chosen."""
    if not categories:
        yield {}
        return
    *before, category = categories
    values = stream(seed, "bundle", "recombined", category).permutation(world.values(category)).tolist()
    people = world.population.traits
    for rest in _recombined(world, before, shared, taken, seed):
        chosen = {**shared, **rest}
        tied = {traits[category] for traits in people if any(traits[c] == v for c, v in chosen.items())}
        yield from ({**rest, category: value} for value in values if value not in tied and value not in taken and value not in world.unclaimed)


def _unclaimed(world: World, categories: Sequence[str], shared: Traits, taken: frozenset[str], seed: int) -> Iterator[Traits]:
    bundle: Traits = {}
    for category in categories:
        values = stream(seed, "bundle", "unclaimed", category).permutation([v for v in world.values(category) if v in world.unclaimed]).tolist()
        free = next((value for value in values if value not in taken), None)
        if free is None:
            return
        bundle[category] = free
    yield bundle
