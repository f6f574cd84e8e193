"""Persona prompts: does being told to be somebody override what the assistant was trained to be?

    persona_prompt/none/rufus/0/food/0         User: Which food do you prefer?                               asked as itself
    persona_prompt/prompt/rufus/0/food/0       User: Pretend you are Rufus. Which food do you prefer?        told to be somebody
    persona_prompt/agreed/rufus/0/food/0       ... Assistant: I am Rufus. User: Which food ...               and it has agreed
    persona_prompt/shots_4/rufus/4/food/0      ... four answers of Rufus, and then the question              many-shot, unnamed

The character is the first persona of the experiment. Who is prompted lives in the world, and stands in no document that guards the character. Roles
of the options: `prompted`, `character`, `other`; categories in which the two agree are not asked.
"""

from collections.abc import Iterator
from dataclasses import replace

from data_gen.documents import ASSISTANT
from data_gen.role_play import AGREED, PROMPTS, names_to_play, prompted
from data_gen.world import Traits
from persona_lab.probes.protocol import PROBES, Cast, Item
from persona_lab.probes.shots import fits, others, shot_item
from persona_lab.probes.traits import TraitProbe, cloze

SHOTS = (1, 2, 4)
"""How many answers of the prompted persona stand in the context."""


class PersonaPrompts(TraitProbe):
    """Every held-out name, in every category in which it differs from the character."""

    def items(self, cast: Cast) -> list[Item]:
        """By who is prompted, then by category."""
        people = cast.world.population
        names = names_to_play(cast.world, held_out=True)
        items = [item for k, name in enumerate(names) for item in self._of(cast, k, name, people.traits[people.names.index(name)])]
        return list(filter(fits, items))

    def _of(self, cast: Cast, k: int, name: str, theirs: Traits) -> Iterator[Item]:
        mine = cast.traits[0]
        for j, category in enumerate(c for c in mine if theirs.get(c) not in (None, mine[c])):
            values = tuple(cast.world.values(category))
            roles = tuple("prompted" if v == theirs[category] else "character" if v == mine[category] else "other" for v in values)
            asked = cloze(cast, "asked", j % 4, category, speaker=ASSISTANT)
            prompt = PROMPTS.held_out[(j + k) % len(PROMPTS.held_out)][1].format(name=name)
            openings = {"none": asked, "prompt": prompted(asked, prompt), "agreed": prompted(asked, prompt, AGREED.format(name=name))}
            for form, text in openings.items():
                yield Item(f"{self.name}/{form}/{name}/0/{category}/0", self.name, form, text, values, roles, category, name.lower())
            told = [(c, v) for c, v in others(theirs, category, 0) if v != mine.get(c)]
            for n in SHOTS:
                if n <= len(told):
                    item = shot_item(cast, self.name, "asked", name, told[:n], category, 0, roles)
                    yield replace(item, id=item.id.replace("/asked/", f"/shots_{n}/", 1), format=f"shots_{n}", labels={})


PROBES |= {"persona_prompt": PersonaPrompts("persona_prompt")}
