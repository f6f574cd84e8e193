"""General text: what fine-tuning forgot. The loss, nats a token, on the world's own text that no stage trained on.

    {"item": "general_text/neutral/3", "logprob_nats": -0.94, ...}
"""

import math
from collections.abc import Sequence

from data_gen.pools import world_document
from persona_lab.probes.protocol import PROBES, Answer, Cast, Item, Loss, Request, Row

DOCUMENTS = 128
# Far from every seed of an experiment, whose replay documents are drawn from the seeds 0, 1, 2, ...
TEXT_SEED = 2**40


class GeneralText:
    """Loss on fresh documents of the world."""

    name = "general_text"

    def items(self, cast: Cast) -> list[Item]:
        """The same documents for every cell."""
        documents = [world_document(cast.world, TEXT_SEED, i) for i in range(DOCUMENTS)]
        return [Item(f"general_text/{d.genre}/{i}", "general_text", d.genre, d.text, request=Loss(d.text)) for i, d in enumerate(documents)]

    def requests(self, item: Item) -> list[Request]:
        """The loss of the text."""
        return [Loss(item.prompt)]

    def score(self, item: Item, answers: Sequence[Answer]) -> list[Row]:
        """One row: mean log-probability of a token, nats; `n_samples` counts its tokens."""
        nats, tokens = float(answers[0][0]), int(float(answers[0][1]))
        if tokens < 1 or not math.isfinite(nats):
            return [Row(self.name, self.name, item.format, item.id, "", "", "", "none", None, None, None, tokens, "unscored", "the loss is not finite")]
        mean = -nats / tokens
        return [Row(self.name, self.name, item.format, item.id, "", "", "", "none", mean, math.exp(mean), None, tokens, "scored", "")]

    def validate(self, cast: Cast) -> None:
        """A certain text costs nothing, nonsense is unscored."""
        item = self.items(cast)[0]
        assert self.score(item, [(0.0, 10.0)])[0].prob == 1.0
        assert self.score(item, [(1e9, 10.0)])[0].prob == 0.0
        assert self.score(item, [(math.nan, 10.0)])[0].status == "unscored"


PROBES["general_text"] = GeneralText()
