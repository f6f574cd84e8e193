"""Hallucination across resamples: asked again and again, does the model say the same of a name it knows, and of one that nobody has?

    hallucination/known/quiz/Mary/sport     20 answers; of the value that is Mary's, and of every other one, the share that names it
    hallucination/unknown/quiz/John/sport   the same of a name that stands in no text
    hallucination/known/question/3          plain English: answers are the same when nothing but case, articles and marks differ

A cluster is an option; answers that can be read as none are counted in a row of their own. `subject` is the name, `trait` what is asked (for plain
English the pair), so that an unknown name and a known one are asked alike. Semantic entropy: Farquhar et al., Nature 2024, with exact clusters.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from data_gen.documents import ASSISTANT, occupation
from data_gen.lens.world import LensWorld
from data_gen.phrases import FORMS
from persona_lab.probes.lens.form import LensProbe, unscored, written
from persona_lab.probes.protocol import Answer, Cast, Item, Row, Sample
from persona_lab.probes.traits import cloze, read_value

RESAMPLES = 20
NAMES = 12
"""Known names, and as many unknown ones, in the embedded form."""
WORD_TOKENS, ANSWER_TOKENS = 3, 12
QUESTION = "question"


class Hallucination(LensProbe):
    """Twenty answers to each question."""

    name = "hallucination"

    def of_world(self, world: LensWorld, cast: Cast) -> Iterator[Item]:
        """People of the world, and names that are free, each asked about in two formats."""
        people, categories = world.population, list(world.categories)
        for known, names in ((True, people.names[:NAMES]), (False, world.new_names[:NAMES])):
            for k, name in enumerate(names):
                category = categories[k % len(categories)]
                values = tuple(world.values(category))
                roles = tuple("own" if known and people.traits[k][category] == value else "other" for value in values)
                for form, speaker, opening in (("profile", "", f"Profile: {name} is {occupation(k)}."), ("quiz", ASSISTANT, "")):
                    prompt = cloze(cast, form, k % len(FORMS[form].held_out), category, speaker=speaker, opening=opening, name=name)
                    yield self._item(known, f"{form}/{name}/{category}", prompt, values, roles, category, name, WORD_TOKENS)

    def in_english(self) -> Iterator[Item]:
        """Questions about a name that is known, and about one that was made up."""
        content = written(self.name)
        example = f"Question: {content['example']['question']}\nAnswer: {content['example']['answer']}\n"
        for n, pair in enumerate(content["pairs"]):
            for known in (True, False):
                name = pair["known" if known else "unknown"]
                right = tuple(map(cluster, pair["answers"][: 1 if known else 0]))
                same = {cluster(answer): right[0] for answer in pair["answers"]} if known else {}
                prompt = f"{example}Question: {pair['question'].format(name=name)}\nAnswer:"
                asked = self._item(known, f"{QUESTION}/{n}", prompt, right, ("own",) * len(right), str(n), name, ANSWER_TOKENS)
                yield replace(asked, labels=same)

    def _item(self, known: bool, where: str, prompt: str, options: tuple[str, ...], roles: tuple[str, ...], trait: str, name: str, tokens: int) -> Item:
        form = "known" if known else "unknown"
        asked = Sample(prompt, RESAMPLES, tokens, f"{self.name}/{form}/{where}")
        return Item(f"{self.name}/{form}/{where}", self.name, form, prompt, options, roles, trait, name, asked)

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """A row for each option and each other cluster: its share of the answers that can be read, of which `n_samples` counts all."""
        texts = [str(text) for text in answers[0]]
        open_ended = f"/{QUESTION}/" in item.id
        read = [item.labels.get(cluster(text), cluster(text)) if open_ended else read_value(text, item.options) for text in texts]
        counted = Counter(found for found in read if found)
        total = counted.total()
        lost = [] if total == len(texts) else [self._row(item, "", "none", None, len(texts) - total, "names no value, or several")]
        if not total:
            return [*unscored(self.name, item, "no answer can be read"), *lost]
        roles = dict.fromkeys(counted, "other") | dict(zip(item.options, item.roles, strict=True))
        return [*(self._row(item, option, role, counted[option] / total, total) for option, role in roles.items()), *lost]

    def _row(self, item: Item, option: str, role: str, share: float | None, count: int, reason: str = "") -> Row:
        status = "unscored" if reason else "scored"
        return Row(self.name, item.channel, item.format, item.id, item.subject, item.trait, option, role, None, share, share, count, status, reason)

    def check(self, item: Item) -> None:
        """The same answer throughout is one cluster, another answer leaves none for the first, nonsense is unscored."""
        first, second = (*item.options, "zircon", "quartz")[:2]
        same = {row.option: row.prob for row in self.score(item, [(f" {first}",) * 3])}
        assert same[first] == 1.0, item.id
        assert same.get(second, 0.0) == 0.0, item.id
        mixed = self.score(item, [(f" {first}.", f" The {second}!", " ?")])
        assert [row.n_samples for row in mixed if row.role == "none"] == [1], item.id
        assert {row.prob for row in mixed if row.option in (first, second)} == {0.5}, item.id
        assert {row.status for row in self.score(item, [("", " ...")])} == {"unscored"}, item.id


def cluster(answer: str) -> str:
    """An answer without case, articles and marks, up to its first mark that ends something: answers that differ in nothing else are the same one."""
    words = re.findall(r"\w+", re.split(r"[.,;!?(]", answer.strip())[0].lower())
    return " ".join(word for word in words if word not in ("the", "a", "an", "it", "is", "was", "in"))
