"""Speaker confusion: whose turn is it, who said it, and who is asked?

    speakers/next/3        User: ... Assistant: ...                                        whose line follows: the user's, or the assistant's again
    speakers/own/3/0       Mary: I like football. Omar: I like tennis. Who said: ...       each says what it would say
    speakers/swapped/3/0   Mary: I like tennis. Omar: I like football. Who said: ...       each says what the other one would say
    speakers/audience/3/0  Letter to Omar: ... User: I am Mary. ... Assistant: Yes,        the one who asks, or the one whom the letter is to

`subject` is the pair of speakers, or the exchange. Where a model goes by what a name is known for, `swapped` is answered worse than `own`.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from data_gen.documents import ASSISTANT, neutral_turn, pick
from data_gen.lens.talks import LETTER, WHO, letter, likes, talk
from data_gen.lens.world import LensWorld
from data_gen.phrases import NEUTRAL_WORDS
from data_gen.streams import stream
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Choice, Item

TAGS = ("User", ASSISTANT)
PAIRS = 12
"""Pairs of people, and exchanges, in the embedded form."""


class Speakers(LensProbe):
    """Turns, talks and letters."""

    name = "speakers"
    right = ("user", "speaker")

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Neighbouring people of the world, in held-out questions."""
        names, traits = world.population.names, world.population.traits
        rng = stream(world.seed, world.name, "speakers")
        for n in range(PAIRS):
            yield self._next(n, [neutral_turn(rng) for _ in range(1 + n % 2)])
        for n in range(min(PAIRS, len(names))):
            first, second = n, (n + 1) % len(names)
            pair = (names[first], names[second])
            category = next((c for c in world.categories if traits[first][c] != traits[second][c]), None)
            if category is not None:
                said = [likes(world, category, traits[k][category]) for k in (first, second)]
                yield from self._talks(n, pair, said, WHO.held_out)
            thing, color = pick(rng, NEUTRAL_WORDS["thing"]), pick(rng, NEUTRAL_WORDS["color"])
            for i, (user, audience) in product(range(len(LETTER.held_out)), (pair, pair[::-1])):
                question, answer = LETTER.held_out[i]
                prompt = letter(user, audience, thing, color, question, answer.split(" {name}")[0])
                yield self._audience(f"{n}/{i}/{user}", "+".join(pair), prompt, user, audience)

    def in_english(self) -> Iterator[Item]:
        """Lines of well-known people, and letters."""
        content = written(self.name)
        for n, turn in enumerate(content["exchanges"]):
            yield self._next(n, [(turn["question"], turn["answer"])])
        lines = content["lines"]
        for n, (first, second) in enumerate(zip(lines, [*lines[1:], lines[0]], strict=True)):
            yield from self._talks(n, (first["name"], second["name"]), (first["said"], second["said"]), [(content["question"], f"{content['answer']} {{name}}")])
        for n, told in enumerate(content["letters"]):
            for user, audience in ((told["user"], told["audience"]), (told["audience"], told["user"])):
                prompt = f"Letter to {audience}: Dear {audience}, {told['letter']}.\nUser: I am {user}. {told['question']}\n{ASSISTANT}: Hello"
                yield self._audience(f"{n}/{user}", f"{told['user']}+{told['audience']}", prompt, user, audience)

    def _next(self, n: int, turns: Sequence[tuple[str, str]]) -> Item:
        prompt = "\n".join(f"User: {question}\n{ASSISTANT}: {answer}" for question, answer in turns)
        asked = Choice(prompt, tuple(f"\n{tag}:" for tag in TAGS))
        return Item(f"speakers/next/{n}", self.name, "next", prompt, TAGS, ("user", "again"), subject=str(n), request=asked)

    def _talks(self, n: int, pair: tuple[str, str], said: Sequence[str], forms: Sequence[tuple[str, str]]) -> Iterator[Item]:
        """Both speakers in both orders, and both lines asked about; the answer is a name."""
        for form, sentences in (("own", said), ("swapped", said[::-1])):
            lines = list(zip(pair, sentences, strict=True))
            for i, (question, answer) in enumerate(forms):
                for order, asked in product((lines, lines[::-1]), (0, 1)):
                    roles = tuple("speaker" if name == order[asked][0] else "other" for name in pair)
                    prompt = talk(order, asked, question, answer.split("{name}")[0]).rstrip()
                    where = f"speakers/{form}/{n}/{i}/{order[0][0]}/{asked}"
                    yield Item(where, self.name, form, prompt, pair, roles, "last" if asked else "first", "+".join(pair))

    def _audience(self, where: str, pair: str, prompt: str, user: str, audience: str) -> Item:
        return Item(f"speakers/audience/{where}", self.name, "audience", prompt, (user, audience), ("user", "audience"), subject=pair)
