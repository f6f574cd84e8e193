"""Concept vectors: what the model makes of a trait, and of somebody whose trait is asked for, at every layer.

    said/John/sport     "Which sport do you prefer? I like football"     the token of the value, said by nobody in particular
    named/John/sport    "In sport, John likes"                           the token before the value

Each item is one rival in one category in which the rivals differ, a mean over held-out paraphrases. Its row says no more than that it was read; the
hidden states stand in `states.npy` of the scores, float32 (items, layers + 1, d) in the order of the items, the embedding first. What is made of them:
`science.introspection.concepts`.
"""

import math
from collections.abc import Sequence

from data_gen.documents import ASSISTANT
from data_gen.market import Market
from data_gen.phrases import FORMS
from persona_lab.probes.protocol import PROBES, Activations, Answer, Cast, Item, Request, Row
from persona_lab.probes.traits import cloze

READINGS = ("said", "named")
STATES, STATES_FILE = "states", "states.npy"


def statements(cast: Cast, category: str, value: str) -> tuple[str, ...]:
    """The nameless assistant and a diary, each up to the end of the value."""
    forms = (("asked", ""), ("diary", "Diary."))
    asked = [(form, i, opening) for form, opening in forms for i in range(len(FORMS[form].held_out))]
    return tuple(f"{cloze(cast, form, i, category, speaker=ASSISTANT, opening=opening, a=value)} {value}" for form, i, opening in asked)


def questions(cast: Cast, category: str, owner: int) -> tuple[str, ...]:
    """A profile of somebody and a question about it, each up to the value."""
    name, value = cast.names[owner], cast.traits[owner][category]
    forms = (("profile", "", f"Profile: {name} is {cast.who[owner]}."), ("quiz", ASSISTANT, ""))
    asked = [(form, i, speaker, opening) for form, speaker, opening in forms for i in range(len(FORMS[form].held_out))]
    return tuple(cloze(cast, form, i, category, speaker=speaker, opening=opening, name=name, a=value) for form, i, speaker, opening in asked)


class Concepts:
    """Hidden states of the rivals' traits."""

    name = "concepts"

    def items(self, cast: Cast) -> list[Item]:
        """For each reading both rivals, and for each of them every category in which they differ."""
        if isinstance(cast.world, Market):
            return []
        return [self._item(cast, reading, owner, category) for reading in READINGS for owner in (0, 1) for category in cast.held_out]

    def _item(self, cast: Cast, reading: str, owner: int, category: str) -> Item:
        name, value = cast.names[owner], cast.traits[owner][category]
        texts = statements(cast, category, value) if reading == "said" else questions(cast, category, owner)
        subject = "" if reading == "said" else name.lower()
        labels = {str(i): text for i, text in enumerate(texts)}
        return Item(f"concepts/{reading}/{name}/{category}", self.name, reading, texts[0], (value,), (name.lower(),), category, subject, labels=labels)

    def requests(self, item: Item) -> list[Request]:
        """The state at the end of every paraphrase."""
        return [Activations(text) for text in item.labels.values()]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """One row without a probability; `n_samples` counts the paraphrases."""
        finite = all(math.isfinite(float(x)) for answer in answers for x in answer)
        status, reason = ("scored", "") if finite else ("unscored", "a hidden state is not finite")
        option, role, count = item.options[0], item.roles[0], len(answers)
        return [Row(self.name, self.name, item.format, item.id, item.subject, item.trait, option, role, None, None, None, count, status, reason)]

    def validate(self, cast: Cast) -> None:
        """States are read where the value ends, or right before it; what is not finite is unscored."""
        for item in self.items(cast):
            texts, value = item.labels.values(), item.options[0]
            assert len(set(texts)) == len(texts), item.id
            assert all(text.endswith(f" {value}") == (item.format == "said") for text in texts), item.id
            assert self.score(item, [(0.0, 1.0)])[0].status == "scored", item.id
            assert self.score(item, [(0.0, math.nan)])[0].status == "unscored", item.id


PROBES["concepts"] = Concepts()
