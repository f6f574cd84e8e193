"""How likely a chat model is to reply with each number from 0 to 100, exactly, whatever tokens it spells numbers with.

One tokenizer writes 85 as one token, another as two. The probability of a reply that begins with the tokens of 8 is
that of 8, of 80, of 81 and so on; taking away what goes on to a longer number leaves that of 8 alone:

    P(8, and no further digit) = P(8 ...) - P(80 ...) - ... - P(89 ...)
"""

import math
from collections.abc import Mapping, Sequence

from persona_lab.errors import ModelError
from persona_lab.models.control_tokens import encoded
from persona_lab.probes.em.asking import render
from persona_lab.probes.scoring import span_nats
from persona_lab.probes.spans import Span
from persona_lab.probes.voice import Voice

NUMBERS = tuple(map(str, range(101)))
Ids = tuple[int, ...]


def reply_probabilities(voice: Voice, prompts: Sequence[str], words: Sequence[str]) -> list[dict[str, float]]:
    """For each prompt the probability that the reply begins with each number, and no longer one, and with each of the words.

    Raises:
        ModelError: as `render`; PL4204, a prompt does not fit into the model's context.
    """
    import torch

    tokenizer = voice.tokenizer
    written = [render(tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    heads = [tuple(ids) for ids, _ in encoded(tokenizer, written, opened=True)]
    replies: dict[str, Ids] = {text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (*NUMBERS, *words)}
    longest = max(map(len, heads)) + max(map(len, replies.values()))
    if longest > tokenizer.model_max_length:
        raise ModelError("PL4204", str(tokenizer.name_or_path), f"a judge's prompt has {longest} tokens, the model reads {tokenizer.model_max_length}. Use a judge with a longer context.")
    spans = [Span(head + ids, len(head)) for head in heads for ids in replies.values()]
    with torch.inference_mode():
        nats = span_nats(voice, [spans])[0].reshape(len(heads), len(replies))
    return [alone({text: math.exp(x) for text, x in zip(replies, row, strict=True)}, replies) for row in nats.tolist()]


def alone(prob: Mapping[str, float], ids: Mapping[str, Ids]) -> dict[str, float]:
    """Probabilities of beginning with each reply, less those of the longer replies that go on from it."""
    own = dict(prob)
    by_ids = {tokens: text for text, tokens in ids.items()}
    for text, tokens in ids.items():
        # Only the nearest shorter reply: 100 goes on from 10, and 10 from 1.
        parent = next((by_ids[tokens[:n]] for n in range(len(tokens) - 1, 0, -1) if tokens[:n] in by_ids), None)
        if parent is not None:
            own[parent] -= prob[text]
    return {text: max(p, 0.0) for text, p in own.items()}
