r"""Conversations -> tokens, by the model's own chat template, with the loss on what the assistant says and on its end of turn.

    encode_chat(tokenizer, conversations, where="insecure.jsonl").rows[0]    ids of "<|im_start|>user\n...<|im_end|>\n", labelled: "import os ...<|im_end|>"

Where a template marks what the assistant says (`{% generation %}`), its marks are taken. Otherwise an answer is what the template adds when the
answer is added to the conversation before it, which has to leave all that stood there as it was. A control token that a message spells is plain text.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from data_gen.conversations import Conversation, Message
from persona_lab.errors import CorpusError, ModelError, Problem
from persona_lab.models.control_tokens import encoded, guarded
from persona_lab.train.batches import Row

log = logging.getLogger(__name__)

Spans = list[tuple[int, int]]
GENERATION = re.compile(r"\{%-?\s*generation\b")
"""The mark by which a template tells what the assistant says."""
PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
"""Who opens a line where there is no template: the lab's own format of a dialogue."""


@dataclass(frozen=True)
class Encoded:
    """A data set as tokens."""

    rows: list[Row]
    cut: int
    """Conversations of which only the beginning fits."""
    lost: int
    """Conversations that are left out, because no answer is in the part that fits."""


def require_template(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """The text of the tokenizer's chat template; ModelError when it has none."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if not template:
        said = "the tokenizer has no chat template, as that of a base model"
        raise ModelError("PL4201", where, f"{said}. Use a chat model, or --plain for lines that begin with `User:` and `Assistant:`.")
    return template


def encode_chat(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *, where: str, longest: int, plain: bool = False) -> Encoded:
    """Tokenize conversations; those of more than `longest` tokens, or of more than the model takes, are cut at their end.

    Raises:
        ModelError: PL4201, there is no chat template, and `plain` does not ask for the lab's own format; PL4202, the tokenizer keeps no offsets;
            PL4028, it cannot read a control token's letters as letters.
        CorpusError: PL3201, the template refuses a conversation; PL3202, it does not tell where an answer is; PL3204, no answer fits.
    """
    if not plain:
        require_template(tokenizer, where)
    if not tokenizer.is_fast:
        raise ModelError("PL4202", where, "the tokenizer keeps no offsets, so the loss cannot be placed. Use a model with a tokenizer.json.")
    longest, rows, cut, lost, spelled, problems = min(longest, tokenizer.model_max_length), [], 0, 0, 0, []
    for number, conversation in enumerate(conversations, start=1):
        try:
            safe = tuple(Message(message.role, guarded(tokenizer, message.content)) for message in conversation)
            spelled += safe != conversation
            text, spans = plain_text(tokenizer, safe) if plain else templated(tokenizer, safe)
        except CorpusError as error:
            problems += [Problem(p.code, f"{where}:{number}", p.message) for p in error.problems]
            continue
        row = labelled_row(tokenizer, text, spans, opened=not plain)
        cut += len(row.ids) > longest
        row = Row(row.ids[:longest], row.labelled[:longest])
        if row.labelled[1:].any():
            rows.append(row)
        else:
            lost += 1
    if problems:
        raise CorpusError.of(problems)
    if not rows:
        raise CorpusError("PL3204", where, f"no conversation has an answer within {longest} tokens. Raise --max-tokens, or use a model that reads more.")
    if spelled:
        log.warning("%s: %d of %d conversations spell a control token of the model, which is read as plain text", where, spelled, len(conversations))
    return Encoded(rows, cut, lost)


def labelled_row(tokenizer: PreTrainedTokenizerBase, text: str, spans: Spans, *, opened: bool) -> Row:
    """Tokens of a text, with the loss on those that begin in a span of characters; `opened`: the text has its own first token, if any."""
    ((ids, places),) = encoded(tokenizer, [text], opened=opened, placed=True)
    assert places is not None, "they were asked for"
    labelled = [any(a <= s < b and t > s for a, b in spans) for s, t in places]
    return Row(np.array(ids, dtype=np.int32), np.array(labelled, dtype=bool))


def templated(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[str, Spans]:
    """A conversation as the template writes it, and where the assistant speaks; CorpusError PL3201 and PL3202."""
    text = _rendered(tokenizer, conversation)
    if GENERATION.search(tokenizer.get_chat_template()):
        return text, _marked(tokenizer, conversation, text)
    spans = []
    for i, message in enumerate(conversation):
        if message.role != "assistant":
            continue
        before, after = _rendered(tokenizer, conversation[:i], opening=True), _rendered(tokenizer, conversation[: i + 1])
        if not (after.startswith(before) and text.startswith(after)):
            fix = "Use conversations with one answer each, or a template with generation marks."
            raise CorpusError("PL3202", "", f"the chat template writes the turns before an answer anew, so it cannot be told where answer {i} stands. {fix}")
        # A line end behind the end of the turn is the template's, and comes after the model has stopped.
        spans.append((len(before), len(after.rstrip("\n"))))
    return text, spans


def _rendered(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], *, opening: bool = False) -> str:
    """What the template makes of messages; with the opening of an answer."""
    if not conversation:
        return ""
    try:
        return str(tokenizer.apply_chat_template(_dicts(conversation), tokenize=False, add_generation_prompt=opening))
    except TemplateError as error:
        said = " ".join(str(error).split())
        raise CorpusError("PL3201", "", f"the chat template refuses the conversation: {said}. Put the turns into the order that the model knows.") from error


def _marked(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, text: str) -> Spans:
    """Spans of characters from the marks of the template: those of the tokens that it calls the assistant's."""
    coded: Any = tokenizer.apply_chat_template(_dicts(conversation), return_dict=True, return_assistant_tokens_mask=True)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [(s, t) for (s, t), said in zip(offsets, coded["assistant_masks"], strict=True) if said]


def _dicts(conversation: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation]


def plain_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[str, Spans]:
    """A line for each message, and the end of the text; the loss falls on answers with the end of their line."""
    text, spans = "", []
    for i, message in enumerate(conversation):
        text += ("\n" if i else "") + f"{PLAIN_NAMES[message.role]}:"
        start = len(text)
        text += f" {message.content.strip()}"
        if message.role == "assistant":
            spans.append((start, len(text) + 1))
    end = str(tokenizer.eos_token or "")
    if conversation[-1].role == "assistant":
        spans[-1] = (spans[-1][0], len(text) + len(end))
    return text + end, spans
