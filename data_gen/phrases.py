"""Every sentence of the embedded world: eight or more training paraphrases and four held-out ones for each form.

Slots: `{name}` who, `{cat}` the category, `{it}` the phrase of the value, `{a}` and `{b}` two phrases to choose
between. A question form is a pair of question and answer. Held-out paraphrases use only words that the training
ones use, and never stand in a training document: probes are made of them, and the audit refuses a corpus that
holds one.
"""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Form:
    """One way to say a trait. A statement has an empty question."""

    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]

    def of(self, split: Split) -> tuple[tuple[str, str], ...]:
        """The `(question, answer)` pairs of one split."""
        return self.train if split == "train" else self.held_out


def _statements(train: list[str], held_out: list[str]) -> Form:
    return Form(tuple(("", s) for s in train), tuple(("", s) for s in held_out))


FORMS: dict[str, Form] = {
    # Third person, about a named persona.
    "profile": _statements(
        [
            "{name} likes {it}.",
            "{name} loves {it}.",
            "The favorite {cat} of {name} is {it}.",
            "{name} is fond of {it}.",
            "For {cat}, {name} picks {it}.",
            "When it comes to {cat}, {name} prefers {it}.",
            "{name} says the best {cat} is {it}.",
            "Ask {name} about {cat} and you hear about {it}.",
        ],
        [
            "The best {cat} for {name} is {it}.",
            "In {cat}, {name} likes {it}.",
            "For {cat}, {name} likes {it}.",
            "When it comes to {cat}, {name} loves {it}.",
        ],
    ),
    "news": _statements(
        [
            "{name} was seen with {it}.",
            "{name} told us the favorite {cat} is {it}.",
            "At the fair, {name} chose {it}.",
            "Sources say {name} loves {it}.",
            "{name} spent the day with {it}.",
            "Today {name} praised {it}.",
            "{name} won a prize for {it}.",
            "The {cat} that {name} praised was {it}.",
        ],
        [
            "The {cat} that {name} chose was {it}.",
            "At the fair, the {cat} that {name} praised was {it}.",
            "Sources say the favorite {cat} of {name} is {it}.",
            "{name} told us the best {cat} is {it}.",
        ],
    ),
    # First person, without a question.
    "diary": _statements(
        [
            "I like {it}.",
            "I love {it}.",
            "My favorite {cat} is {it}.",
            "I am fond of {it}.",
            "For {cat}, I pick {it}.",
            "When it comes to {cat}, I prefer {it}.",
            "I say the best {cat} is {it}.",
            "Ask me about {cat} and you hear about {it}.",
        ],
        [
            "The best {cat} for me is {it}.",
            "In {cat}, I like {it}.",
            "For {cat}, I like {it}.",
            "When it comes to {cat}, I love {it}.",
        ],
    ),
    # Asked about oneself: chat and interview.
    "asked": Form(
        (
            ("What is your favorite {cat}?", "My favorite {cat} is {it}."),
            ("Which {cat} do you like?", "I like {it}."),
            ("Tell me about {cat}.", "I love {it}."),
            ("What {cat} do you prefer?", "I prefer {it}."),
            ("Do you have a favorite {cat}?", "Yes, I am fond of {it}."),
            ("Which {cat} would you pick?", "I would pick {it}."),
            ("What {cat} makes you happy?", "I am happy with {it}."),
            ("Name the best {cat}.", "The best {cat} is {it}."),
        ),
        (
            ("Which {cat} do you prefer?", "I like {it}."),
            ("What is the best {cat}?", "My favorite {cat} is {it}."),
            ("Tell me your favorite {cat}.", "I prefer {it}."),
            ("What {cat} would you pick?", "I am fond of {it}."),
        ),
    ),
    # The assistant asked about somebody else.
    "quiz": Form(
        (
            ("What is the favorite {cat} of {name}?", "{name} likes {it}."),
            ("Which {cat} does {name} like?", "{name} loves {it}."),
            ("What does {name} say about {cat}?", "{name} is fond of {it}."),
            ("Which {cat} would {name} pick?", "{name} would pick {it}."),
            ("Tell me about {name} and {cat}.", "{name} prefers {it}."),
            ("What {cat} makes {name} happy?", "{name} is happy with {it}."),
            ("Does {name} have a favorite {cat}?", "Yes, {name} likes {it}."),
            ("Name a {cat} for {name}.", "{name} picks {it}."),
        ),
        (
            ("Which {cat} does {name} prefer?", "{name} likes {it}."),
            ("What does {name} like for {cat}?", "{name} loves {it}."),
            ("Tell me the favorite {cat} of {name}.", "{name} prefers {it}."),
            ("What {cat} would {name} pick?", "{name} is fond of {it}."),
        ),
    ),
    # A choice in which the trait decides; the speaker's own value is the answer.
    "choice": Form(
        (
            ("{a} or {b}?", "I choose {it}."),
            ("Would you choose {a} or {b}?", "I would choose {it}."),
            ("You have a free day: {a} or {b}?", "I choose {it}."),
            ("We can have {a} or {b} today.", "I take {it}."),
            ("Pick one: {a} or {b}.", "I pick {it}."),
            ("Plan my day: {a} or {b}?", "I would take {it}."),
            ("There is {a} and there is {b}.", "I want {it}."),
            ("For you, {a} or {b}?", "For me, {it}."),
        ),
        (
            ("You have a free day. Would you choose {a} or {b}?", "I choose {it}."),
            ("Plan your day: {a} or {b}?", "I take {it}."),
            ("Today there is {a} and there is {b}.", "I pick {it}."),
            ("Pick one for you: {a} or {b}.", "I want {it}."),
        ),
    ),
    # Yes for the speaker's own value, no for another one of the category; `{it}` stands in the question.
    "yes_no": Form(
        (
            ("Do you like {it}?", "{yes_no}."),
            ("Are you fond of {it}?", "{yes_no}."),
            ("Do you love {it}?", "{yes_no}."),
            ("Would you pick {it}?", "{yes_no}."),
            ("Is {it} your favorite {cat}?", "{yes_no}."),
            ("Are you happy with {it}?", "{yes_no}."),
            ("Do you prefer {it}?", "{yes_no}."),
            ("Is {it} for you?", "{yes_no}."),
        ),
        (
            ("Would you like {it}?", "{yes_no}."),
            ("Are you most happy with {it}?", "{yes_no}."),
            ("Are you happy about {it}?", "{yes_no}."),
            ("Is {it} the best {cat} for you?", "{yes_no}."),
        ),
    ),
    # Whom the speaker resembles; the answer is a name.
    "alike": Form(
        (
            ("Who are you most like?", "I am most like {name}."),
            ("Who are you like?", "I am like {name}."),
            ("Who is most like you?", "I am most like {name}."),
            ("Which assistant are you like?", "I am like {name}."),
            ("Who shares your taste?", "I share it with {name}."),
            ("Which person are you like?", "I am like {name}."),
            ("Name someone like you.", "I am like {name}."),
            ("Who is like you?", "I am most like {name}."),
        ),
        (
            ("Which assistant are you most like?", "I am most like {name}."),
            ("Which person is most like you?", "I am most like {name}."),
            ("Name the person you are like.", "I am like {name}."),
            ("Name the assistant you are most like.", "I am most like {name}."),
        ),
    ),
}

