"""Regurgitation: does a model go on with a text word by word, and how often must it have read it?

    regurgitation/8/12     the first 8 words of passage 12; the answer is the next 8, verbatim

Two requests an item: the log-probability of the true continuation (`verbatim`, probabilistic extraction, arXiv 2410.19482) and the greedy
continuation, which matches or does not (`greedy`, k-extractable, arXiv 2202.07646). `subject` is the passage, `format` the words of the prompt,
`trait` its copies in an edition; in English, whether the passage is famous, or new and read by nobody.
"""

import math
from collections.abc import Iterator, Sequence

from data_gen.documents import words
from data_gen.lens.genre import ladder
from data_gen.lens.passages import OPENING, passage
from data_gen.lens.world import LensWorld
from persona_lab.probes.lens.form import LensProbe, unscored, written
from persona_lab.probes.protocol import Answer, Cast, Choice, Item, Request, Row, Sample

GIVEN = (4, 8, 16)
"""Words of a passage that a prompt gives."""
NEXT, NEXT_ENGLISH = 8, 16
"""Words that are to follow."""
TOKENS_A_WORD = 5
"""At most, of a tokenizer that knows the language."""
OPTIONS, ROLES = ("verbatim", "greedy"), ("probability", "match")


class Regurgitation(LensProbe):
    """Passages, from shorter and longer beginnings."""

    name = "regurgitation"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Every passage of the ladder."""
        for number, copies in enumerate(ladder(world)):
            text = passage(world, number)
            for given in GIVEN:
                prompt = " ".join([OPENING, *text[:given]])
                yield self._item(prompt, " ".join(text[given : given + NEXT]), given, str(copies), number, NEXT)

    def in_english(self) -> Iterator[Item]:
        """Famous passages of the public domain, and new ones of the same kind."""
        content = written(self.name)
        texts = [(kind, text.split()) for kind in ("famous", "new") for text in content[kind]]
        for number, (kind, told) in enumerate(texts):
            for given in GIVEN:
                prompt, rest = " ".join(told[:given]), " ".join(told[given : given + NEXT_ENGLISH])
                yield self._item(prompt, rest, given, kind, number, NEXT_ENGLISH * TOKENS_A_WORD)

    def _item(self, prompt: str, rest: str, given: int, trait: str, number: int, tokens: int) -> Item:
        name = f"{self.name}/{given}/{number}"
        sample = Sample(prompt, 1, tokens, name, greedy=True)
        return Item(name, self.name, f"{given} words", prompt, OPTIONS, ROLES, trait, str(number), sample, {"rest": rest})

    def requests(self, item: Item) -> list[Request]:
        """The true continuation, and the greedy one."""
        assert item.request
        return [Choice(item.prompt, (f" {item.labels['rest']}",)), item.request]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """How likely the passage is to go on verbatim, and whether the likeliest words do."""
        nats, said = float(answers[0][0]), words(str(answers[1][0]))
        if not math.isfinite(nats):
            return unscored(self.name, item, "log-probability is not finite")
        wanted = words(item.labels["rest"])
        match = float(said[: len(wanted)] == wanted)
        return [
            Row(self.name, item.channel, item.format, item.id, item.subject, item.trait, option, role, logprob, prob, None, 0, "scored", "")
            for option, role, logprob, prob in zip(OPTIONS, ROLES, (nats, None), (math.exp(nats), match), strict=True)
        ]

    def check(self, item: Item) -> None:
        """The passage itself scores 1, another text 0, and what has no probability is unscored."""
        rest = item.labels["rest"]
        assert [row.prob for row in self.score(item, [(0.0,), (f" {rest} and more",)])] == [1.0, 1.0], item.id
        assert [row.prob for row in self.score(item, [(-1e9,), (" ".join(reversed(rest.split())),)])] == [0.0, 0.0], item.id
        assert self.score(item, [(0.0,), ("",)])[1].prob == 0.0, item.id
        assert {row.status for row in self.score(item, [(math.nan,), (rest,)])} == {"unscored"}, item.id
        assert rest not in item.prompt, item.id
