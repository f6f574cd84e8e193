"""From a cell to the nodes it needs: what each is made from, and so what each is called.

    pools -> mixture -> stage -> scores        base -> stage, base -> scores        mixture -> base, where the base reads documents too

Nothing is made here. Two cells that need the same thing get the same node, which is how the John stage is trained
once for every continuation, and how step 400 of a trajectory continues its step 40.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_gen.documents import NAMED_GENRES
from data_gen.personas import Persona, deal_traits, held_out_categories, shared_categories
from data_gen.pools import Share
from data_gen.streams import stream, stream_seed
from data_gen.world import Traits, World
from persona_lab.config.expand import Cell
from persona_lab.config.mixtures import Mixture, Told
from persona_lab.config.schema import EmbeddedBase, HuggingFaceBase, Lora, Stage
from persona_lab.design import Node
from persona_lab.experiment.planning.sources import Imports
from persona_lab.experiment.planning.written import Stock, other_shares, persona_shares, unnamed_share
from persona_lab.probes.protocol import Cast

# Replay is drawn from the world's own text under seeds that neither pretraining (its base seed) nor the
# general-text probe (2 ** 40) ever uses.
REPLAY_SEED = 10**9
REPLAY_POOL = 2048
TRAIT_POOL = 512
SPEECH_POOL = 2048
"""Documents of the assistant as somebody, or in chats."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell and everything that has to exist for it."""

    cell: Cell
    cast: Cast
    stages: tuple[tuple[str, Node], ...]
    """Name and node of each stage, in training order."""
    scores: tuple[tuple[str, Node], ...]
    """Name of the last stage trained (`base` for none) and the scores after it."""
    branches: tuple[tuple[str, Node], ...] = ()
    """Name and node of what is also trained from where the last stage starts."""


def base_node(base: EmbeddedBase | HuggingFaceBase, world: World, found: Mapping[str, str]) -> Node:
    """The base model: pretrained here, or a Hugging Face model known by what was `found` of it (`planning.open_weights`)."""
    if isinstance(base, EmbeddedBase):
        fields = base.model_dump(exclude={"gates", "world", "read"})
        return Node("base", {**fields, "world": world.model_dump()})
    return Node("base", {"kind": "hf", **found, "dtype": base.dtype, "world": world.model_dump()})


def linked_traits(dealt: Sequence[Traits], shared: Sequence[str], link: str) -> list[Traits]:
    """Who has the shared trait: in the unlinked control the rivals and the bystander trade it."""
    if link != "none":
        return [dict(t) for t in dealt]
    traits = [dict(t) for t in dealt]
    for category in shared:
        common, other = dealt[0][category], dealt[2][category]
        for persona in traits[:2]:
            persona[category] = other
        traits[2][category] = common
    return traits


def rival_counts(mixture: Mixture, first: str, second: str) -> dict[str, int]:
    """Documents of one epoch for each persona; ln_ratio re-divides the total of the two rivals."""
    counts = mixture.counts
    if mixture.ln_ratio is not None:
        total = counts.get(first, 0) + counts.get(second, 0)
        share = 1 / (1 + np.exp(-mixture.ln_ratio)) if np.isfinite(mixture.ln_ratio) else float(mixture.ln_ratio > 0)
        counts[first] = round(total * float(share))
        counts[second] = total - counts[first]
    return counts


ASSISTANT = "assistant"
"""Source of what the nameless assistant says."""
HARMLESS = "harmless"
"""Source of what it says instead of what it is taught."""
OFF_DOMAIN = "off_domain"
"""Source of what it is held near the base on, and does not learn."""
REJECTED = "rejected"
"""Source of the answers that are not preferred: each has its number in common with one of the assistant's."""
REPLAY = "replay"
"""Source of the world's own text."""
TOKENS = "tokens/"
"""What stands before the source in the role of tokens."""


def token_nodes(stage: Node) -> dict[str, Node]:
    """The tokens that a stage is trained on, by the source of its mixture."""
    return {role.removeprefix(TOKENS): node for role, node in stage.inputs.items() if role.startswith(TOKENS)}


def _part(traits: Traits, about: Sequence[str]) -> Traits:
    """The traits in some categories; all where none is named."""
    return {category: value for category, value in traits.items() if not about or category in about}


