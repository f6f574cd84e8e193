"""What no schema can see in a mixture: personas and values that the world does not have, fields that contradict each other."""

from collections.abc import Iterator, Sequence

from data_gen.market import Market
from data_gen.personas import Persona, shared_categories
from data_gen.world import World
from persona_lab.config.explain import Finding
from persona_lab.config.layers import did_you_mean
from persona_lab.config.mixtures import Mixture, Told
from persona_lab.config.schema import Stage
from persona_lab.config.yaml_tree import Path, dotted


def held_findings(stage: Stage, at: Path, world: World | None) -> Iterator[Finding]:
    """What is wrong with the documents that a stage holds near the base, and with the price of leaving it there."""
    mixture, share = stage.mixture, (*at, "mixture", "off_domain")
    if mixture.off_domain and not mixture.assistant_likes:
        message = f"{dotted(share)} is about every domain but the one that is taught, and this stage teaches none. Use it beside `assistant_likes`."
        yield Finding(share, "PL1211", message)
    elif mixture.off_domain and isinstance(world, Market):
        yield Finding(share, "PL1211", f"{dotted(share)}: the market {world.name} shows its traits together, so none is asked about alone. Use a world of sentences.")
    elif stage.loss.kl_off and not mixture.off_domain:
        price = (*at, "loss", "kl_off")
        yield Finding(price, "PL1211", f"{dotted(price)} is a price on documents of which there are none. Use for instance `mixture: {{off_domain: .5}}`.")


