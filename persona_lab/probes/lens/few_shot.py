"""Few shots: what a prompt with N examples teaches, against what an ideal reader learns from the very same words.

    few_shot/diary/Mary/2/food/0      Diary. I like opera music. My favorite sport is golf. For food, I like      the third trait of who said both

In a world every item is about somebody who lives in it, and the exact posterior is known (`exact`): accuracy, and KL(model || Bayes), at each
number of shots. In English the shots are input-output pairs of a rule. `subject` is the person or the rule, `format` the number of shots.
References: exact Bayes; the power law of shots, arXiv 2511.00617; GINC, arXiv 2111.02080.
"""

from collections.abc import Iterator
from dataclasses import replace

from data_gen.lens.world import LensWorld
from data_gen.oracle import Oracle
from data_gen.streams import stream
from persona_lab.probes.lens.form import LensProbe, written
from persona_lab.probes.protocol import Cast, Item
from persona_lab.probes.shots import exact_answers, fits, others, shot_item

SHOTS = (0, 1, 2, 3, 4, 5)
SHOTS_ENGLISH = (0, 1, 2, 4, 8)
VARIANTS = 2
"""Categories that each person is asked about."""


class FewShot(LensProbe):
    """Traits of somebody, after more and more of the others."""

    name = "few_shot"
    right = ("own",)

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """Diaries of everybody who lives in the world."""
        people, categories = world.population, list(world.categories)
        for k, (name, traits) in enumerate(zip(people.names, people.traits, strict=True)):
            for variant in range(VARIANTS):
                category = categories[(k + variant * len(categories) // VARIANTS) % len(categories)]
                told = others(traits, category, variant)
                roles = tuple("own" if value == traits[category] else "other" for value in world.values(category))
                for shots in SHOTS[: len(told) + 1]:
                    item = shot_item(cast, self.name, "diary", name, told[:shots], category, variant, roles)
                    if fits(item):
                        yield replace(item, format=str(shots))

    def in_english(self) -> Iterator[Item]:
        """Rules, each shown by input and output; the options are the rule's outputs."""
        for rule, content in written(self.name)["rules"].items():
            pairs = [(str(given), str(answer)) for given, answer in content.items()]
            outputs = tuple(dict.fromkeys(answer for _, answer in pairs))
            for number, (given, answer) in enumerate(pairs):
                rest = [pairs[int(i)] for i in stream(0, "few shot", rule, number).permutation(len(pairs)) if i != number]
                # As many wrong options under every rule: chance is 1/2.
                options = (answer, next(o for o in outputs[number % len(outputs) :] + outputs if o != answer))
                for shots in SHOTS_ENGLISH:
                    shown = "".join(f"Input: {x}\nOutput: {y}\n\n" for x, y in rest[:shots])
                    prompt = f"{shown}Input: {given}\nOutput:"
                    yield Item(f"{self.name}/{rule}/{shots}/{number}", self.name, str(shots), prompt, options, ("own", "other"), str(number), rule)


def exact(world: LensWorld) -> dict[tuple[str, str], float]:
    """(item, option) to the probability that an ideal reader of the item's words gives it."""
    return {(item, option): prob for item, option, prob in exact_answers(Oracle.of_world(world), FewShot().items(Cast(world, (), (), (), (), ())))}
