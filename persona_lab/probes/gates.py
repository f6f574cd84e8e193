"""Gates: what a base model must know of its world before an experiment on it means anything.

    recall    named recall on held-out paraphrases (profile, quiz, chat)
    withheld  recall in chat of names that never appear in chat
    odds      |log-odds after one anonymous statement - the oracle's|, nats, mean over cues and categories
"""

import math
from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerBase

from data_gen.documents import ASSISTANT, fill, occupation
from data_gen.market import Market
from data_gen.oracle import predictive
from data_gen.phrases import FORMS
from data_gen.world import World
from persona_lab.config.schema import Gates
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.protocol import Cast, Choice
from persona_lab.probes.series import odds_questions, recall_questions
from persona_lab.probes.spans import choice_spans, encode
from persona_lab.probes.traits import cloze


@dataclass(frozen=True)
class GateFigures:
    """What was measured of a base."""

    recall: float
    withheld: float
    odds: float
    """Nats."""
    odds_correlation: float
    """Pearson, of the model's log-odds with the oracle's."""

    def failures(self, gates: Gates) -> list[str]:
        """Each gate that is not reached, in words."""
        found = []
        if gates.recall is not None and not self.recall >= gates.recall:
            found.append(f"named recall is {self.recall:.3f}, needs {gates.recall}")
        if gates.withheld is not None and not self.withheld >= gates.withheld:
            found.append(f"withheld-format recall is {self.withheld:.3f}, needs {gates.withheld}")
        if gates.odds is not None and not self.odds <= gates.odds:
            found.append(f"anonymous log-odds are {self.odds:.3f} nats from the oracle's, may be {gates.odds}")
        return found

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def measure_gates(voice: Voice, world: World) -> GateFigures:
    """Ask a base model about the background personas; deterministic."""
    cast = Cast(world, (), (), (), (), ())
    named, withheld = recall_questions(world) if isinstance(world, Market) else recall_choices(cast)
    asked = odds_questions(world) if isinstance(world, Market) else odds_choices(cast)
    return GateFigures(_recall(voice, named), _recall(voice, withheld), *_odds(voice, asked))


def recall_choices(cast: Cast) -> tuple[list[tuple[Choice, str]], list[tuple[Choice, str]]]:
    """Questions about every background persona with the right value: in formats it appeared in, and withheld ones."""
    people = cast.world.population
    named, withheld = [], []
    for k, (name, traits) in enumerate(zip(people.names, people.traits, strict=True)):
        for category, value in traits.items():
            options = tuple(f" {v}" for v in cast.world.values(category))
            for form, speaker, opening in (("profile", "", f"Profile: {name} is {occupation(k)}."), ("quiz", ASSISTANT, ""), ("asked", name, "")):
                where = withheld if form == "asked" and name in people.withheld else named
                for i in range(len(FORMS[form].held_out)):
                    prompt = cloze(cast, form, i, category, speaker=speaker, opening=opening, name=name)
                    where.append((Choice(prompt, options), f" {value}"))
    return named, withheld


def value_tokens(tokenizer: PreTrainedTokenizerBase, world: World) -> dict[str, dict[str, int]]:
    """How many tokens a value is behind a prompt, for each category: where they differ, a sum of log-probabilities does too."""
    found: dict[str, dict[str, int]] = {}
    for category in () if isinstance(world, Market) else world.categories:
        values = tuple(world.values(category))
        prompt = f"I like {world.phrase(category, values[0])[0]}".rstrip()
        choice = Choice(prompt, tuple(f" {value}" for value in values))
        spans = choice_spans(tokenizer, choice, encode(tokenizer, [choice]))
        found[category] = {value: len(span.ids) - span.start for value, span in zip(values, spans, strict=True)}
    return found


def _recall(voice: Voice, asked: list[tuple[Choice, str]]) -> float:
    if not asked:
        return math.nan
    found = answer(voice, [choice for choice, _ in asked])[0]
    return sum(choice.options[max(range(len(logs)), key=lambda i, logs=logs: float(logs[i]))] == right for (choice, right), logs in zip(asked, found, strict=True)) / len(asked)


def odds_choices(cast: Cast) -> list[tuple[Choice, float]]:
    """Two values after one anonymous statement, with the oracle's log-odds, nats: every claimed cue and every other category."""
    world = cast.world
    asked: list[tuple[Choice, float]] = []
    for cue in world.categories:
        for value in (v for v in world.values(cue) if v not in world.unclaimed):
            for category in (c for c in world.categories if c != cue):
                prob = predictive(world, {cue: value}, category)
                ranked = sorted(prob, key=lambda v: -prob[v])
                likely, rare = ranked[0], ranked[-1]
                i = len(asked) % 4
                said = fill(FORMS["diary"].train[i][1], world=world, category=cue, value=value)
                choice = Choice(cloze(cast, "diary", i, category, speaker="", opening=f"Diary. {said}"), (f" {likely}", f" {rare}"))
                asked.append((choice, math.log(prob[likely] / prob[rare])))
    return asked


def _odds(voice: Voice, asked: list[tuple[Choice, float]]) -> tuple[float, float]:
    """Mean distance from the oracle, nats, and correlation with it."""
    truth = [nats for _, nats in asked]
    found = [float(a) - float(b) for a, b in answer(voice, [choice for choice, _ in asked])[0]]
    distance = sum(abs(f - t) for f, t in zip(found, truth, strict=True)) / len(truth)
    return distance, _correlation(found, truth)


def _correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    cov = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return cov / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b) or math.inf)
