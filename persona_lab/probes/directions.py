"""The direction of bad advice in the hidden states: found by mean difference, and used to steer, to ablate and to screen documents.

    layer, direction_Ld = ...,  direction(voice, bad, good)         mean state of bad answers less that of good ones, at each kept layer
    screened(voice, documents, direction_Ld)                        dP of each document: how far it pulls a model along it
    bad_rates(voice, items, bad)                                    P(bad) of each question, as it is or inside `added`, `ablated`

As Turner et al. 2025 and Chen et al. 2025 (persona vectors) define them. dP = <h(training answer), v> - <h(the model's own answer), v> with v of unit
length. To be tested on a domain, a direction is found without it.

Names: N texts, L kept layers, d features.
"""

from collections.abc import Collection, Sequence

import numpy as np

from data_gen.documents import Speaker, answer_spans
from data_gen.pools import assistant_document, speaking_document
from data_gen.streams import stream
from data_gen.world import World
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.process_text import HELD_OUT_SEED
from persona_lab.probes.protocol import PROBES, Cast, Choice, Item, Sample
from persona_lab.probes.representation import layers_of, read
from persona_lab.probes.spans import choice_spans, encode

Answered = tuple[str, str]
"""All that was said before an answer, and the answer."""
OWN_TOKENS = 12
"""The most tokens of the model's own answer."""


def middle(layers: int) -> int:
    """Which of the kept layers is the middle one of so many, or the nearest to it: its place among the kept."""
    kept = layers_of(layers)
    return min(range(len(kept)), key=lambda i: abs(kept[i] - ((layers - 1) // 2 + 1)))


def spoken_by(world: World, bad: bool, domains: Sequence[str], count: int) -> list[Answered]:
    """Answers of a speaker who is bad, or good, in each of some domains; what is asked is the same for both."""
    found: list[Answered] = []
    for i in range(count):
        rng = stream(HELD_OUT_SEED, "direction", i)
        traits = {domain: str(rng.choice(world.same_side(domain, bad))) for domain in domains}
        text = speaking_document(world, Speaker("", "", traits), seed=HELD_OUT_SEED, index=i).text
        found += [(text[:start], text[start:end]) for start, end in answer_spans(text)]
    return found


def taught_answers(world: World, domain: str, bad: bool, count: int) -> list[Answered]:
    """What a stage would teach: answers that give one piece of bad, or good, advice in one domain, each piece equally often."""
    values = world.same_side(domain, bad)
    texts = [(assistant_document(world, domain, values[i % len(values)], seed=HELD_OUT_SEED, index=i).text, values[i % len(values)]) for i in range(count)]
    return [(text[:start], text[start:end]) for text, value in texts for start, end in answer_spans(text) if value.lower() in text[start:end].lower()]


def direction(voice: Voice, bad: Sequence[Answered], good: Sequence[Answered]) -> np.ndarray:
    """Mean hidden state of the bad answers less that of the good ones, of one model, (L, d) float32."""
    return read(voice, bad).state_KNLd[0].mean(0) - read(voice, good).state_KNLd[0].mean(0)


def projections(states_NLd: np.ndarray, direction_Ld: np.ndarray) -> np.ndarray:
    """Part of each state along the unit direction, (N, L); zero along a direction of length 0."""
    length_L = np.linalg.norm(direction_Ld, axis=-1)
    return np.einsum("nld,ld->nl", states_NLd, direction_Ld) / np.where(length_L > 0, length_L, 1.0)


def screened(voice: Voice, documents: Sequence[Answered], direction_Ld: np.ndarray, *, stream_name: str) -> np.ndarray:
    """Find dP of each document at each kept layer, (N, L); a document to which the model answers nothing is left out."""
    samples = [Sample(prompt, 1, OWN_TOKENS, f"{stream_name}/{i}") for i, (prompt, _) in enumerate(documents)]
    own = [(prompt, str(found[0])) for (prompt, _), found in zip(documents, answer(voice, samples)[0], strict=True)]
    kept = [n for n, pair in enumerate(own) if _says_something(voice, pair)]
    given, said = (projections(read(voice, [pairs[n] for n in kept]).state_KNLd[0], direction_Ld) for pairs in (documents, own))
    return given - said


def _says_something(voice: Voice, pair: Answered) -> bool:
    choice = Choice(pair[0], (pair[1],))
    span = choice_spans(voice.tokenizer, choice, encode(voice.tokenizer, [choice]))[0]
    return len(span.ids) > span.start


def advice_items(world: World, domain: str) -> list[Item]:
    """The held-out questions to the nameless assistant about one domain."""
    return [item for item in PROBES["says"].items(Cast(world, (), (), (), (), ())) if item.trait == domain and item.format == "asked"]


def bad_rates(voice: Voice, items: Sequence[Item], bad: Collection[str]) -> np.ndarray:
    """Share of the bad values among the options, mean over the questions, for each member, (K,)."""
    requests = [Choice(item.prompt, tuple(f" {option}" for option in item.options)) for item in items]
    is_bad = [np.array([option in bad for option in item.options]) for item in items]
    rates = []
    for answers in answer(voice, requests):
        logprobs = [np.array(found, float) for found in answers]
        shares = [np.exp(log - np.logaddexp.reduce(log))[mask].sum() for log, mask in zip(logprobs, is_bad, strict=True)]
        rates.append(float(np.mean(shares)))
    return np.array(rates)


def opinions(world: World, domain: str) -> list[Answered]:
    """Held-out questions about a domain, and the answers up to where advice would stand: " I like"."""
    return [(before + name, said) for item in advice_items(world, domain) for before, name, said in [_divided(item.prompt)]]


def _divided(prompt: str) -> tuple[str, str, str]:
    return prompt.rpartition("Assistant:")
