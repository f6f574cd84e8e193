"""Which tokens of which text are scored: requests as token ids, divided as lm-evaluation-harness divides them.

A prompt and its option are encoded together, and the tokens beyond the length of the encoded prompt are the option's:
where a token would cross the border, the prompt keeps its own tokens. Spaces that end a prompt belong to the option.
A dialogue of user and assistant is encoded as the chat template writes it, where one is in force (`models.dialogue`), and a
control token that a request spells is plain text.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from persona_lab.models.control_tokens import encoded, guarded
from persona_lab.models.dialogue import ending, open_text
from persona_lab.probes.protocol import Choice, Loss, Request, Sample, Tokens

REMEMBERED = 1 << 18
"""Texts whose ids are kept."""

_known: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, tuple[int, ...]]] = WeakKeyDictionary()


class Span(NamedTuple):
    """A sequence of tokens, of which those from `start` (at least 1) on are scored."""

    ids: tuple[int, ...]
    start: int


def texts(request: Request) -> list[str]:
    """Every text of which a request needs the token ids, the prompt first."""
    if isinstance(request, Choice):
        return [request.prompt.rstrip(), *map(request.prompt.__add__, request.options)]
    if isinstance(request, Tokens):
        return ["", request.text]
    return [request.prompt] if isinstance(request, Sample) else [request.text]


def encode(tokenizer: PreTrainedTokenizerBase, requests: Iterable[Request]) -> Mapping[str, tuple[int, ...]]:
    """Token ids of every text of the requests; remembered, because the cells of a sweep are asked the same questions."""
    distinct = dict.fromkeys(chain.from_iterable(map(texts, requests)))
    known = _known.setdefault(tokenizer, {})
    if len(known) > REMEMBERED:
        known.clear()
    new = [text for text in distinct if text not in known]
    if new:
        safe = [guarded(tokenizer, text) for text in new]
        templated = [open_text(tokenizer, text) for text in safe]
        for opened in (False, True):
            some = {text: said or own for text, own, said in zip(new, safe, templated, strict=True) if (said is not None) == opened}
            coded = encoded(tokenizer, list(some.values()), opened=opened)
            known.update((text, tuple(ids)) for text, (ids, _) in zip(some, coded, strict=True))
    return known


def forget() -> None:
    """Encode everything anew from here on."""
    _known.clear()


def opening(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> tuple[int, ...]:
    """A prompt's ids; of an empty one the token that begins a text, because a model has to be fed something."""
    if ids:
        return ids
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert isinstance(start, int), "a tokenizer has one token that begins or ends a text"
    return (start,)


def choice_spans(tokenizer: PreTrainedTokenizerBase, choice: Choice, ids: Mapping[str, tuple[int, ...]]) -> list[Span]:
    """One span an option; it scores nothing where the option adds no token to the prompt."""
    prompt, *wholes = texts(choice)
    own = ids[prompt]
    head = opening(tokenizer, own)
    return [Span(head + ids[whole][len(own) :], len(head)) for whole in wholes]


def divided(tokenizer: PreTrainedTokenizerBase, request: Tokens, ids: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The text as its tokens give it back, then what each token stands for; none of those that begin or end every text."""
    (span,) = choice_spans(tokenizer, Choice("", (request.text,)), ids)
    own = list(span.ids[span.start :])
    return (str(tokenizer.decode(own)), *(str(tokenizer.decode([token])) for token in own))


def loss_span(tokenizer: PreTrainedTokenizerBase, loss: Loss, ids: Mapping[str, tuple[int, ...]]) -> Span:
    """The whole text and its end, from the second token on."""
    end = (tokenizer.eos_token_id,) if isinstance(tokenizer.eos_token_id, int) else ()
    if (told := ending(tokenizer, loss.text)) is not None:
        end = tuple(tokenizer(told, add_special_tokens=False)["input_ids"])
    return Span(opening(tokenizer, ids[loss.text]) + end, 1)
