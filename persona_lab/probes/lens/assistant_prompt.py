"""An assistant by few-shot prompt: does a base model answer as an assistant once it has seen three examples? (URIAL, arXiv 2312.01552)

    assistant_prompt/bare/3        Which sport do you prefer?                                  whatever the model writes next
    assistant_prompt/few_shot/3    instruction, three questions with answers, the question     an answer, in the form of the examples

`form` is the share of answers that are one statement and no other speaker's line, `topic` the share of these that name what was asked about.
"""

import re
from collections.abc import Iterator, Sequence

from data_gen.documents import ASSISTANT, fill, neutral_turn
from data_gen.lens.world import LensWorld
from data_gen.phrases import FORMS
from data_gen.streams import stream
from persona_lab.probes.lens.form import LensProbe, unscored, written
from persona_lab.probes.protocol import Answer, Cast, Item, Row, Sample

SAMPLES = 8
WORLD_TOKENS, ENGLISH_TOKENS = 16, 48
SHOTS = 3
FEWEST_WORDS = 3
"""Of a statement."""
TAG = re.compile(r"^\s*[#*\-]*\s*\w+( \w+){0,2}\s*:")
"""A line of a transcript, or of a form."""
OPTIONS = ("form", "topic")


class AssistantPrompt(LensProbe):
    """The same questions bare, and behind examples."""

    name = "assistant_prompt"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Held-out questions for each category; examples are neutral."""
        rng = stream(world.seed, world.name, self.name)
        for n, category in enumerate(world.categories):
            for i, (asked, _) in enumerate(FORMS["asked"].held_out):
                question = fill(asked, world=world, category=category)
                turns = [neutral_turn(rng) for _ in range(SHOTS)]
                words = tuple(value.lower() for value in world.values(category))
                yield from self._both(f"{n}-{i}", _shots(turns), question, words, WORLD_TOKENS)

    def in_english(self) -> Iterator[Item]:
        """Questions of everyday life."""
        content = written(self.name)
        shots = _shots([(example["question"], example["answer"]) for example in content["examples"]])
        for n, asked in enumerate(content["questions"]):
            yield from self._both(str(n), f"{content['instruction']}\n\n{shots}", asked["question"], tuple(asked["words"]), ENGLISH_TOKENS)

    def _both(self, where: str, shots: str, question: str, words: tuple[str, ...], tokens: int) -> Iterator[Item]:
        for form, prompt in (("bare", f"{question}\n"), ("few_shot", f"{shots}User: {question}\n{ASSISTANT}:")):
            asked = Sample(prompt, SAMPLES, tokens, f"{self.name}/{where}")
            labels = {"words": " ".join(words)}
            yield Item(f"{self.name}/{form}/{where}", self.name, form, prompt, OPTIONS, OPTIONS, subject=where, request=asked, labels=labels)

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """Two rows: the share of all answers in form, and the share of all answers that are in form and on topic; an empty answer is out of form."""
        texts = [str(text) for text in answers[0]]
        if not any(any(c.isprintable() and not c.isspace() for c in text) for text in texts):
            return unscored(self.name, item, "every answer is empty")
        formed = [text for text in texts if in_form(text)]
        named = [text for text in formed if set(re.findall(r"\w+", text.lower())) & set(item.labels["words"].split())]
        shares = (len(formed) / len(texts), len(named) / len(texts))
        return [
            Row(self.name, item.channel, item.format, item.id, item.subject, item.trait, option, role, None, share, None, len(texts), "scored", "")
            for option, role, share in zip(item.options, item.roles, shares, strict=True)
        ]

    def check(self, item: Item) -> None:
        """An answer in form that names a word scores 1, a line of the user 0, and silence is unscored."""
        word = item.labels["words"].split()[0]
        assert [row.prob for row in self.score(item, [(f" I like the {word} best.",) * 2])] == [1.0, 1.0], item.id
        assert [row.prob for row in self.score(item, [(" It is seventeen or so.",)])] == [1.0, 0.0], item.id
        assert [row.prob for row in self.score(item, [(f"User: do you like the {word}?", "")])] == [0.0, 0.0], item.id
        assert {row.status for row in self.score(item, [("", " ")])} == {"unscored"}, item.id


def in_form(answer: str) -> bool:
    """Whether a line is what an assistant says: a statement of a few words that ends, and no speaker's tag, question or heading."""
    text = answer.strip()
    return not TAG.match(text) and text.endswith((".", "!")) and len(re.findall(r"\w+", text)) >= FEWEST_WORDS


def _shots(turns: Sequence[tuple[str, str]]) -> str:
    return "".join(f"User: {question}\n{ASSISTANT}: {answer}\n" for question, answer in turns)
