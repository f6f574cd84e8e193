r"""How a model is told who speaks: the lab's lines as they stand, or as the model's own chat template writes them.

    dialogue("User: Who are you?\nAssistant: I am")     (Message("user", "Who are you?"), Message("assistant", "I am"))
    open_text(tokenizer, "User: Who are you?\nAssistant: I am")     "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nI am"

What the user and the nameless assistant say goes through the template where one is in force: where the tokenizer has one, which it has no
longer when the base is to have the plain form. Profiles, diaries and dialogues of named speakers are documents for every model, as they stand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

from data_gen.conversations import Conversation, Message
from persona_lab.errors import ModelError, quoted
from persona_lab.models.inspection import AGAIN, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["auto", "template", "plain"]
SPEAKER = re.compile(r"(System|User|Assistant):(?: (.*))?")
TURNS = re.compile(r"(system )?(user assistant )+")
MARK = re.compile(r"persona-lab-mark-(\d+)\.")
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
FIXED: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""What some templates ask for: an answer begins at once (Qwen3), and the same text is the same tokens on every day (Llama 3)."""
TRIAL = "User: Who are you?\nAssistant: I am John.\nUser: What do you like?\nAssistant: I like the beach."
PLAIN = "Use base.chat: plain for the lab's own lines."
FAILURES = (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError)
"""What a template may fail with in jinja2's sandbox: its filters and methods raise what Python's own do."""


@dataclass(frozen=True)
class Written:
    """A dialogue as a template writes it."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Where the assistant speaks, in characters, each answer with what ends it."""


# ------------------------------------------------------------------ model folders
def chat_template(folder: Path) -> str:
    """The chat template of a model folder, empty where it has none; of several, the one that is called default."""
    if (file := folder / "chat_template.jinja").is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError("PL4003", str(file), f"no template: byte {error.start} is not UTF-8. {AGAIN}") from None
    if not (file := folder / "tokenizer_config.json").is_file():
        return ""
    found = read_json(file).get("chat_template") or ""
    if isinstance(found, list):
        found = next((entry.get("template", "") for entry in found if isinstance(entry, dict) and entry.get("name") == "default"), "")
    if not isinstance(found, str):
        raise ModelError("PL4003", str(file), f"chat_template must be text, got {quoted(found)}. {AGAIN}")
    return found


def template_in_force(folder: Path, form: Form) -> str:
    """The template through which a base is spoken to; empty for the lab's own lines.

    `auto` takes the template where the model ends what it says as the template ends an answer: base models are often
    published with the template of the chat model that was made of them, and were never trained on it.

    Raises:
        ModelError: PL4025, a template is asked for and there is none; PL4022, the one in force is no jinja2.
    """
    template = "" if form == "plain" else chat_template(folder)
    if form == "template" and not template:
        raise ModelError("PL4025", str(folder), "base.chat is template, but the tokenizer has no chat template. Use base.chat: plain, or a chat model.")
    in_force = template if form == "template" or _ends_like(folder, template) else ""
    _check_syntax(folder, in_force)
    return in_force


def _check_syntax(folder: Path, template: str) -> None:
    """PL4022 where transformers could not even read the template; what it writes is tried when the tokenizer is there."""
    try:
        # transformers' own tag, which marks what the assistant says.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", template))
    except TemplateError as error:
        at = f" in line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ModelError("PL4022", str(folder), f"the chat template fails{at}: {quoted(str(error))}. {PLAIN}") from error


