"""Steering along the direction of a process: how much does neutral text change? (M9, reference/science.md section 2.)

The direction of process k is the mean hidden state of its answers less the mean over all processes, on documents that ask everybody the same. A step
along it has a fixed share of the mean norm of the hidden states of neutral text, so that layers and models can be compared.

Names: K processes, N texts, B rows, T tokens, d features, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from persona_lab.errors import ModelError
from persona_lab.probes.protocol import Choice, Loss, Request
from persona_lab.probes.spans import Span, choice_spans, encode, loss_span
from persona_lab.probes.voice import LOGITS_AT_ONCE, Voice

STEP = 0.5
"""Norm of a step, as a share of the mean norm of the hidden states that it is added to."""
ROWS_AT_ONCE = 128


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's layers, from the first to the last.

    Raises:
        ModelError: PL4014, the model has no list of as many modules as its config names layers.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        where = str(model.name_or_path) or type(model).__name__
        raise ModelError(
            "PL4014", where, f"has no list of its {count} layers, so nothing can be added between them. Use a decoder such as Llama, Qwen3, GPT-NeoX or GPT-2."
        )
    return stacks[0]


def middle_layer(model: PreTrainedModel) -> nn.Module:
    """The middle one of the model's layers.

    Raises:
        ModelError: PL4014, as `decoder_layers`.
    """
    layers = decoder_layers(model)
    return layers[(len(layers) - 1) // 2]


def directions(voice: Voice, requests_K: Sequence[Sequence[Request]]) -> Tensor:
    """The direction of each process, (K, d) float32: from the answers' tokens of its choices, of which every process has as many."""
    mean_Kd = torch.stack([_mean_state(voice, _choice_spans(voice, requests)) for requests in requests_K])
    return mean_Kd - mean_Kd.mean(0)


def changes(voice: Voice, direction_Kd: Tensor, texts: Sequence[str], step: float = STEP) -> Tensor:
    """KL(as it is || steered) of the next tokens of each neutral text, mean nats a token: (K, N); NaN for a direction of length 0."""
    spans = _loss_spans(voice, texts)
    size = step * _mean_norm(voice, spans)
    found_KN = torch.full((len(direction_Kd), len(spans)), torch.nan)
    with torch.inference_mode():
        for numbers, ids_BT in _batches(voice, spans):
            plain_BTV = _logprobs(voice.model, ids_BT)
            for k, direction_d in enumerate(direction_Kd):
                if not (length := float(direction_d.norm())):
                    continue
                with added(middle_layer(voice.model), direction_d * size / length):
                    steered_BTV = _logprobs(voice.model, ids_BT)
                found_KN[k, numbers] = (plain_BTV.exp() * (plain_BTV - steered_BTV)).sum(-1).mean(-1).cpu()
    return found_KN


def _logprobs(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    return model(input_ids=ids_BT, use_cache=False).logits.float().log_softmax(-1)


def _choice_spans(voice: Voice, requests: Sequence[Request]) -> list[Span]:
    choices = [request for request in requests if isinstance(request, Choice)]
    ids = encode(voice.tokenizer, choices)
    return [span for choice in choices for span in choice_spans(voice.tokenizer, choice, ids) if len(span.ids) > span.start]


def _loss_spans(voice: Voice, texts: Sequence[str]) -> list[Span]:
    losses = [Loss(text) for text in texts]
    ids = encode(voice.tokenizer, losses)
    return [loss_span(voice.tokenizer, loss, ids) for loss in losses]


def _mean_state(voice: Voice, spans: Sequence[Span]) -> Tensor:
    """Mean hidden state of the scored tokens, (d,) float32."""
    total_d, count = torch.zeros(voice.width), 0
    for numbers, ids_BT in _batches(voice, spans):
        state_BTd = _states(voice.model, ids_BT)
        for row, number in enumerate(numbers):
            own = state_BTd[row, spans[number].start :]
            total_d, count = total_d + own.sum(0), count + len(own)
    return total_d / max(count, 1)


def _mean_norm(voice: Voice, spans: Sequence[Span]) -> float:
    norms = torch.cat([_states(voice.model, ids_BT).norm(dim=-1).flatten() for _, ids_BT in _batches(voice, spans)])
    return float(norms.mean())


def _states(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Hidden states behind the middle layer, (B, T, d) float32 on the CPU."""
    seen: list[Tensor] = []
    hook = middle_layer(model).register_forward_hook(lambda module, given, found: seen.append(hidden_of(found)))
    try:
        with torch.inference_mode():
            model(input_ids=ids_BT, use_cache=False)
    finally:
        hook.remove()
    return seen[0].float().cpu()


def hidden_of(found: Any) -> Tensor:
    """The hidden states in what a layer hands on."""
    return found[0] if isinstance(found, tuple) else found


@contextmanager
def changed(modules: Iterable[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the hidden states that each of the modules hands on are changed."""

    def hand_on(module: nn.Module, given: Any, found: Any) -> Any:
        other = change(hidden_of(found))
        return (other, *found[1:]) if isinstance(found, tuple) else other

    hooks = [module.register_forward_hook(hand_on) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def added(layer: nn.Module, vector_d: Tensor) -> Iterator[None]:
    """Inside, the vector is added to every hidden state behind the layer."""
    with changed([layer], lambda hidden: hidden + vector_d.to(hidden)):
        yield


@contextmanager
def ablated(layers: Iterable[nn.Module], direction_d: Tensor) -> Iterator[None]:
    """Inside, every hidden state behind each of the layers is without its part along the direction: h - (h . v) v / (v . v)."""
    unit_d = direction_d / direction_d.norm()

    def project(hidden: Tensor) -> Tensor:
        unit = unit_d.to(hidden)
        return hidden - (hidden @ unit)[..., None] * unit

    with changed(layers, project):
        yield


def _batches(voice: Voice, spans: Sequence[Span]) -> Iterator[tuple[list[int], Tensor]]:
    """Spans of equal length together: without padding there is nothing to mask."""
    for length in sorted({len(span.ids) for span in spans}):
        same = [n for n, span in enumerate(spans) if len(span.ids) == length]
        rows = max(1, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // (length * voice.vocabulary)))
        for at in range(0, len(same), rows):
            numbers = same[at : at + rows]
            yield numbers, torch.tensor([spans[n].ids for n in numbers], device=voice.model.device)
