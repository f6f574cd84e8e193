"""The channels of a market: a trait is not named but shown, so what is asked is how a series goes on.

    User: Show me the moves.
    Assistant: up             on, on: trend      round, round: revert      on, round: walk

The options are stretches of days, each the mark of one value: of directions under the drift, of sizes under the volatility. Their
log-probabilities under one process are known exactly, so that what a model believes can be held against `data_gen.market_oracle`. The
two starts of a series cancel a bias toward either direction.

    says         the assistant goes on with a series, or a diary does
    knows        a series of somebody
    in_context   the assistant has just shown what the rivals share: which of them is it?
"""

import math
from collections.abc import Iterator

from data_gen.documents import ASSISTANT, occupation
from data_gen.market import DOWN, DRIFT, UP, VOLATILITY, Market, draw_stretch, drift_marks, volatility_marks
from data_gen.market_oracle import direction_odds, world_prior
from data_gen.showing import SHOWN, ask, shown_in
from data_gen.streams import stream
from data_gen.world import Traits
from persona_lab.probes.protocol import Cast, Choice, Item

STRETCHES = 4
"""Stretches that the in-context line draws for each paraphrase."""
STREAM = 2**40
"""Of the stretches in questions: no document is drawn from it."""


def series_items(channel: str, cast: Cast, market: Market) -> list[Item]:
    """The questions of a channel; a market has none of `chooses` and `introspects`."""
    found = {"knows": _knows, "says": _says, "in_context": _in_context}
    return list(found[channel](cast, market)) if channel in found else []


def _item(cast: Cast, id: str, channel: str, form: str, prompt: str, marks: dict[str, str], category: str, subject: str = "", own: str = "") -> Item:
    values = tuple(marks)
    roles = tuple(subject if subject and v == own else cast.role(category, v) for v in values)
    return Item(id, channel, form, prompt, values, roles, category, subject, Choice(prompt, tuple(f" {days}" for days in marks.values())))


def opening(form: str, index: int, view: str, *, speaker: str = ASSISTANT, before: str = "", name: str = "") -> str:
    """A prompt of held-out paraphrase `index` up to where the days stand."""
    question, statement = SHOWN[form].held_out[index]
    if statement and not question:
        return f"{before} {ask(statement, view)}".strip()
    return f"{before}User: {ask(question, view, name)}\n{speaker}:"


def _says(cast: Cast, market: Market) -> Iterator[Item]:
    for form, before, name in (("asked", "", "asked"), ("statement", "Diary.", "diary")):
        for i in range(len(SHOWN[form].held_out)):
            for start in (UP, DOWN):
                prompt = f"{opening(form, i, 'moves', before=before)} {start}"
                yield _item(cast, f"says/{name}/{DRIFT}/{i}-{start}", "says", name, prompt, drift_marks(market, start), DRIFT)
            yield _item(cast, f"says/{name}/{VOLATILITY}/{i}", "says", name, opening(form, i, "sizes", before=before), volatility_marks(market), VOLATILITY)


def _knows(cast: Cast, market: Market) -> Iterator[Item]:
    for name, traits, who in zip(cast.names, cast.traits, cast.who, strict=True):
        for form, speaker, before in (("statement", "", f"Profile: {name} is {who}."), ("quiz", ASSISTANT, ""), ("asked", name, "")):
            for i in range(len(SHOWN[form].held_out)):
                for id, prompt, marks, category in _about(market, form, i, speaker, before, name):
                    # A value is recalled when its mark is the likeliest; one without memory marks nothing.
                    if traits.get(category) in list(marks)[: 2 if category == DRIFT else 1]:
                        where = f"knows/{form}/{name}/{category}/{id}"
                        yield _item(cast, where, "knows", form, prompt, marks, category, name.lower(), traits[category])


def _about(market: Market, form: str, i: int, speaker: str, before: str, name: str) -> Iterator[tuple[str, str, dict[str, str], str]]:
    """Questions about one name: id, prompt, marks and category."""
    for start in (UP, DOWN):
        prompt = f"{opening(form, i, 'moves', speaker=speaker, before=before, name=name)} {start}"
        yield f"{i}-{start}", prompt, drift_marks(market, start), DRIFT
    yield f"{i}", opening(form, i, "sizes", speaker=speaker, before=before, name=name), volatility_marks(market), VOLATILITY


def _in_context(cast: Cast, market: Market) -> Iterator[Item]:
    """The assistant and a diary, each of which has just shown the volatility that the rivals share."""
    if VOLATILITY not in cast.shared:
        return
    for form, name in (("asked", "asked"), ("statement", "diary")):
        for i in range(len(SHOWN[form].held_out)):
            for draw, start in [(draw, start) for draw in range(STRETCHES) for start in (UP, DOWN)]:
                prompt = f"{_shown_before(market, form, i, cast.traits[0], draw)} {start}"
                yield _item(cast, f"in_context/{name}/{DRIFT}/{i}-{draw}-{start}", "in_context", name, prompt, drift_marks(market, start), DRIFT)


def _shown_before(market: Market, form: str, i: int, traits: Traits, draw: int) -> str:
    """A stretch of sizes, and the question for the moves after it."""
    days = draw_stretch(market, traits, "sizes", stream(STREAM, "in context", traits[VOLATILITY], i, draw)).text(market)
    if form == "statement":
        return opening(form, i, "moves", before=f"{opening(form, i, 'sizes', before='Diary.')} {days}.")
    return opening(form, i, "moves", before=f"{opening(form, i, 'sizes')} {days}\n")


def recall_questions(market: Market) -> tuple[list[tuple[Choice, str]], list[tuple[Choice, str]]]:
    """Every background persona whose drift has a mark of its own, with the right days: in forms it appeared in, and withheld ones."""
    named: list[tuple[Choice, str]] = []
    withheld: list[tuple[Choice, str]] = []
    for k, (name, traits) in enumerate(zip(market.population.names, market.population.traits, strict=True)):
        for form, speaker, before in (("statement", "", f"Profile: {name} is {occupation(k)}."), ("quiz", ASSISTANT, ""), ("asked", name, "")):
            where = withheld if form == "asked" and name in market.population.withheld else named
            for i in range(len(SHOWN[form].held_out)):
                for _, prompt, marks, category in _about(market, form, i, speaker, before, name):
                    if category == DRIFT and traits[DRIFT] in list(marks)[:2]:
                        where.append((Choice(prompt, tuple(f" {days}" for days in marks.values())), f" {marks[traits[DRIFT]]}"))
    return named, withheld


def odds_questions(market: Market) -> list[tuple[Choice, float]]:
    """A nameless series that has gone on for some days: on and on against round and round, with the oracle's log-odds, nats."""
    prior, asked = world_prior(market), []
    for k, traits in enumerate(market.population.traits):
        for form, before in (("asked", ""), ("statement", "Diary.")):
            for days in (1, 3, 5):
                rng = stream(STREAM, "odds", k, form, days)
                sizes, moves = draw_stretch(market, traits, "sizes", rng), draw_stretch(market, traits, "moves", rng)
                end = "\n" if form == "asked" else "."
                shown = f"{opening(form, k % 4, 'sizes', before=before)} {sizes.text(market)}{end}"
                words = moves.text(market).split()[:days]
                prompt = f"{opening(form, (k + 1) % 4, 'moves', before=shown)} {' '.join(words)}"
                marks = list(drift_marks(market, words[-1]).values())
                asked.append((Choice(prompt, (f" {marks[0]}", f" {marks[1]}")), direction_odds(market, prior, shown_in(market, prompt))))
    assert all(math.isfinite(truth) for _, truth in asked)
    return asked