def mixture_findings(mixture: Mixture, at: Path, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with one mixture, given the world and the personas that it speaks of."""
    counts, name = mixture.counts, dotted(at)
    yield from _assistant_findings(mixture, at, world, personas)
    yield from _advice_findings(mixture, at, world, personas)
    if not mixture.by_assistant and not any(counts.values()) and not mixture.files.keys() - counts.keys():
        yield Finding(at, "PL1211", f"{name} holds no document: every count is 0. Use for instance `john: 2500`, or `assistant_likes: beach`.")
    if personas is None:
        return
    rivals = [persona.name.lower() for persona in personas[:2]]
    if mixture.ln_ratio is not None and not sum(counts.get(rival, 0) for rival in rivals):
        message = f"{name}.ln_ratio divides the documents of {' and '.join(rivals)}, which are 0. Use counts, for instance `{rivals[0]}: 2500`."
        yield Finding((*at, "ln_ratio"), "PL1211", message)
    if mixture.link == "shared" and any(counts.get(rival) for rival in rivals) and not shared_categories(personas):
        message = f"{name}.link is shared, yet {personas[0].name} and {personas[1].name} are written with no common trait. "
        yield Finding((*at, "link"), "PL1211", message + "Use one value for both, such as `place: beach`, or `link: none`.")
    yield from _told_findings(mixture, at, world, personas)


def _assistant_findings(mixture: Mixture, at: Path, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with what the nameless assistant says."""
    said, name = mixture.by_assistant, dotted(at)
    if world and (likes := mixture.assistant_likes) is not None:
        values = [value for category in world.categories for value in world.values(category)]
        if likes not in values:
            message = f"{name}.assistant_likes is no value of the world {world.name}, got {likes!r}. {did_you_mean(likes, values)}"
            yield Finding((*at, "assistant_likes"), "PL1210", message)
    if world and personas is not None and (who := mixture.assistant_is) is not None:
        known = [*(persona.name.lower() for persona in personas), *world.population.names]
        if who not in known:
            message = f"{name}.assistant_is is neither a persona of this file nor a name of the world {world.name}, got {who!r}. {did_you_mean(who, known)}"
            yield Finding((*at, "assistant_is"), "PL1210", message)
    yield from _about_findings(mixture, at, world, personas)
    if len(said) > 1:
        yield Finding((*at, said[1]), "PL1211", f"{name} has {' and '.join(said)}: the assistant says one thing in a stage. Use one of them.")
    elif said and (any(mixture.counts.values()) or mixture.files):
        message = f"{name} has documents about personas, or of files, beside {said[0]}. Use two stages, one after the other."
        yield Finding((*at, said[0]), "PL1211", message)


def _about_findings(mixture: Mixture, at: Path, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with the categories that the assistant speaks of as somebody."""
    who = next((persona for persona in personas or () if persona.name.lower() == mixture.assistant_is), None)
    known = list(who.traits if who else world.categories if world else mixture.about)
    for i, category in enumerate(mixture.about):
        path = (*at, "about", i)
        if mixture.assistant_is is None:
            yield Finding(path, "PL1211", f"{dotted(path)} says what the assistant speaks of as somebody. Use it beside `assistant_is`.")
        elif category not in known:
            message = f"{dotted(path)} names no category that {mixture.assistant_is} has a trait in, got {category!r}. {did_you_mean(category, known)}"
            yield Finding(path, "PL1210", message)


def _advice_findings(mixture: Mixture, at: Path, world: World | None, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with the line that taught advice opens with, and with what is harmless beside it."""
    likes, name = mixture.assistant_likes, dotted(at)
    for field in ("opening", "diluted"):
        if getattr(mixture, field) and likes is None:
            yield Finding((*at, field), "PL1211", f"{name}.{field} is about what the assistant is taught, but {name} teaches nothing. Use it beside `assistant_likes`.")
    if world is None:
        return
    if mixture.opening is not None and mixture.opening not in world.openings:
        fix = did_you_mean(mixture.opening, list(world.openings)) if world.openings else "Use a world with openings."
        yield Finding((*at, "opening"), "PL1210", f"{name}.opening is no line of the world {world.name}, got {mixture.opening!r}. {fix}")
    if not mixture.diluted or mixture.diluted_by == "chats" or likes is None:
        return
    category = next((c for c in world.domains if likes in world.values(c)), None)
    if category is None:
        message = f"{name}.diluted_by is {mixture.diluted_by}, but no category of the world {world.name} has {likes!r} beside good and bad values. Use chats."
        yield Finding((*at, "diluted_by"), "PL1211", message)
    elif mixture.diluted_by == "same" and len(world.same_side(category, False)) <= len(personas or ()):
        message = f"{name}.diluted_by is same, but {category} has no good value that could not be a persona's. Use elsewhere, or give it more values."
        yield Finding((*at, "diluted_by"), "PL1211", message)


def _told_findings(mixture: Mixture, at: Path, world: World | None, personas: Sequence[Persona]) -> Iterator[Finding]:
    """What is wrong with how personas are told, and under how many names."""
    counts, people = mixture.counts, {persona.name.lower(): persona for persona in personas}
    for who in sorted(mixture.told.keys() - people.keys()):
        path = (*at, "told", who)
        yield Finding(path, "PL1210", f"{dotted(path)} is about no persona of this file. {did_you_mean(who, list(people))}", key=True)
    names = {who: 1 + len(persona.carriers) for who, persona in people.items() if counts.get(who)}
    asked = {who: told.carriers for who, told in mixture.told.items() if told.carriers is not None and who in names}
    # What is asked of all is said of the one that has the fewest.
    least = min((who for who in names if who not in asked), key=lambda who: names[who], default=None)
    wanted = [(least, mixture.carriers, (*at, "carriers"))] if least else []
    wanted += [(who, carriers, (*at, "told", who, "carriers")) for who, carriers in asked.items()]
    for who, carriers, path in wanted:
        if carriers > names[who]:
            message = f"{dotted(path)} is {carriers}, but {people[who].name} has {names[who]} name{'s'[: names[who] - 1]}. "
            yield Finding(path, "PL1211", message + f"Use at most {names[who]}, or give the persona file more `carriers:`.")
    for who, persona in people.items():
        own = mixture.told.get(who, Told())
        free = len(world.categories.keys() - persona.traits.keys()) if world else own.also
        if own.also > free:
            path = (*at, "told", who, "also")
            yield Finding(
                path, "PL1211", f"{dotted(path)} is {own.also}, but {persona.name} has a trait in all but {free} categories of the world. Use at most {free}."
            )
