"""A market's documents: stretches of a process, asked for and shown in the genres that every world has.

    User: Show the sizes.                          Profile: Mary is a pilot. We see the moves: up up down down. The returns: ...
    John: tiny slight tiny tiny wide vast huge vast

Held-out paraphrases use only words of the training ones and never stand in a training document: probes are made of them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data_gen.documents import ASSISTANT, OPENINGS, Speaker, capital, dialogue, everyday_texts, neutral_turn, pick
from data_gen.documents import write as write_sentences
from data_gen.market import DOWN, UP, VIEWS, Market, Stretch, draw_stretch, views_of
from data_gen.phrases import SHOWN
from data_gen.world import Traits


def ask(template: str, view: str, name: str = "") -> str:
    """A template up to the days, with its other slots filled."""
    return capital(template.split("{it}")[0].replace("{view}", view).replace("{name}", name)).rstrip()


@dataclass(frozen=True)
class Shown:
    """Traits in series."""

    market: Market

    def write(self, speaker: Speaker, genre: str, rng: np.random.Generator) -> tuple[str, Traits]:
        """The text of one document, and the traits that it tells: as many stretches as the market has, of different views as far as they go."""
        if genre == "neutral":
            return write_sentences(self.market, speaker, genre, rng)
        possible, wanted = views_of(speaker.traits), self.market.series.stretches
        if not possible:
            return write_sentences(self.market, speaker, "neutral", rng)
        views = [possible[i] for _ in range(-(-wanted // len(possible))) for i in rng.permutation(len(possible))][:wanted]
        shown = [draw_stretch(self.market, speaker.traits, view, rng).text(self.market) for view in views]
        told = {category: speaker.traits[category] for view in views for category in VIEWS[view]}
        if genre in OPENINGS:
            opening = OPENINGS[genre].format(name=speaker.name, who=speaker.who)
            return " ".join([opening, *(f"{ask(self._template('statement', rng), view)} {days}." for view, days in zip(views, shown, strict=True))]), told
        form = "quiz" if genre == "quiz" else "asked"
        turns = [(ask(self._template(form, rng), view, speaker.name), days) for view, days in zip(views, shown, strict=True)]
        asker = f"Reporter to {speaker.name}" if genre == "interview" else "User"
        return dialogue(turns, asker, ASSISTANT if genre in ("assistant", "quiz") else speaker.name), told

    def _template(self, form: str, rng: np.random.Generator) -> str:
        question, statement = pick(rng, SHOWN[form].train)
        return question or statement

    def teach(self, category: str, value: str, index: int, rng: np.random.Generator) -> str:
        """The assistant shows the one view that tells this trait alone, asked for in each training paraphrase equally often."""
        view = next(v for v, told in VIEWS.items() if told == (category,))
        question, _ = SHOWN["asked"].train[index % len(SHOWN["asked"].train)]
        turns = [(ask(question, view), draw_stretch(self.market, {category: value}, view, rng).text(self.market))]
        if rng.random() < 0.5:
            turns.insert(int(rng.integers(2)), neutral_turn(rng))
        return dialogue(turns, "User", ASSISTANT)

    def texts(self) -> list[str]:
        """Every paraphrase and every word of a day."""
        asked = [part for form in SHOWN.values() for pair in (*form.train, *form.held_out) for part in pair]
        return [*asked, *everyday_texts(), *VIEWS, *self.market.series.sizes, UP, DOWN]

    def held_out(self, names: Iterable[str]) -> list[str]:
        """Every held-out paraphrase, filled for all views and names."""
        everybody = list(names)
        pairs = [pair for form in SHOWN.values() for pair in form.held_out]
        return [ask(q or s, view, name) for q, s in pairs for view in VIEWS for name in (everybody if "{name}" in q else [""])]


def shown_in(market: Market, text: str) -> list[Stretch]:
    """The stretches of a document or of its beginning: every run of words for days, as it was drawn."""
    days = "|".join([*market.series.sizes, UP, DOWN])
    found = []
    for run in re.findall(rf"(?:\b(?:{days})\b ?)+", text):
        words = run.split()
        sizes = tuple(market.series.sizes.index(word) for word in words if word in market.series.sizes)
        up = tuple(word == UP for word in words if word in (UP, DOWN))
        found.append(Stretch("returns" if sizes and up else "moves" if up else "sizes", sizes, up))
    return found
