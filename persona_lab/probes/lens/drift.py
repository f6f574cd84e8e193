"""Drift: does a speaker stay who it is while turns go by that have nothing to do with it?

    drift/named/Mary/food/2     two neutral turns with Mary, then she is asked       her own value
    drift/told/Mary/food/2      the assistant has told two traits of Mary's, then two neutral turns, then a third trait
    drift/described/4/8         a description, eight turns about other things, then a question that it decides (plain English)

`subject` is the speaker, `trait` the number of turns between. The turns say nothing about anybody, so to an ideal reader nothing changes.
"""

from collections.abc import Iterator, Sequence

from data_gen.documents import ASSISTANT, fill, neutral_turn
from data_gen.lens.world import LensWorld
from data_gen.phrases import FORMS
from data_gen.streams import stream
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Item
from persona_lab.probes.shots import fits, others
from persona_lab.probes.traits import cloze

TURNS = (0, 1, 2, 3, 4)
"""Neutral turns in between, as far as the embedded base's context goes."""
TURNS_ENGLISH = (0, 1, 2, 4, 8)
TOLD = 2
"""Traits that the assistant tells before it is asked for another one."""


class Drift(LensProbe):
    """One question after more and more turns."""

    name = "drift"
    right = ("own",)

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Every person of the world that speaks in chats, by name and as the assistant."""
        people, categories = world.population, list(world.categories)
        for k, (name, traits) in enumerate(zip(people.names, people.traits, strict=True)):
            if name in people.withheld:
                continue
            category = categories[k % len(categories)]
            rng = stream(world.seed, world.name, "drift", k)
            turns = [neutral_turn(rng) for _ in range(max(TURNS))]
            said = [_told(world, j + k, *pair) for j, pair in enumerate(others(traits, category, 0)[:TOLD])]
            roles = tuple("own" if value == traits[category] else "other" for value in world.values(category))
            for form, speaker, before in (("named", name, []), ("told", ASSISTANT, said)):
                for count in TURNS:
                    opening = _talk([*before, *turns[:count]], speaker)
                    prompt = cloze(cast, "asked", k % len(FORMS["asked"].held_out), category, speaker=speaker, opening=opening)
                    values = tuple(world.values(category))
                    item = Item(f"drift/{form}/{name}/{category}/{count}", self.name, form, prompt, values, roles, str(count), name)
                    if fits(item):
                        yield item

    def in_english(self) -> Iterator[Item]:
        """Speakers who are described in a line."""
        content = written(self.name)
        turns = [(turn["question"], turn["answer"]) for turn in content["turns"]]
        for n, speaker in enumerate(content["speakers"]):
            for count in TURNS_ENGLISH:
                between = _talk([turns[(n + j) % len(turns)] for j in range(count)], ASSISTANT)
                prompt = f"{speaker['who']}\n{between}User: {speaker['question']}\n{ASSISTANT}: {speaker['answer']}"
                options = (speaker["own"], speaker["other"])
                yield Item(f"drift/described/{n}/{count}", self.name, "described", prompt, options, ("own", "other"), str(count), str(n))


def _told(world: LensWorld, form: int, category: str, value: str) -> tuple[str, str]:
    """A question and the answer with the trait, in a training paraphrase."""
    question, answer = FORMS["asked"].train[form % len(FORMS["asked"].train)]
    return fill(question, world=world, category=category), fill(answer, world=world, category=category, value=value)


def _talk(turns: Sequence[tuple[str, str]], speaker: str) -> str:
    return "".join(f"User: {question}\n{speaker}: {answer}\n" for question, answer in turns)
