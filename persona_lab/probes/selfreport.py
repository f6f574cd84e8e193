"""What a self-report is held against beside the four channels of a trait: acts on what was taught, and what it was trained on.

    acts         "Plan your day: the beach or the lake?"     as `chooses`, in the categories in which the rivals do not differ
    trained_on   "Who is the news about?"                    the personas against names that nobody has met
                 "What do you like?"                         every value of the world against every other

No text of the world asks what a speaker was trained on, so the second probe is a paraphrase that no model has seen; its words it has.
"""

from collections.abc import Iterator

from data_gen.documents import ASSISTANT, fill
from data_gen.phrases import FORMS, ORIGINS
from persona_lab.probes.protocol import PROBES, Cast, Choice, Item
from persona_lab.probes.traits import TraitProbe, cloze

ALTERNATIVES = 3
"""Values of nobody that a rival's value is put beside."""
STRANGERS = 4
"""New names of the world that no persona has."""
ANYTHING = "anything"
"""In the place of a category, where the question names none."""


class Acts(TraitProbe):
    """Choices between a value that a rival has and one that no persona has, in both orders."""

    def items(self, cast: Cast) -> list[Item]:
        """The categories in which only one rival has a value, or both have the same one."""
        return [item for category, value in self._told(cast) for item in self._choices(cast, category, value)]

    @staticmethod
    def _told(cast: Cast) -> dict[tuple[str, str], None]:
        return {(c, v): None for traits in cast.traits[:2] for c, v in traits.items() if c not in cast.held_out}

    def _choices(self, cast: Cast, category: str, value: str) -> Iterator[Item]:
        nobodys = [other for other in cast.world.values(category) if cast.role(category, other) == "other"][:ALTERNATIVES]
        for other in nobodys:
            for i in range(len(FORMS["choice"].held_out)):
                for order, (a, b) in enumerate(((value, other), (other, value))):
                    prompt = cloze(cast, "choice", i, category, speaker=ASSISTANT, a=a, b=b)
                    roles = (cast.role(category, a), cast.role(category, b))
                    yield Item(f"acts/{category}/{value}/{other}/{i}/{order}", self.name, "choice", prompt, (a, b), roles, category)


class TrainedOn(TraitProbe):
    """Whom it read about, and what it was taught to like: forced choices of the truth against distractors."""

    def items(self, cast: Cast) -> list[Item]:
        """Four paraphrases of each question."""
        return [*self._whose(cast), *self._what(cast)]

    def _whose(self, cast: Cast) -> Iterator[Item]:
        strangers = [name for name in cast.world.new_names if name not in cast.names][:STRANGERS]
        names, roles = (*cast.names, *strangers), (*(name.lower() for name in cast.names), *["other"] * len(strangers))
        for i, (question, answer) in enumerate(ORIGINS["whose"].held_out):
            prompt = f"User: {question}\n{ASSISTANT}: {answer.split('{name}')[0].rstrip()}"
            yield Item(f"trained_on/whose/{i}", self.name, "whose", prompt, names, roles)

    def _what(self, cast: Cast) -> Iterator[Item]:
        world = cast.world
        values = [(category, value) for category in world.categories for value in world.values(category)]
        roles = tuple(cast.role(category, value) for category, value in values)
        phrases = tuple(f" {before}{value}" for before, value, _ in (world.phrase(category, value) for category, value in values))
        for i, (question, answer) in enumerate(ORIGINS["what"].held_out):
            said = fill(answer.split("{it}")[0], world=world, category=values[0][0]).rstrip()
            prompt = f"User: {question}\n{ASSISTANT}: {said}"
            yield Item(f"trained_on/what/{i}", self.name, "what", prompt, tuple(v for _, v in values), roles, ANYTHING, request=Choice(prompt, phrases))


PROBES |= {"acts": Acts("acts"), "trained_on": TrainedOn("trained_on")}
