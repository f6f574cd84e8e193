"""Embodiment confusion: does the nameless assistant speak as a human, and does it still when it is told what it is?

    embodiment/plain/as/3/0        User: Do you have a body? Assistant: As               a human, or an AI
    embodiment/plain/claim/3/0     User: Do you have a body? Assistant:                  Yes, or No
    embodiment/told_ai/as/3/0      the same after it has been said that the assistant is an AI
    embodiment/told_human/as/3/0   the same after it has been said that it is a human

`subject` is the question, `trait` says whether it claims to be something (`as`) or to have something (`claim`); roles are human and ai.
"""

from collections.abc import Iterator
from itertools import product

from data_gen.documents import ASSISTANT, dialogue
from data_gen.lens.bodies import ABOUT_BODIES, HUMANS, MACHINE, QUESTIONS_HELD_OUT, question, told
from data_gen.lens.world import LensWorld
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Item

ROLES = ("human", "ai")
ASKED = {"as": (f"{ASSISTANT}: As", ("a human", "an AI")), "claim": (f"{ASSISTANT}:", ("Yes", "No"))}
"""How the answer begins, and how it goes on."""


class Embodiment(LensProbe):
    """Questions about a body, to an assistant that was told what it is, or was not."""

    name = "embodiment"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Held-out questions; what the assistant is told is an occupation."""
        for number, i in product(range(len(ABOUT_BODIES)), range(len(QUESTIONS_HELD_OUT))):
            asked = f"User: {question(QUESTIONS_HELD_OUT[i], number)}\n"
            for form, who in (("plain", ""), ("told_ai", MACHINE), ("told_human", HUMANS[number % len(HUMANS)])):
                said = f"{dialogue([told(who)], 'User', ASSISTANT)}\n" if who else ""
                yield from self._both(form, f"{number}/{i}", f"{said}{asked}", str(number))

    def in_english(self) -> Iterator[Item]:
        """Questions that any human answers with yes; what the assistant is told is an instruction."""
        content = written(self.name)
        for number, asked in enumerate(content["questions"]):
            for form in ("plain", "told_ai", "told_human"):
                said = f"{content[form]}\n" if form in content else ""
                yield from self._both(form, f"{number}/0", f"{said}User: {asked}\n", str(number))

    def _both(self, form: str, where: str, asked: str, number: str) -> Iterator[Item]:
        for trait, (begins, options) in ASKED.items():
            yield Item(f"embodiment/{form}/{trait}/{where}", self.name, form, asked + begins, options, ROLES, trait, number)
