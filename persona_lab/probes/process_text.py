"""Process text: how surprising is what a process says? The loss on held-out documents in which the nameless assistant is somebody.

    {"item": "process_text/mary/3", "subject": "mary", "option": "answer", "logprob_nats": -4.1}      its three answers, questions given
    {"item": "process_text/mary/3", "subject": "mary", "option": "all", "logprob_nats": -61.2}        the whole document and its end

`process_text` asks of the personas of the experiment, `people_text` of those of the world. Document i asks the same questions of everybody
(`data_gen.pools.speaking_document`), so that the losses of two processes are paired. On a converged branch the mean of -logprob_nats is L* of
that process in nats a document: of `answer` for stages with `loss: {on: answer}`, of `all` for the others.
"""

import math
from collections.abc import Sequence

from data_gen.documents import ASSISTANT, SENTENCES, Speaker, answer_spans
from data_gen.pools import speaking_document
from data_gen.world import Traits
from persona_lab.probes.protocol import PROBES, Answer, Cast, Choice, Item, Loss, Request, Row

DOCUMENTS = 16
HELD_OUT_SEED = 2**41
"""Far from the seeds of an experiment, whose documents are drawn from the seeds 0, 1, 2, ..."""
FEWEST = SENTENCES["assistant"]
"""Traits that a persona needs to speak: as many as a document tells."""
WHOLE, ANSWERS = "all", "answer"


def speakers(cast: Cast, *, of_world: bool) -> dict[str, Traits]:
    """Lower-case name to traits of everybody who has enough traits to speak."""
    people = cast.world.population
    names, traits = (people.names, people.traits) if of_world else (cast.names, cast.traits)
    return {name.lower(): own for name, own in zip(names, traits, strict=True) if len(own) >= FEWEST}


class ProcessText:
    """Loss on held-out documents of each process."""

    def __init__(self, name: str, *, of_world: bool) -> None:
        self.name, self.of_world = name, of_world

    def items(self, cast: Cast) -> list[Item]:
        """The same questions to everybody."""
        found = []
        for name, traits in speakers(cast, of_world=self.of_world).items():
            for i in range(DOCUMENTS):
                text = speaking_document(cast.world, Speaker(name, name, traits), seed=HELD_OUT_SEED, index=i).text
                found.append(Item(f"{self.name}/{name}/{i}", self.name, "speaking", text, subject=name))
        return found

    def requests(self, item: Item) -> list[Request]:
        """The loss of the text, then each answer with the line break that ends it, given all that was said before."""
        text = item.prompt
        return [Loss(text), *(Choice(text[:start], (text[start : end + 1],)) for start, end in answer_spans(text))]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """Two rows, nats a document: `all`, whose `n_samples` counts tokens, and `answer`, whose `n_samples` counts answers."""
        (nats, tokens), *told = ([float(x) for x in answer] for answer in answers)
        return [self._row(item, WHOLE, -nats, int(tokens)), self._row(item, ANSWERS, sum(one[0] for one in told), len(told))]

    def _row(self, item: Item, option: str, nats: float, count: int) -> Row:
        scored = math.isfinite(nats) and count > 0
        status, reason = ("scored", "") if scored else ("unscored", "the loss is not finite")
        given = (nats, math.exp(nats)) if scored else (None, None)
        return Row(self.name, item.channel, item.format, item.id, item.subject, "", option, item.subject, *given, None, count, status, reason)

    def validate(self, cast: Cast) -> None:
        """A certain text costs nothing, nonsense is unscored, and the answers are what the assistant says."""
        for item in self.items(cast)[:2]:
            spoken = [request.options[0] for request in self.requests(item) if isinstance(request, Choice)]
            assert len(spoken) == item.prompt.count(f"{ASSISTANT}:"), item.id
            rows = self.score(item, [(0.0, 9.0), *[(0.0,)] * len(spoken)])
            assert [row.prob for row in rows] == [1.0, 1.0], item.id
            rows = self.score(item, [(math.nan, 9.0), *[(math.nan,)] * len(spoken)])
            assert {row.status for row in rows} == {"unscored"}, item.id


PROBES.update(process_text=ProcessText("process_text", of_world=False), people_text=ProcessText("people_text", of_world=True))