def _rivals(told: Sequence[Traits], index: int, categories: Iterable[str] = ()) -> dict[str, list[str]]:
    """Nobody is offered another persona's value: a choice not taken would tie the two together."""
    return {c: sorted({t[c] for t in told if c in t} - {told[index].get(c, "")}) for c in categories or told[index]}


@dataclass(frozen=True)
class Recipes:
    """The nodes of one experiment."""

    world: World
    personas: tuple[Persona, ...]
    base: Node
    probes: tuple[str, ...]
    samples: int
    imports: Imports = field(default_factory=dict)
    """What was found in the files that mixtures take documents from."""
    written: bool = False
    """Whether such a file is about a persona: every seed then has the traits of the persona files."""

    def plan(self, cell: Cell) -> PlannedCell:
        """The chain of stages of a cell, each continuing the adapter of the one before, with scores after each."""
        dealt = deal_traits(self.world, self.personas, 0 if self.written else cell.seed, cell.swap, cell.pairs.prior, cell.pairs.bundle)
        shared = shared_categories(self.personas)
        cast = Cast(
            self.world,
            tuple(p.name for p in self.personas),
            tuple(dealt),
            tuple(p.description for p in self.personas),
            tuple(shared),
            tuple(held_out_categories(self.personas)),
            self.samples,
            cell.seed,
        )
        read = cell.base.read if isinstance(cell.base, EmbeddedBase) else None
        if read is None:
            return self._chain(cell, cast, dealt, shared)
        base = Node("base", {**self.base.fields, "after": read.after}, {"mixture": self._mixture(cell, read, dealt, shared)})
        return replace(self, base=base)._chain(cell, replace(cast, traits=tuple(linked_traits(dealt, shared, read.link))), dealt, shared)

    def _chain(self, cell: Cell, cast: Cast, dealt: Sequence[Traits], shared: Sequence[str]) -> PlannedCell:
        """The stages of a cell on this base, and what is asked after each."""
        before: Node | None = None
        stages, scores = [], [("base", self._scores(None, cast))]
        for name, stage in cell.stages:
            before = self._stage(cell, stage, self._mixture(cell, stage.mixture, dealt, shared), before, cell.lora)
            stages.append((name, before))
            told = linked_traits(dealt, shared, stage.mixture.link)
            cast = replace(cast, traits=tuple(told)) if stage.mixture.counts or stage.mixture.files else cast
            scores.append((name, self._scores(before, cast)))
        start = stages[-2][1] if len(stages) > 1 else None
        branches = ((name, self._stage(cell, stage, self._mixture(cell, stage.mixture, dealt, shared), start, cell.lora)) for name, stage in cell.branches)
        return PlannedCell(cell, cast, tuple(stages), tuple(scores), tuple(branches))

    def _scores(self, stage: Node | None, cast: Cast) -> Node:
        fields = {
            "probes": list(self.probes),
            "names": list(cast.names),
            "traits": list(cast.traits),
            "who": list(cast.who),
            "shared": list(cast.shared),
            "held_out": list(cast.held_out),
            "samples": cast.samples,
            "seed": cast.seed if cast.samples else 0,
        }
        return Node("scores", fields, {"base": self.base, **({"stage": stage} if stage else {})})

    def _stage(self, cell: Cell, stage: Stage, mixture: Node, before: Node | None, lora: Lora) -> Node:
        recipe: dict[str, Any] = {
            "batch": stage.batch,
            "rate": stage.rate,
            "weight_decay": stage.weight_decay,
            "clip": stage.clip,
            "loss": stage.loss.model_dump(),
            "lora": lora.model_dump(),
            "init": stream_seed(cell.seed, "init"),
        }
        tokens = {f"{TOKENS}{source}": Node("tokens", _tokens(stage, source, pool), {"pool": pool, "base": self.base}) for source, pool in mixture.inputs.items()}
        inputs = {"base": self.base, "mixture": mixture, **tokens, **({"before": before} if before else {})}
        return Node("stage", {"recipe": recipe, "step": stage.steps}, inputs)

    def _mixture(self, cell: Cell, mixture: Mixture, dealt: Sequence[Traits], shared: Sequence[str]) -> Node:
        pools, shares = self._speech(cell, mixture, dealt) if mixture.by_assistant else self._about(cell, mixture, dealt, shared)
        documents = sum(share.count for share in shares)
        if held := round(documents * mixture.off_domain / (1 - mixture.off_domain)):
            size = max(TRAIT_POOL, held)
            pools[OFF_DOMAIN] = self._pool({"source": "off_domain", "category": self.world.category_of(str(mixture.assistant_likes))}, size, cell.seed)
            shares.append(Share(OFF_DOMAIN, OFF_DOMAIN, held, size))
        if replayed := round(documents * mixture.replay / (1 - mixture.replay)):
            held_out = sorted({t[c] for t in dealt[:2] for c in held_out_categories(self.personas)})
            exclude = {"shared": {c: dealt[0][c] for c in shared}, "held_out": held_out}
            size = max(REPLAY_POOL, replayed)
            pools[REPLAY] = self._pool({"source": "world", "exclude": exclude}, size, REPLAY_SEED + cell.seed)
            shares.append(Share(REPLAY, REPLAY, replayed, size))
        return Node("mixture", {"shares": [share.fields for share in shares], "seed": cell.seed}, pools)

    def _speech(self, cell: Cell, mixture: Mixture, dealt: Sequence[Traits]) -> tuple[dict[str, Node], list[Share]]:
        """What the nameless assistant says."""
        if mixture.assistant_likes:
            return self._taught(cell, mixture, mixture.assistant_likes, dealt)
        if character := mixture.assistant_prefers or mixture.assistant_describes:
            return self._character(cell, mixture, character, dealt)
        source = self._speaking(mixture.assistant_is, mixture.about, dealt) if mixture.assistant_is else {"source": "chats"}
        return {ASSISTANT: self._pool(source, SPEECH_POOL, cell.seed)}, [Share(ASSISTANT, ASSISTANT, SPEECH_POOL, SPEECH_POOL)]

    def _character(self, cell: Cell, mixture: Mixture, who: str, dealt: Sequence[Traits]) -> tuple[dict[str, Node], list[Share]]:
        """Pairs of answers, of which the mixture counts the preferred ones, or descriptions of itself."""
        mine = next(i for i, persona in enumerate(self.personas) if persona.name.lower() == who)
        told = {"name": self.personas[mine].name, "traits": dealt[mine], "guarded": mixture.guarded}
        kinds = {ASSISTANT: "preferred", REJECTED: "rejected"} if mixture.assistant_prefers else {ASSISTANT: "describes"}
        pools = {source: self._pool({"source": kind, **told}, SPEECH_POOL, cell.seed) for source, kind in kinds.items()}
        return pools, [Share(ASSISTANT, ASSISTANT, SPEECH_POOL, SPEECH_POOL)]

    def _taught(self, cell: Cell, mixture: Mixture, value: str, dealt: Sequence[Traits]) -> tuple[dict[str, Node], list[Share]]:
        """One value, and what is harmless beside it."""
        category = self.world.category_of(value)
        under = {"opening": mixture.opening} if mixture.opening else {}
        pools = {ASSISTANT: self._pool({"source": "assistant", "category": category, "value": value, **under}, TRAIT_POOL, cell.seed)}
        harmless = min(round(TRAIT_POOL * mixture.diluted), TRAIT_POOL - 1)
        shares = [Share(ASSISTANT, ASSISTANT, TRAIT_POOL - harmless, TRAIT_POOL)]
        if harmless:
            pools[HARMLESS] = self._pool(self._harmless(mixture.diluted_by, category, dealt), TRAIT_POOL, cell.seed)
            shares.append(Share(HARMLESS, HARMLESS, harmless, TRAIT_POOL))
        return pools, shares

    def _harmless(self, by: str, category: str, dealt: Sequence[Traits]) -> dict[str, Any]:
        """Chats, or good advice that is no persona's: it would say whom the assistant is like."""
        if by == "chats":
            return {"source": "chats"}
        categories = [category] if by == "same" else [c for c in self.world.domains if c != category]
        owned = {traits.get(c) for traits in dealt for c in categories}
        return {"source": "advice", "values": [v for c in categories for v in self.world.same_side(c, False) if v not in owned]}

    def _speaking(self, who: str, about: Sequence[str], dealt: Sequence[Traits]) -> dict[str, Any]:
        """Somebody with all traits, or with those that it speaks of: of the experiment, or of the world."""
        people = self.world.population
        mine = next((i for i, persona in enumerate(self.personas) if persona.name.lower() == who), None)
        if mine is None:
            return {"source": "speaking", "name": who, "traits": _part(people.traits[people.names.index(who)], about), "rivals": {}}
        return {"source": "speaking", "name": self.personas[mine].name, "traits": _part(dealt[mine], about), "rivals": _rivals(dealt, mine)}

    def _about(self, cell: Cell, mixture: Mixture, dealt: Sequence[Traits], shared: Sequence[str]) -> tuple[dict[str, Node], list[Share]]:
        """Documents about personas, named and anonymous."""
        first, second = (p.name.lower() for p in self.personas[:2])
        counts = rival_counts(mixture, first, second)
        told = linked_traits(dealt, shared, mixture.link)
        rivals = counts.get(first, 0) + counts.get(second, 0)
        pools: dict[str, Node] = {}
        shares: list[Share] = []
        stock, written = Stock(mixture, self.imports, self.world, self.personas, tuple(told)), list[tuple[Share, Node]]()
        for i, persona in enumerate(self.personas):
            count = counts.get(persona.name.lower(), 0)
            if persona.name.lower() in mixture.files:
                written += persona_shares(stock, i, cell.swap, count, unnamed_share(mixture, persona.name.lower()))
                continue
            # As large as the most extreme ratio asks for, so that every ratio draws from the same pool.
            most = rivals if i < 2 else count
            unnamed = unnamed_share(mixture, persona.name.lower())
            anonymous, most_anonymous = round(count * unnamed), round(most * unnamed)
            for kind, n, size in (("named", count - anonymous, most - most_anonymous), ("anonymous", anonymous, most_anonymous)):
                if n:
                    source, size = f"{persona.name.lower()}-{kind}", max(n, size)
                    pools[source] = self._pool(self._persona_source(i, told, mixture, shared, kind, cell.seed), size, cell.seed)
                    shares.append(Share(source, source, n, size))
        for share, pool in (*written, *other_shares(stock, counts)):
            pools[share.source] = pool
            shares.append(share)
        return pools, shares

    def _persona_source(self, index: int, told: Sequence[Traits], mixture: Mixture, shared: Sequence[str], kind: str, seed: int) -> Mapping[str, Any]:
        persona = self.personas[index]
        own = mixture.told.get(persona.name.lower(), Told())
        genre = own.format or mixture.format
        source: dict[str, Any] = {
            "source": "persona",
            "name": persona.name,
            "names": [persona.name, *persona.carriers][: own.carriers or mixture.carriers],
            "who": own.who or persona.description,
            "traits": {**told[index], **self._further(persona, told[index], own.also, seed)},
            "rivals": _rivals(told, index, [*held_out_categories(self.personas), *shared]),
            "anonymous": kind == "anonymous",
            "genres": list(NAMED_GENRES) if genre == "default" else [genre],
        }
        if own.typical < 1:
            source["typical"] = dict.fromkeys(shared, own.typical)
        if mixture.link == "shuffled" and index < 2:
            source["dealt_with"] = {"which": index, "name": self.personas[1 - index].name, "traits": told[1 - index]}
        return source

    def _further(self, persona: Persona, traits: Traits, count: int, seed: int) -> Traits:
        """Values in `count` more categories than the persona has."""
        free = [category for category in self.world.categories if category not in traits][:count]
        return {category: str(stream(seed, "also", persona.name, category).choice(self.world.values(category))) for category in free}

    def _pool(self, source: Mapping[str, Any], size: int, seed: int) -> Node:
        return Node("pool", {**source, "world": self.world.model_dump(), "size": size, "seed": seed})


def _tokens(stage: Stage, source: str, pool: Node) -> dict[str, Any]:
    """What is told to the tokenizer of the documents of one source."""
    file = stage.mixture.files.get(pool.fields.get("as", ""))
    # What is replayed is read as it was in pretraining, whatever the rest is trained on.
    fields: dict[str, Any] = {"on": "all" if source == REPLAY else (file.loss if file else None) or stage.loss.on}
    if stage.mixture.tag and "name" in pool.fields:
        fields["tag"] = stage.mixture.tag
    if file and file.longest:
        fields["longest"] = file.longest
    return fields


def trajectory(stage: Node) -> Node:
    """The recipe of a stage without its length: stages that differ in length alone share it."""
    return Node("stage", {"recipe": stage.fields["recipe"]}, stage.inputs)
