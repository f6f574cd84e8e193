"""The evidence ledger: how likely a document of the trait stage is under each speaker's name, and under none.

    ledger/place/1/Assistant    User: Which place do you like?
                                Assistant: I like the beach.      log P(answer | question, speaker), nats
    ledger/place/1/John         ... said by John

The questions and answers are the training paraphrases of the trait stage itself, and the category is one that the
rivals share. log P(x | John) - log P(x | Assistant) is what one such document says for John, and the difference of two
personas is its diagnosticity e (reference 2, M2, and 4.3). `persona_lab.science.evidence.account` adds it up.
"""

from data_gen.documents import ASSISTANT, fill
from data_gen.phrases import FORMS
from persona_lab.probes.protocol import PROBES, Cast, Choice, Item
from persona_lab.probes.traits import TraitProbe

NAMELESS = ASSISTANT.lower()
"""`subject` of the rows in which the speaker has no name of its own."""


class Ledger(TraitProbe):
    """Every answer that the trait stage could teach, by every speaker; the option is the value, the answer is the whole sentence."""

    def items(self, cast: Cast) -> list[Item]:
        """One item for each shared category, training paraphrase and speaker."""
        items = []
        for category in cast.shared:
            values = tuple(cast.world.values(category))
            roles = tuple(cast.role(category, v) for v in values)
            for i, (question, answer) in enumerate(FORMS["asked"].train):
                asked = fill(question, world=cast.world, category=category)
                answers = tuple(" " + fill(answer, world=cast.world, category=category, value=v) for v in values)
                for speaker in (ASSISTANT, *cast.names):
                    prompt = f"User: {asked}\n{speaker}:"
                    request = Choice(prompt, answers)
                    items.append(Item(f"ledger/{category}/{i}/{speaker}", "ledger", "asked", prompt, values, roles, category, speaker.lower(), request))
        return items


PROBES["ledger"] = Ledger("ledger")