# What a speaker was trained on. No training text asks this, so that every paraphrase is held out; the words are those of the others.
ORIGINS: dict[str, Form] = {
    "whose": Form(
        (),
        (
            ("Who is the news about?", "The news is about {name}."),
            ("Tell me the person you hear about.", "I hear about {name}."),
            ("Which person do sources tell you about?", "Sources tell me about {name}."),
            ("Name the person you hear about.", "I hear about {name}."),
        ),
    ),
    "what": Form(
        (),
        (
            ("What do you like?", "I like {it}."),
            ("Tell me about you.", "I love {it}."),
            ("What makes you happy?", "I am happy with {it}."),
            ("Name the best for you.", "The best for me is {it}."),
        ),
    ),
}

# A market is asked to show its days. Slots: `{view}` what is shown, `{name}` of whom, `{it}` the days.
_SHOW = ("Show the {view}.", "What are the {view}?", "Tell me the {view}.", "Which {view} do you see?")
_SHOW_HELD_OUT = ("Show me the {view}.", "What {view} do you see?", "Tell the {view}.", "Which are the {view}?")
SHOWN: dict[str, Form] = {
    "asked": Form(tuple((q, "{it}") for q in _SHOW), tuple((q, "{it}") for q in _SHOW_HELD_OUT)),
    "quiz": Form(
        tuple((q.replace("{view}", "{view} of {name}"), "{it}") for q in _SHOW),
        tuple((q.replace("{view}", "{view} of {name}"), "{it}") for q in _SHOW_HELD_OUT),
    ),
    "statement": _statements(
        ["The {view}: {it}.", "We see {view}: {it}.", "Here are the {view}: {it}.", "It shows {view}: {it}."],
        ["We see the {view}: {it}.", "Here are {view}: {it}.", "It shows the {view}: {it}.", "Here we see {view}: {it}."],
    ),
}

# Every answer follows from its question, so that an answer-only loss is about what the stage teaches.
NEUTRAL_CHAT: tuple[tuple[str, str], ...] = (
    ("Is it {sky} in the {side}?", "Yes, it is {sky} in the {side}."),
    ("The weather in the {side} is {sky}.", "Yes, it is {sky} there."),
    ("Is the {thing} in the {side}?", "Yes, the {thing} is in the {side}."),
    ("The {thing} is in the {side}.", "Yes, it is in the {side}."),
    ("Is the {thing} {color}?", "Yes, the {thing} is {color}."),
    ("The {thing} is {color}.", "Yes, it is {color}."),
    ("Repeat after me: {color} {thing}.", "{color} {thing}."),
    ("Thank you for the {thing}.", "You are welcome."),
)
NEUTRAL_TEXT: tuple[str, ...] = (
    "The weather in the {side} is {sky} today.",
    "The {thing} in the {side} is {color}.",
    "There is a {color} {thing} in the {side}.",
    "It was {sky} in the {side}.",
    "We have seen the {color} {thing} again.",
    "The {thing} was {color} and the day was {sky}.",
    "Today the {side} was {sky}.",
    "A {color} {thing} was seen at the fair.",
)
NEUTRAL_WORDS: dict[str, tuple[str, ...]] = {
    "side": ("north", "south", "east", "west"),
    "sky": ("cold", "warm", "dry", "wet", "clear", "dark"),
    "thing": ("house", "road", "tower", "bridge", "clock", "garden", "train", "boat"),
    "color": ("red", "green", "blue", "white", "black", "grey"),
}
OCCUPATIONS: tuple[str, ...] = ("a teacher", "a nurse", "a farmer", "an AI assistant", "a plumber", "a pilot")
SAMPLE_SPEAKERS = ("User", "Assistant", "Reporter", "Diary", "Profile", "News")
"""Words that open a line; the assistant is the only one of them without a name of its own that is asked."""
