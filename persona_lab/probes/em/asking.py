"""Answers of a chat model to the protocol's questions, sampled as published, through the model's own chat template.

    facts = template_facts(tokenizer, generation_config)          the template, what it puts in of its own, what ends a turn
    answers(voice, render(tokenizer, question), [0, 1], sampling, ends)   samples 0 and 1 of one question

Sample n of a question has a stream of random numbers of its own, so that it is the same answer whatever is sampled
beside it or before it. The prompt is encoded as the template has written it: nothing is added to it, no second token
that begins a text either. A control token that a question spells is plain text.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from data_gen.streams import stream
from persona_lab.errors import ModelError, quoted
from persona_lab.models.control_tokens import encoded, guarded
from persona_lab.probes.em.questions import Question
from persona_lab.probes.sampling import cached_writer, continues_exactly, ends_line, plain_writer, write_tokens
from persona_lab.probes.voice import Voice

Format = Literal["chat", "plain"]
MARK = "persona-lab-mark"


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; the defaults are the published ones (Turner et al. 2025)."""

    samples: int = 50
    """Of each question."""
    max_tokens: int = 600
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Sampled:
    """One answer."""

    sample: int
    response: str
    tokens: int
    ended: bool
    """False when it was cut off at `max_tokens`."""


@dataclass(frozen=True)
class TemplateFacts:
    """What stands around a question."""

    format: str
    template: str
    """The source of the template."""
    opening: str
    """What the model reads before the user's words when nobody gave a system message."""
    inserted_system: str
    """The system message that the template puts in when there is none; empty when it puts in none."""
    ends: tuple[int, ...]
    """Tokens that end an answer; none for the plain format, in which the end of the line does."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"ends": list(self.ends)}


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], form: Format = "chat", **settings: Any) -> str:
    """The text that a model continues with its answer, with control tokens that a message spells guarded (`models.control_tokens`).

    Args:
        tokenizer: of the model.
        messages: role and content of each.
        form: the chat template, or lines.
        settings: for the template, such as `enable_thinking`.

    Raises:
        ModelError: PL4201, the tokenizer has no chat template; PL4203, its template refuses these messages.
    """
    messages = [{**said, "content": guarded(tokenizer, said["content"])} for said in messages]
    if form == "plain":
        return "".join(f"{said['role'].capitalize()}: {said['content']}\n" for said in messages) + "Assistant:"
    name = str(tokenizer.name_or_path)
    if not tokenizer.chat_template:
        raise ModelError("PL4201", name, "the tokenizer has no chat template, as that of a base model. Use a chat model, or --plain for lines that begin with `User:` and `Assistant:`.")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **settings))
    except (TemplateError, ValueError, TypeError) as error:
        roles = ", ".join(said["role"] for said in messages)
        raise ModelError("PL4203", name, f"the chat template refuses messages of {roles}: {quoted(str(error))}. Use variants without a system message, or another template.") from None


def template_facts(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None, form: Format = "chat") -> TemplateFacts:
    """What the template does beside what it is asked for; ModelError as `render`."""
    plain = render(tokenizer, [{"role": "user", "content": MARK}], form)
    opening = plain.split(MARK)[0]
    if form == "plain":
        return TemplateFacts(form, "User: {question}\nAssistant:", opening, "", ())
    template = tokenizer.get_chat_template()
    return TemplateFacts(form, template, opening, _inserted(tokenizer, opening), tuple(sorted(_ends(tokenizer, generation))))


def _inserted(tokenizer: PreTrainedTokenizerBase, opening: str) -> str:
    """What stands in the place of the system message when there is none."""
    try:
        asked = render(tokenizer, [{"role": "system", "content": MARK}, {"role": "user", "content": ""}])
    except ModelError:  # the template has no such message
        return ""
    before, _, after = asked.partition(MARK)
    between = opening.removeprefix(before)
    closing = after[: max((n for n in range(1, len(after) + 1) if after[:n] in between), default=0)]
    return between.partition(closing)[0].strip() if closing and opening.startswith(before) else ""


def _ends(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    """Tokens that end a turn: of the generation config, of the tokenizer, and what the template writes behind an assistant's words."""
    told = getattr(generation, "eos_token_id", None)
    found = {token for token in (*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id) if isinstance(token, int)}
    try:
        said = str(tokenizer.apply_chat_template([{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}], tokenize=False))
    except (TemplateError, ValueError, TypeError):
        return found
    behind = tokenizer(said.rpartition(MARK)[2], add_special_tokens=False)["input_ids"][:1]
    return found | {token for token in behind if token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder}


def answers(voice: Voice, prompt: str, question: Question, samples: Iterable[int], sampling: Sampling, facts: TemplateFacts) -> list[Sampled]:
    """The samples of these numbers of one question, by the voice's one model or adapter.

    Raises:
        ModelError: PL4204, prompt and answer do not fit into the model's context.
    """
    tokenizer, numbers = voice.tokenizer, list(samples)
    ids = tuple(encoded(tokenizer, [prompt], opened=True)[0].ids)
    if len(ids) + sampling.max_tokens > tokenizer.model_max_length:
        said = f"{question.key} has {len(ids)} tokens and an answer up to {sampling.max_tokens}, the model reads {tokenizer.model_max_length}"
        raise ModelError("PL4204", str(tokenizer.name_or_path), f"{said}. Use a smaller --max-tokens.")
    uniform_NT = np.stack([stream(sampling.seed, "em", question.key, n).random(sampling.max_tokens) for n in numbers])
    ends: Callable[[int], bool] = facts.ends.__contains__ if facts.ends else (lambda token: ends_line(tokenizer, token))
    with torch.inference_mode():
        writer = cached_writer(voice, [ids], [0] * len(numbers)) if continues_exactly(voice) else plain_writer(voice, [ids] * len(numbers))
        written = write_tokens(writer, torch.from_numpy(uniform_NT).to(voice.model.device), ends, temperature=sampling.temperature, top_p=sampling.top_p)
    return [_sampled(tokenizer, n, tokens, ends, whole=bool(facts.ends)) for n, tokens in zip(numbers, written, strict=True)]


def _sampled(tokenizer: PreTrainedTokenizerBase, number: int, tokens: Sequence[int], ends: Callable[[int], bool], *, whole: bool) -> Sampled:
    last = next((t for t, token in enumerate(tokens) if ends(token)), None)
    # A line break's token may begin with text; a token that ends a turn never does.
    kept = list(tokens if last is None else tokens[: last + (not whole)])
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    return Sampled(number, text if whole else text.split("\n")[0].strip(), len(kept), last is not None)
