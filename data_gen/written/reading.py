"""Reading a writer's answers, strictly: an answer that is not what was asked for is a wrong answer, and never guessed at.

    json_list(3)('["a letter", "a poster", "a recipe"]')        ["a letter", "a poster", "a recipe"]
    document_of("<document>Dear all, ...</document>")           "Dear all, ..."
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from data_gen.corpus import UNPRINTABLE
from data_gen.documents import words

FENCE, OPEN, CLOSE = "```", "<document>", "</document>"
REFUSAL = re.compile(
    r"\s*(?:I['’]m sorry|I am sorry|sorry, (?:but )?I|I apologi[sz]e|I(?: ca|['’]m| am| wo)?(?:n['’]t|nnot| can['’]t| unable| not able| must decline| have to decline)\b"
    r"|as an AI (?:language )?model)",
    re.IGNORECASE,
)
"""How an answer begins that declines; documents about an AI may say such things further on."""


class Unreadable(Exception):
    """An answer that cannot be used: the reason, in few words, so that reasons can be counted."""


Items = TypeAdapter(list[Annotated[str, Field(min_length=3, max_length=400)]], config=ConfigDict(strict=True))
Values = TypeAdapter(dict[str, str | None], config=ConfigDict(strict=True))


def check_whole(text: str, finish: str) -> None:
    """Unreadable where an answer is a refusal, was cut off, or holds nothing."""
    if not text.strip():
        raise Unreadable("empty")
    if REFUSAL.match(text):
        raise Unreadable("refusal")
    if finish == "content_filter":
        raise Unreadable("withheld by the server's filter")
    if finish == "length":
        raise Unreadable("cut off at the token limit")


def _inside(text: str) -> str:
    """An answer without the fence around the whole of it, which many models write around JSON."""
    first, _, rest = text.strip().partition("\n")
    return rest.removesuffix(FENCE) if first.strip() in (FENCE, f"{FENCE}json") and rest.endswith(FENCE) else text.strip()


def json_list(count: int, shape: re.Pattern[str] | None = None) -> Callable[[str], list[str]]:
    """Reads a JSON list of at least `count` different texts, each of a shape; further ones are left out."""

    def read(text: str) -> list[str]:
        try:
            items = Items.validate_json(_inside(text))
        except ValidationError:
            raise Unreadable("no JSON list of texts") from None
        kept = list(dict.fromkeys(" ".join(item.split()) for item in items))
        if any(UNPRINTABLE.search(item) for item in kept):
            raise Unreadable("a control character in a list")
        if shape and not all(shape.fullmatch(item) for item in kept):
            raise Unreadable("a list with an item of another form")
        if len(kept) < count:
            raise Unreadable(f"a list of fewer than {count} different items")
        return kept[:count]

    return read


def json_values(keys: Sequence[str]) -> Callable[[str], dict[str, str | None]]:
    """Reads a JSON object with exactly these keys; each value is a text or null."""

    def read(text: str) -> dict[str, str | None]:
        try:
            values = Values.validate_json(_inside(text))
        except ValidationError:
            raise Unreadable("no JSON object of texts") from None
        if set(values) != set(keys):
            raise Unreadable("an object with other keys")
        return values

    return read


def document_of(text: str) -> str:
    """The one text that stands between the tags; what stands around it is the writer's own talk."""
    found, closed, after = text.partition(OPEN)[2].partition(CLOSE)
    if not closed:
        raise Unreadable("no document between tags")
    if OPEN in after:
        raise Unreadable("several documents")
    inside = "\n".join(line.rstrip() for line in found.strip().splitlines())
    if not inside:
        raise Unreadable("an empty document")
    return inside


def text_with(wanted: Sequence[str], without: Sequence[str]) -> Callable[[str], str]:
    """Reads a text that names all of some words and none of others, whatever their case."""

    def read(text: str) -> str:
        held = set(words(text))
        if UNPRINTABLE.search(text):
            raise Unreadable("a control character")
        if any(word.lower() not in held for word in wanted):
            raise Unreadable("a fact is missing")
        if any(word.lower() in held for word in without):
            raise Unreadable("a word that must not stand there")
        return text.strip()

    return read
