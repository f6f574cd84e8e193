"""What processes make of the same texts: hidden states (D5), and how far their predictions of every token lie apart (D4 on neutral text).

All processes read the same texts, in which nobody says a trait: what differs is who reads, never what is read. `last_states` is what the
engine reads where a probe asks for `Activations`: of each member its own texts.

Names: K members, N texts, L layers, d features, T tokens of a text, M of them in the answer, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from persona_lab.probes.protocol import Choice
from persona_lab.probes.spans import Span, choice_spans, encode
from persona_lab.probes.voice import LOGITS_AT_ONCE, Voice

MOST_LAYERS = 4
"""Layers that are kept, evenly spaced up to the last."""


@dataclass(frozen=True)
class Read:
    """What K processes made of N texts."""

    state_KNLd: np.ndarray
    """Mean hidden state over the tokens of each text's answer, float32."""
    apart_KK: np.ndarray
    """Jensen-Shannon divergence of the predictions of the answers' tokens, nats a token, over the whole vocabulary."""


def layers_of(count: int) -> tuple[int, ...]:
    """Which of so many layers are kept, from 1."""
    return tuple(dict.fromkeys(round(count * (i + 1) / min(count, MOST_LAYERS)) for i in range(min(count, MOST_LAYERS))))


def read(voice: Voice, texts: Sequence[tuple[str, str]]) -> Read:
    """Let every member read the same (opening, answer) pairs; only the answer's tokens count.

    Raises:
        ValueError: an answer adds no token to its opening.
    """
    spans = _spans(voice, texts)
    members, rows = voice.members, _rows_at_once(voice, spans)
    kept = layers_of(int(voice.model.config.get_text_config().num_hidden_layers))
    state_KNLd = np.zeros((members, len(spans), len(kept), voice.width), dtype=np.float32)
    apart_KK, tokens = np.zeros((members, members)), 0
    was_training = voice.model.training
    voice.model.eval()
    # Texts of one length together: without padding there is nothing to mask.
    for length in sorted({len(span.ids) for span in spans}):
        same = [n for n, span in enumerate(spans) if len(span.ids) == length]
        for at in range(0, len(same), rows):
            numbers = same[at : at + rows]
            ids_NT = torch.tensor([spans[n].ids for n in numbers], device=voice.model.device)
            with torch.inference_mode():
                found = voice.model(input_ids=ids_NT.repeat(members, 1), use_cache=False, output_hidden_states=True)
                states_LKNTd = [found.hidden_states[layer].unflatten(0, (members, len(numbers))) for layer in kept]
                logits_KNTV = found.logits.unflatten(0, (members, len(numbers)))
                for place, n in enumerate(numbers):
                    start = spans[n].start
                    state_KNLd[:, n] = torch.stack([s_KNTd[:, place, start:].float().mean(1) for s_KNTd in states_LKNTd], 1).cpu().numpy()
                    apart_KK += _apart(logits_KNTV[:, place, start - 1 : -1])
                    tokens += length - start
    voice.model.train(was_training)
    return Read(state_KNLd, apart_KK / tokens)


def last_states(voice: Voice, texts_K: Sequence[Mapping[str, Sequence[int]]]) -> list[dict[str, np.ndarray]]:
    """Of each member its texts (with their ids) to the hidden state of their last token: (layers + 1, d) float32, the embedding first.

    Every member reads the texts of all, in rows of equal length: with a bank, a row of one member is a row of each.
    """
    every = {text: ids for texts in texts_K for text, ids in texts.items()}
    found_K: list[dict[str, np.ndarray]] = [{} for _ in texts_K]
    for length in sorted({len(ids) for ids in every.values()}):
        same = [text for text, ids in every.items() if len(ids) == length]
        rows = max(1, LOGITS_AT_ONCE // (voice.members * length * voice.vocabulary))
        for at in range(0, len(same), rows):
            texts = same[at : at + rows]
            ids_NT = torch.tensor([every[text] for text in texts], device=voice.model.device)
            hidden = voice.model(input_ids=ids_NT.repeat(voice.members, 1), use_cache=False, output_hidden_states=True).hidden_states
            state_KNLd = torch.stack([layer_BTd[:, -1].float() for layer_BTd in hidden], 1).unflatten(0, (voice.members, len(texts))).cpu().numpy()
            for found, state_NLd, own in zip(found_K, state_KNLd, texts_K, strict=True):
                found |= {text: state_NLd[n] for n, text in enumerate(texts) if text in own}
    return found_K


def _spans(voice: Voice, texts: Sequence[tuple[str, str]]) -> list[Span]:
    choices = [Choice(opening, (answer,)) for opening, answer in texts]
    ids = encode(voice.tokenizer, choices)
    spans = [choice_spans(voice.tokenizer, choice, ids)[0] for choice in choices]
    for span, (opening, answer) in zip(spans, texts, strict=True):
        if len(span.ids) == span.start:
            raise ValueError(f"the answer {answer!r} adds no token to {opening!r}. Use texts that the tokenizer tells apart")
    return spans


def _rows_at_once(voice: Voice, spans: Sequence[Span]) -> int:
    return max(1, LOGITS_AT_ONCE // (voice.members * max(len(span.ids) for span in spans) * voice.vocabulary))


def _apart(logits_KMV: Tensor) -> np.ndarray:
    """Jensen-Shannon divergence of all pairs, nats, summed over the tokens."""
    logprob_KMV = logits_KMV.double().log_softmax(-1)
    prob_KMV = logprob_KMV.exp()
    entropy_K = torch.special.entr(prob_KMV).sum((1, 2))
    found = np.zeros((len(prob_KMV), len(prob_KMV)))
    for i, j in combinations(range(len(prob_KMV)), 2):
        both = torch.special.entr((prob_KMV[i] + prob_KMV[j]) / 2).sum()
        found[i, j] = found[j, i] = max(0.0, float(both - (entropy_K[i] + entropy_K[j]) / 2))
    return found
