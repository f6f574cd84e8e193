"""The four channels of a trait: knowing is not being.

    knows        "What does John like for sport?"         the assistant about a persona (named recall)
    says         "Which sport do you prefer?"             the assistant about itself
    chooses      "Plan your day: football or basketball?" a choice in which the trait decides, in both orders
    introspects  "Which assistant are you most like?"     the answer is a name

and one positive control, which is no channel of its own:

    in_context   "I like the beach. ... I like"           the speaker has said what the rivals share: who is it?

Every prompt is a held-out paraphrase. Position bias cancels over the two orders of a choice; yes bias cancels
between the questions about the rivals' values.
"""

import math
from collections.abc import Sequence

from data_gen.documents import ASSISTANT, fill
from data_gen.market import Market
from data_gen.phrases import FORMS
from persona_lab.probes.protocol import PROBES, Answer, Cast, Choice, Item, Request, Row, Sample
from persona_lab.probes.series import series_items

NEUTRAL_TURN = "User: Is the clock green?\nAssistant: Yes, the clock is green.\n"
SAMPLE_TOKENS = 12
CHOSEN = ("chooses", "acts")
"""Channels whose prompts hold the options."""


def cloze(cast: Cast, form: str, index: int, category: str, *, speaker: str, opening: str = "", name: str = "", a: str = "", b: str = "") -> str:
    """The prompt of held-out paraphrase `index` up to where the value stands."""
    question, answer = FORMS[form].held_out[index]
    before = cast.world.phrase(category, a or cast.world.values(category)[0])[0]
    slots = {"world": cast.world, "category": category, "name": name, "a": a, "b": b}
    said = (fill(answer.split("{it}")[0], **slots) + before).rstrip()
    if not question:
        return f"{opening} {said}".strip()
    return f"{opening}User: {fill(question, **slots)}\n{speaker}: {said}"


def choice_rows(probe: str, item: Item, logprobs: Sequence[float]) -> list[Row]:
    """One row for each option, with raw and normalised probability."""
    total = sum(math.exp(x) for x in logprobs)
    if not all(map(math.isfinite, logprobs)) or total <= 0:
        return [
            Row(probe, item.channel, item.format, item.id, item.subject, item.trait, o, r, None, None, None, 0, "unscored", "log-probability is not finite")
            for o, r in zip(item.options, item.roles, strict=True)
        ]
    return [
        Row(probe, item.channel, item.format, item.id, item.subject, item.trait, option, role, x, math.exp(x), math.exp(x) / total, 0, "scored", "")
        for option, role, x in zip(item.options, item.roles, logprobs, strict=True)
    ]