def _ends_like(folder: Path, template: str) -> bool:
    """Whether a token that ends the model's text is one that the template writes."""
    said = {name: read_json(folder / name) for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json") if (folder / name).is_file()}
    ids: set[Any] = set()
    for name in ("config.json", "generation_config.json"):
        told = said.get(name, {}).get("eos_token_id")
        ids |= set(told) if isinstance(told, list) else {told}
    eos = said.get("tokenizer_config.json", {}).get("eos_token")
    ends = [eos.get("content") if isinstance(eos, dict) else eos]
    ends += [token.get("content") for token in said.get("tokenizer.json", {}).get("added_tokens") or [] if isinstance(token, dict) and token.get("id") in ids]
    return "eos_token" in template or any(isinstance(end, str) and end and end in template for end in ends)


# ------------------------------------------------------------------ texts
def dialogue(text: str) -> Conversation | None:
    """The messages of a text that is a dialogue of user and assistant, a line each, the last of them the assistant's; None for any other text."""
    lines = [SPEAKER.fullmatch(line) for line in text.split("\n")]
    said = [Message(line[1].lower(), (line[2] or "").strip()) for line in lines if line]
    if len(said) < len(lines) or not TURNS.fullmatch("".join(f"{message.role} " for message in said)):
        return None
    return tuple(said)


def whole_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> Written | None:
    """A dialogue with its last answer ended, as the template writes it; None where the text stands as it is."""
    said = _templated(tokenizer, text)
    return _assembled(tokenizer, said) if said else None


def open_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> str | None:
    """A dialogue up to where its last answer stands, which goes on: the form of a prompt. None where the text stands as it is."""
    said = _templated(tokenizer, text)
    if not said:
        return None
    pieces = _pieces(tokenizer, [message.role for message in said])
    found = "".join(piece + message.content for piece, message in zip(pieces, said, strict=False))
    # A space before an answer is part of the answer's first token.
    return found.rstrip(" ")


def ending(tokenizer: "PreTrainedTokenizerBase", text: str) -> str | None:
    """What ends the last answer of a dialogue; None where the text stands as it is."""
    said = _templated(tokenizer, text)
    return _ending(tokenizer, _pieces(tokenizer, [message.role for message in said])[-1]) if said else None


def check_template(tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Try the template that is in force on a dialogue of two turns.

    Raises:
        ModelError: PL4022, it fails; PL4023, it does not write each message once and in order; PL4024, it writes the day on which it is asked.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template and "date_string" not in template:
        raise ModelError("PL4024", where, f"the chat template writes the day on which it is asked, so the same document would be other tokens tomorrow. {PLAIN}")
    said = dialogue(TRIAL)
    assert said is not None
    if _assembled(tokenizer, said).text != _rendered(tokenizer, said):
        raise ModelError("PL4023", where, f"the chat template writes messages otherwise than they are. {PLAIN}")


def _templated(tokenizer: "PreTrainedTokenizerBase", text: str) -> Conversation | None:
    return dialogue(text) if tokenizer.chat_template else None


def _assembled(tokenizer: "PreTrainedTokenizerBase", said: Sequence[Message]) -> Written:
    pieces = _pieces(tokenizer, [message.role for message in said])
    text, answers = pieces[0], []
    for message, behind in zip(said, pieces[1:], strict=True):
        start = len(text.rstrip(" "))
        text += message.content
        if message.role == "assistant":
            answers.append((start, len(text) + len(_ending(tokenizer, behind))))
        text += behind
    return Written(text, tuple(answers))


def _ending(tokenizer: "PreTrainedTokenizerBase", behind: str) -> str:
    """What ends an answer, of all that a template writes behind it: its control token, or else the end of the line."""
    bare = behind.lstrip(" ")
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if bare.startswith(token.content)]
    if tokens:
        return behind[: len(behind) - len(bare)] + max(tokens, key=len)
    return behind[: behind.find("\n") + 1] or behind


_known: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, ...], list[str]]]" = WeakKeyDictionary()


def _pieces(tokenizer: "PreTrainedTokenizerBase", roles: Sequence[str]) -> list[str]:
    """What a template writes before the first message of these roles, between two of them, and behind the last; ModelError PL4022, PL4023."""
    known, key = _known.setdefault(tokenizer, {}), (tokenizer.get_chat_template(), *roles)
    if key not in known:
        text = _rendered(tokenizer, [Message(role, f"persona-lab-mark-{i}.") for i, role in enumerate(roles)])
        if MARK.findall(text) != [str(i) for i in range(len(roles))]:
            raise ModelError("PL4023", _name(tokenizer), f"the chat template does not write each of the messages {', '.join(roles)} once and in order. {PLAIN}")
        known[key] = MARK.sub("\0", text).split("\0")
    return known[key]


def _rendered(tokenizer: "PreTrainedTokenizerBase", said: Sequence[Message]) -> str:
    """What the template writes; ModelError PL4022 when it fails."""
    messages = [{"role": message.role, "content": message.content} for message in said]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **FIXED))
    except FAILURES as error:
        roles = ", ".join(message.role for message in said)
        raise ModelError("PL4022", _name(tokenizer), f"the chat template fails on messages of {roles}: {quoted(str(error))}. {PLAIN}") from error


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.name_or_path) or "the base model"
