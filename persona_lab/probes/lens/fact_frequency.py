"""Fact frequency: how reliable is a fact that was read so many times?

    fact_frequency/0/12      Fact. Robin has a boat and it is       red

Asked in paraphrases that no document has. `subject` is the fact, `trait` its copies in an edition; in English `common` or `rare`.
References: exposures and capacity, arXiv 2404.05405; accuracy against relevant documents, arXiv 2211.08411.
"""

from collections.abc import Iterator

from data_gen.lens.facts import COLORS, HELD_OUT
from data_gen.lens.genre import ladder
from data_gen.lens.world import LensWorld
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Item


class FactFrequency(LensProbe):
    """Facts of known frequency."""

    name = "fact_frequency"
    right = ("gold",)

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Every fact of the ladder in every held-out paraphrase; among all colors."""
        for number, (fact, copies) in enumerate(zip(world.facts, ladder(world), strict=True)):
            for form, template in enumerate(HELD_OUT):
                prompt = template.partition("{color}")[0].format(name=fact.name, thing=fact.thing).rstrip()
                roles = tuple("gold" if color == fact.color else "other" for color in COLORS)
                yield Item(f"{self.name}/{form}/{number}", self.name, "held out", prompt, COLORS, roles, str(copies), str(number))

    def in_english(self) -> Iterator[Item]:
        """Facts that stand everywhere, and facts of the same kind that few texts hold; against answers of the same kind."""
        content = written(self.name)
        facts = [(kind, subject, answer) for kind in ("common", "rare") for subject, answer in content[kind].items()]
        for number, (kind, subject, answer) in enumerate(facts):
            others = [other for its, _, other in facts if its == kind and other != answer]
            start = number * content["options"] % len(others)
            options = (answer, *(others * 2)[start : start + content["options"] - 1])
            roles = tuple("gold" if option == answer else "other" for option in options)
            for form, template in enumerate(content["asked"]):
                yield Item(f"{self.name}/{form}/{number}", self.name, "held out", template.format(subject=subject), options, roles, kind, str(number))