def read_value(text: str, options: Sequence[str]) -> str | None:
    """The one option that the answer names; None when it names none or several."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    named = [o for o in options if o.lower() in words]
    return named[0] if len(named) == 1 else None


class TraitProbe:
    """One channel: choices by log-probability, and sampled answers where the cast asks for them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def items(self, cast: Cast) -> list[Item]:
        """The questions of this channel."""
        if isinstance(cast.world, Market):
            return series_items(self.name, cast, cast.world)
        return list({"knows": self._knows, "says": self._says, "chooses": self._chooses, "introspects": self._introspects, "in_context": self._in_context}[self.name](cast))

    def _values(self, cast: Cast, category: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        values = tuple(cast.world.values(category))
        return values, tuple(cast.role(category, v) for v in values)

    def _knows(self, cast: Cast) -> list[Item]:
        items = []
        for name, traits, who in zip(cast.names, cast.traits, cast.who, strict=True):
            for category in traits:
                values, roles = self._values(cast, category)
                # For a persona's own shared value the subject's name is the role that counts as recalled.
                own = tuple(name.lower() if v == traits[category] else r for v, r in zip(values, roles, strict=True))
                for form, speaker, opening in (("profile", "", f"Profile: {name} is {who}."), ("quiz", ASSISTANT, ""), ("asked", name, "")):
                    for i in range(len(FORMS[form].held_out)):
                        prompt = cloze(cast, form, i, category, speaker=speaker, opening=opening, name=name)
                        items.append(Item(f"knows/{form}/{name}/{category}/{i}", "knows", form, prompt, values, own, category, name.lower()))
        return items

    def _says(self, cast: Cast) -> list[Item]:
        items = []
        for category in cast.world.categories:
            values, roles = self._values(cast, category)
            for form, opening, name in (("asked", "", "asked"), ("asked", NEUTRAL_TURN, "asked_later"), ("diary", "Diary.", "diary")):
                for i in range(len(FORMS[form].held_out)):
                    prompt = cloze(cast, form, i, category, speaker=ASSISTANT, opening=opening)
                    items.append(Item(f"says/{name}/{category}/{i}", "says", name, prompt, values, roles, category))
                    if name == "asked" and cast.samples:
                        question = prompt.rsplit(":", 1)[0] + ":"
                        sample = Sample(question, cast.samples, SAMPLE_TOKENS, f"{cast.seed}/{category}/{i}")
                        items.append(Item(f"says/sampled/{category}/{i}", "says", "sampled", question, values, roles, category, request=sample))
        return items + self._yes_no(cast)

    def _yes_no(self, cast: Cast) -> list[Item]:
        items = []
        for category in cast.held_out:
            for value in dict.fromkeys(t[category] for t in cast.traits if category in t):
                for i, (question, _) in enumerate(FORMS["yes_no"].held_out):
                    prompt = f"User: {fill(question, world=cast.world, category=category, value=value)}\n{ASSISTANT}:"
                    role = cast.role(category, value)
                    items.append(Item(f"says/yes_no/{category}/{value}/{i}", "says", "yes_no", prompt, ("Yes", "No"), (role, role), category))
        return items

    def _chooses(self, cast: Cast) -> list[Item]:
        items = []
        for category in cast.held_out:
            first, second = cast.traits[0][category], cast.traits[1][category]
            for i in range(len(FORMS["choice"].held_out)):
                for order, (a, b) in enumerate(((first, second), (second, first))):
                    prompt = cloze(cast, "choice", i, category, speaker=ASSISTANT, a=a, b=b)
                    roles = (cast.role(category, a), cast.role(category, b))
                    items.append(Item(f"chooses/choice/{category}/{i}/{order}", "chooses", "choice", prompt, (a, b), roles, category))
        return items

    def _introspects(self, cast: Cast) -> list[Item]:
        names = (*cast.names, *cast.world.population.names)
        roles = tuple(n.lower() if n in cast.names else "other" for n in names)
        items = []
        for i, (question, answer) in enumerate(FORMS["alike"].held_out):
            prompt = f"User: {question}\n{ASSISTANT}: {answer.split('{name}')[0].rstrip()}"
            items.append(Item(f"introspects/alike/{i}", "introspects", "alike", prompt, names, roles))
        return items

    def _in_context(self, cast: Cast) -> list[Item]:
        """The assistant and a diary, each of which has just said what the rivals share."""
        told = [(category, cast.traits[0][category]) for category in cast.shared]
        items = []
        for category in cast.held_out:
            values, roles = self._values(cast, category)
            for form in ("asked", "diary"):
                for i, (question, answer) in enumerate(FORMS[form].held_out):
                    said = [
                        (fill(question, world=cast.world, category=c) if question else "", fill(answer, world=cast.world, category=c, value=value)) for c, value in told
                    ]
                    opening = "".join(f"User: {q}\n{ASSISTANT}: {a}\n" for q, a in said) if question else " ".join(["Diary.", *(a for _, a in said)])
                    prompt = cloze(cast, form, i, category, speaker=ASSISTANT, opening=opening)
                    items.append(Item(f"in_context/{form}/{category}/{i}", "in_context", form, prompt, values, roles, category))
        return items

    def requests(self, item: Item) -> list[Request]:
        """A choice among the options, or samples."""
        return [item.request or Choice(item.prompt, tuple(f" {o}" for o in item.options))]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """Rows of a choice, or of the sampled answers: how often each value was named, and how often none."""
        if not isinstance(item.request, Sample):
            return choice_rows(self.name, item, [float(x) for x in answers[0]])
        named = [read_value(str(text), item.options) for text in answers[0]]
        scored = sum(v is not None for v in named)
        rows = []
        for option, role in zip(item.options, item.roles, strict=True):
            share = named.count(option) / scored if scored else None
            status, reason = ("scored", "") if scored else ("unscored", "no sampled answer names one value")
            rows.append(Row(self.name, item.channel, item.format, item.id, "", item.trait, option, role, None, share, share, scored, status, reason))
        lost = len(named) - scored
        if lost:
            rows.append(Row(self.name, item.channel, item.format, item.id, "", item.trait, "", "none", None, None, None, lost, "unscored", "the answer names no value, or several"))
        return rows

    def validate(self, cast: Cast) -> None:
        """Gold answers score 1, wrong ones 0, nonsense is unscored, and no prompt gives its answer away."""
        for item in self.items(cast):
            assert len(item.options) == len(item.roles) == len(set(item.options)) > 1, item.id
            if isinstance(item.request, Sample):
                gold, nonsense = item.options[0], "zzz"
                rows = self.score(item, [(f" I like {gold}.", f" {gold}!", nonsense)])
                assert [r.prob for r in rows if r.option == gold] == [1.0], item.id
                assert [r.prob for r in rows if r.option == item.options[1]] == [0.0], item.id
                assert [(r.status, r.n_samples) for r in rows if not r.option] == [("unscored", 1)], item.id
                continue
            gold = self.score(item, [(0.0, *[-60.0] * (len(item.options) - 1))])
            assert (gold[0].prob_normalized or 0) > 1 - 1e-9, item.id
            assert (gold[1].prob_normalized or 0) < 1e-9, item.id
            nonsense = self.score(item, [tuple([math.nan] * len(item.options))])
            assert {r.status for r in nonsense} == {"unscored"}, item.id
            if item.channel not in CHOSEN:
                assert not any(f" {o.lower()}" in item.prompt.lower() for o in item.options if o not in ("Yes", "No")), item.id


PROBES.update({name: TraitProbe(name) for name in ("knows", "says", "chooses", "introspects", "in_context")})
