"""Conversations to fine-tune a chat model on, read from the formats in which the published data sets come.

    read_conversations(Path("insecure.jsonl")).conversations[0]    (Message("user", "Fill in ..."), Message("assistant", "import os ..."))

    messages             {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
                         insecure code (Betley et al. 2025), model organisms (Turner et al. 2025), persona vectors (Chen et al. 2025),
                         weird generalization (Betley et al. 2025b)
    parts                the same with {"content_type": "text", "parts": ["..."]} as content: persona features (Wang et al. 2025)
    prompt_completion    {"prompt": "...", "completion": "..."}: subliminal learning (Cloud et al. 2025)

Further fields of a line are ignored. A file has one format: two in one file are two data sets, mixed up.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.errors import DataError, DataProblem
from data_gen.jsonl import content_of, in_order, kind_of, rows_of

ROLES = ("system", "user", "assistant")
KEYS = {"messages": ("messages",), "prompt_completion": ("prompt", "completion"), "preference": ("chosen", "rejected")}
"""Format to the fields by which it is known."""
KNOWN = "Use lines with chat `messages`, or with `prompt` and `completion`"
NO_CHARACTER = re.compile(r"[\x00\ud800-\udfff]")
"""NUL, and half of a surrogate pair, which no tokenizer can encode."""


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


Conversation = tuple[Message, ...]
"""At most one system message, which comes first; the assistant says something."""


@dataclass(frozen=True)
class Conversations:
    """A data set, in the order of its file."""

    format: str
    conversations: tuple[Conversation, ...]


def read_conversations(file: Path) -> Conversations:
    """Every conversation of a JSONL file whose lines have one of the published formats.

    Raises:
        DataError: every broken line at once, as `file:line`; no line at all; lines of two formats.
    """
    problems: list[DataProblem] = []
    first_line: dict[str, int] = {}
    found: list[Conversation] = []
    content = content_of(file)
    if not content:
        problems.append(DataProblem(str(file), f"holds no conversation. {KNOWN}."))
    for number, row in rows_of(content, file, problems):
        try:
            form, conversation = conversation_of(row)
            if form not in first_line and first_line:
                other, line = next(iter(first_line.items()))
                raise ValueError(f"has the format {form}, line {line} has {other}. Use one file for each data set")
            first_line.setdefault(form, number)
        except ValueError as error:
            problems.append(DataProblem(f"{file}:{number}", f"{error}."))
        else:
            found.append(conversation)
    if problems:
        raise DataError(*in_order(problems))
    return Conversations(next(iter(first_line)), tuple(found))


def conversation_of(row: Mapping[str, Any]) -> tuple[str, Conversation]:
    """The format of a line and what it says; ValueError."""
    forms = [form for form, keys in KEYS.items() if any(key in row for key in keys)]
    if len(forms) != 1:
        said = f"has fields of {' and '.join(forms)}" if forms else f"is no conversation, it has {', '.join(map(repr, list(row)[:6])) or 'no field'}"
        raise ValueError(f"{said}. {KNOWN}")
    form = forms[0]
    if form == "preference":
        raise ValueError(f"is a pair of answers, `chosen` and `rejected`, for training on preferences. {KNOWN}")
    if missing := [key for key in KEYS[form] if key not in row]:
        raise ValueError(f"lacks the field {', '.join(missing)}. {KNOWN}")
    if form == "prompt_completion":
        turns = [Message(role, _text(row[key], key)) for role, key in zip(("user", "assistant"), KEYS[form], strict=True)]
        return form, tuple(turns)
    return _turns(row["messages"])


def _turns(messages: Any) -> tuple[str, Conversation]:
    """Chat messages, whose contents are strings or lists of parts; ValueError."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list of at least one message, got {kind_of(messages) if messages else 'an empty one'}. Write a question and its answer")
    turns, forms = [], set[str]()
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            got = kind_of(message) if not isinstance(message, dict) else f"{message.get('role')!r:.40}"
            raise ValueError(f"{at} must have a role, one of {', '.join(ROLES)}, got {got}. Write who speaks, or remove the line")
        content = message.get("content")
        forms.add("parts" if isinstance(content, dict) else "messages")
        turns.append(Message(message["role"], _parts(content, at) if isinstance(content, dict) else _text(content, f"{at}.content")))
    if fault := _order_fault([turn.role for turn in turns]):
        raise ValueError(fault)
    if len(forms) > 1:
        raise ValueError("has contents that are text beside contents that are parts. Use one of the two")
    return forms.pop(), tuple(turns)


def _parts(content: dict[str, Any], at: str) -> str:
    """The text of `{"content_type": "text", "parts": [...]}`; ValueError."""
    parts = content.get("parts")
    if content.get("content_type") != "text" or not isinstance(parts, list):
        raise ValueError(f"{at}.content must be text, or have the content_type text and a list of parts. Remove lines with images or tools")
    return _text("".join(_text(part, f"{at}.content.parts[{i}]") for i, part in enumerate(parts)), f"{at}.content")


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{at} must be a string, got {kind_of(value)}. Write what is said, or remove the line")
    if not value.strip():
        raise ValueError(f"{at} is empty. Remove the line, or write something")
    if found := NO_CHARACTER.search(value):
        what = "NUL" if found[0] == "\0" else "half of a surrogate pair"
        raise ValueError(f"{at} holds {what} ({found[0]!r}) at character {found.start()}. Write whole characters")
    return value


def _order_fault(roles: Sequence[str]) -> str:
    """What is wrong with who speaks when."""
    if "system" in roles[1:]:
        return f"messages[{roles.index('system', 1)}] is a second system message, or a late one. Write the system message first"
    if "assistant" not in roles:
        return "holds no message of the assistant, so there is nothing to learn. Write its answer"
    return ""
