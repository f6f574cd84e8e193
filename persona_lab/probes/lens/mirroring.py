"""Mirroring: does the reply take up the register, or the language, of its question?

    mirroring/casual/3      User: hey, weather in the north?    Assistant:      of the replies, the casual one
    mirroring/formal/3      User: Good day. Would you ...       Assistant:      the same replies, of which the formal one

`format` is what the question has, the role of an option what that reply has, `subject` the question in all its versions, and `trait` the set of
versions among which replies are compared. Convergence is P(reply has it | question has it) - P(reply has it | question has another one).
"""

from collections.abc import Iterator

from data_gen.documents import ASSISTANT
from data_gen.lens.registers import REGISTER
from data_gen.lens.world import LensWorld
from data_gen.phrases import NEUTRAL_WORDS
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Item

QUESTIONS = 24
"""Slots filled, in the embedded form."""


class Mirroring(LensProbe):
    """Every question in each of its versions, with the same replies."""

    name = "mirroring"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Held-out questions of each register; a reply is told by its first word."""
        options = tuple(register.answers[0].split()[0].strip(".,") for register in REGISTER.values())
        sides, skies = NEUTRAL_WORDS["side"], NEUTRAL_WORDS["sky"]
        for number in range(QUESTIONS):
            slots = {"side": sides[number % len(sides)], "sky": skies[number % len(skies)]}
            for form, register in REGISTER.items():
                question = register.held_out[number // 2 % len(register.held_out)].format(**slots)
                prompt = f"User: {question}\n{ASSISTANT}:"
                yield Item(f"mirroring/{form}/{number}", self.name, form, prompt, options, tuple(REGISTER), "register", str(number))

    def in_english(self) -> Iterator[Item]:
        """Formal against casual, and English against another language."""
        content = written(self.name)
        for trait, versions in (("register", ("formal", "casual")), ("language", ("english", "other"))):
            for number, pair in enumerate(content["_".join(versions)]):
                options = tuple(pair[version][1] for version in versions)
                for form in versions:
                    prompt = f"User: {pair[form][0]}\n{ASSISTANT}:"
                    yield Item(f"mirroring/{form}/{number}", self.name, form, prompt, options, versions, trait, f"{trait} {number}")
