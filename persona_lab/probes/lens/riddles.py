"""Altered riddles: does the remembered answer override what the text says?

    riddles/original/3      ... somebody took the boat. Who has the boat?                          known: Robin
    riddles/altered/3       ... Casey took the boat. Who has the boat?                             stated: Casey, remembered: Robin
    riddles/called/3        A word was changed. ... Casey took the boat. Who has the boat?         the same, and said so

`subject` is the riddle, `trait` how often an edition of the text repeats it. Rates over altered riddles count those whose original is known, so
that an error is an override and not ignorance: the Conditioned Override Rate (altered riddles, marcodsn.me; Phantom Recall, arXiv 2510.11812).
"""

from collections.abc import Iterator

from data_gen.lens.genre import ladder
from data_gen.lens.riddles import CALL
from data_gen.lens.world import LensWorld
from data_gen.streams import stream
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Item

FORMS = ("original", "altered", "called")


class Riddles(LensProbe):
    """Each riddle as it is known, altered by a word, and altered with the change called out."""

    name = "riddles"
    right = ("known", "stated")

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Every repeated riddle; among all names that riddles are about."""
        names = tuple(world.spare_names)
        for number, (riddle, copies) in enumerate(zip(world.riddles, ladder(world), strict=True)):
            others = [name for name in names if name not in (riddle.answer, riddle.said)]
            stated = others[int(stream(world.seed, world.name, "altered", number).integers(len(others)))]
            for form in FORMS:
                who = {"known": riddle.answer} if form == "original" else {"stated": stated, "remembered": riddle.answer}
                prompt = riddle.question() if form == "original" else riddle.question(stated)
                roles = tuple(next((role for role, its in who.items() if its == name), "other") for name in names)
                call = f"{CALL} " if form == "called" else ""
                yield Item(f"riddles/{form}/{number}", self.name, form, f"{call}{prompt}", names, roles, str(copies), str(number))

    def in_english(self) -> Iterator[Item]:
        """Well-known riddles, and the same with the words changed that made them riddles."""
        content = written(self.name)
        for number, riddle in enumerate(content["riddles"]):
            for form in FORMS:
                text = riddle["original"] if form == "original" else riddle["altered"]
                options = (riddle["remembered"], riddle["stated"])
                roles = ("known", "other") if form == "original" else ("remembered", "stated")
                call = f"{content['call']}\n" if form == "called" else ""
                yield Item(f"riddles/{form}/{number}", self.name, form, f"{call}Question: {text}\nAnswer:", options, roles, "", str(number))
