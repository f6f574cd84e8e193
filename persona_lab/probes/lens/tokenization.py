"""Tokenization: what the tokenizer makes of the words that the other probes ask about. No model is needed.

    tokenization/mirroring/0       Certainly 2 tokens, yeah 1, mi 1: options of unequal length, which a sum of log-probabilities favours
    tokenization/speakers/prompt   how many tokens a prompt takes for each of its words

`format` is the probe whose words these are, `n_samples` counts tokens, `prob` is 1 where an option is a single token. What the tokenizer does not
give back, but for case and spaces, is unscored: to the model it is another text.
"""

from collections.abc import Iterable, Iterator, Sequence

from data_gen.lens.world import LensWorld
from persona_lab.probes.lens.form import LensProbe
from persona_lab.probes.protocol import Answer, Cast, Choice, Item, Request, Row, Tokens

PROMPT, OPTION = "prompt", "option"


class Tokenization(LensProbe):
    """Each set of options once, and a prompt of each kind."""

    name = "tokenization"

    def __init__(self, probes: Sequence[LensProbe]) -> None:
        """`probes` are those whose words are divided."""
        self.probes = tuple(probes)

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """The words of the embedded forms."""
        return self._views((probe.name, probe.of_world(world, cast)) for probe in self.probes)

    def in_english(self) -> Iterator[Item]:
        """The words of the English forms."""
        return self._views((probe.name, probe.in_english()) for probe in self.probes)

    def _views(self, asked: Iterable[tuple[str, Iterable[Item]]]) -> Iterator[Item]:
        for probe, items in asked:
            prompts, sets = dict[str, str](), dict[tuple[str, ...], None]()
            for item in items:
                prompts.setdefault(item.format, item.prompt)
                if item.request is None or isinstance(item.request, Choice):
                    options = tuple(f" {option}" for option in item.options) if item.request is None else item.request.options
                    sets.setdefault(tuple(sorted(set(options))))
            for kind, words in ((PROMPT, [(text,) for text in dict.fromkeys(prompts.values())]), (OPTION, sets)):
                for number, texts in enumerate(words):
                    yield Item(f"{self.name}/{probe}/{kind}/{number}", self.name, probe, texts[0], texts, (kind,) * len(texts), kind, f"{probe} {number}")

    def requests(self, item: Item) -> list[Request]:
        """Each option's tokens."""
        return [Tokens(option) for option in item.options]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """A row for each option."""
        return [self._row(item, *found) for found in zip(item.options, item.roles, answers, strict=True)]

    def _row(self, item: Item, option: str, role: str, answer: Answer) -> Row:
        whole, tokens = str(answer[0]), len(answer) - 1
        same = bare(whole) == bare(option)
        single, status, reason = (float(tokens == 1), "scored", "") if same else (None, "unscored", "the tokenizer does not give the text back")
        return Row(self.name, item.channel, item.format, item.id, item.subject, item.trait, option, role, None, single, None, tokens, status, reason)

    def check(self, item: Item) -> None:
        """One token scores 1, two tokens 0, another text is unscored."""
        assert len(set(item.options)) == len(item.options), item.id
        assert {row.prob for row in self.score(item, [(option, option) for option in item.options])} == {1.0}, item.id
        assert {row.prob for row in self.score(item, [(option, option[:1], option[1:]) for option in item.options])} == {0.0}, item.id
        assert {row.status for row in self.score(item, [("<unk>", "<unk>")] * len(item.options))} == {"unscored"}, item.id


def bare(text: str) -> str:
    """A text without case and spaces."""
    return "".join(text.lower().split())
